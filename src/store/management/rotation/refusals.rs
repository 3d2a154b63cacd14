//! Why a key or a database is refused for a rotation.

use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{
    record::{Expiry, KeyRecord, rfc3339},
    store::{
        management::{DisplayRow, ManagementError, Result},
        schema::Schema,
    },
};

/// A clock that is this far before the creation of a key is wrong. Some applications write local times.
const CLOCK_TOLERANCE: Duration = Duration::DAY;

/// Refuses a database without the tables of rotations.
pub(super) fn needs_rotations(schema: &Schema) -> Result<()> {
    if schema.has_rotations() {
        return Ok(());
    }
    if schema.has_rotation_tables() {
        return Err(ManagementError::Refused(
            "keys can be rotated only where api_keys.id and budgets.id are numbers".into(),
        ));
    }
    Err(ManagementError::Refused(
        "the database has no table keystile_rotations, which a rotation needs; run `keystile migrate` as the owner of \
         the tables"
            .into(),
    ))
}

/// Refuses a key that does not work: a rotation must not give its owner access again.
pub(super) fn refuse_unusable(key: &KeyRecord, now: OffsetDateTime) -> Result<()> {
    let id = key.id.0;
    let why = if key.is_deleted {
        "is deleted (deleted_at is set)".to_owned()
    } else if !key.is_active {
        "is revoked (is_active is false)".to_owned()
    } else if key.expiry.is_past(now) {
        format!("expired at {}", key.expiry)
    } else if !key.user.is_active {
        format!("belongs to user {}, who is disabled", key.user.id.0)
    } else {
        return Ok(());
    };
    Err(ManagementError::Refused(format!(
        "key {id} {why}, and only a key that works can be rotated; create a new one with `keystile keys create`"
    )))
}

/// Refuses a clock that is before the key's creation. The end of the overlap would be wrong.
pub(super) fn refuse_early_clock(listed: &DisplayRow, now: OffsetDateTime) -> Result<()> {
    let created =
        listed.get("created_at").as_str().and_then(|text| OffsetDateTime::parse(text, &Rfc3339).ok());
    match created {
        Some(created) if created > now + CLOCK_TOLERANCE => Err(ManagementError::Refused(format!(
            "the clock of this machine says {}, but key {} was created at {}; set the clock, or the overlap ends at the \
             wrong time",
            rfc3339(now),
            listed.text("id"),
            rfc3339(created),
        ))),
        _ => Ok(()),
    }
}

/// Refuses an end of the key, and an expiry of the successor, that make no sense.
pub(super) fn refuse_times(
    key: &KeyRecord,
    ends_at: OffsetDateTime,
    expires_at: Option<OffsetDateTime>,
    now: OffsetDateTime,
) -> Result<()> {
    let id = key.id.0;
    let refuse = |text: String| Err(ManagementError::Refused(text));
    if ends_at < now {
        return refuse(format!("the overlap ends at {}, which is in the past", rfc3339(ends_at)));
    }
    if let Expiry::At(expiry) = key.expiry
        && ends_at > expiry
    {
        return refuse(format!(
            "the overlap would end at {}, but key {id} itself expires at {}; choose a shorter overlap",
            rfc3339(ends_at),
            rfc3339(expiry)
        ));
    }
    if let Some(expires_at) = expires_at
        && expires_at <= ends_at
    {
        return refuse(format!(
            "the successor would expire at {}, before key {id} ends at {}; choose a later expiry, or a shorter overlap",
            rfc3339(expires_at),
            rfc3339(ends_at)
        ));
    }
    Ok(())
}

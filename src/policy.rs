//! What a proven key may do now: pure, run on every request, never cached.

use time::OffsetDateTime;

use crate::{
    decision::Reason,
    record::{AllowList, KeyRecord},
};

/// Applies the key's own policy at `now`.
///
/// # Errors
/// The first [`Reason`] that stands against the key.
pub fn check(record: &KeyRecord, now: OffsetDateTime) -> Result<(), Reason> {
    if !record.is_active {
        return Err(Reason::Disabled);
    }
    if record.expiry.is_past(now) {
        return Err(Reason::Expired);
    }
    if !record.user.is_active || record.user.lock.holds(now) {
        return Err(Reason::UserInactive);
    }
    check_lists(record)
}

/// Addresses and endpoints cannot be checked yet, so a key that is restricted to some is denied:
/// letting it through would be a wider key than its owner asked for. The other lists go to the
/// upstream as headers; one that nobody can read cannot, and denies.
fn check_lists(record: &KeyRecord) -> Result<(), Reason> {
    let allowed = &record.allowed;
    let unreadable = |list: &AllowList| *list == AllowList::Unreadable;
    if allowed.ips != AllowList::Any {
        return Err(Reason::IpNotAllowed);
    }
    if allowed.endpoints != AllowList::Any {
        return Err(Reason::EndpointNotAllowed);
    }
    if unreadable(&allowed.models) {
        return Err(Reason::ModelNotAllowed);
    }
    if unreadable(&allowed.chatbots) {
        return Err(Reason::ChatbotNotAllowed);
    }
    if unreadable(&allowed.agents) {
        return Err(Reason::AgentNotAllowed);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{Expiry, Lock, sample};
    use time::{Duration, macros::datetime};

    const NOW: OffsetDateTime = datetime!(2026-01-02 03:04:05 UTC);

    fn verdict(change: impl FnOnce(&mut KeyRecord)) -> Result<(), Reason> {
        let mut record = sample::record();
        change(&mut record);
        check(&record, NOW)
    }

    #[test]
    fn good_key_is_allowed() {
        assert_eq!(verdict(|_| ()), Ok(()));
    }

    #[test]
    fn inactive_key_is_disabled_before_anything_else() {
        let expired_too = |record: &mut KeyRecord| {
            record.is_active = false;
            record.expiry = Expiry::Always;
        };
        assert_eq!(verdict(expired_too), Err(Reason::Disabled));
    }

    #[test]
    fn key_expires_at_its_very_instant() {
        let tick = Duration::NANOSECOND;
        assert_eq!(verdict(|r| r.expiry = Expiry::At(NOW)), Err(Reason::Expired));
        assert_eq!(verdict(|r| r.expiry = Expiry::At(NOW - tick)), Err(Reason::Expired));
        assert_eq!(verdict(|r| r.expiry = Expiry::At(NOW + tick)), Ok(()));
        assert_eq!(verdict(|r| r.expiry = Expiry::Always), Err(Reason::Expired));
        assert_eq!(verdict(|r| r.expiry = Expiry::Never), Ok(()));
    }

    #[test]
    fn inactive_or_locked_user_has_no_keys() {
        let tick = Duration::NANOSECOND;
        assert_eq!(verdict(|r| r.user.is_active = false), Err(Reason::UserInactive));
        assert_eq!(verdict(|r| r.user.lock = Lock::Closed), Err(Reason::UserInactive));
        assert_eq!(verdict(|r| r.user.lock = Lock::Until(NOW + tick)), Err(Reason::UserInactive));
        assert_eq!(verdict(|r| r.user.lock = Lock::Until(NOW)), Ok(()));
    }

    #[test]
    fn superuser_bypasses_nothing() {
        let inactive = |record: &mut KeyRecord| {
            record.user.is_superuser = true;
            record.user.is_active = false;
        };
        assert_eq!(verdict(inactive), Err(Reason::UserInactive));
    }

    #[test]
    fn restriction_that_cannot_be_checked_denies() {
        let some = || AllowList::Only(vec!["x".into()]);
        let bad = || AllowList::Unreadable;
        assert_eq!(verdict(|r| r.allowed.ips = some()), Err(Reason::IpNotAllowed));
        assert_eq!(verdict(|r| r.allowed.endpoints = some()), Err(Reason::EndpointNotAllowed));
        assert_eq!(verdict(|r| r.allowed.models = some()), Ok(()));
        assert_eq!(verdict(|r| r.allowed.models = bad()), Err(Reason::ModelNotAllowed));
        assert_eq!(verdict(|r| r.allowed.chatbots = bad()), Err(Reason::ChatbotNotAllowed));
        assert_eq!(verdict(|r| r.allowed.agents = bad()), Err(Reason::AgentNotAllowed));
    }
}

//! The conditions that the log's completeness depends on, verified at each read. Pure.
//!
//! A backend gathers [`Evidence`] in the statement that reads the log. [`verify`] compares it with the state at the
//! previous read ([`Known`]). It reports each condition that fails as a [`Cause`], with its consequence and its fix. No
//! other code decides whether the feed may be up.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The state of the database at one read of the log, as the database itself reports it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Evidence {
    /// Whether the server is a standby or otherwise in recovery.
    pub is_replica: bool,
    /// Identifies the server, timeline, database and log. Opaque.
    pub identity: String,
    /// The next change number. On one server it never decreases.
    pub next: u64,
    /// A fingerprint of the tables, columns and triggers. Opaque.
    pub tables: String,
    /// The newest entry of the log, with its random number. `None` if the log is empty.
    pub anchor: Option<String>,
    /// Whether the anchor of the previous read is still in the log.
    pub anchor_is_there: bool,
    /// Triggers that are missing, disabled or outdated, with their tables.
    pub untriggered: Vec<String>,
    /// Columns that decisions read but triggers do not watch.
    pub unwatched: Vec<String>,
    /// Whether row-level security hides log entries from this role, or prevents the triggers from writing them.
    pub hides_rows: bool,
    /// Whether a trigger failed to write to the log since the last migration.
    pub lost_writes: bool,
    /// Whether triggers compare columns that the tables no longer have. No change is missed because of that, but every
    /// update of a row is logged as a change.
    pub compares_dropped: bool,
    /// Whether the database notifies readers of new entries.
    pub notifies: bool,
}

/// The state of the database at the previous read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// [`Evidence::identity`].
    pub identity: String,
    /// [`Evidence::next`].
    pub next: u64,
    /// [`Evidence::tables`].
    pub tables: String,
    /// [`Evidence::anchor`].
    pub anchor: Option<String>,
}

/// Why the feed is not up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// The log could not be read.
    Unreadable,
    /// There is no log.
    LogMissing,
    /// The server is a standby.
    Replica,
    /// The database is not the one of the previous read, or it was restored to an earlier point.
    Identity,
    /// The log has no entry that could identify it.
    LogEmpty,
    /// A table has no trigger, or its trigger is disabled or outdated.
    Triggers,
    /// The triggers do not watch every column that decisions read.
    Columns,
    /// Row-level security applies to the log.
    RowsHidden,
    /// A trigger failed to write to the log.
    WritesLost,
}

/// A [`Cause`] with its details.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// Why the feed is not up.
    pub cause: Cause,
    /// The database's report. Empty where the cause needs no details.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// What an operator can do about it.
    pub fix: &'static str,
}

/// The result of verifying a read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The conditions that fail, in order. The feed is up only if there are none.
    pub problems: Vec<Problem>,
    /// Whether a change may be missing from the log. If so, the whole cache must be dropped.
    pub is_gap: bool,
}

impl Cause {
    /// All causes, in the order in which they are reported.
    pub const ALL: [Self; 9] = [
        Self::Unreadable,
        Self::LogMissing,
        Self::Replica,
        Self::Identity,
        Self::LogEmpty,
        Self::Triggers,
        Self::Columns,
        Self::RowsHidden,
        Self::WritesLost,
    ];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Unreadable => "unreadable",
            Self::LogMissing => "log_missing",
            Self::Replica => "replica",
            Self::Identity => "identity",
            Self::LogEmpty => "log_empty",
            Self::Triggers => "triggers",
            Self::Columns => "columns",
            Self::RowsHidden => "rows_hidden",
            Self::WritesLost => "writes_lost",
        }
    }

    /// The condition that failed, in words.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::Unreadable => "the log of changes could not be read",
            Self::LogMissing => "the database has no log of changes",
            Self::Replica => "the database is a standby, on which changes arrive late",
            Self::Identity => {
                "another database answers, or this one was restored; everything cached was dropped"
            }
            Self::LogEmpty => "the log of changes has no entry that identifies it",
            Self::Triggers => "a table of keys or users has no up-to-date trigger that logs its changes",
            Self::Columns => "the triggers do not watch a column that decisions read",
            Self::RowsHidden => "row-level security applies to the log of changes",
            Self::WritesLost => "a trigger could not write the log of changes",
        }
    }

    /// What an operator can do about it.
    pub fn fix(self) -> &'static str {
        match self {
            Self::Unreadable => "see the detail; the role needs SELECT on keystile_changes and its sequence",
            Self::LogMissing | Self::LogEmpty | Self::Triggers | Self::Columns => {
                "run `keystile migrate` as the owner of the tables"
            }
            Self::Replica => "set --database-url to the primary",
            Self::Identity => {
                "none if it happened once; if it persists, --database-url leads to several servers: name one"
            }
            Self::RowsHidden => {
                "run ALTER TABLE keystile_changes DISABLE ROW LEVEL SECURITY, or give the role BYPASSRLS"
            }
            Self::WritesLost => {
                "find the warning of keystile's trigger in the database's log, fix its cause, then run \
                 `keystile migrate`"
            }
        }
    }

    /// The problem, with the database's report.
    pub fn with(self, detail: impl Into<String>) -> Problem {
        Problem { cause: self, detail: detail.into(), fix: self.fix() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.cause.meaning())?;
        if !self.detail.is_empty() {
            write!(f, " ({})", self.detail)?;
        }
        Ok(())
    }
}

impl Evidence {
    /// The state that the next read is compared with.
    pub fn known(&self) -> Known {
        Known {
            identity: self.identity.clone(),
            next: self.next,
            tables: self.tables.clone(),
            anchor: self.anchor.clone(),
        }
    }
}

/// Compares a read with the previous one. This function has every condition of the feed.
pub fn verify(evidence: &Evidence, known: Option<&Known>) -> Verdict {
    if evidence.is_replica {
        // The snapshots of a standby do not list the transactions in progress, so none of its other values are
        // reliable.
        return Verdict { problems: vec![Cause::Replica.with("")], is_gap: true };
    }
    // A log with hidden entries does not show which log it is.
    let sees_log = !evidence.hides_rows;
    let is_other = known.is_some_and(|known| {
        evidence.identity != known.identity
            || evidence.next < known.next
            || (sees_log && known.anchor.is_some() && !evidence.anchor_is_there)
    });
    let tables_changed = known.is_some_and(|known| evidence.tables != known.tables);
    let conditions = [
        (Cause::Identity, is_other, String::new()),
        (Cause::LogEmpty, sees_log && evidence.anchor.is_none(), String::new()),
        (Cause::Triggers, !evidence.untriggered.is_empty(), evidence.untriggered.join(", ")),
        (Cause::Columns, !evidence.unwatched.is_empty(), evidence.unwatched.join(", ")),
        (Cause::RowsHidden, evidence.hides_rows, String::new()),
        (Cause::WritesLost, evidence.lost_writes, String::new()),
    ];
    let problems = conditions.into_iter().filter(|(_, fails, _)| *fails);
    Verdict {
        problems: problems.map(|(cause, _, detail)| cause.with(detail)).collect(),
        is_gap: is_other || tables_changed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sound() -> Evidence {
        Evidence {
            identity: "a".into(),
            next: 100,
            tables: "t".into(),
            anchor: Some("90:5".into()),
            anchor_is_there: true,
            notifies: true,
            ..Evidence::default()
        }
    }

    fn causes(evidence: &Evidence, known: Option<&Known>) -> (Vec<Cause>, bool) {
        let Verdict { problems, is_gap } = verify(evidence, known);
        (problems.into_iter().map(|problem| problem.cause).collect(), is_gap)
    }

    #[test]
    fn feed_is_up_while_every_condition_holds() {
        let known = sound().known();
        assert_eq!(causes(&sound(), None), (vec![], false));
        assert_eq!(causes(&Evidence { next: 101, ..sound() }, Some(&known)), (vec![], false));
    }

    #[test]
    fn each_condition_that_fails_has_its_cause() {
        let known = sound().known();
        for (evidence, cause, is_gap) in [
            (Evidence { is_replica: true, ..sound() }, Cause::Replica, true),
            (Evidence { identity: "b".into(), ..sound() }, Cause::Identity, true),
            (Evidence { next: 99, ..sound() }, Cause::Identity, true),
            (Evidence { anchor_is_there: false, ..sound() }, Cause::Identity, true),
            (Evidence { anchor: None, ..sound() }, Cause::LogEmpty, false),
            (Evidence { untriggered: vec!["x".into()], ..sound() }, Cause::Triggers, false),
            (Evidence { unwatched: vec!["x".into()], ..sound() }, Cause::Columns, false),
            (Evidence { hides_rows: true, ..sound() }, Cause::RowsHidden, false),
            (
                Evidence { hides_rows: true, anchor: None, anchor_is_there: false, ..sound() },
                Cause::RowsHidden,
                false,
            ),
            (Evidence { lost_writes: true, ..sound() }, Cause::WritesLost, false),
        ] {
            assert_eq!(causes(&evidence, Some(&known)), (vec![cause], is_gap), "{evidence:?}");
        }
    }

    #[test]
    fn changed_tables_drop_everything_and_are_no_problem_by_themselves() {
        let evidence = Evidence { tables: "u".into(), ..sound() };
        assert_eq!(causes(&evidence, Some(&sound().known())), (vec![], true));
    }

    #[test]
    fn problem_names_what_it_concerns() {
        let evidence = Evidence { unwatched: vec!["users.locked".into()], ..sound() };
        let verdict = verify(&evidence, None);
        assert!(verdict.problems[0].to_string().contains("users.locked"));
        for cause in Cause::ALL {
            assert!(!cause.meaning().is_empty() && !cause.fix().is_empty());
            assert_eq!(serde_json::to_value(cause).expect("a name"), cause.name());
        }
    }
}

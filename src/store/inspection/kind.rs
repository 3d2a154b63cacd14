//! The kinds of findings about a database: their codes, what they mean, and their fixes.

use crate::{
    findings::{
        Finding, Location,
        Severity::{self, Error, Note, Warning},
    },
    revocation::Cause,
};

/// What was found. Its code is stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FindingKind {
    /// A table that Keystile needs is missing.
    TableMissing,
    /// A column that Keystile needs is missing.
    ColumnMissing,
    /// The table `budgets` lacks columns, so it is not read.
    BudgetsIgnored,
    /// A column that marks rows as revoked is not read.
    RevocationUnread,
    /// A column that restricts rows is not read.
    RestrictionUnread,
    /// Further columns are not read.
    ColumnUnread,
    /// A look-up reads a whole table.
    IndexMissing,
    /// The change feed would not be up.
    Feed(Cause),
    /// Triggers compare columns that no longer exist.
    FeedDroppedColumns,
    /// The database does not notify instances.
    FeedNotNotified,
    /// There is no audit log.
    AuditMissing,
    /// The audit log does not have every change.
    AuditIncomplete,
    /// A role lacks a right.
    RightMissing,
    /// Row-level security applies.
    RowsHidden,
    /// The role has every right.
    RoleUnlimited,
    /// Other users of the machine can use the file.
    FileMode,
    /// The file cannot be written.
    FileReadOnly,
    /// More keys than are tried have one prefix.
    PrefixCrowded,
    /// A value cannot be decoded.
    Undecodable,
    /// A hash has an unknown form.
    HashUnknown,
    /// The costs of the hashes.
    HashCosts,
    /// A hash is SHA-256.
    HashSha256,
    /// A key has no user.
    UserMissing,
    /// A list that restricts a key cannot be read.
    ListUnreadable,
    /// An entry of a list matches no request.
    EntryMatchesNothing,
    /// An entry of a list matches every request.
    EntryMatchesEverything,
    /// A budget's type is unknown.
    BudgetTypeUnknown,
    /// A limit is 0.
    LimitZero,
    /// A user's account is locked.
    AccountLocked,
    /// A budget cannot be decoded.
    BudgetUndecodable,
    /// A budget belongs to no key and no user.
    BudgetWithoutOwner,
    /// A key of a rotation does not exist.
    RotationDangling,
    /// A rotated key does not end.
    RotationEndless,
    /// The keys of a chain do not count under one id.
    RotationChainBroken,
    /// Something could not be examined.
    NotExamined,
}

/// The text of a kind. In its fix, `{table}`, `{column}` and `{detail}` stand for those of the finding.
struct Description {
    code: &'static str,
    severities: &'static [Severity],
    meaning: &'static str,
    fix: &'static str,
}

impl FindingKind {
    /// All kinds, in the order of the documentation.
    pub const ALL: [Self; 42] = [
        Self::TableMissing,
        Self::ColumnMissing,
        Self::BudgetsIgnored,
        Self::RevocationUnread,
        Self::RestrictionUnread,
        Self::ColumnUnread,
        Self::IndexMissing,
        Self::Feed(Cause::Unreadable),
        Self::Feed(Cause::LogMissing),
        Self::Feed(Cause::Replica),
        Self::Feed(Cause::LogEmpty),
        Self::Feed(Cause::Triggers),
        Self::Feed(Cause::Columns),
        Self::Feed(Cause::RowsHidden),
        Self::Feed(Cause::WritesLost),
        Self::FeedDroppedColumns,
        Self::FeedNotNotified,
        Self::AuditMissing,
        Self::AuditIncomplete,
        Self::RightMissing,
        Self::RowsHidden,
        Self::RoleUnlimited,
        Self::FileMode,
        Self::FileReadOnly,
        Self::PrefixCrowded,
        Self::Undecodable,
        Self::HashUnknown,
        Self::HashCosts,
        Self::HashSha256,
        Self::UserMissing,
        Self::ListUnreadable,
        Self::EntryMatchesNothing,
        Self::EntryMatchesEverything,
        Self::BudgetTypeUnknown,
        Self::LimitZero,
        Self::AccountLocked,
        Self::BudgetUndecodable,
        Self::BudgetWithoutOwner,
        Self::RotationDangling,
        Self::RotationEndless,
        Self::RotationChainBroken,
        Self::NotExamined,
    ];

    /// Its name in reports.
    pub fn code(self) -> &'static str {
        self.description().code
    }

    /// The severities that it may have.
    pub fn severities(self) -> &'static [Severity] {
        self.description().severities
    }

    /// What it means.
    pub fn meaning(self) -> &'static str {
        self.description().meaning
    }

    /// What to do about it. `{table}`, `{column}` and `{detail}` stand for those of the finding.
    pub fn fix(self) -> &'static str {
        self.description().fix
    }

    /// A finding of this kind. `detail` may be empty.
    pub(super) fn finding(self, severity: Severity, location: Location, detail: &str) -> Finding {
        let Description { code, meaning, fix, .. } = self.description();
        let fix = fix
            .replace("{table}", location.table.as_deref().unwrap_or("the table"))
            .replace("{column}", location.column.as_deref().unwrap_or("the column"))
            .replace("{detail}", detail);
        let colon = if detail.is_empty() { "" } else { ": " };
        let message = format!("{meaning}{colon}{detail}");
        Finding { code, severity, message, location, count: None, examples: Vec::new(), fix }
    }

    fn description(self) -> Description {
        let description = |code, severities, meaning, fix| Description { code, severities, meaning, fix };
        match self {
            Self::TableMissing => description(
                "table_missing",
                &[Error],
                "Keystile needs the table, and this role does not find it, so no key is allowed",
                "let --database-url lead to the right database, and the role's search_path to the schema of the table; \
                 the role needs USAGE on that schema; in a new database run `keystile migrate`",
            ),
            Self::ColumnMissing => description(
                "column_missing",
                &[Error],
                "Keystile needs the column, and the table lacks it, so no key is allowed",
                "let --database-url lead to the right database, or add the column",
            ),
            Self::BudgetsIgnored => description(
                "budgets_ignored",
                &[Warning],
                "the table lacks columns that Keystile needs, so Keystile enforces no budget of a period",
                "if the table has the budgets of your keys, add to {table}: {detail}",
            ),
            Self::RevocationUnread => description(
                "revocation_unread",
                &[Error],
                "Keystile does not read the column, which seems to mark rows as revoked, and allows keys where it is set",
                "set is_active to false for these rows, and let the application do so",
            ),
            Self::RestrictionUnread => description(
                "restriction_unread",
                &[Warning],
                "Keystile does not read the column, which seems to restrict keys, so only the application can enforce it",
                "let the application enforce it, or move it to a column that Keystile reads",
            ),
            Self::ColumnUnread => description(
                "column_unread",
                &[Note],
                "Keystile does not read these columns",
                "none, if they restrict no key",
            ),
            Self::IndexMissing => description(
                "index_missing",
                &[Warning],
                "no index of all rows begins with the column, so a look-up reads the whole table",
                "run CREATE INDEX {table}_{column} ON {table} ({column})",
            ),
            Self::Feed(cause) => description(
                match cause {
                    Cause::Unreadable => "feed_unreadable",
                    Cause::LogMissing => "feed_log_missing",
                    Cause::Replica => "feed_replica",
                    Cause::Identity => "feed_identity",
                    Cause::LogEmpty => "feed_log_empty",
                    Cause::Triggers => "feed_triggers",
                    Cause::Columns => "feed_columns",
                    Cause::RowsHidden => "feed_rows_hidden",
                    Cause::WritesLost => "feed_writes_lost",
                },
                &[Warning],
                cause.meaning(),
                cause.fix(),
            ),
            Self::FeedDroppedColumns => description(
                "feed_dropped_columns",
                &[Warning],
                "the triggers compare a column that the table no longer has, so each update of a row counts as a change",
                "run `keystile migrate` as the owner of the tables",
            ),
            Self::FeedNotNotified => description(
                "feed_not_notified",
                &[Note],
                "the database does not notify instances of changes, so they read the log every 400 ms",
                "none, if two-phase commit needs it; otherwise run `keystile migrate --notify=on` as the owner of the tables",
            ),
            Self::AuditMissing => description(
                "audit_missing",
                &[Note],
                "there is no audit log, so changes of keys and users are not recorded",
                "run `keystile migrate` as the owner of the tables",
            ),
            Self::AuditIncomplete => description(
                "audit_incomplete",
                &[Warning],
                "the audit log does not record every change, and Keystile's own commands may refuse to make one",
                "run `keystile migrate` as the owner of the tables",
            ),
            Self::RightMissing => description(
                "right_missing",
                &[Error, Warning, Note],
                "this role lacks a right",
                "run GRANT {detail} ON {table} TO the role",
            ),
            Self::RowsHidden => description(
                "rows_hidden",
                &[Error],
                "row-level security may hide rows from this role: keys without their row are denied, and budgets without \
                 theirs are not enforced",
                "give the role BYPASSRLS, or a policy for SELECT with USING (true)",
            ),
            Self::RoleUnlimited => description(
                "role_unlimited",
                &[Note],
                "this role is a superuser or owns the tables, so the rights of the instances' role were not examined",
                "run the command with the --database-url of the instances",
            ),
            Self::FileMode => description(
                "file_mode",
                &[Error, Warning],
                "every user of the machine has access to the file with the hashes",
                "run chmod o-rwx on the file",
            ),
            Self::FileReadOnly => description(
                "file_read_only",
                &[Warning],
                "this user may not write the file or its folder, so usage, proofs and changes are not written",
                "give the user of the instances the right to write both",
            ),
            Self::PrefixCrowded => description(
                "prefix_crowded",
                &[Error, Warning],
                "the row is not among the newest eight with its prefix, which are all that are tried, so its key is denied",
                "delete revoked rows with the same prefix; replace the other keys by new ones",
            ),
            Self::Undecodable => description(
                "undecodable",
                &[Error, Note],
                "the value cannot be read, so the key is denied",
                "correct the value in {table}.{column}",
            ),
            Self::HashUnknown => description(
                "hash_unknown",
                &[Error, Note],
                "the hash has a form that Keystile does not accept, so its key is denied",
                "replace the key by a new one, or store bcrypt of the whole key with a cost of 4 to 14; for a random key of \
                 128 bits, `$sha256$` and its SHA-256 will do",
            ),
            Self::HashCosts => description(
                "hash_costs",
                &[Warning, Note],
                "costs of the hashes of keys that are allowed",
                "none up to 12; the first proof of a key takes about 0.25 s of a CPU at 12, and twice that for each step",
            ),
            Self::HashSha256 => description(
                "hash_sha256",
                &[Note],
                "the hash is SHA-256, which protects only keys with at least 128 bits of randomness: if the table leaks, \
                 weaker keys are found by trying",
                "none, if a generator made these keys with at least 22 random letters and digits; otherwise replace them",
            ),
            Self::UserMissing => description(
                "user_missing",
                &[Error, Note],
                "the key's user does not exist, so the key is denied",
                "give the key a user, or delete it",
            ),
            Self::ListUnreadable => description(
                "list_unreadable",
                &[Error, Note],
                "the list is no array of texts, or has an entry that Keystile does not accept, so the key is denied",
                "run `keystile explain ID`, which names the entry, and correct it",
            ),
            Self::EntryMatchesNothing => description(
                "entry_matches_nothing",
                &[Error, Note],
                "an entry of the list matches no request",
                "correct the entry in {table}.{column}",
            ),
            Self::EntryMatchesEverything => description(
                "entry_matches_everything",
                &[Error],
                "an entry of the list matches every request, so the budget denies them all once it is spent",
                "correct the entry in {table}.{column}",
            ),
            Self::BudgetTypeUnknown => description(
                "budget_type_unknown",
                &[Warning],
                "the type is no known period, so the budget counts as a total",
                "set {table}.{column} to total, or to a period such as monthly",
            ),
            Self::LimitZero => description(
                "limit_zero",
                &[Warning],
                "a limit of 0 allows nothing, while some services read 0 as no limit",
                "set {table}.{column} to NULL if there is no limit",
            ),
            Self::AccountLocked => description(
                "account_locked",
                &[Note],
                "the account is locked at the moment, so the keys of its user are denied",
                "none, if that is meant",
            ),
            Self::BudgetUndecodable => description(
                "budget_undecodable",
                &[Error, Note],
                "the value cannot be read, so the keys of the budget are denied",
                "correct the value in {table}.{column}",
            ),
            Self::BudgetWithoutOwner => description(
                "budget_without_owner",
                &[Note],
                "the budget is of a key or user that does not exist, so it applies to nothing",
                "delete it",
            ),
            Self::RotationDangling => description(
                "rotation_dangling",
                &[Note],
                "the rotation names a key that no longer exists; a database that gives its id to a new key would take that \
                 key for a part of the chain",
                "run DELETE FROM keystile_rotations WHERE {column} = ID, unless other keys of the chain share a budget",
            ),
            Self::RotationEndless => description(
                "rotation_endless",
                &[Warning],
                "the key was rotated, but has no expiry, so it goes on working after its successor was made",
                "set expires_at of the key, or revoke it with `keystile keys revoke ID --only`",
            ),
            Self::RotationChainBroken => description(
                "rotation_chain_broken",
                &[Warning],
                "the rotation does not count under the first key of its chain, so the chain's keys do not share limits and \
                 budgets",
                "set limit_id to that of the rotation whose successor_id is this predecessor_id, or to the predecessor_id \
                 if there is none",
            ),
            Self::NotExamined => description(
                "not_examined",
                &[Error],
                "something could not be examined, so requests may be denied or allowed by mistake",
                "remove the cause, and run the command again; for a large database give it more --database-timeout",
            ),
        }
    }
}

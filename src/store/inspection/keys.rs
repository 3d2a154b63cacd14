//! Every row of `api_keys` with its user, decoded as a look-up decodes it.

use std::collections::{BTreeMap, HashSet};

use super::{
    FindingKind, Inspector,
    batches::{Cursor, Scan},
    tally::{Observation, Tally},
    unread::UnreadColumn,
};
use crate::{
    findings::{Location, Severity},
    record::{
        KeyRecord, hash_form,
        unmatchable::{self, EntryProblem},
    },
    store::{
        MAX_RECORDS, Row, StoreError,
        decode::{self, DecodeError, lenient},
        statement::Statement,
    },
};

/// Rows beyond the newest eight of their prefix that are counted.
const CROWDED: usize = 100_000;

/// A first proof at this cost takes more than half a second.
const HIGH_COST: u32 = 13;

/// What is known before the rows are read.
struct Known<'a> {
    /// Columns that are selected after those of [`decode::COLUMNS`].
    unread: &'a [UnreadColumn],
    /// The ids of rows that no look-up returns, as texts.
    crowded: HashSet<String>,
}

/// What the rows are found to be.
#[derive(Default)]
struct Seen {
    tally: Tally,
    /// The number of keys for each cost.
    costs: BTreeMap<u32, u64>,
}

impl Inspector<'_> {
    pub(super) async fn examine_keys(&mut self, unread: &[UnreadColumn]) -> Result<(), StoreError> {
        let known = Known { unread, crowded: self.crowded().await? };
        let total = self.count("api_keys").await?;
        let columns = self.key_columns(unread);
        let scan =
            Scan { table: "api_keys", alias: "k", from: &self.schema.joined(), columns: &columns.join(", ") };
        let (mut cursor, mut seen) = (Cursor::default(), Seen::default());
        let read = loop {
            let rows = match cursor.next(self, &scan).await {
                Ok(Some(rows)) => rows,
                end => break end.map(drop),
            };
            self.inspection.keys += rows.len() as u64;
            for row in rows {
                self.examine_key(row, &known, &mut seen);
            }
            (self.progress)(self.inspection.keys);
        };
        self.inspection.findings.extend(seen.tally.findings());
        self.report_costs(&seen.costs);
        read?;
        let unseen = total.min(self.count("api_keys").await?).saturating_sub(self.inspection.keys);
        if unseen > 0 {
            let detail = format!("rows without an id, or whose id cannot be compared: {unseen}");
            let location = Location::column("api_keys", "id");
            self.report(FindingKind::NotExamined, Severity::Error, location, &detail);
        }
        Ok(())
    }

    fn key_columns(&self, unread: &[UnreadColumn]) -> Vec<String> {
        let decoded = decode::COLUMNS.iter().map(|(table, column)| match (*table, *column) {
            decode::BUDGETS | decode::CHAIN | decode::SHARED_USAGE => "NULL".to_owned(),
            (table, column) => self.schema.column(table, column),
        });
        decoded.chain(unread.iter().map(|column| self.schema.column(column.table, &column.name))).collect()
    }

    /// The ids of rows that are not among the newest of their prefix.
    async fn crowded(&self) -> Result<HashSet<String>, StoreError> {
        let (schema, dialect) = (&self.schema, self.database.statements());
        let prefix = dialect.bytewise(&format!("k.{}", schema.name("api_keys", "key_prefix")));
        let (table, id) = (schema.relation("api_keys"), schema.column("api_keys", "id"));
        let sql = format!(
            "SELECT id FROM (SELECT {id} AS id,
                row_number() OVER (PARTITION BY {prefix} {newest}) AS place FROM {table} k
                WHERE {prefix} IN (SELECT {prefix} FROM {table} k GROUP BY {prefix}
                    HAVING count(*) > {MAX_RECORDS})) AS placed
            WHERE place > {MAX_RECORDS} LIMIT {CROWDED}",
            newest = schema.newest_first(),
        );
        let rows = self.query(Statement::plain(sql)).await?;
        Ok(rows.into_iter().flatten().flatten().collect())
    }

    fn examine_key(&self, mut row: Row, known: &Known<'_>, seen: &mut Seen) {
        let unread = row.split_off(decode::COLUMNS.len());
        let hash = decode::COLUMNS.iter().position(|column| *column == decode::HASH);
        let hash = hash.and_then(|at| row[at].clone());
        let is_crowded = row[0].as_ref().is_some_and(|id| known.crowded.contains(id));
        let (record, problems) = lenient::decode_leniently(row, self.database.account_lock());
        let Some(record) = record else { return };
        let has_hash = problems.iter().all(|problem| (problem.table, problem.column) != decode::HASH);
        let examined = ExaminedKey::new(&record, &problems, self.now);
        if examined.is_allowed && has_hash {
            match record.hash.cost() {
                Some(cost) => *seen.costs.entry(cost).or_default() += 1,
                None => {
                    examined.add(FindingKind::HashSha256, Severity::Note, "key_hash", "", &mut seen.tally)
                }
            }
        }
        examined.report_problems(&problems, hash.as_deref(), &mut seen.tally);
        examined.report_lists(&mut seen.tally);
        examined.report_limits(&mut seen.tally);
        if is_crowded {
            let severity = if examined.is_allowed { Severity::Error } else { Severity::Warning };
            examined.add(FindingKind::PrefixCrowded, severity, "key_prefix", "", &mut seen.tally);
        }
        if examined.is_allowed && record.user.lock.holds(self.now) {
            let observation =
                observation(FindingKind::AccountLocked, Severity::Note, "users", "account_locked", "");
            seen.tally.add_once(observation, record.user.id.0);
        }
        for (column, value) in known.unread.iter().zip(unread) {
            if examined.is_allowed && value.is_some_and(|value| UnreadColumn::is_set(&value)) {
                let observation = observation(column.kind, column.severity, column.table, &column.name, "");
                match column.table {
                    "users" => seen.tally.add_once(observation, record.user.id.0),
                    _ => seen.tally.add(observation, examined.id),
                }
            }
        }
    }

    fn report_costs(&mut self, costs: &BTreeMap<u32, u64>) {
        let Some((highest, _)) = costs.last_key_value() else { return };
        let severity = if *highest >= HIGH_COST { Severity::Warning } else { Severity::Note };
        let detail: Vec<_> = costs.iter().map(|(cost, count)| format!("{count} of cost {cost}")).collect();
        let location = Location::column("api_keys", "key_hash");
        self.report(FindingKind::HashCosts, severity, location, &detail.join(", "));
    }
}

/// A key as far as it could be decoded.
struct ExaminedKey<'a> {
    record: &'a KeyRecord,
    /// None if it could not be decoded: what stands there may be a secret.
    id: Option<i64>,
    /// Whether its owner may expect that it is allowed: neither key nor user is disabled, and it has not expired.
    is_allowed: bool,
}

impl<'a> ExaminedKey<'a> {
    fn new(record: &'a KeyRecord, problems: &[DecodeError], now: time::OffsetDateTime) -> Self {
        let has_id = problems.iter().all(|problem| (problem.table, problem.column) != ("api_keys", "id"));
        let is_allowed =
            record.is_active && !record.is_deleted && !record.expiry.is_past(now) && record.user.is_active;
        Self { record, id: has_id.then_some(record.id.0), is_allowed }
    }

    /// What denies a key that is denied anyway is no mistake.
    fn severity(&self) -> Severity {
        if self.is_allowed { Severity::Error } else { Severity::Note }
    }

    fn add(
        &self,
        kind: FindingKind,
        severity: Severity,
        column: &'static str,
        detail: &str,
        tally: &mut Tally,
    ) {
        tally.add(observation(kind, severity, "api_keys", column, detail), self.id);
    }

    fn report_problems(&self, problems: &[DecodeError], hash: Option<&str>, tally: &mut Tally) {
        for problem in problems {
            let DecodeError { table, column, expected, .. } = *problem;
            let severity = self.severity();
            let expected = format!("it should be {expected}");
            match (table, column) {
                decode::HASH => {
                    let form = hash.map_or_else(|| "NULL".to_owned(), hash_form::name);
                    self.add(FindingKind::HashUnknown, severity, column, &form, tally);
                }
                lenient::USER_ID if problem.expected == "a value" => {
                    self.add(FindingKind::UserMissing, severity, "user_id", "", tally);
                }
                // Without an id, it is counted for each of its keys.
                lenient::USER_ID => {
                    let observation =
                        observation(FindingKind::Undecodable, severity, table, column, &expected);
                    tally.add(observation, None);
                }
                ("users", _) => {
                    let observation =
                        observation(FindingKind::Undecodable, severity, table, column, &expected);
                    tally.add_once(observation, self.record.user.id.0);
                }
                _ => self.add(FindingKind::Undecodable, severity, column, &expected, tally),
            }
        }
    }

    fn report_lists(&self, tally: &mut Tally) {
        let allowed = &self.record.allowed;
        for column in allowed.unreadable() {
            self.add(FindingKind::ListUnreadable, self.severity(), column, "", tally);
        }
        // Each problem once for a row.
        for (column, problem) in unmatchable::of_key(allowed).collect::<HashSet<_>>() {
            let (kind, why) = entry_kind(problem);
            self.add(kind, self.severity(), column, why, tally);
        }
    }

    fn report_limits(&self, tally: &mut Tally) {
        if !self.is_allowed {
            return;
        }
        let (budget, limits) = (&self.record.budget, &self.record.limits);
        let own = budget.limit_cents.filter(|_| budget.unlimited != Some(true));
        if own.is_some() && budget.has_unknown_type() {
            self.add(FindingKind::BudgetTypeUnknown, Severity::Warning, "budget_type", "", tally);
        }
        for (column, is_zero) in [
            ("budget_limit_cents", own.is_some_and(|limit| limit <= 0)),
            ("rate_limit_per_minute", limits.minute == Some(0)),
            ("rate_limit_per_hour", limits.hour == Some(0)),
            ("rate_limit_per_day", limits.day == Some(0)),
        ] {
            if is_zero {
                self.add(FindingKind::LimitZero, Severity::Warning, column, "", tally);
            }
        }
    }
}

/// The kind of finding that an entry's problem is, and the reason.
pub(super) fn entry_kind(problem: EntryProblem) -> (FindingKind, &'static str) {
    match problem {
        EntryProblem::MatchesNothing(why) => (FindingKind::EntryMatchesNothing, why),
        EntryProblem::MatchesEverything(why) => (FindingKind::EntryMatchesEverything, why),
    }
}

pub(super) fn observation(
    kind: FindingKind,
    severity: Severity,
    table: &'static str,
    column: &str,
    detail: &str,
) -> Observation {
    Observation { kind, severity, table, column: column.to_owned(), detail: detail.to_owned() }
}

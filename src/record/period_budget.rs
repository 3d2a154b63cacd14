//! Budgets of a period: rows of `budgets`, each for one key or for all keys of its user.

use std::fmt;

use time::OffsetDateTime;

use super::Expiry;

/// `budgets.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetId(pub i64);

/// The active rows of `budgets` that a key is bound by, as they were when its record was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeriodBudgets {
    /// Those that can be read, by id.
    pub rows: Vec<PeriodBudget>,
    /// Those that cannot: the key is denied, since nobody can tell what was meant.
    pub unreadable: Vec<UnreadableBudget>,
}

/// One active row of `budgets`.
#[derive(Debug, Clone, PartialEq)]
pub struct PeriodBudget {
    /// Primary key of the row.
    pub id: BudgetId,
    /// `limit_cents`.
    pub limit_cents: i64,
    /// `current_usage_cents`; NULL counts as 0.
    pub used_cents: f64,
    /// `period_start`; NULL counts as begun.
    pub start: Expiry,
    /// `period_end`; NULL never comes.
    pub end: Expiry,
    /// `auto_renew`; NULL counts as true.
    pub renews: bool,
    /// `enforce_hard_limit`; NULL counts as true.
    pub is_hard: bool,
    /// `allowed_models`: which models it is about; empty is all.
    pub models: Vec<String>,
    /// `allowed_endpoints`: which paths it is about; empty is all.
    pub endpoints: Vec<String>,
}

/// A row of `budgets` that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableBudget {
    /// Which, where that much could be read.
    pub id: Option<BudgetId>,
    /// The first column that is at fault.
    pub column: &'static str,
    /// What was expected there.
    pub expected: &'static str,
}

/// Where a budget stands in its period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The period has not begun.
    Ahead,
    /// It runs.
    Running,
    /// It is over, and what was used counts for it alone: whoever resets budgets is late.
    Renewed,
    /// It is over for good.
    Over,
}

impl PeriodBudget {
    /// Whether this budget stands against the requests that it is about.
    ///
    /// Nothing can be spent before the period begins. Once it is over, a budget that renews itself
    /// counts as unused until it is reset, and any other binds nobody. A limit of 0 is none left.
    pub fn denies(&self, now: OffsetDateTime) -> bool {
        self.is_hard
            && match self.phase(now) {
                Phase::Ahead => true,
                Phase::Running => self.limit_cents <= 0 || self.used_cents >= self.limit_cents as f64,
                Phase::Renewed => self.limit_cents <= 0,
                Phase::Over => false,
            }
    }

    /// The end first: a period that is over has begun, whatever its start says.
    fn phase(&self, now: OffsetDateTime) -> Phase {
        match (self.end.is_past(now), self.start.is_past(now)) {
            (true, _) if self.renews => Phase::Renewed,
            (true, _) => Phase::Over,
            (false, true) => Phase::Running,
            (false, false) => Phase::Ahead,
        }
    }

    /// What people who ask why are told of it.
    pub fn seen_at(&self, now: OffsetDateTime) -> String {
        Seen { budget: self, phase: self.phase(now) }.to_string()
    }
}

struct Seen<'a> {
    budget: &'a PeriodBudget,
    phase: Phase,
}

impl fmt::Display for Seen<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PeriodBudget { id, limit_cents, used_cents, start, end, is_hard, models, endpoints, .. } =
            self.budget;
        write!(f, "budget {}: ", id.0)?;
        match self.phase {
            Phase::Ahead => write!(f, "begins at {start}")?,
            Phase::Running => write!(f, "spent: {used_cents} of {limit_cents} cents until {end}")?,
            Phase::Renewed => write!(f, "spent: 0 of {limit_cents} cents, renewed at {end}")?,
            Phase::Over => write!(f, "over at {end}")?,
        }
        for (what, only) in [("models", models), ("endpoints", endpoints)] {
            if !only.is_empty() {
                write!(f, ", {what} {}", only.join(" "))?;
            }
        }
        f.write_str(if *is_hard { "" } else { ", no hard limit" })
    }
}

impl fmt::Display for UnreadableBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id {
            Some(BudgetId(id)) => write!(f, "budget {id}: {} is not {}", self.column, self.expected),
            None => write!(f, "a budget: {} is not {}", self.column, self.expected),
        }
    }
}

//! Budgets of a period: rows of `budgets`. Each is for one key or for all keys of its user.

use std::fmt;

use time::OffsetDateTime;

use super::Expiry;

/// `budgets.id`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BudgetId(pub i64);

/// The active rows of `budgets` that apply to a key, as they were when the record was read.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PeriodBudgets {
    /// The readable rows, by id.
    pub rows: Vec<PeriodBudget>,
    /// The unreadable rows. The key is denied, because the intended limit is unknown.
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
    /// `period_start`; NULL means that the period has begun.
    pub start: Expiry,
    /// `period_end`; NULL means that the period does not end.
    pub end: Expiry,
    /// `auto_renew`; NULL counts as true.
    pub renews: bool,
    /// `enforce_hard_limit`; NULL counts as true.
    pub is_hard: bool,
    /// `allowed_models`: the models that the budget applies to; empty means all.
    pub models: Vec<String>,
    /// `allowed_endpoints`: the paths that the budget applies to; empty means all.
    pub endpoints: Vec<String>,
    /// The active rows of the same budget for other keys of the chain.
    pub shared: Vec<SharedUsage>,
}

/// What another key of the chain has used of a budget: a row of `budgets` that was copied by a rotation.
#[derive(Debug, Clone, PartialEq)]
pub struct SharedUsage {
    /// Primary key of the row.
    pub id: BudgetId,
    /// `current_usage_cents`; NULL counts as 0.
    pub used_cents: f64,
    /// `period_start`; NULL means that the period has begun.
    pub start: Expiry,
    /// `period_end`; NULL means that the period does not end.
    pub end: Expiry,
}

/// A row of `budgets` that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnreadableBudget {
    /// The id, if it could be read.
    pub id: Option<BudgetId>,
    /// The first column that is invalid.
    pub column: &'static str,
    /// The value that was expected there.
    pub expected: &'static str,
}

/// The phase of a budget's period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The period has not begun.
    Ahead,
    /// The period is running.
    Running,
    /// The period is over and the budget renews itself, but the application has not reset it yet. The stored usage is
    /// that of the old period only.
    Renewed,
    /// The period is over and the budget does not renew itself.
    Over,
}

impl PeriodBudget {
    /// Whether this budget denies the requests that it applies to.
    ///
    /// Nothing can be spent before the period begins. After its end, a budget that renews itself counts as unused until
    /// it is reset, and any other budget has no effect. A limit of 0 counts as exhausted. What other keys of the chain
    /// have used counts during the period of their own row.
    pub fn denies(&self, now: OffsetDateTime) -> bool {
        self.is_hard
            && match self.phase(now) {
                Phase::Ahead => true,
                Phase::Running | Phase::Renewed => {
                    self.limit_cents <= 0 || self.used_at(now) >= self.limit_cents as f64
                }
                Phase::Over => false,
            }
    }

    /// What is used at `now`, by this key and by the others of its chain, in cents.
    pub fn used_at(&self, now: OffsetDateTime) -> f64 {
        let own = if self.phase(now) == Phase::Running { self.used_cents } else { 0.0 };
        let running = |row: &&SharedUsage| row.start.is_past(now) && !row.end.is_past(now);
        own + self.shared.iter().filter(running).map(|row| row.used_cents).sum::<f64>()
    }

    /// The end is checked first: a period that is over has begun, even if its start says otherwise.
    fn phase(&self, now: OffsetDateTime) -> Phase {
        match (self.end.is_past(now), self.start.is_past(now)) {
            (true, _) if self.renews => Phase::Renewed,
            (true, _) => Phase::Over,
            (false, true) => Phase::Running,
            (false, false) => Phase::Ahead,
        }
    }

    /// Why the budget denies no request at `now`, however much was spent.
    pub fn why_it_never_denies(&self, now: OffsetDateTime) -> Option<&'static str> {
        if !self.is_hard {
            return Some("enforce_hard_limit is false");
        }
        (self.phase(now) == Phase::Over).then_some("its period is over, and auto_renew is false")
    }

    /// Describes the budget at `now`, for explanations.
    pub fn status_at(&self, now: OffsetDateTime) -> String {
        BudgetStatus { budget: self, phase: self.phase(now), used_cents: self.used_at(now) }.to_string()
    }
}

struct BudgetStatus<'a> {
    budget: &'a PeriodBudget,
    phase: Phase,
    used_cents: f64,
}

impl fmt::Display for BudgetStatus<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PeriodBudget { limit_cents, start, end, models, endpoints, shared, .. } = self.budget;
        let used_cents = self.used_cents;
        match self.phase {
            Phase::Ahead => write!(f, "begins at {start}")?,
            Phase::Running if *end == Expiry::Never => {
                write!(f, "spent: {used_cents} of {limit_cents} cents")?
            }
            Phase::Running => write!(f, "spent: {used_cents} of {limit_cents} cents until {end}")?,
            Phase::Renewed => write!(f, "spent: {used_cents} of {limit_cents} cents, renewed at {end}")?,
            Phase::Over => write!(f, "over at {end}")?,
        }
        if !shared.is_empty() {
            let ids = shared.iter().map(|row| row.id.0.to_string()).collect::<Vec<_>>().join(", ");
            write!(f, ", together with budget {ids} of other keys of the chain")?;
        }
        for (what, only) in [("models", models), ("endpoints", endpoints)] {
            if !only.is_empty() {
                write!(f, ", {what} {}", only.join(" "))?;
            }
        }
        Ok(())
    }
}

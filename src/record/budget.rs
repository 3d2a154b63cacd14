//! What a key may spend.

use std::fmt;

/// What a key may spend and has spent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Budget {
    /// `is_unlimited`.
    pub unlimited: Option<bool>,
    /// `budget_limit_cents`.
    pub limit_cents: Option<i64>,
    /// `budget_type`, such as `total` or `monthly`.
    pub kind: Option<String>,
    /// `total_cost`, in cents.
    pub spent_cents: Option<f64>,
}

/// Kinds of budgets that are reset.
const PERIODS: [&str; 8] =
    ["hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "annual", "annually"];

impl Budget {
    /// Whether there is a budget to enforce here and nothing of it is left.
    ///
    /// A limit of 0 is none left whatever the period. Otherwise a budget of a known period is the upstream's to
    /// apply, and any other kind is a total: a restriction that cannot be understood restricts.
    pub fn is_exhausted(&self) -> bool {
        let Some(limit) = self.limit_cents.filter(|_| self.unlimited != Some(true)) else { return false };
        limit <= 0 || (!self.has_period() && self.spent_cents.unwrap_or(0.0) >= limit as f64)
    }
}

impl Budget {
    fn has_period(&self) -> bool {
        let Some(kind) = &self.kind else { return false };
        PERIODS.iter().any(|period| period.eq_ignore_ascii_case(kind.trim()))
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(limit) = self.limit_cents.filter(|_| self.unlimited != Some(true)) else {
            return f.write_str("unlimited");
        };
        let (kind, spent) = (self.kind.as_deref().unwrap_or("total"), self.spent_cents.unwrap_or(0.0));
        write!(f, "spent: {spent} of {limit} cents, {kind}")
    }
}

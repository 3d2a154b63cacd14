//! The budget of a key.

use std::fmt;

/// The amount that a key may spend, and the amount that it has spent.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Budget {
    /// `is_unlimited`.
    pub unlimited: Option<bool>,
    /// `budget_limit_cents`.
    pub limit_cents: Option<i64>,
    /// `budget_type`, such as `total` or `monthly`.
    pub kind: Option<String>,
    /// `total_cost` of the key and of those that it was rotated from and to, in cents.
    pub spent_cents: Option<f64>,
}

/// Budget types that are reset after a period.
pub const PERIODS: [&str; 8] =
    ["hourly", "daily", "weekly", "monthly", "quarterly", "yearly", "annual", "annually"];

impl Budget {
    /// Whether there is a budget to enforce here and it is used up.
    ///
    /// A limit of 0 is exhausted in every period. Otherwise, the upstream enforces a budget of a known period, and any
    /// other type counts as a total: an unknown restriction still restricts.
    pub fn is_exhausted(&self) -> bool {
        let Some(limit) = self.limit_cents.filter(|_| self.unlimited != Some(true)) else { return false };
        limit <= 0 || (!self.has_period() && self.spent_cents.unwrap_or(0.0) >= limit as f64)
    }
}

impl Budget {
    /// Whether the type is neither a total nor a known period, so that the budget counts as a total.
    pub fn has_unknown_type(&self) -> bool {
        let is_total = |kind: &String| kind.trim().eq_ignore_ascii_case("total");
        self.kind.as_ref().is_some_and(|kind| !is_total(kind)) && !self.has_period()
    }

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

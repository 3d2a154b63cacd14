//! The findings of `keystile doctor`: what will not work as its owner thinks, and what to do about it.

use std::fmt;

use serde::Serialize;

/// The consequence of a finding. The worst comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Requests are denied or allowed by mistake.
    Error,
    /// Something works, but late, slowly, or not as its owner may think.
    Warning,
    /// A fact to know. It needs no change.
    Note,
}

/// One finding. It has names and ids, and no value that could be a secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its stable name.
    pub code: &'static str,
    /// Its consequence.
    pub severity: Severity,
    /// What was found, and what it causes.
    pub message: String,
    /// Where it was found.
    #[serde(flatten)]
    pub location: Location,
    /// The number of rows with it. None where it is not about rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The ids of some of these rows.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub examples: Vec<String>,
    /// What an operator can do about it.
    pub fix: String,
}

/// Where something was found. Empty for the database, or Envoy's configuration, as a whole.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Location {
    /// A table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub table: Option<String>,
    /// A column of that table.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub column: Option<String>,
    /// A place in Envoy's configuration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// All findings, the worst first, and their number by severity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Findings of severity `error`.
    pub errors: usize,
    /// Findings of severity `warning`.
    pub warnings: usize,
    /// Findings of severity `note`.
    pub notes: usize,
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Report {
    /// Sorts and counts findings.
    pub fn new(mut findings: Vec<Finding>) -> Self {
        findings.sort_by(|a, b| {
            (a.severity, a.code, &a.location, &a.message).cmp(&(b.severity, b.code, &b.location, &b.message))
        });
        let count = |severity| findings.iter().filter(|finding| finding.severity == severity).count();
        Self {
            errors: count(Severity::Error),
            warnings: count(Severity::Warning),
            notes: count(Severity::Note),
            findings,
        }
    }
}

impl Location {
    /// A table.
    pub fn table(table: impl Into<String>) -> Self {
        Self { table: Some(table.into()), ..Self::default() }
    }

    /// A column of a table.
    pub fn column(table: impl Into<String>, column: impl Into<String>) -> Self {
        Self { table: Some(table.into()), column: Some(column.into()), path: None }
    }

    /// A place in Envoy's configuration.
    pub fn path(path: impl Into<String>) -> Self {
        Self { path: Some(path.into()), ..Self::default() }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Note => "note",
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.table, &self.column, &self.path) {
            (Some(table), Some(column), _) => write!(f, "{table}.{column}"),
            (Some(table), None, _) => f.write_str(table),
            (None, _, Some(path)) => f.write_str(path),
            (None, _, None) => f.write_str("database"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, code: &'static str, location: Location) -> Finding {
        Finding {
            code,
            severity,
            message: String::new(),
            location,
            count: None,
            examples: vec![],
            fix: String::new(),
        }
    }

    #[test]
    fn worst_findings_come_first_and_are_counted() {
        let report = Report::new(vec![
            finding(Severity::Note, "a", Location::default()),
            finding(Severity::Error, "b", Location::column("t", "y")),
            finding(Severity::Warning, "a", Location::table("t")),
            finding(Severity::Error, "b", Location::column("t", "x")),
        ]);
        let order: Vec<_> = report.findings.iter().map(|found| found.location.to_string()).collect();
        assert_eq!(order, ["t.x", "t.y", "t", "database"]);
        assert_eq!((report.errors, report.warnings, report.notes), (2, 1, 1));
    }

    #[test]
    fn fields_without_a_value_are_omitted() {
        let json = serde_json::to_value(finding(Severity::Note, "a", Location::table("t"))).expect("JSON");
        let names: Vec<_> = json.as_object().expect("an object").keys().cloned().collect();
        assert_eq!(names, ["code", "fix", "message", "severity", "table"]);
        assert_eq!(json["severity"], "note");
    }
}

//! The text of a document, as a value. Errors have a place and no content.

use serde_json::Value;

/// Maximum length of a document in bytes. The dump of an Envoy with thousands of routes has a few megabytes.
pub const MAX_BYTES: usize = 64 << 20;

/// What a document is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DocumentKind {
    /// The configuration that Envoy is started with.
    Bootstrap,
    /// The answer of `/config_dump`.
    ConfigDump,
}

/// Why a document cannot be examined.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DocumentError {
    /// There is nothing.
    #[error("it is empty")]
    Empty,
    /// It is too long.
    #[error("it is longer than {} MiB", MAX_BYTES >> 20)]
    TooLong,
    /// It is no JSON.
    #[error("line {line}, column {column}: it is no JSON, or its values are nested too deeply")]
    Json {
        /// From 1.
        line: usize,
        /// From 1.
        column: usize,
    },
    /// It is no YAML.
    #[error("line {line}, column {column}: it is no YAML, has a key twice, or is nested or expanded too far")]
    Yaml {
        /// From 1.
        line: u64,
        /// From 1.
        column: u64,
    },
    /// It is something else.
    #[error(
        "it is no configuration of Envoy: it has no static_resources and no configs; give the file that Envoy is started \
         with, the answer of /config_dump, or the URL of Envoy's admin listener"
    )]
    NotEnvoy,
    /// It is a part of a dump.
    #[error("it is a filtered dump without the listeners; ask for /config_dump without parameters")]
    Filtered,
}

/// A document of a known kind.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) kind: DocumentKind,
    pub(super) value: Value,
}

impl Document {
    /// Reads JSON or YAML.
    pub(super) fn parse(text: &str) -> Result<Self, DocumentError> {
        if text.len() > MAX_BYTES {
            return Err(DocumentError::TooLong);
        }
        let text = text.trim_start_matches('\u{feff}').trim();
        if text.is_empty() {
            return Err(DocumentError::Empty);
        }
        let value = if text.starts_with('{') {
            json(text).or_else(|error| yaml(text).map_err(|_| error))
        } else {
            yaml(text)
        }?;
        let has = |name: &str| value.get(name).is_some_and(|part| !part.is_null());
        let kind = if value.get("configs").is_some_and(Value::is_array) {
            DocumentKind::ConfigDump
        } else if ["static_resources", "staticResources", "dynamic_resources", "dynamicResources"]
            .into_iter()
            .any(has)
        {
            DocumentKind::Bootstrap
        } else {
            return Err(DocumentError::NotEnvoy);
        };
        Ok(Self { kind, value })
    }
}

fn json(text: &str) -> Result<Value, DocumentError> {
    serde_json::from_str(text)
        .map_err(|error| DocumentError::Json { line: error.line(), column: error.column() })
}

fn yaml(text: &str) -> Result<Value, DocumentError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location();
        let (line, column) = place.map_or((1, 1), |place| (place.line(), place.column()));
        DocumentError::Yaml { line, column }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> DocumentError {
        Document::parse(text).expect_err("no document")
    }

    #[test]
    fn kind_is_told_from_the_content() {
        let kind = |text| Document::parse(text).expect("a document").kind;
        assert_eq!(kind("static_resources: {}"), DocumentKind::Bootstrap);
        assert_eq!(kind(r#"{"dynamicResources": {}}"#), DocumentKind::Bootstrap);
        assert_eq!(kind(r#"{"configs": []}"#), DocumentKind::ConfigDump);
        assert_eq!(kind("{static_resources: {}}"), DocumentKind::Bootstrap, "flow style is YAML");
    }

    #[test]
    fn other_documents_are_refused_with_a_place_and_without_content() {
        assert_eq!(error(" \n"), DocumentError::Empty);
        assert_eq!(error("kind: EnvoyFilter\nspec: {}"), DocumentError::NotEnvoy);
        assert_eq!(error("[1, 2]"), DocumentError::NotEnvoy);
        assert_eq!(error("{\"a\":\n \"secret\" x"), DocumentError::Json { line: 2, column: 11 });
        assert!(matches!(error("a: b\n c: ["), DocumentError::Yaml { line: 2, .. }));
        assert!(matches!(
            error("static_resources: {}\nstatic_resources: {}"),
            DocumentError::Yaml { line: 2, .. }
        ));
        assert_eq!(error(&"x".repeat(MAX_BYTES + 1)), DocumentError::TooLong);
    }

    #[test]
    fn nesting_and_expansion_are_bounded() {
        let nested = format!("{{\"configs\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(matches!(error(&nested), DocumentError::Json { .. }));
        assert!(matches!(error(&format!("a: {}", "[".repeat(100_000))), DocumentError::Yaml { .. }));
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..12 {
            let below = format!("*a{}, ", level - 1).repeat(10);
            bomb += &format!("a{level}: &a{level} [{below}]\n");
        }
        assert!(matches!(error(&bomb), DocumentError::Yaml { .. }));
    }
}

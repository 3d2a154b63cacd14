//! The version and the commit of this build.

use std::sync::LazyLock;

/// The version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The commit. Only builds by `tools/build-binary` know it.
pub const COMMIT: Option<&str> = option_env!("KEYSTILE_COMMIT");

/// The text of `keystile --version`, without the name.
pub fn version_and_commit() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| match COMMIT {
        Some(commit) => format!("{VERSION} ({commit})"),
        None => VERSION.to_owned(),
    });
    &TEXT
}

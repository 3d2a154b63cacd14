//! Credentials and prefixes are read by the rule, and by nothing else.

use keystile::credential::{Credential, Prefix};

/// Fails if a fact does not hold for this input.
pub fn check(bytes: &[u8]) {
    let good = bytes.iter().all(|byte| (0x21..=0x7e).contains(byte) && *byte != b',');
    let credential = Credential::parse(bytes);
    assert_eq!(credential.is_ok(), good && (8..=72).contains(&bytes.len()));
    if let Ok(credential) = credential {
        assert_eq!(credential.expose().as_bytes(), bytes);
        assert_eq!(credential.prefix().as_str().as_bytes(), &bytes[..8]);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        let prefix = Prefix::parse(text);
        assert_eq!(prefix.is_ok(), good && bytes.len() == 8);
        assert!(prefix.is_ok_and(|prefix| prefix.as_str() == text) || !good || bytes.len() != 8);
    }
}

//! A stored hash is read by the rule, in one form each, and shows nothing of itself.

use keystile::{
    credential::{CacheSecret, CacheSecrets, Credential},
    record::{HashKind, KeyHash, Sha256Hash},
};

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let secret = CacheSecret::new(b"a secret that the input does not know");
    if let Ok(hash) = KeyHash::parse_redacted(text) {
        assert!(!text.starts_with('$'), "never from a database");
        assert_eq!(
            KeyHash::parse_redacted(&hash.redacted(&secret)),
            Ok(hash.clone()),
            "read as it is written"
        );
    }
    let Ok(hash) = text.parse::<KeyHash>() else { return };
    assert_eq!(text.parse(), Ok(hash.clone()));
    assert!(hash.is_whole());
    let redacted = hash.redacted(&secret);
    assert!(redacted.parse::<KeyHash>().is_err(), "never back from Redis");
    for shown in [format!("{hash:?}"), redacted] {
        assert!(!shown.contains(&text[8..]), "{shown}");
    }
    match hash.kind() {
        HashKind::Bcrypt(bcrypt) => {
            assert!((4..=14).contains(&bcrypt.cost()) && text.len() == 60);
            // It matches something or nothing, and is never malformed for the library.
            assert_eq!(bcrypt.expose().map(str::len), Some(60));
        }
        HashKind::Sha256(stored) => {
            assert!(text.starts_with("$sha256$") && matches!(text.len(), 51 | 72));
            assert_eq!(stored.expose().parse(), Ok(hash.clone()), "one form for both notations");
            let other = Credential::parse(b"ks_some-credential-or-other").expect("well-formed");
            let secrets = CacheSecrets::one(secret);
            assert!(!stored.matches(&Sha256Hash::of(&other), Some(&secrets)));
        }
    }
}

//! Values of settings are read or refused, and no password is shown of them.

use std::{borrow::Cow, fmt::Debug, str::FromStr};

use keystile::{
    config::{
        BcryptCost, CredentialSource, DatabaseUrl, DurableProofs, FailedAttemptsLimit, Listen, Quantity,
        RedisUrl, redacted,
    },
    credential::{brands::KeyBrand, generate::Brand},
};

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let password = password(text);
    let hidden = |shown: String| {
        if let Some(password) = password {
            assert!(!shown.contains(password), "{shown}");
        }
    };
    reads::<DatabaseUrl>(text).into_iter().for_each(hidden);
    reads::<RedisUrl>(&without_tls(text)).into_iter().for_each(hidden);
    redacted(text).into_iter().for_each(hidden);
    if let Ok(url) = text.parse::<DatabaseUrl>() {
        hidden(url.to_string());
    }
    reads::<Listen>(text);
    reads::<CredentialSource>(text);
    reads::<BcryptCost>(text);
    reads::<DurableProofs>(text);
    reads::<FailedAttemptsLimit>(text);
    reads::<Quantity>(text);
    reads::<KeyBrand>(text);
    if let Ok(brand) = text.parse::<Brand>() {
        assert!(text.len() <= Brand::MAX_LEN && brand.to_string() == text);
    }
}

/// The same URL for Redis without TLS. With it, each reading loads the machine's certificates, which takes far longer than all
/// the rest.
fn without_tls(text: &str) -> Cow<'_, str> {
    match ["rediss", "valkeys"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => format!("redis{rest}").into(),
        None => text.into(),
    }
}

/// How a value is shown, if it is read.
fn reads<T: FromStr + Debug>(text: &str) -> Option<String> {
    text.parse::<T>().ok().map(|value| format!("{value:?}"))
}

/// The password of a URL, if it is long enough not to be there by chance and nowhere else in the text.
fn password(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let (credentials, _) = rest.split_once('@')?;
    let (_, password) = credentials.split_once(':')?;
    // Before any of these, a colon is no end of a user's name.
    let is_userinfo = !credentials.contains(['/', '?', '#', '\\']);
    (is_userinfo && password.len() >= 6 && text.matches(password).count() == 1).then_some(password)
}

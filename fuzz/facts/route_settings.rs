//! Route settings are followed or refused, in whatever order they come. The input is a path and
//! then names and values, a line each.

use std::collections::BTreeMap;

use keystile::attributes::{body::Body, route::RouteSettings};

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let mut lines = text.split('\n');
    let path = lines.next().unwrap_or_default();
    let lines: Vec<_> = lines.collect();
    // Envoy's extensions are a map: no name comes twice.
    let pairs: BTreeMap<_, _> = lines.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
    let pairs = || pairs.iter().map(|(name, value)| (*name, *value));
    let has = |name, value| pairs().any(|pair| pair == (name, value));

    let parsed = RouteSettings::parse(pairs());
    let reversed = RouteSettings::parse(pairs().collect::<Vec<_>>().into_iter().rev());
    assert_eq!(parsed.as_ref().ok(), reversed.as_ref().ok(), "order means nothing");
    let ours = pairs().filter(|(name, _)| name.starts_with("keystile.")).count();
    let Ok(settings) = parsed else {
        assert!(ours > 0, "what is not ours is not refused");
        return;
    };
    assert!(ours > 0 || settings == RouteSettings::default());
    // What makes a route more open is written down in so many words.
    assert_eq!(settings.credential_optional, has("keystile.credential", "optional"));
    assert_eq!(settings.model_ignored, has("keystile.model", "ignore"));
    assert_eq!(settings.shadow == Some(true), has("keystile.mode", "shadow"));
    assert!(!settings.admits_anonymous() || (settings.credential_optional && settings.scopes.is_empty()));
    let sources = [settings.chatbot, settings.agent].into_iter().flatten();
    for name in sources.filter_map(|source| source.find(path, &Body::Absent).ok()) {
        assert!(
            !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '%']),
            "{name}"
        );
    }
}

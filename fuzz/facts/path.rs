//! Paths have one spelling, and patterns match what they say. The input is a path and, on a second
//! line, a pattern.

use keystile::record::{endpoint::Endpoint, path::NormalPath};

/// Fails if a fact does not hold for this input.
pub fn check(text: &str) {
    let (path, pattern) = text.split_once('\n').unwrap_or((text, ""));
    let path = NormalPath::parse(path);
    if let Ok(path) = &path {
        is_normal(path);
    }
    let Ok(endpoint) = pattern.parse::<Endpoint>() else { return };
    assert_eq!(endpoint.to_string().parse(), Ok(endpoint.clone()), "a pattern is read as it is shown");
    // Any value will do: there must be some path that the pattern is for.
    let shown = endpoint.to_string();
    let (method, pattern) = shown.split_once(' ').unwrap_or(("GET", &shown));
    let example = NormalPath::parse(&pattern.replace("**", "any").replace('*', "any"));
    assert!(endpoint.matches(method, &example.expect("a normal path")), "{shown} matches something");
    if let Ok(path) = &path {
        endpoint.matches(method, path);
    }
}

fn is_normal(path: &NormalPath) {
    let text = spelling(path);
    assert_eq!(NormalPath::parse(&text).as_ref(), Ok(path), "twice is once");
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\;?#".contains(&byte)), "{text}");
    let segments: Vec<_> = path.segments().collect();
    let (last, inner) = segments.split_last().expect("a path has segments");
    assert!(!matches!(*last, "." | ".."), "{text}");
    assert!(inner.iter().all(|segment| !matches!(*segment, "" | "." | "..")), "{text}");
    match text.parse::<Endpoint>() {
        Ok(endpoint) => assert!(endpoint.matches("GET", path), "{endpoint} matches itself"),
        Err(_) => assert!(text.contains('*'), "{text} is no pattern"),
    }
}

fn spelling(path: &NormalPath) -> String {
    path.segments().flat_map(|segment| ["/", segment]).collect()
}

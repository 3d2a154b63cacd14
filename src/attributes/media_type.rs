//! Checks the headers of a body: whether every server reads the body as JSON in UTF-8, and as nothing else.
//!
//! A body can be valid JSON and valid in another format: `{"a": "&model=b&", "model": "c"}` is also a form that names
//! another model. So a header is trusted only if Keystile understands every byte of it, and only if it is of the plain
//! kind that every server reads the same way. With any other header the body is unreadable, which denies keys that are
//! restricted to some models.

use mediatype::{MediaType, Name, Value, names};

/// Whether these are the values of one `Content-Type` header for JSON in UTF-8, or there is no such header.
pub fn is_json_in_utf8<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> bool {
    match header_values(values) {
        HeaderValues::None => true,
        HeaderValues::One(value) => std::str::from_utf8(value).is_ok_and(is_plain_json),
        HeaderValues::Several => false,
    }
}

/// Whether these are the values of one header with this coding only, or there is no such header.
pub fn is_coded_as<'a>(coding: &str, values: impl IntoIterator<Item = &'a [u8]>) -> bool {
    match header_values(values) {
        HeaderValues::None => true,
        HeaderValues::One(value) => value.eq_ignore_ascii_case(coding.as_bytes()),
        HeaderValues::Several => false,
    }
}

/// The values of one header. If there are several, a server may use the first, the last or all of them.
enum HeaderValues<'a> {
    None,
    One(&'a [u8]),
    Several,
}

fn header_values<'a>(values: impl IntoIterator<Item = &'a [u8]>) -> HeaderValues<'a> {
    let mut values = values.into_iter();
    match (values.next(), values.next()) {
        (None, _) => HeaderValues::None,
        (Some(value), None) => HeaderValues::One(value),
        (Some(_), Some(_)) => HeaderValues::Several,
    }
}

fn is_plain_json(text: &str) -> bool {
    let Ok(media) = MediaType::parse(text) else { return false };
    let is_json = match media.suffix {
        None => (media.ty == names::APPLICATION || media.ty == names::TEXT) && media.subty == names::JSON,
        Some(suffix) => {
            media.ty == names::APPLICATION && suffix == names::JSON && is_plain(media.subty.as_str())
        }
    };
    is_json
        && media.params.iter().enumerate().all(|(at, (name, value))| {
            // If two parameters have the same name, a server may use either.
            let is_first = media.params[..at].iter().all(|(earlier, _)| earlier != name);
            is_first && if *name == names::CHARSET { is_utf8(*value) } else { are_plain(*name, *value) }
        })
}

/// Compares the text as it is written: servers read an escaped character in different ways.
fn is_utf8(charset: Value<'_>) -> bool {
    let charset = charset.as_str();
    let unquoted = charset.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(charset);
    unquoted.eq_ignore_ascii_case("utf-8") || unquoted.eq_ignore_ascii_case("utf8")
}

fn are_plain(name: Name<'_>, value: Value<'_>) -> bool {
    is_plain(name.as_str()) && is_plain(value.as_str())
}

/// Whether a name or value is safe with a server that searches the header for a word: it has no quotes, no separators,
/// and no word that names another kind of body or a charset.
fn is_plain(text: &str) -> bool {
    const WORDS: [&str; 10] = [
        "www-form",
        "form-data",
        "urlencoded",
        "multipart",
        "charset",
        "boundary",
        "xml",
        "yaml",
        "grpc",
        "utf",
    ];
    let is_name = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    let lower = text.to_ascii_lowercase();
    !text.is_empty() && text.bytes().all(is_name) && WORDS.iter().all(|word| !lower.contains(word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn is_read(value: impl AsRef<[u8]>) -> bool {
        is_json_in_utf8([value.as_ref()])
    }

    #[test]
    fn plain_json_is_read() {
        for value in [
            "application/json",
            "Application/JSON",
            "text/json",
            "application/json;",
            "application/json ; charset=utf-8",
            "application/json;\tCharset=UTF8",
            "application/json; charset=\"utf-8\"",
            "application/json; charset=utf-8; version=1.2",
            "application/vnd.api+json",
            "application/vnd.platform.v2+json; charset=utf-8",
        ] {
            assert!(is_read(value), "{value}");
        }
        assert!(is_json_in_utf8([]), "no header says nothing else");
    }

    #[test]
    fn what_a_server_could_read_as_something_else_is_not_read() {
        for value in [
            "",
            "json",
            "application",
            "application/",
            "/json",
            "text/plain",
            "text/vnd.api+json",
            "application/jsonp",
            "application/x-www-form-urlencoded",
            "application/x-www-form-urlencoded,x+json",
            "application/x-www-form-urlencoded+json",
            "application/x-www-form-urlencoded;x+json",
            "application/x-www-form-urlencoded x+json",
            "application/multipart.form-data+json; a=b",
            "application/json+json+",
            "application/a+b+json",
            "application/json,application/json",
            "application/json, application/x-www-form-urlencoded",
            "application/json application/json",
            "application/json;charset",
            "application/json;charset=",
            "application/json;charset =utf-16",
            "application/json;charset= utf-16",
            "application/json;charset*=utf-16",
            "application/json;charset*=utf-8''utf-16",
            "application/json;charset*0=utf-16",
            "application/json;xcharset=utf-16",
            "application/json;charset=utf-16",
            "application/json;charset=us-ascii",
            "application/json;charset='utf-8'",
            "application/json;charset=\"utf-8",
            "application/json;charset=\"utf\\-8\"",
            "application/json;charset=utf-8;charset=utf-8",
            "application/json;charset=utf-8;CHARSET=utf-16",
            "application/json;a=1;A=2",
            "application/json;;charset=utf-8",
            "application/json;a=\"; charset=utf-16\"",
            "application/json;a=\"application/x-www-form-urlencoded\"",
            "application/json;boundary=x",
            "application/json;charset=utf-8\u{a0}",
            "application/json\u{0}",
            " application/json",
            "*/json",
        ] {
            assert!(!is_read(value), "{value:?}");
        }
        assert!(!is_read(b"application/json\xff"), "not text");
        assert!(!is_json_in_utf8([&b"application/json"[..], b"application/json"]), "two headers");
    }

    /// Pieces for building wrong headers; some pieces are right.
    fn piece() -> impl Strategy<Value = String> {
        let known = proptest::sample::select(
            &[
                "application/json",
                "text/json",
                "application/",
                "json",
                "+json",
                "x-www-form-urlencoded",
                "multipart/form-data",
                "charset",
                "=",
                "utf-8",
                "utf-16",
                "\"",
                ";",
                ",",
                " ",
                "\t",
                "*",
                "\\",
                "a",
                "1",
                "'",
                "boundary",
                "/",
                "\u{e9}",
            ][..],
        );
        prop_oneof![12 => known.prop_map(str::to_owned), 1 => "[ -~]{1,3}"]
    }

    /// The results of careless servers: each way in which such a server splits, searches or unquotes the header. This
    /// test oracle shares no code with the grammar.
    fn careless_readings(value: &str) -> Vec<(String, Option<String>)> {
        let lower = value.to_ascii_lowercase();
        let media = |end: &[char]| lower.split(end).next().unwrap_or_default().trim().to_owned();
        let charset = |value: &str, marker: &str| {
            let (_, rest) = value.split_once(marker)?;
            let rest = rest.trim_start_matches([' ', '\t', '=']);
            Some(rest.trim_matches('"').split([';', ',', ' ', '"']).next().unwrap_or_default().to_owned())
        };
        let charsets = [
            charset(&lower, "charset"),
            lower.rfind("charset").and_then(|at| charset(&lower[at..], "charset")),
        ];
        let medias = [media(&[';']), media(&[';', ',']), media(&[';', ',', ' '])];
        medias
            .iter()
            .flat_map(|media| charsets.iter().map(move |charset| (media.clone(), charset.clone())))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4096))]

        #[test]
        fn header_that_is_read_is_json_in_utf8_to_every_careless_server(pieces in proptest::collection::vec(piece(), 0..8)) {
            for value in [pieces.concat(), format!("application/json;{}", pieces.concat())] {
                if !is_read(&value) {
                    continue;
                }
                for (media, charset) in careless_readings(&value) {
                    let json = media == "application/json" || media == "text/json" || media.ends_with("+json");
                    prop_assert!(json && !media.contains("form"), "{:?} is {:?}", value, media);
                    prop_assert!(charset.as_deref().is_none_or(|charset| matches!(charset, "utf-8" | "utf8")), "{:?} is in {:?}", value, charset);
                }
                for word in ["urlencoded", "multipart", "form-data", "boundary", "utf-16"] {
                    prop_assert!(!value.contains(word), "{:?} has {}", value, word);
                }
            }
        }
    }
}

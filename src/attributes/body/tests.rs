//! Which names are read from a body, and which bodies are refused.

use super::*;
use proptest::prelude::*;

/// The models in the default fields, joined.
fn models(body: impl AsRef<[u8]>) -> Result<String, NoName> {
    models_in("model,models,fallbacks", body)
}

fn models_in(fields: &str, body: impl AsRef<[u8]>) -> Result<String, NoName> {
    let fields = ModelFields::parse(fields).expect("fields");
    let models = Body::Whole(body.as_ref().into()).models(&fields)?;
    Ok(models.iter().collect::<Vec<_>>().join(" "))
}

fn name(body: impl AsRef<[u8]>) -> Result<String, NoName> {
    Body::Whole(body.as_ref().into()).name("agent_config_id")
}

#[test]
fn one_model_is_read() {
    for body in [
        r#"{"model":"gpt-4o"}"#,
        r#" {"messages":[{"model":"x"}],"model":"gpt-4o","stream":true} "#,
        r#"{"mod\u0065l":"gpt\u002d4o"}"#,
        r#"{"a":1,"a":2,"model":"gpt-4o"}"#,
        r#"{"models":null,"model":"gpt-4o","fallbacks":[]}"#,
        r#"{"model":"gpt-4o","engine":"o1","modelss":["o1"]}"#,
    ] {
        assert_eq!(models(body).as_deref(), Ok("gpt-4o"), "{body}");
    }
}

#[test]
fn further_models_of_a_router_are_read() {
    for (body, expected) in [
        (r#"{"model":"a","models":["b","c"]}"#, "a b c"),
        (r#"{"models":["b"],"fallbacks":["c"],"model":"a"}"#, "a b c"),
        (r#"{"model":"a","models":"b"}"#, "a b"),
        (r#"{"model":"a","fallb\u0061cks":["c"],"x":{"models":["d"]}}"#, "a c"),
    ] {
        assert_eq!(models(body).as_deref(), Ok(expected), "{body}");
    }
    let default = Body::Whole(br#"{"model":"a","models":["b"],"fallbacks":["c"]}"#.into());
    let read = default.models(&ModelFields::default()).expect("models");
    assert_eq!(read.iter().collect::<Vec<_>>(), ["a", "b", "c"]);
}

#[test]
fn fields_of_the_route_replace_the_default_ones() {
    let body = r#"{"model":"a","models":["b"],"engine":"c","routes":["d"]}"#;
    assert_eq!(models_in("engine,routes", body).as_deref(), Ok("c d"));
    assert_eq!(models_in("model", body).as_deref(), Ok("a"));
    assert_eq!(models_in("models,model", body), Err(NoName::Unclear), "the first holds one model");
    assert_eq!(models_in("route,model", body), Err(NoName::Unclear), "the first must be there");
}

#[test]
fn what_an_upstream_could_read_differently_is_refused() {
    for body in [
        "",
        "null",
        "[]",
        r#"[{"model":"gpt-4o"}]"#,
        r#""model""#,
        "{}",
        r#"{"Model":"gpt-4o"}"#,
        r#"{"model":null}"#,
        r#"{"model":["gpt-4o"]}"#,
        r#"{"model":4}"#,
        r#"{"model":"gpt-4o","model":"gpt-4o"}"#,
        r#"{"model":"gpt-4o","mod\u0065l":"o1"}"#,
        r#"{"model":"gpt-4o","MODEL":"o1"}"#,
        r#"{"MODEL":"o1","model":"gpt-4o"}"#,
        r#"{"model":"gpt-4o"}{"model":"o1"}"#,
        r#"{"model":"gpt-4o"} x"#,
        r#"{"model":"gpt-4o",}"#,
        r#"{"model":"gpt-4o""#,
        r#"{'model':'gpt-4o'}"#,
        "\u{feff}{\"model\":\"gpt-4o\"}",
        "{\"model\":\"gpt\n4o\"}",
        // The further models.
        r#"{"models":["gpt-4o"]}"#,
        r#"{"model":"gpt-4o","Models":["o1"]}"#,
        r#"{"model":"gpt-4o","models":["gpt-4o"],"models":["o1"]}"#,
        r#"{"model":"gpt-4o","models":[["o1"]]}"#,
        r#"{"model":"gpt-4o","models":["gpt-4o",null]}"#,
        r#"{"model":"gpt-4o","models":{"0":"o1"}}"#,
        r#"{"model":"gpt-4o","models":1}"#,
        r#"{"model":"gpt-4o","models":true}"#,
        r#"{"model":"gpt-4o","fallbacks":[{"gpt-4o":["o1"]}]}"#,
        r#"{"model":"gpt-4o","fallbacks":[{"model":"o1"}]}"#,
        // Go's encoding/json reads both as the name with plain letters.
        "{\"model\":\"gpt-4o\",\"model\u{17f}\":[\"o1\"]}",
        "{\"model\":\"gpt-4o\",\"fallbac\u{212a}s\":[\"o1\"]}",
        r#"{"model":"gpt-4o","fallbac\u212as":["o1"]}"#,
    ] {
        assert_eq!(models(body), Err(NoName::Unclear), "{body}");
    }
    let utf16: Vec<u8> = r#"{"model":"gpt-4o"}"#.encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_eq!(models(utf16), Err(NoName::Unclear));
    assert_eq!(models(b"{\"model\":\"gpt\xff\"}"), Err(NoName::Unclear));
    assert_eq!(models(b"{\"model\":\"gpt-4o\",\"a\":\"\xff\"}"), Err(NoName::Unclear));
    assert_eq!(
        models(format!("{}1{}", r#"{"a":"#.repeat(100_000), "}".repeat(100_000))),
        Err(NoName::Unclear)
    );
    assert_eq!(Body::Absent.models(&ModelFields::default()), Err(NoName::Absent));
    assert_eq!(Body::Unreadable.models(&ModelFields::default()), Err(NoName::Unreadable));
}

#[test]
fn list_of_models_is_bounded() {
    let body = |count: usize| format!(r#"{{"model":"m","models":{:?}}}"#, vec!["m"; count]);
    assert_eq!(models(body(64)).map(|models| models.split(' ').count()), Ok(65));
    assert_eq!(models(body(65)), Err(NoName::Unclear));
}

#[test]
fn name_is_a_text_or_a_whole_number() {
    for (value, expected) in [
        (r#""clerk""#, "clerk"),
        ("7", "7"),
        ("-7", "-7"),
        ("18446744073709551615", "18446744073709551615"),
        (r#"" 7""#, " 7"),
    ] {
        let body = format!(r#"{{"x":{{"agent_config_id":1}},"agent_config_id":{value}}}"#);
        assert_eq!(name(&body).as_deref(), Ok(expected), "{body}");
    }
    for value in [
        "null",
        "true",
        "7.0",
        "7e0",
        "-0",
        r#""""#,
        "[7]",
        r#"["clerk"]"#,
        "{}",
        "1e400",
        "18446744073709551616",
    ] {
        let body = format!(r#"{{"agent_config_id":{value}}}"#);
        assert_eq!(name(&body), Err(NoName::Unclear), "{body}");
    }
    for body in [
        "{}",
        r#"{"agent_config_id":7,"agent_config_id":8}"#,
        r#"{"agent_config_id":7,"Agent_Config_Id":8}"#,
        r#"{"agent_config_id":7}x"#,
        r#"[{"agent_config_id":7}]"#,
    ] {
        assert_eq!(name(body), Err(NoName::Unclear), "{body}");
    }
    assert_eq!(Body::Absent.name("agent_config_id"), Err(NoName::Absent));
    assert_eq!(Body::Unreadable.name("agent_config_id"), Err(NoName::Unreadable));
}

proptest! {
    #[test]
    fn agrees_with_a_whole_document(names in proptest::collection::vec("model|Model|a|b", 0..5), values in proptest::collection::vec("\"[a-z]{0,3}\"|1|null|\\[\\]|\\{\"model\":\"x\"\\}", 5)) {
        let members: Vec<_> = names.iter().zip(&values).map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let body = format!("{{{}}}", members.join(","));
        let named = |wanted: &str| names.iter().zip(&values).filter(|(name, _)| *name == wanted).map(|(_, value)| value.clone()).collect::<Vec<_>>();
        let expected = match (named("model").as_slice(), named("Model").as_slice()) {
            ([value], []) => serde_json::from_str(value).map_err(|_| NoName::Unclear),
            _ => Err(NoName::Unclear),
        };
        prop_assert_eq!(models(&body), expected, "{}", body);
    }

    /// Every model of a body that is read is one of those in a whole document, and the other way round.
    #[test]
    fn further_models_agree_with_a_whole_document(
        further in proptest::collection::vec(
            ("models|fallbacks|Models|other", "\"[a-z]{1,2}\"|null|1|\\[\\]|\\[\"x\"\\]|\\[\"x\",\"y\"\\]|\\[1\\]|\\{\\}"), 0..4,
        ),
    ) {
        let members: String = further.iter().map(|(name, value)| format!(",\"{name}\":{value}")).collect();
        let body = format!("{{\"model\":\"m\"{members}}}");
        let count = |wanted: &str| further.iter().filter(|(name, _)| name == wanted).count();
        let ours: Vec<_> = further.iter().filter(|(name, _)| name != "other").collect();
        let values = ours.iter().map(|(_, value)| serde_json::from_str(value).expect("JSON"));
        let names: Option<Vec<Vec<String>>> = values
            .map(|value: serde_json::Value| match value {
                serde_json::Value::Null => Some(vec![]),
                serde_json::Value::String(name) => Some(vec![name]),
                list => serde_json::from_value(list).ok(),
            })
            .collect();
        let is_clear = count("Models") == 0 && count("models") < 2 && count("fallbacks") < 2;
        let expected = names.filter(|_| is_clear).map(|names| [&["m".to_owned()][..], &names.concat()].concat().join(" "));
        prop_assert_eq!(models(&body).ok(), expected, "{}", body);
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(model) = models_in("model", &bytes) {
            let whole: serde_json::Value = serde_json::from_slice(&bytes).expect("it was JSON");
            prop_assert_eq!(whole["model"].as_str(), Some(&*model));
        }
    }
}

//! The OpenAPI document.

use keystile::management_api::document;

use super::*;

const PAGE: &str = "docs/reference/openapi.json";

#[tokio::test]
async fn document_is_served_and_committed() {
    let (setup, _) = setup();
    let api = Management::start(&setup, &[]).await;
    let (status, served) = api.get("", "/openapi.json").await;
    assert_eq!((status, &served["openapi"]), (200, &json!("3.1.0")));
    let text = format!("{}\n", serde_json::to_string_pretty(&document()).unwrap());
    let file = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(PAGE);
    if std::env::var_os("KEYSTILE_BLESS").is_some() {
        std::fs::write(&file, &text).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(committed == text, "{PAGE} is out of date: KEYSTILE_BLESS=1 writes it");
    assert_eq!(serde_json::from_str::<Value>(&committed).unwrap(), served);
}

#[tokio::test]
async fn document_describes_each_column_of_a_key_and_a_user() {
    let (setup, token) = setup();
    setup.create_key("ada", &[]);
    let api = Management::start(&setup, &[]).await;
    let described = serde_json::to_value(document()).unwrap();
    for (path, list, schema) in [("/v1/keys", "keys", "Key"), ("/v1/users", "users", "User")] {
        let (_, page) = api.get(&token, path).await;
        let mut fields: Vec<_> = page[list][0].as_object().unwrap().keys().cloned().collect();
        let properties = described["components"]["schemas"][schema]["properties"].as_object().unwrap();
        let mut described: Vec<_> = properties.keys().cloned().collect();
        // Those that only some answers have.
        let some = [
            "instances",
            "credential",
            "also_revoked",
            "chain",
            "rotated_",
            "predecessor_",
            "requests_since",
        ];
        described.retain(|field| !some.iter().any(|some| field.starts_with(some)));
        fields.sort();
        described.sort();
        assert_eq!(fields, described, "{schema}");
    }
}

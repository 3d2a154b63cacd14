//! Databases that refuse a change, or keep a row as it is.

use serde_json::json;

use super::{assert_fields, patch, places, show, update};
use crate::harness::{keystile::keystile, place::Place};

#[tokio::test]
async fn field_without_a_column_is_refused_and_the_others_are_not_written() {
    for place in [Place::sqlite_older().await, Place::postgres_older().await] {
        place.user().await;
        place.key("7", &[]).await;
        let before = show(&place);
        let said = update(&place, &["--name", "b", "--allowed-agent", "a"]).failed(1);
        assert!(said.contains("no column allowed_agents"), "{said}");
        assert_eq!(show(&place), before);
        let settings = ["--name", "b", "--tag", "t", "--allowed-model", "m", "--budget-limit-cents", "7"];
        let expected = json!({"name": "b", "tags": ["t"], "allowed_models": ["m"], "budget_limit_cents": 7});
        assert_fields(&update(&place, &settings).json(), &expected);
    }
}

#[tokio::test]
async fn role_without_the_right_to_update_gets_an_error_and_changes_nothing() {
    let place = &places().await[1];
    let schema = place.value("SELECT current_schema()").await.unwrap();
    let role = format!("reads_{schema}");
    place
        .execute(&format!(
            "CREATE ROLE {role} LOGIN; GRANT USAGE ON SCHEMA {schema} TO {role};
            GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {role}"
        ))
        .await;
    let url = place.url().replace("keystile@", &format!("{role}@"));
    assert!(url.contains(&role), "{url}");
    let before = show(place);
    let said = keystile(&["keys", "update", "7", "--name", "b"], &url, "").failed(1);
    assert!(said.contains("permission denied") && said.contains("--database-url"), "{said}");
    // Dry runs need no rights beyond those to read.
    let dry = keystile(&["keys", "update", "7", "--name", "b", "--dry-run", "-o", "json"], &url, "").json();
    assert_eq!(dry[0]["after"], "b");
    assert_eq!(show(place), before);
}

#[tokio::test]
async fn row_that_the_database_keeps_as_it_is_is_not_said_to_be_updated() {
    let place = &places().await[1];
    place
        .execute(
            "CREATE FUNCTION keep_name() RETURNS trigger LANGUAGE plpgsql
                AS 'BEGIN NEW.name = OLD.name; RETURN NEW; END';
            CREATE TRIGGER keep_name BEFORE UPDATE ON api_keys FOR EACH ROW EXECUTE FUNCTION keep_name()",
        )
        .await;
    let before = show(place);
    let said = update(place, &["--name", "b", "--tag", "t"]).failed(1);
    assert!(said.contains("name: the database left the row as it is"), "{said}");
    assert_eq!(show(place), before, "the tag neither");
}

#[tokio::test]
async fn computed_column_is_refused_and_a_time_that_is_none_is_left_alone() {
    for place in [Place::no_file(), Place::empty_schema().await] {
        place
            .execute(
                "CREATE TABLE users (id integer PRIMARY KEY, email text);
                INSERT INTO users VALUES (1, 'ada@example.com');
                CREATE TABLE api_keys (id integer PRIMARY KEY, key_prefix text, key_hash text, user_id integer,
                    status text, updated_at bigint, name text,
                    is_active boolean GENERATED ALWAYS AS (status = 'on') STORED);
                INSERT INTO api_keys (id, key_prefix, key_hash, user_id, status, updated_at)
                    VALUES (7, 'ks_sampl', 'x', 1, 'on', 42)",
            )
            .await;
        let said = update(&place, &["--disable"]).failed(1);
        assert!(said.contains("is_active: the database computes this column"), "{said}");
        assert_fields(&patch(&place, r#"{"name": "b"}"#).json(), &json!({"name": "b", "is_active": true}));
        let kept = place.value("SELECT CAST(updated_at AS text) FROM api_keys").await;
        assert_eq!(kept.as_deref(), Some("42"), "seconds since 1970, or something else");
    }
}

#[tokio::test]
async fn names_of_columns_in_other_cases_are_written() {
    let place = Place::empty_schema().await;
    place
        .execute(
            "CREATE TABLE users (id integer PRIMARY KEY, email text);
            INSERT INTO users VALUES (1, 'ada@example.com');
            CREATE TABLE api_keys (\"ID\" integer PRIMARY KEY, \"Key_Prefix\" text, \"KEY_HASH\" text, \"User_Id\" integer,
                \"Is_Active\" boolean, \"Tags\" text[], \"Updated_At\" timestamptz);
            INSERT INTO api_keys VALUES (7, 'ks_sampl', 'x', 1, true, NULL, '2020-01-01')",
        )
        .await;
    let updated = update(&place, &["--disable", "--tag", "a"]).json();
    assert_fields(&updated, &json!({"is_active": false, "tags": ["a"]}));
    assert!(!updated["updated_at"].as_str().unwrap().starts_with("2020"), "{updated}");
}

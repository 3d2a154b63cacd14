//! The management API: a process, its callers, and what it does to the database.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use reqwest::{Method, header::HeaderMap};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::harness::{
    client,
    management::{Management, answered},
    process::free_port,
    service::Setup,
    until,
};

mod access;
mod document;
mod once;
mod programs;
mod requests;
mod start;

const SOON: Duration = Duration::from_secs(20);

/// A database with a user `ada`, and a token that may do everything.
fn setup() -> (Setup, String) {
    let setup = Setup::new();
    setup.create_user("ada");
    let token = setup.create_token("ops", &["--scope", "write"]);
    (setup, token)
}

fn problem(answer: &(u16, Value), status: u16, code: &str) {
    assert_eq!((answer.0, answer.1["code"].as_str()), (status, Some(code)), "{answer:?}");
    assert_eq!(answer.1["status"], json!(status));
    assert_eq!(answer.1["type"], json!(format!("urn:keystile:management:{code}")));
    assert!(answer.1["request_id"].is_string() && answer.1["title"].is_string(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_created_changed_and_revoked_and_instances_follow() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let keystile = setup.start(&[]).await;
    let channel = client::channel(keystile.setup.tcp).await;
    let status = async |credential: &str| client::status(&client::ask(&channel, credential).await);

    let new = json!({ "user": "ada@example.com", "name": "laptop", "scopes": ["chat"], "rate_limit_per_minute": 60 });
    let (code, key) = api.post(&token, "/v1/keys", &new).await;
    assert_eq!(code, 201, "{key}");
    let credential = key["credential"].as_str().unwrap().to_owned();
    assert_eq!((&key["name"], &key["scopes"]), (&json!("laptop"), &json!(["chat"])));
    assert_eq!(status(&credential).await, 200);

    let path = format!("/v1/keys/{}", key["id"]);
    let (code, read) = api.get(&token, &path).await;
    assert_eq!((code, read.get("credential")), (200, None));
    // The resource is the one that the command line prints.
    let mut printed = keystile.setup.json(&["keys", "show", &key["id"].to_string()]);
    printed["last_used_at"] = read["last_used_at"].clone();
    printed["total_requests"] = read["total_requests"].clone();
    assert_eq!(read, printed);

    let found = api.post(&token, "/v1/keys/identify", &json!({ "credential": credential })).await;
    assert_eq!((found.0, &found.1["id"]), (200, &key["id"]));
    let other = format!("{}x", &credential[..credential.len() - 1]);
    problem(&api.post(&token, "/v1/keys/identify", &json!({ "credential": other })).await, 404, "not_found");

    let (code, changed) = api.patch(&token, &format!("{path}?wait=5s"), &json!({ "is_active": false })).await;
    assert_eq!((code, &changed["is_active"]), (200, &json!(false)), "{changed}");
    assert_eq!(status(&credential).await, 401);
    let (code, _) = api.patch(&token, &format!("{path}?wait=5s"), &json!({ "is_active": true })).await;
    assert_eq!((code, status(&credential).await), (200, 200));

    let revoke = api.request(&token, Method::POST, &format!("{path}/revoke?wait=5s"));
    let (code, revoked) = answered(revoke.send().await.unwrap()).await;
    assert_eq!((code, &revoked["is_active"]), (200, &json!(false)));
    assert_eq!(status(&credential).await, 401);
    let (_, list) = api.get(&token, "/v1/keys").await;
    assert_eq!(list, json!({ "keys": [], "next": null }));
    let (_, list) = api.get(&token, "/v1/keys?state=all&user=ada@example.com").await;
    assert_eq!(list["keys"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn change_of_an_older_version_is_refused() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let (_, key) = api.post(&token, "/v1/keys", &json!({ "user": "ada@example.com", "name": "one" })).await;
    let path = format!("/v1/keys/{}", key["id"]);
    let read = api.request(&token, Method::GET, &path).send().await.unwrap();
    let etag = read.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(etag, format!("\"{}\"", key["version"].as_str().unwrap()));
    let patch = async |etag: &str, name: &str| {
        let request = api.request(&token, Method::PATCH, &path).header("if-match", etag);
        let request = request.header("content-type", "application/merge-patch+json");
        request.body(json!({ "name": name }).to_string()).send().await.unwrap()
    };
    let changed = patch(&etag, "two").await;
    assert_eq!((changed.status().as_u16(), changed.headers()["etag"] != etag), (200, true));
    problem(&answered(patch(&etag, "three").await).await, 412, "version_mismatch");
    problem(&answered(patch("\"0000000000000000\", W/\"x\"", "three").await).await, 412, "version_mismatch");
    assert_eq!(patch("*", "four").await.status(), 200);
    assert_eq!(api.get(&token, &path).await.1["name"], "four");
}

#[tokio::test]
async fn user_is_created_changed_and_listed() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let new = json!({ "email": "bob@example.com", "username": "bob", "role": "dev" });
    let (code, user) = api.post(&token, "/v1/users", &new).await;
    assert_eq!(
        (code, &user["email"], &user["role"]),
        (201, &json!("bob@example.com"), &json!("dev")),
        "{user}"
    );
    problem(&api.post(&token, "/v1/users", &new).await, 409, "refused");
    let path = format!("/v1/users/{}", user["id"]);
    let (code, changed) = api.patch(&token, &path, &json!({ "is_active": false, "role": null })).await;
    assert_eq!((code, &changed["is_active"], &changed["role"]), (200, &json!(false), &Value::Null));
    assert_eq!(api.get(&token, &path).await.1, changed);
    let taken = api.patch(&token, &path, &json!({ "username": "ada" })).await;
    problem(&taken, 409, "refused");
    assert!(taken.1["detail"].as_str().unwrap().contains("username"), "{taken:?}");
    // What only the database knows is a refusal too, and its reason is in the log under the id of the request.
    setup.execute("CREATE TRIGGER odd BEFORE UPDATE ON users BEGIN SELECT RAISE(ABORT, 'no such day'); END");
    let refused = api.patch(&token, &path, &json!({ "username": "robert" })).await;
    problem(&refused, 409, "refused");
    let id = refused.1["request_id"].as_str().unwrap();
    assert!(api.log().lines().any(|line| line.contains(id) && line.contains("no such day")), "{}", api.log());
    setup.execute("DROP TRIGGER odd");
    let (_, page) = api.get(&token, "/v1/users?limit=1").await;
    assert_eq!(page["users"].as_array().unwrap().len(), 1);
    let next = format!("/v1/users?limit=1&after={}", page["next"].as_str().unwrap());
    let (_, page) = api.get(&token, &next).await;
    assert_eq!((&page["users"][0]["id"], &page["next"]), (&user["id"], &Value::Null));
    let (_, page) = api.get(&token, "/v1/users?email=BOB@example.com").await;
    assert_eq!(page["users"][0]["id"], user["id"]);
}

#[tokio::test]
async fn pages_of_keys_have_each_key_once() {
    let (setup, token) = setup();
    let keys: Vec<_> = (0..5).map(|_| setup.create_key("ada", &[]).id).collect();
    let api = Management::start(&setup, &[]).await;
    for order in ["", "&sort=name", "&sort=created&reverse=true"] {
        let (mut seen, mut after) = (Vec::new(), String::new());
        loop {
            let (code, page) = api.get(&token, &format!("/v1/keys?limit=2{order}{after}")).await;
            assert_eq!(code, 200, "{page}");
            seen.extend(page["keys"].as_array().unwrap().iter().map(|key| key["id"].as_i64().unwrap()));
            let Some(next) = page["next"].as_str() else { break };
            after = format!("&after={next}");
        }
        seen.sort_unstable();
        assert_eq!(seen, keys, "{order}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn key_is_rotated_and_both_work_until_the_end() {
    let (setup, token) = setup();
    let old = setup.create_key("ada", &["--rate-limit-per-minute", "60"]);
    let api = Management::start(&setup, &[]).await;
    let keystile = setup.start(&[]).await;
    let channel = client::channel(keystile.setup.tcp).await;
    let status = async |credential: &str| client::status(&client::ask(&channel, credential).await);
    let path = format!("/v1/keys/{}/rotate", old.id);
    let rotate = async |body: Value| {
        let request = api.request(&token, Method::POST, &format!("{path}?wait=5s")).json(&body);
        answered(request.header("idempotency-key", "r1").send().await.unwrap()).await
    };
    let (code, rotated) = rotate(json!({ "overlap": "7d", "name": "next" })).await;
    assert_eq!(code, 201, "{rotated}");
    let new = rotated["successor"]["credential"].as_str().unwrap();
    assert_eq!(
        (&rotated["successor"]["name"], &rotated["successor"]["rate_limit_per_minute"]),
        (&json!("next"), &json!(60))
    );
    assert_eq!((status(&old.credential).await, status(new).await), (200, 200));
    let (code, again) = rotate(json!({ "overlap": "7d", "name": "next" })).await;
    assert_eq!((code, again["successor"].get("credential")), (201, None));
    assert_eq!(again["successor"]["id"], rotated["successor"]["id"]);
    keystile.setup.execute("UPDATE keystile_idempotency SET status = NULL, answer = NULL");
    assert_eq!(
        rotate(json!({ "overlap": "7d", "name": "next" })).await.1["successor"]["id"],
        rotated["successor"]["id"]
    );
    problem(&api.post(&token, &path, &json!({})).await, 409, "refused");
    problem(&api.post(&token, &path, &json!({ "overlap": "soon" })).await, 422, "invalid");
    let read = api.get(&token, &format!("/v1/keys/{}", old.id)).await.1;
    assert_eq!(read["rotated_to"], rotated["successor"]["id"]);

    let revoke = format!("/v1/keys/{}/revoke?wait=5s", old.id);
    let (code, revoked) = answered(api.request(&token, Method::POST, &revoke).send().await.unwrap()).await;
    assert_eq!((code, &revoked["also_revoked"]), (200, &json!([rotated["successor"]["id"]])), "{revoked}");
    assert_eq!((status(&old.credential).await, status(new).await), (401, 401));
}

#[tokio::test]
async fn explanation_is_the_one_of_the_command_line() {
    let (setup, token) = setup();
    let key = setup.create_key("ada", &["--allowed-model", "gpt-4*"]);
    let api = Management::start(&setup, &[]).await;
    let id = key.id.to_string();
    let asked = json!({ "method": "POST", "path": "/v1/chat/completions", "model": "o1", "at": "2026-01-02T03:04:05Z" });
    let (status, explained) = api.post(&token, &format!("/v1/keys/{id}/explain"), &asked).await;
    let arguments = ["explain", &id, "--method", "POST", "--path", "/v1/chat/completions", "--model", "o1"];
    let printed = setup.json(&[&arguments[..], &["--at", "2026-01-02T03:04:05Z"]].concat());
    assert_eq!((status, &explained), (200, &printed));
    assert_eq!(explained["code"], "model_not_allowed");
}

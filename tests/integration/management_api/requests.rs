//! Requests that are wrong, and what they get.

use super::*;

#[tokio::test]
async fn wrong_requests_get_problems_that_name_the_field() {
    let (setup, token) = setup();
    let key = setup.create_key("ada", &[]);
    let api = Management::start(&setup, &[]).await;
    let path = format!("/v1/keys/{}", key.id);
    for (body, status, code, field) in [
        (json!({}), 422, "invalid", "user"),
        (json!({ "user": "nobody@example.com" }), 422, "invalid", "user"),
        (json!({ "user": true }), 422, "invalid", "user"),
        (json!({ "user": 1, "scopes": "chat" }), 422, "invalid", "scopes"),
        (json!({ "user": 1, "scopes": ["a b"] }), 422, "invalid", "scopes"),
        (json!({ "user": 1, "name": "" }), 422, "invalid", "name"),
        (json!({ "user": 1, "name": "a\0b" }), 422, "invalid", "name"),
        (json!({ "user": 1, "tags": ["a\0b"] }), 422, "invalid", "tags"),
        (json!({ "user": 1, "allowed_ips": ["10.0.0.256"] }), 422, "invalid", "allowed_ips"),
        (json!({ "user": 1, "rate_limit_per_minute": -1 }), 422, "invalid", "rate_limit_per_minute"),
        (json!({ "user": 1, "expires_at": "2020-01-01T00:00:00Z" }), 422, "invalid", "expires_at"),
        (json!({ "user": 1, "expires_at": "soon" }), 422, "invalid", "expires_at"),
        (json!({ "user": 1, "key_hash": "$2b$" }), 422, "invalid", "key_hash"),
        (json!({ "user": 1, "is_active": false }), 422, "invalid", "is_active"),
        (json!({ "user": 1, "nmae": "x" }), 422, "invalid", "nmae"),
    ] {
        let answer = api.post(&token, "/v1/keys", &body).await;
        problem(&answer, status, code);
        assert_eq!(answer.1["field"], json!(field), "{body}: {answer:?}");
    }
    for (patch, field) in [
        (json!({ "id": 7 }), "id"),
        (json!({ "user_id": 2 }), "user_id"),
        (json!({ "is_active": null }), "is_active"),
        (json!({ "nmae": "x" }), "nmae"),
        (json!({ "total_requests": 0 }), "total_requests"),
    ] {
        let answer = api.patch(&token, &path, &patch).await;
        problem(&answer, 422, "invalid");
        assert_eq!(answer.1["field"], json!(field), "{patch}: {answer:?}");
    }
    for (query, field) in [
        ("?limit=0", "limit"),
        ("?limit=201", "limit"),
        ("?limit=1&limit=2", "limit"),
        ("?after=x", "after"),
        ("?sort=age", "sort"),
        ("?state=odd", "state"),
        ("?unused_since=soon", "unused_since"),
        ("?colour=red", "colour"),
        ("?prefix=%00", "prefix"),
    ] {
        let answer = api.get(&token, &format!("/v1/keys{query}")).await;
        problem(&answer, 400, "malformed");
        assert_eq!(answer.1["field"], json!(field), "{query}: {answer:?}");
    }
    problem(&api.patch(&token, &format!("{path}?wait=31s"), &json!({ "name": "x" })).await, 400, "malformed");
    assert_eq!(api.get(&token, &path).await.1["name"], "test", "nothing was changed");
}

#[tokio::test]
async fn wrong_paths_methods_and_bodies_get_problems_too() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let send = async |method: Method, path: &str, content_type: &str, body: Vec<u8>| {
        let request = api.request(&token, method, path).header("content-type", content_type).body(body);
        let answer = request.send().await.unwrap();
        assert_eq!(answer.headers()["content-type"], "application/problem+json", "{path}");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        answer
    };
    let json = "application/json";
    for (method, path, content_type, body, status, code) in [
        (Method::GET, "/", json, vec![], 404, "not_found"),
        (Method::GET, "/v1/nothing", json, vec![], 404, "not_found"),
        (Method::GET, "/v1/keys/0", json, vec![], 404, "not_found"),
        (Method::GET, "/v1/keys/01", json, vec![], 404, "not_found"),
        (Method::GET, "/v1/keys/ks_abcde", json, vec![], 404, "not_found"),
        (Method::GET, "/v1/keys/99999999999999999999", json, vec![], 404, "not_found"),
        (Method::GET, "/v1/users/9223372036854775807", json, vec![], 404, "not_found"),
        (Method::DELETE, "/v1/keys", json, vec![], 405, "method_not_allowed"),
        (Method::PUT, "/v1/users/1", json, vec![], 405, "method_not_allowed"),
        (Method::POST, "/v1/keys", "text/plain", b"{}".to_vec(), 415, "unsupported_media_type"),
        (Method::PATCH, "/v1/users/1", json, b"{}".to_vec(), 415, "unsupported_media_type"),
        (Method::POST, "/v1/keys", json, b"{".to_vec(), 400, "malformed"),
        (Method::POST, "/v1/keys", json, b"[]".to_vec(), 400, "malformed"),
        (Method::POST, "/v1/keys", json, b"\xff".to_vec(), 400, "malformed"),
        (Method::POST, "/v1/keys", json, br#"{"user": 1, "user": 2}"#.to_vec(), 400, "malformed"),
        (Method::POST, "/v1/keys", json, vec![b'['; 60_000], 400, "malformed"),
        (Method::POST, "/v1/keys", json, vec![b' '; 65_537], 413, "too_large"),
    ] {
        let answer = send(method.clone(), path, content_type, body).await;
        if status == 405 {
            assert!(answer.headers().contains_key("allow"), "{path}");
        }
        problem(&answered(answer).await, status, code);
    }
    let answer =
        api.request(&token, Method::GET, "/v1/users").header("x-request-id", "mine-7").send().await.unwrap();
    assert_eq!(
        (answer.status().as_u16(), &answer.headers()["x-request-id"]),
        (200, &"mine-7".parse().unwrap())
    );
    let answer = api.request("", Method::GET, "/v1/users").send().await.unwrap();
    assert!(answer.headers()["www-authenticate"].to_str().unwrap().starts_with("Bearer"));
}

#[tokio::test(flavor = "multi_thread")]
async fn wait_says_which_instances_have_not_confirmed() {
    let database = crate::harness::postgres::Schema::create().await;
    let setup = Setup::with_database(&database.url());
    assert!(setup.run(&["migrate"]).status.success());
    setup.create_user("ada");
    let token = setup.create_token("ops", &["--scope", "write"]);
    let portal = setup.create_token("portal", &["--scope", "own", "--user", "ada@example.com"]);
    let api = Management::start(&setup, &[]).await;
    let revoke = async |token: &str, id: i64| {
        let request = api.request(token, Method::POST, &format!("/v1/keys/{id}/revoke?wait=2s"));
        answered(request.send().await.unwrap()).await
    };
    // No instance listens, so none has confirmed.
    let (status, key) = revoke(&token, setup.create_key("ada", &[]).id).await;
    assert_eq!((status, &key["instances"]), (202, &json!({ "confirmed": [], "missing": [] })), "{key}");

    let keys: Vec<_> = (0..4).map(|_| setup.create_key("ada", &[]).id).collect();
    let keystile = setup.start(&[]).await;
    let (status, key) = revoke(&token, keys[0]).await;
    assert_eq!((status, key["instances"]["confirmed"].as_array().unwrap().len()), (200, 1), "{key}");
    let (status, key) = revoke(&portal, keys[1]).await;
    assert_eq!((status, &key["instances"]), (200, &json!({ "confirmed": 1, "missing": 0 })), "{key}");
    let user = api.patch(&token, "/v1/users/1?wait=5s", &json!({ "role": "x" })).await;
    assert_eq!((user.0, user.1["instances"]["confirmed"].as_array().unwrap().len()), (200, 1), "{user:?}");

    keystile.process.signal(Signal::STOP);
    let (status, key) = revoke(&token, keys[2]).await;
    assert_eq!((status, key["instances"]["missing"].as_array().unwrap().len()), (202, 1), "{key}");
    assert_eq!(key["is_active"], json!(false), "it is committed all the same");
    let (status, key) = revoke(&portal, keys[3]).await;
    assert_eq!((status, &key["instances"]), (202, &json!({ "confirmed": 0, "missing": 1 })), "{key}");
    keystile.process.signal(Signal::CONT);
}

#[tokio::test]
async fn lost_database_is_a_503_and_comes_back() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    std::fs::rename(setup.path("keystile.db"), setup.path("gone.db")).unwrap();
    let answer = api.get(&token, "/v1/users").await;
    problem(&answer, 503, "unavailable");
    std::fs::rename(setup.path("gone.db"), setup.path("keystile.db")).unwrap();
    until("it is back", SOON, async || api.get(&token, "/v1/users").await.0 == 200).await;
}

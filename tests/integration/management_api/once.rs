//! Requests with an idempotency key.

use super::*;

/// Creates a key, with an idempotency key.
async fn create(api: &Management, token: &str, key: &str, name: &str) -> (u16, HeaderMap, Value) {
    let body = json!({ "user": "ada@example.com", "name": name });
    let request = api.request(token, Method::POST, "/v1/keys").header("idempotency-key", key).json(&body);
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    (status, headers, answer.json().await.unwrap_or_default())
}

fn keys(setup: &Setup) -> String {
    setup.value("SELECT count(*) FROM api_keys")
}

#[tokio::test]
async fn replay_gets_the_same_answer_without_the_secret() {
    let (setup, token) = setup();
    let other = setup.create_token("other", &["--scope", "write"]);
    let api = Management::start(&setup, &[]).await;
    let (status, headers, mut first) = create(&api, &token, "a", "one").await;
    assert_eq!((status, headers.get("idempotency-replayed")), (201, None));
    let credential = first.as_object_mut().unwrap().remove("credential").unwrap();
    for _ in 0..2 {
        let (status, headers, again) = create(&api, &token, "a", "one").await;
        assert_eq!(
            (status, &headers["idempotency-replayed"], &again),
            (201, &"true".parse().unwrap(), &first)
        );
    }
    assert_eq!(keys(&setup), "1");
    let (status, _, body) = create(&api, &token, "a", "two").await;
    problem(&(status, body), 422, "idempotency_key_reused");
    // Another caller has keys of its own, and so has another process of the same caller.
    assert_eq!(create(&api, &other, "a", "two").await.0, 201);
    let second = Management::start(&setup, &[]).await;
    assert_eq!(create(&second, &token, "a", "one").await.2, first);
    assert_eq!(keys(&setup), "2");
    let path = format!("/v1/keys/{}/revoke", first["id"]);
    for _ in 0..2 {
        let request = api.request(&token, Method::POST, &path).header("idempotency-key", "b");
        assert_eq!(answered(request.send().await.unwrap()).await.1["is_active"], json!(false));
    }
    let stored = std::fs::read(setup.path("keystile.db")).unwrap();
    let credential = credential.as_str().unwrap().as_bytes();
    assert!(!stored.windows(credential.len()).any(|part| part == credential), "the secret is in the file");
    for bad in ["", "a b", &"k".repeat(256)] {
        assert_eq!(create(&api, &token, bad, "x").await.0, 400, "{bad:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_at_once_on_two_processes_create_one_key() {
    let (setup, token) = setup();
    let apis = [Management::start(&setup, &[]).await, Management::start(&setup, &[]).await].map(Arc::new);
    for round in 0..5 {
        let requests: Vec<_> = (0..8)
            .map(|at| {
                let (api, token) = (Arc::clone(&apis[at % 2]), token.clone());
                tokio::spawn(async move {
                    create(&api, &token, &format!("round {round}").replace(' ', "-"), "one").await
                })
            })
            .collect();
        let mut secrets = 0;
        for request in requests {
            let (status, _, body) = request.await.unwrap();
            assert!(status == 201 || (status == 409 && body["code"] == "in_progress"), "{status}: {body}");
            secrets += usize::from(body.get("credential").is_some());
        }
        assert_eq!((secrets, keys(&setup)), (1, (round + 1).to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_process_creates_no_second_key() {
    let (setup, token) = setup();
    for round in 0..6 {
        let mut api = Management::start(&setup, &[("KEYSTILE_BCRYPT_COST", "9")]).await;
        let body = json!({ "user": "ada@example.com" });
        let key = format!("round-{round}");
        let request =
            api.request(&token, Method::POST, "/v1/keys").header("idempotency-key", &key).json(&body);
        let pending = tokio::spawn(request.send());
        // bcrypt takes some 30 ms: the process dies before, during and after the transaction.
        tokio::time::sleep(Duration::from_millis(15 * round)).await;
        api.process.kill();
        drop(pending.await);
        let api = Management::start(&setup, &[]).await;
        let request =
            api.request(&token, Method::POST, "/v1/keys").header("idempotency-key", &key).json(&body);
        let (status, answer) = answered(request.send().await.unwrap()).await;
        assert_eq!(status, 201, "{answer}");
        assert_eq!(keys(&setup), (round + 1).to_string(), "round {round}");
        assert!(answer["id"].is_number() && answer["user_email"] == "ada@example.com", "{answer}");
    }
}

#[tokio::test]
async fn claim_without_an_answer_is_answered_from_the_row() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let (_, _, first) = create(&api, &token, "a", "one").await;
    setup.execute("UPDATE keystile_idempotency SET status = NULL, answer = NULL");
    let (status, _, again) = create(&api, &token, "a", "one").await;
    assert_eq!((status, &again["id"], again.get("credential")), (201, &first["id"], None));
    // After a day it is forgotten.
    setup.execute("UPDATE keystile_idempotency SET created_at = created_at - 86400000");
    let (status, headers, other) = create(&api, &token, "a", "one").await;
    assert_eq!((status, headers.get("idempotency-replayed")), (201, None));
    assert_ne!(other["id"], first["id"]);
}

#[tokio::test]
async fn failed_request_can_be_repeated_with_the_same_key() {
    let (setup, token) = setup();
    let api = Management::start(&setup, &[]).await;
    let new = json!({ "email": "ada@example.com", "username": "bob" });
    let send = async || {
        let request =
            api.request(&token, Method::POST, "/v1/users").header("idempotency-key", "u").json(&new);
        answered(request.send().await.unwrap()).await
    };
    problem(&send().await, 409, "refused");
    setup.execute("UPDATE users SET email = 'other@example.com' WHERE username = 'ada'");
    assert_eq!(send().await.0, 201);
    assert_eq!(send().await.0, 201);
    assert_eq!(setup.value("SELECT count(*) FROM users"), "2");
}

//! A provider of language models: an upstream that answers as OpenAI's and Anthropic's APIs do.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use axum::{
    Json,
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderMap, StatusCode, header, request::Parts},
    response::{IntoResponse, Response},
};
use data_encoding::BASE64;
use futures_util::{StreamExt, stream};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sha1::{Digest, Sha1};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
};

use super::upstream::Upstream;

/// Asking for this file lets one stream continue after its first event. So a client that gets all events received the
/// first one while the answer was still open.
const RELEASE: &str = "release";

/// The first byte of a WebSocket's frames: a whole text message, and the end.
const TEXT: u8 = 0x81;
const CLOSE: u8 = 0x88;

/// Starts one. It answers 500 to a request that brings an API key: keys must not get here.
pub async fn start() -> Upstream {
    let released = Arc::new(Semaphore::new(0));
    Upstream::with(move |request| answer(request, Arc::clone(&released))).await
}

async fn answer(request: Request, released: Arc<Semaphore>) -> Response {
    let (mut parts, body) = request.into_parts();
    let headers = &parts.headers;
    if headers.contains_key(header::AUTHORIZATION) || headers.contains_key("x-api-key") {
        return (StatusCode::INTERNAL_SERVER_ERROR, "an API key reached the provider").into_response();
    }
    if headers.contains_key(header::UPGRADE) {
        return web_socket(&mut parts);
    }
    let path = parts.uri.path().to_owned();
    let body = to_bytes(body, usize::MAX).await.unwrap();
    let request: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = format!("{} for {}", request["model"].as_str().unwrap_or("none"), user(headers));
    let streams = request["stream"] == true;
    let is_anthropic = headers.contains_key("anthropic-version");
    let (_, endpoint) = path.split_once("/v1/").unwrap_or_default();
    match endpoint {
        "models" if is_anthropic => Json(json!({
            "data": [{"type": "model", "id": "claude-opus", "display_name": "Opus", "created_at": "2026-01-01T00:00:00Z"}],
            "has_more": false, "first_id": "claude-opus", "last_id": "claude-opus",
        }))
        .into_response(),
        "models" => Json(json!({"object": "list", "data": [{"id": "gpt-4o", "object": "model", "created": 0, "owned_by": "x"}]}))
            .into_response(),
        "chat/completions" if streams => {
            let chunk = |text: &str| json!({
                "id": "c", "object": "chat.completion.chunk", "created": 0, "model": "m",
                "choices": [{"index": 0, "delta": {"content": text}}],
            });
            let (first, rest) = halves(&text);
            events(released, vec![(None, chunk(first)), (None, chunk(rest)), (None, json!("[DONE]"))])
        }
        "chat/completions" => Json(json!({
            "id": "c", "object": "chat.completion", "created": 0, "model": "m",
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
        }))
        .into_response(),
        "responses" if streams => {
            let delta = |text: &str| {
                let kind = "response.output_text.delta";
                (Some(kind), json!({
                    "type": kind, "sequence_number": 0, "item_id": "i", "output_index": 0, "content_index": 0,
                    "delta": text, "logprobs": [],
                }))
            };
            let (first, rest) = halves(&text);
            events(released, vec![delta(first), delta(rest)])
        }
        "responses" | "responses/resp_1" => Json(response(&text)).into_response(),
        "embeddings" => Json(json!({
            "object": "list", "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1},
            "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}],
        }))
        .into_response(),
        "moderations" => Json(json!({"id": "m", "model": "m", "results": [{"flagged": false}]})).into_response(),
        "images/generations" => Json(json!({"created": 0, "data": [{"url": text}]})).into_response(),
        "audio/speech" => text.into_response(),
        "audio/transcriptions" => Json(json!({"text": format!("{} bytes", body.len())})).into_response(),
        "messages" if streams => {
            let delta = |text: &str| {
                let kind = "content_block_delta";
                (Some(kind), json!({"type": kind, "index": 0, "delta": {"type": "text_delta", "text": text}}))
            };
            let (first, rest) = halves(&text);
            events(released, vec![delta(first), delta(rest), (Some("message_stop"), json!({"type": "message_stop"}))])
        }
        "messages" => Json(json!({
            "id": "m", "type": "message", "role": "assistant", "model": "m", "stop_reason": "end_turn",
            "stop_sequence": null, "usage": {"input_tokens": 1, "output_tokens": 1},
            "content": [{"type": "text", "text": text}],
        }))
        .into_response(),
        "messages/count_tokens" => Json(json!({"input_tokens": 3})).into_response(),
        _ if endpoint.strip_prefix("files/") == Some(RELEASE) => {
            released.add_permits(1);
            file(0)
        }
        "files" => file(body.len()),
        _ => StatusCode::NOT_FOUND.into_response(),
    }
}

fn file(bytes: usize) -> Response {
    let file = json!({
        "id": "file-1", "object": "file", "bytes": bytes, "created_at": 0, "filename": "f", "purpose": "batch",
        "status": "processed",
    });
    Json(file).into_response()
}

fn response(text: &str) -> Value {
    json!({
        "id": "resp_1", "object": "response", "created_at": 0, "model": "m", "parallel_tool_calls": false,
        "tool_choice": "auto", "tools": [],
        "output": [{
            "type": "message", "id": "i", "role": "assistant", "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }],
    })
}

/// The user, as Keystile told the upstream.
fn user(headers: &HeaderMap) -> &str {
    headers.get("x-auth-user-name").map_or("unknown", |name| name.to_str().unwrap())
}

fn halves(text: &str) -> (&str, &str) {
    text.split_at(text.len() / 2)
}

/// Server-sent events. Those after the first come once the client has asked for them, or never.
fn events(released: Arc<Semaphore>, events: Vec<(Option<&'static str>, Value)>) -> Response {
    let events = stream::iter(events).enumerate().then(move |(at, (name, data))| {
        let released = Arc::clone(&released);
        async move {
            if at == 1 {
                let permit = tokio::time::timeout(Duration::from_secs(20), released.acquire()).await;
                permit.expect("the client has the first event").unwrap().forget();
            }
            let name = name.map(|name| format!("event: {name}\n")).unwrap_or_default();
            let data = data.as_str().map_or_else(|| data.to_string(), str::to_owned);
            Ok::<_, Infallible>(format!("{name}data: {data}\n\n"))
        }
    });
    ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(events)).into_response()
}

/// Accepts a WebSocket (RFC 6455). It says hello, and answers the first message.
fn web_socket(parts: &mut Parts) -> Response {
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    let Some(key) = parts.headers.get("sec-websocket-key") else {
        return StatusCode::BAD_REQUEST.into_response();
    };
    let accept = BASE64.encode(&Sha1::new().chain_update(key).chain_update(GUID).finalize());
    let hello = json!({"type": "session.created", "event_id": "1", "session": {"id": user(&parts.headers)}});
    let upgraded = hyper::upgrade::on(Request::from_parts(parts.clone(), Body::empty()));
    tokio::spawn(async move {
        // A client that closes the connection early ends the conversation.
        let _ = converse(&mut TokioIo::new(upgraded.await.unwrap()), &hello).await;
    });
    let headers = [
        (header::CONNECTION, "upgrade"),
        (header::UPGRADE, "websocket"),
        (header::SEC_WEBSOCKET_ACCEPT, accept.as_str()),
    ];
    (StatusCode::SWITCHING_PROTOCOLS, headers).into_response()
}

async fn converse(socket: &mut (impl AsyncRead + AsyncWrite + Unpin), hello: &Value) -> io::Result<()> {
    socket.write_all(&text_frame(&hello.to_string())).await?;
    let (_, message) = client_frame(socket).await?;
    let message: Value = serde_json::from_slice(&message).unwrap();
    let answer = json!({"type": "response.done", "event_id": "2", "response": {"id": message["type"]}});
    socket.write_all(&text_frame(&answer.to_string())).await?;
    // The client closes, and waits for the same.
    let (kind, _) = client_frame(socket).await?;
    assert_eq!(kind, CLOSE);
    socket.write_all(&[CLOSE, 0]).await
}

/// A whole text message of at most 125 bytes.
fn text_frame(text: &str) -> Vec<u8> {
    let length = u8::try_from(text.len()).unwrap();
    assert!(length < 126);
    [&[TEXT, length], text.as_bytes()].concat()
}

/// The first byte of a client's frame, and its content, unmasked.
async fn client_frame(socket: &mut (impl AsyncRead + Unpin)) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 2];
    socket.read_exact(&mut head).await?;
    let length = head[1] & 0x7f;
    assert!(length < 126);
    let mut rest = vec![0; 4 + usize::from(length)];
    socket.read_exact(&mut rest).await?;
    let (mask, content) = rest.split_at(4);
    Ok((head[0], content.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask).collect()))
}

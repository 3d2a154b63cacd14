//! Why an instance is not ready, as its `/readyz` says.

use std::net::SocketAddr;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
};

use crate::{
    tcp_listener::reached_at,
    tls::{TlsClient, TlsListener},
};

/// Maximum length of the answer in bytes.
const MAX_ANSWER: usize = 64 << 10;

/// The state and the problems that `/readyz` reports. None where no Keystile answers, or it is ready.
pub(super) async fn why_not_ready(admin: SocketAddr, tls: Option<TlsClient>) -> Option<String> {
    let Some(tls) = tls else {
        return ask(TcpStream::connect(&*reached_at(admin)).await.ok()?, admin).await;
    };
    for address in reached_at(admin) {
        if let Ok(stream) = tls.connect(address, TlsListener::Admin).await {
            return ask(stream, admin).await;
        }
    }
    None
}

async fn ask<S>(stream: S, admin: SocketAddr) -> Option<String>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.ok()?;
    let connection = tokio::spawn(connection);
    let request = http::Request::get("/readyz").header("host", admin.to_string());
    let answer = sender.send_request(request.body(Empty::<Bytes>::new()).ok()?).await.ok()?;
    let is_ready = answer.status().is_success();
    let body = Limited::new(answer.into_body(), MAX_ANSWER).collect().await.ok()?.to_bytes();
    connection.abort();
    let readiness: Value = serde_json::from_slice(&body).ok()?;
    if is_ready { None } else { explain(&readiness) }
}

/// The state, and each dependency that is not up with its problem.
fn explain(readiness: &Value) -> Option<String> {
    let state = readiness["status"].as_str()?;
    let problems = readiness.as_object()?.iter().filter(|(_, part)| part["up"] == false);
    let problems = problems.flat_map(|(name, part)| {
        let single = part["problem"].as_str().map(|problem| format!("{name}: {problem}"));
        let several = part["problems"].as_array().into_iter().flatten().map(move |problem| {
            let texts = ["cause", "detail", "fix"].map(|field| problem[field].as_str().unwrap_or_default());
            let texts = texts.into_iter().filter(|text| !text.is_empty()).collect::<Vec<_>>();
            format!("{name}: {}", texts.join("; "))
        });
        single.into_iter().chain(several).collect::<Vec<_>>()
    });
    let problems = [state.to_owned()].into_iter().chain(problems).collect::<Vec<_>>();
    Some(problems.join("; "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_problem_is_named_with_its_dependency() {
        let readiness = json!({
            "status": "starting",
            "database": { "up": false, "problem": "connection refused" },
            "redis": { "up": true },
            "change_feed": { "up": false, "problems": [{ "cause": "log_missing", "fix": "run `keystile migrate`" }] },
        });
        let why = explain(&readiness).expect("a state");
        assert_eq!(
            why,
            "starting; change_feed: log_missing; run `keystile migrate`; database: connection refused"
        );
        assert_eq!(explain(&json!("other")), None);
    }
}

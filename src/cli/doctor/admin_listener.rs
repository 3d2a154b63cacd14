//! Requests to the admin listener of a running Envoy.

use anyhow::{Context, bail};
use bytes::Bytes;
use http_body::Body;
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use url::Url;

use crate::envoy_config::MAX_BYTES;

/// The answer to a request of this path. The caller sets the deadline.
pub(super) async fn get(url: &Url, path: &str) -> anyhow::Result<String> {
    let host = url.host_str().context("the URL has no host; write it as http://127.0.0.1:9901")?;
    let port = url.port_or_known_default().unwrap_or(80);
    // An address of IPv6 has brackets in a URL only.
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let stream = TcpStream::connect((address, port)).await.with_context(|| {
        format!("cannot connect to {host}:{port}; is it the address under `admin` in Envoy's configuration?")
    })?;
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.context("the answer is no HTTP")?;
    let connection = tokio::spawn(connection);
    let request =
        http::Request::get(path).header("host", format!("{host}:{port}")).body(Empty::<Bytes>::new())?;
    let answer =
        sender.send_request(request).await.with_context(|| format!("{path}: the answer is no HTTP"))?;
    let status = answer.status();
    if !status.is_success() {
        bail!("{path} answers with status {}; give the URL of Envoy's admin listener", status.as_u16());
    }
    if answer.body().size_hint().lower() > MAX_BYTES as u64 {
        bail!("{path}: the answer is longer than {} MiB", MAX_BYTES >> 20);
    }
    let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
    connection.abort();
    let body =
        body.map_err(|error| anyhow::anyhow!("{path}: the answer broke off, or is too long: {error}"))?;
    String::from_utf8(body.to_bytes().into()).ok().with_context(|| format!("{path}: the answer is no text"))
}

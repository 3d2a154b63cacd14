//! A peer of the gRPC listener that speaks HTTP/2 frame by frame, so that it can misbehave.

use std::{net::SocketAddr, time::Duration};

use bytes::Bytes;
use envoy_types::{
    ext_authz::v3::pb::{CheckRequest, CheckResponse},
    pb::envoy::service::auth::v3::{
        AttributeContext,
        attribute_context::{HttpRequest, Request as RequestAttributes},
    },
};
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{HeaderMap, Request, Response};
use prost::Message;
use tokio::{net::TcpStream, time::timeout};

/// Where Envoy sends checks.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";
/// How long an answer may take that must come.
pub const SOON: Duration = Duration::from_secs(10);

/// One HTTP/2 connection to Keystile.
#[derive(Clone)]
pub struct Peer {
    requests: SendRequest<Bytes>,
}

/// A call whose body has not ended.
pub struct OpenCall {
    pub body: SendStream<Bytes>,
    pub answer: h2::client::ResponseFuture,
}

/// How a call ended.
#[derive(Debug)]
pub struct Answer {
    /// gRPC status.
    pub grpc_status: String,
    pub message: Option<CheckResponse>,
}

impl Peer {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (requests, connection) = h2::client::Builder::new().handshake(stream).await.unwrap();
        tokio::spawn(async move { drop(connection.await) });
        Self { requests }
    }

    /// Begins a call of this path, with further headers.
    pub async fn begin(&self, path: &str, headers: &[(&str, &str)]) -> Result<OpenCall, h2::Error> {
        let mut requests = self.requests.clone().ready().await?;
        let mut request = Request::post(format!("http://keystile{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let (answer, body) = requests.send_request(request.body(()).unwrap(), false)?;
        Ok(OpenCall { body, answer })
    }

    /// Begins a check that announces so many bytes and sends so many of them, as far as there is room.
    pub async fn unfinished(&self, announced: u32, sent: usize) -> Result<OpenCall, h2::Error> {
        let mut call = self.begin(CHECK, &[]).await?;
        call.body.send_data(prefixed(announced, &[]), false)?;
        call.send(sent).await?;
        Ok(call)
    }

    /// A whole check with this key.
    pub async fn check(&self, credential: &str) -> Result<Answer, h2::Error> {
        self.check_with_body(credential, 0).await
    }

    /// A whole check of a request with a body of so many bytes.
    pub async fn check_with_body(&self, credential: &str, length: usize) -> Result<Answer, h2::Error> {
        let mut call = self.begin(CHECK, &[]).await?;
        let message = check_request(credential, length);
        let whole = prefixed(u32::try_from(message.len()).unwrap(), &message);
        call.body.reserve_capacity(whole.len());
        call.body.send_data(whole, true)?;
        call.answer().await
    }
}

impl OpenCall {
    /// Sends so many bytes, as the receiver makes room; ends early when that ends the call.
    pub async fn send(&mut self, mut length: usize) -> Result<(), h2::Error> {
        while length > 0 {
            self.body.reserve_capacity(length.min(64 * 1024));
            let Some(room) = std::future::poll_fn(|cx| self.body.poll_capacity(cx)).await else {
                return Ok(());
            };
            let part = room?.min(length);
            self.body.send_data(Bytes::from(vec![0; part]), false)?;
            length -= part;
        }
        Ok(())
    }

    /// Waits for the answer.
    pub async fn answer(self) -> Result<Answer, h2::Error> {
        read(self.answer.await?).await
    }

    /// The answer, if it comes soon.
    pub async fn answer_soon(self) -> Answer {
        timeout(SOON, self.answer()).await.expect("an answer").expect("no broken stream")
    }
}

impl Answer {
    /// HTTP status of the check, 200 for an allow.
    pub fn status(&self) -> i32 {
        super::client::status(self.message.as_ref().unwrap_or_else(|| panic!("{self:?}")))
    }

    /// The code of the denial.
    pub fn code(&self) -> Option<String> {
        super::client::code(self.message.as_ref().unwrap_or_else(|| panic!("{self:?}")))
    }
}

async fn read(response: Response<RecvStream>) -> Result<Answer, h2::Error> {
    let (parts, mut body) = response.into_parts();
    let mut whole = Vec::new();
    while let Some(data) = body.data().await {
        let data = data?;
        whole.extend_from_slice(&data);
        body.flow_control().release_capacity(data.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    let status = |headers: &HeaderMap| headers.get("grpc-status").map(|v| v.to_str().unwrap().to_owned());
    let grpc_status = status(&parts.headers).or_else(|| status(&trailers)).unwrap_or_default();
    let message = whole.get(5..).map(|message| CheckResponse::decode(message).unwrap());
    Ok(Answer { grpc_status, message })
}

/// A gRPC message of this length, with as much of it as there is.
pub fn prefixed(length: u32, content: &[u8]) -> Bytes {
    [&[0], &length.to_be_bytes()[..], content].concat().into()
}

/// What Envoy says of a request with this key and a body of so many bytes.
pub fn check_request(credential: &str, body: usize) -> Vec<u8> {
    let http = HttpRequest {
        headers: [("x-api-key".to_owned(), credential.to_owned())].into(),
        method: "GET".into(),
        path: "/v1/models".into(),
        raw_body: vec![b'x'; body],
        ..HttpRequest::default()
    };
    let attributes = AttributeContext {
        request: Some(RequestAttributes { http: Some(http), ..RequestAttributes::default() }),
        ..AttributeContext::default()
    };
    CheckRequest { attributes: Some(attributes) }.encode_to_vec()
}

//! Asks Keystile as Envoy does, without Envoy.

use std::net::SocketAddr;

use envoy_types::{
    ext_authz::v3::pb::{CheckRequest, CheckResponse, HttpResponse},
    pb::envoy::service::auth::v3::{
        AttributeContext,
        attribute_context::{HttpRequest, Request},
        authorization_client::AuthorizationClient,
    },
};
use tonic::transport::Channel;

/// One request, as Envoy would describe it.
#[derive(Debug, Clone, Default)]
pub struct Asked<'a> {
    pub credential: &'a str,
    pub method: &'a str,
    pub path: &'a str,
    pub client: Option<&'a str>,
    pub body: Option<String>,
    pub route: &'a [(&'a str, &'a str)],
    /// Envoy's own id of the request.
    pub stream: &'a str,
}

pub async fn channel(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

/// A `GET /v1/models` with this key.
pub async fn ask(channel: &Channel, credential: &str) -> CheckResponse {
    ask_about(channel, &Asked { credential, method: "GET", path: "/v1/models", ..Asked::default() }).await
}

/// The same, where the call itself may fail.
pub async fn try_ask(channel: &Channel, credential: &str) -> Result<CheckResponse, tonic::Status> {
    try_ask_about(channel, &Asked { credential, method: "GET", path: "/v1/models", ..Asked::default() }).await
}

pub async fn ask_about(channel: &Channel, asked: &Asked<'_>) -> CheckResponse {
    try_ask_about(channel, asked).await.unwrap()
}

pub async fn try_ask_about(channel: &Channel, asked: &Asked<'_>) -> Result<CheckResponse, tonic::Status> {
    let http = HttpRequest {
        headers: [("x-api-key".to_owned(), asked.credential.to_owned())].into(),
        method: asked.method.to_owned(),
        path: asked.path.to_owned(),
        raw_body: asked.body.clone().unwrap_or_default().into(),
        size: -1,
        id: asked.stream.to_owned(),
        ..HttpRequest::default()
    };
    let extensions = asked.route.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let attributes = AttributeContext {
        request: Some(Request { http: Some(http), ..Request::default() }),
        context_extensions: extensions.collect(),
        ..AttributeContext::default()
    };
    let mut request = tonic::Request::new(CheckRequest { attributes: Some(attributes) });
    asked.client.map(|client| request.metadata_mut().insert("x-client-ip", client.parse().unwrap()));
    AuthorizationClient::new(channel.clone()).check(request).await.map(tonic::Response::into_inner)
}

/// HTTP status of an answer, 200 for an allow.
pub fn status(answer: &CheckResponse) -> i32 {
    match answer.http_response.as_ref().unwrap() {
        HttpResponse::OkResponse(_) => 200,
        HttpResponse::DeniedResponse(denied) => denied.status.as_ref().unwrap().code,
        HttpResponse::ErrorResponse(_) => unreachable!("never sent"),
    }
}

/// The code of a denial in the default form; none for an allow.
pub fn code(answer: &CheckResponse) -> Option<String> {
    let HttpResponse::DeniedResponse(denied) = answer.http_response.as_ref().unwrap() else { return None };
    let body: serde_json::Value = serde_json::from_str(&denied.body).unwrap();
    Some(body["code"].as_str().unwrap().to_owned())
}

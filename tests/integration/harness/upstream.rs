//! The service behind Envoy: answers with what it was sent, or as a test wants.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::{
    Json, Router,
    extract::Request,
    http::{HeaderMap, Uri},
    response::{IntoResponse, Response},
};
use serde::{Deserialize, Serialize};
use tokio::{net::TcpListener, task::AbortHandle};

/// A server that counts requests, stopped when it is dropped.
pub struct Upstream {
    pub address: SocketAddr,
    requests: Arc<AtomicUsize>,
    task: AbortHandle,
}

/// What the upstream saw of a request.
#[derive(Debug, Serialize, Deserialize)]
pub struct Seen {
    pub path: String,
    pub headers: BTreeMap<String, String>,
}

impl Upstream {
    pub async fn start() -> Self {
        Self::with(|request: Request| async move {
            let seen = seen(request.uri(), request.headers());
            // To its end, as a real service would: an answer before that ends the connection.
            axum::body::to_bytes(request.into_body(), usize::MAX).await.unwrap();
            Json(seen).into_response()
        })
        .await
    }

    /// A server with answers of its own.
    pub async fn with<F>(answer: impl Fn(Request) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response> + Send,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&requests);
        let service = Router::new().fallback(move |request: Request| {
            counter.fetch_add(1, Ordering::Relaxed);
            answer(request)
        });
        let task = tokio::spawn(async move { axum::serve(listener, service).await }).abort_handle();
        Self { address, requests, task }
    }

    /// How many requests have come so far.
    pub fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn seen(uri: &Uri, headers: &HeaderMap) -> Seen {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let headers = headers.iter().map(|(name, value)| (name.to_string(), text(value.as_bytes()))).collect();
    Seen { path: uri.to_string(), headers }
}

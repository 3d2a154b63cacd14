//! A rate limit service as Envoy asks one: counts by descriptor, under the limit that comes with it.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use envoy_types::pb::envoy::{
    extensions::common::ratelimit::v3::RateLimitDescriptor,
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::Code,
        rate_limit_service_server::{RateLimitService, RateLimitServiceServer},
    },
};
use tokio::{net::TcpListener, task::AbortHandle};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status, transport::Server};

/// The service, stopped when it is dropped. It knows no windows: what is used stays used.
pub struct RateLimits {
    pub address: SocketAddr,
    state: Arc<State>,
    task: AbortHandle,
}

/// What Envoy asked about: entries by name and value, and the limit as number and unit.
pub type Descriptor = (Vec<(String, String)>, Option<(u32, i32)>);

#[derive(Default)]
struct State {
    asked: Mutex<Vec<Vec<Descriptor>>>,
    used: Mutex<HashMap<Vec<(String, String)>, u32>>,
}

struct Service(Arc<State>);

impl RateLimits {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State::default());
        let service = RateLimitServiceServer::new(Service(Arc::clone(&state)));
        let server = Server::builder().add_service(service);
        let task = tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener))).abort_handle();
        Self { address, state, task }
    }

    /// The descriptors of each call so far.
    pub fn asked(&self) -> Vec<Vec<Descriptor>> {
        self.state.asked.lock().unwrap().clone()
    }
}

impl Drop for RateLimits {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tonic::async_trait]
impl RateLimitService for Service {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let descriptors: Vec<_> = request.get_ref().descriptors.iter().map(read).collect();
        self.0.asked.lock().unwrap().push(descriptors.clone());
        let mut used = self.0.used.lock().unwrap();
        let mut code = Code::Ok;
        for (entries, limit) in descriptors {
            let count = used.entry(entries).or_default();
            *count += 1;
            if limit.is_some_and(|(limit, _)| *count > limit) {
                code = Code::OverLimit;
            }
        }
        Ok(Response::new(RateLimitResponse { overall_code: code.into(), ..RateLimitResponse::default() }))
    }
}

fn read(descriptor: &RateLimitDescriptor) -> Descriptor {
    let entries = descriptor.entries.iter().map(|entry| (entry.key.clone(), entry.value.clone()));
    (entries.collect(), descriptor.limit.map(|limit| (limit.requests_per_unit, limit.unit)))
}

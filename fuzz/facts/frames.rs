//! Whatever a client sends over HTTP/2, the listener answers in frames, admits nothing without a key, ends the connection with the
//! client, and serves others. The input is what follows the preface and the client's settings.

use std::{
    collections::BTreeMap,
    io::{self, Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::LazyLock,
    time::{Duration, Instant},
};

use clap::{Args, Command, FromArgMatches, Parser};
use envoy_types::{
    ext_authz::v3::pb::{CheckRequest, CheckResponse, HttpResponse},
    pb::envoy::service::auth::v3::{
        AttributeContext,
        attribute_context::{HttpRequest, Request},
        authorization_client::AuthorizationClient,
    },
};
use keystile::{
    cli::{self, Cli},
    config::ServeOptions,
    serve,
};
use prost::Message;
use tokio::{runtime::Runtime, time::timeout};
use tonic::transport::{Channel, Endpoint};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
/// What is sent last. Its answer says that everything before it was read.
const PING: &[u8] = &[0, 0, 8, 6, 0, 0, 0, 0, 0, b'k', b'e', b'y', b's', b't', b'i', b'l', b'e'];
const DATA_FRAME: u8 = 0;
const SETTINGS_FRAME: u8 = 4;
const PING_FRAME: u8 = 6;

/// How long a connection may take. Machines that fuzz are busy.
const DEADLINE: Duration = Duration::from_secs(8);

/// A whole service with a database that has no keys, and another client of it.
struct Server {
    address: SocketAddr,
    runtime: Runtime,
    other: Channel,
}

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

/// Fails if a fact does not hold for this input.
pub fn check(input: &[u8]) {
    let received = SERVER.send(&whole(input)).expect("the connection ends in time");
    let frames = frames(&received);
    assert!(frames.first().is_none_or(|frame| frame.kind == SETTINGS_FRAME), "settings come first");
    let mut bodies = BTreeMap::<u32, Vec<u8>>::new();
    for frame in frames.iter().filter(|frame| frame.kind == DATA_FRAME) {
        bodies.entry(frame.stream).or_default().extend_from_slice(frame.payload);
    }
    // Settings of a route may open it. They are sent in clear text.
    let may_be_open = input.windows(9).any(|window| window == b"keystile.");
    for body in bodies.values().filter_map(|body| body.get(5..)) {
        let admits = CheckResponse::decode(body)
            .is_ok_and(|response| matches!(response.http_response, Some(HttpResponse::OkResponse(_))));
        assert!(!admits || may_be_open, "a request without a key is admitted: {}", body.escape_ascii());
    }
    SERVER.serves_others();
}

impl Server {
    fn start() -> Self {
        // The system removes it with its temporary files: the service runs as long as the process.
        let folder = tempfile::tempdir().expect("a folder").keep();
        let database = format!("sqlite:{}", folder.join("keystile.db").display());
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr());
        let address = free.expect("a port");
        let runtime = Runtime::new().expect("a runtime");
        runtime.block_on(cli::run(Cli::parse_from(["keystile", "migrate", "--database-url", &database])));
        let listen = address.to_string();
        let arguments =
            ["serve", "--database-url", &database, "--listen", &listen, "--admin-listen", "127.0.0.1:0"];
        let command = ServeOptions::augment_args(Command::new("serve"));
        let options = ServeOptions::from_arg_matches(&command.get_matches_from(arguments)).expect("complete");
        runtime.spawn(async { serve::run(options, std::future::pending()).await.expect("serves") });
        let other = runtime.block_on(async {
            let endpoint = Endpoint::from_shared(format!("http://{address}")).expect("an address");
            let start = Instant::now();
            loop {
                match endpoint.connect().await {
                    Ok(channel) => return channel,
                    Err(error) => assert!(start.elapsed() < DEADLINE, "{error}"),
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
        Self { address, runtime, other }
    }

    /// Sends it on a connection of its own; all bytes that came back until the connection ended.
    fn send(&self, input: &[u8]) -> io::Result<Vec<u8>> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let all = [PREFACE, SETTINGS, input, PING].concat();
        let mut received = Vec::new();
        let mut buffer = [0; 16 * 1024];
        // A server that has ended the connection need not read the rest.
        let mut sends = stream.write_all(&all).is_ok();
        loop {
            match stream.read(&mut buffer) {
                Ok(0) => return Ok(received),
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(received),
                Err(error) => return Err(error),
            }
            if sends
                && (frames(&received)
                    .iter()
                    .any(|frame| frame.kind == PING_FRAME && frame.payload == &PING[9..]))
            {
                sends = false;
                let _ = stream.shutdown(Shutdown::Write);
            }
        }
    }

    fn serves_others(&self) {
        let headers = [("x-api-key".to_owned(), "ks_nobodysKey".to_owned())].into();
        let http = HttpRequest { method: "GET".into(), path: "/".into(), headers, ..HttpRequest::default() };
        let attributes = AttributeContext {
            request: Some(Request { http: Some(http), ..Request::default() }),
            ..AttributeContext::default()
        };
        let mut client = AuthorizationClient::new(self.other.clone());
        let answer = self.runtime.block_on(async {
            timeout(DEADLINE, client.check(CheckRequest { attributes: Some(attributes) })).await
        });
        let answer = answer.expect("an answer in time").expect("an answer").into_inner();
        assert!(matches!(answer.http_response, Some(HttpResponse::DeniedResponse(_))), "{answer:?}");
    }
}

/// A frame (RFC 9113, section 4.1).
struct Frame<'a> {
    kind: u8,
    stream: u32,
    payload: &'a [u8],
}

/// The whole frames of these bytes.
fn frames(mut bytes: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<9>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        assert!(length <= 16_384, "larger than a client allows that has said nothing");
        assert!(head[3] <= 9, "a frame of the kind {}", head[3]);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        frames.push(Frame { kind: head[3], stream, payload });
        bytes = rest;
    }
    frames
}

/// The input with its last frame complete, so that what follows is a frame.
fn whole(input: &[u8]) -> Vec<u8> {
    let mut whole = input.to_vec();
    let mut at = 0;
    while at < input.len() {
        let head: Vec<_> = input[at..].iter().chain(&[0; 9]).take(3).copied().collect();
        at += 9 + u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    }
    // A frame that claims to be larger than allowed is refused by its header.
    whole.resize(at.min(input.len() + 70_000), 0);
    whole
}

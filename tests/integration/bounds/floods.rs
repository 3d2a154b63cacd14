//! Frames by the thousand, and peers that do not read.

use std::{net::SocketAddr, time::Duration};

use futures_util::future::join_all;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{MIB, keystile, peak_memory, settle};
use crate::harness::{
    peer::{CHECK, Peer, check_request, prefixed},
    service::{Key, Keystile},
};

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const CONTINUATION: u8 = 9;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A frame of RFC 9113.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The headers of a check, each as a literal that is not remembered (RFC 7541, section 6.2.2).
pub fn check_headers(more: &[(&str, &str)]) -> Vec<u8> {
    let base = [(":method", "POST"), (":scheme", "http"), (":path", CHECK), (":authority", "x")];
    let length = |text: &str| u8::try_from(text.len()).unwrap();
    let literal = |(name, value): &(&str, &str)| {
        [&[0, length(name)], name.as_bytes(), &[length(value)], value.as_bytes()].concat()
    };
    base.iter().chain(more).flat_map(literal).collect()
}

/// Writes what the function makes of 0, 1, 2 and so on, until the other side has enough, or reads no more.
async fn flood(
    address: SocketAddr,
    settings: &[u8],
    most: u32,
    frames: impl Fn(u32) -> Vec<u8>,
) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await.unwrap();
    for number in 0..most {
        let written = timeout(Duration::from_secs(1), stream.write_all(&frames(number))).await;
        if !matches!(written, Ok(Ok(()))) {
            break;
        }
    }
    stream
}

/// Memory is in bounds, and another connection is served.
async fn is_well(keystile: &Keystile, key: &Key) {
    is_well_within(128 * MIB, keystile, key).await;
}

async fn is_well_within(bound: u64, Keystile { setup, process }: &Keystile, key: &Key) {
    let check = async { Peer::connect(setup.tcp).await.check(&key.credential).await.expect("answered") };
    assert_eq!(timeout(Duration::from_secs(5), check).await.expect("in time").status(), 200);
    assert!(peak_memory(process) < bound, "{} MiB", peak_memory(process) / MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_without_end_are_survived() {
    let (keystile, key) = keystile(&[]).await;
    let address = keystile.setup.tcp;
    let stream = |number: u32| 2 * number + 1;
    let part = [0, 1, b'a', 100].into_iter().chain([b'v'; 100]).collect::<Vec<_>>().repeat(150);
    // Headers that never end, pings and settings whose answers are not read, streams that are reset as they begin,
    // frames without content.
    let continuation = flood(address, &[], 20_000, |number| match number {
        0 => frame(HEADERS, 0, 1, &check_headers(&[])),
        _ => frame(CONTINUATION, 0, 1, &part),
    });
    let ping = flood(address, &[], 300_000, |_| frame(PING, 0, 0, &[7; 8]).repeat(100));
    let settings = flood(address, &[], 300_000, |_| frame(SETTINGS, 0, 0, &[]).repeat(100));
    let reset = flood(address, &[], 100_000, |number| {
        let headers = frame(HEADERS, END_HEADERS, stream(number), &check_headers(&[]));
        [headers, frame(RST_STREAM, 0, stream(number), &[0, 0, 0, 8])].concat()
    });
    let empty = flood(address, &[], 300_000, |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &check_headers(&[])),
        _ => frame(DATA, 0, 1, &[]).repeat(100),
    });
    let bounded = |flood| timeout(Duration::from_secs(15), flood);
    let (one, two, three, four, five) = tokio::join!(
        bounded(continuation),
        async { timeout(Duration::from_secs(15), ping).await },
        async { timeout(Duration::from_secs(15), settings).await },
        async { timeout(Duration::from_secs(15), reset).await },
        async { timeout(Duration::from_secs(15), empty).await },
    );
    is_well(&keystile, &key).await;
    drop((one, two, three, four, five));
}

/// Its answers cannot be sent: neither are they kept for ever, nor without bound.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_read_no_answer_hold_little() {
    // The HTTP/2 state of 20,000 streams, which no response of Keystile's is part of.
    const STREAMS: u64 = 192 * MIB;
    let (keystile, key) = keystile(&[]).await;
    let address = keystile.setup.tcp;
    let message = check_request(&key.credential, 0);
    let message = prefixed(u32::try_from(message.len()).unwrap(), &message);
    let call = |number: u32| {
        let headers = frame(HEADERS, END_HEADERS, 2 * number + 1, &check_headers(&[]));
        [headers, frame(DATA, END_STREAM, 2 * number + 1, &message)].concat()
    };
    // SETTINGS_INITIAL_WINDOW_SIZE 0: not a byte of any answer.
    let no_window = [0, 4, 0, 0, 0, 0];
    let all_window = [0, 4, 0x7f, 0xff, 0xff, 0xff];
    let deaf = join_all((0..20).map(|_| flood(address, &no_window, 1000, call))).await;
    let mut busy = join_all((0..20).map(|_| flood(address, &all_window, 20_000, call))).await;
    settle().await;
    is_well_within(STREAMS, &keystile, &key).await;
    // The streams end after ten seconds, and so do connections that could not be written to.
    tokio::time::sleep(Duration::from_secs(14)).await;
    let metrics = keystile.setup.metrics().await;
    let held = metrics.lines().find_map(|line| line.strip_prefix("keystile_in_flight_bytes "));
    assert_eq!(held, Some("0"), "{metrics}");
    is_well_within(STREAMS, &keystile, &key).await;
    for stream in &mut busy {
        let mut sink = vec![0; 1024 * 1024];
        let ended = async { while matches!(stream.read(&mut sink).await, Ok(length) if length > 0) {} };
        let _ = timeout(Duration::from_millis(200), ended).await;
    }
    drop(deaf);
}

/// They are whole, and wait for bcrypt together.
#[tokio::test(flavor = "multi_thread")]
async fn large_messages_with_made_up_keys_stay_in_bounds_and_known_keys_are_served() {
    let (keystile, key) = keystile(&[("KEYSTILE_BCRYPT_COST", "10")]).await;
    let known = Peer::connect(keystile.setup.tcp).await;
    assert_eq!(known.check(&key.credential).await.expect("answered").status(), 200);
    let peers = join_all((0..4).map(|_| Peer::connect(keystile.setup.tcp))).await;
    let made_up = (0..60).map(|number| {
        let peer = peers[number % 4].clone();
        async move {
            let answer = peer.check_with_body(&format!("zz_{number:05}_made_up"), 6 * 1024 * 1024).await;
            let answer = answer.expect("answered");
            assert_eq!(answer.grpc_status, "0");
            assert!([401, 429, 503].contains(&answer.status()), "{answer:?}");
        }
    });
    let good = async {
        for _ in 0..20 {
            let answer = known.check_with_body(&key.credential, 50_000).await.expect("answered");
            assert_eq!(answer.status(), 200);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::join!(join_all(made_up), good);
    is_well(&keystile, &key).await;
}

/// Health can be watched for ever, and reflection asked without end.
#[tokio::test(flavor = "multi_thread")]
async fn calls_that_are_no_checks_hold_little() {
    let (keystile, key) = keystile(&[]).await;
    let peers = join_all((0..30).map(|_| Peer::connect(keystile.setup.tcp))).await;
    let reflection = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    let calls = peers.iter().flat_map(|peer| {
        (0..200).map(move |number| async move {
            let path = if number % 2 == 0 { "/grpc.health.v1.Health/Watch" } else { reflection };
            let Ok(mut call) = peer.begin(path, &[]).await else { return None };
            let _ = call.body.send_data(prefixed(0, &[]), false);
            let _ = timeout(Duration::from_secs(2), call.send(200 * 1024)).await;
            Some(call)
        })
    });
    let calls = join_all(calls).await;
    settle().await;
    is_well(&keystile, &key).await;
    drop(calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn large_headers_of_open_calls_stay_in_bounds() {
    let (keystile, key) = keystile(&[("KEYSTILE_TIMEOUT", "30s")]).await;
    let value = "v".repeat(60_000);
    let headers = [("tracestate", value.as_str())];
    let peers = join_all((0..4).map(|_| Peer::connect(keystile.setup.tcp))).await;
    let calls = peers.iter().flat_map(|peer| (0..500).map(|_| peer.begin(CHECK, &headers)));
    let calls = join_all(calls).await;
    settle().await;
    is_well(&keystile, &key).await;
    drop(calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn admin_requests_that_are_pipelined_or_do_not_end_hold_little() {
    let (keystile, key) = keystile(&[]).await;
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(1000);
    let mut streams = Vec::new();
    for number in 0..60 {
        let mut stream = TcpStream::connect(keystile.setup.admin).await.unwrap();
        let write = async {
            if number % 2 == 0 {
                // Never read.
                while stream.write_all(&request).await.is_ok() {}
            } else {
                let _ = stream.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\n").await;
                for _ in 0..10_000 {
                    if stream.write_all(b"x-more: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n").await.is_err() {
                        break;
                    }
                }
            }
        };
        let _ = timeout(Duration::from_millis(300), write).await;
        streams.push(stream);
    }
    is_well(&keystile, &key).await;
    assert_eq!(keystile.setup.readyz().await.0, 200);
}

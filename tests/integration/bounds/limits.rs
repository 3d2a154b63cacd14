//! The numbers of docs/reference/limits.md: each is gone past on a real socket, and others are answered all the while.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    floods::{
        CONTINUATION, DATA, END_HEADERS, HEADERS, PING, PREFACE, RST_STREAM, SETTINGS, check_headers, frame,
    },
    keystile,
};
use crate::harness::{
    peer::{CHECK, Peer},
    service::{Key, Keystile},
};

const GOAWAY: u8 = 7;
const ACK: u8 = 1;
/// Error codes of RFC 9113, section 7.
const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// A frame that Keystile sent.
#[derive(Debug)]
struct Received {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl Received {
    /// The error code of a frame that ends a stream or the connection.
    fn code(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A connection that has sent the preface and these settings.
async fn begin(address: SocketAddr, settings: &[u8]) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&[PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await.unwrap();
    stream
}

async fn receive(stream: &mut TcpStream) -> Option<Received> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
    let mut payload = vec![0; length];
    stream.read_exact(&mut payload).await.ok()?;
    let stream = u32::from_be_bytes(head[5..].try_into().unwrap());
    Some(Received { kind: head[3], flags: head[4], stream, payload })
}

/// The first frame that this holds for. `None` if the connection ends before.
async fn find(stream: &mut TcpStream, what: impl Fn(&Received) -> bool) -> Option<Received> {
    let search = async {
        loop {
            let received = receive(stream).await?;
            if what(&received) {
                return Some(received);
            }
        }
    };
    timeout(Duration::from_secs(20), search).await.expect("in time")
}

/// Another client with a known key. It sends requests until the test ends.
struct Others {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicU32>,
    task: JoinHandle<Duration>,
}

impl Others {
    async fn ask(keystile: &Keystile, key: &Key) -> Self {
        let peer = Peer::connect(keystile.setup.tcp).await;
        let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
        let (credential, stopped, counted) =
            (key.credential.clone(), Arc::clone(&stop), Arc::clone(&answered));
        let task = tokio::spawn(async move {
            let mut longest = Duration::ZERO;
            while !stopped.load(Relaxed) {
                let begun = Instant::now();
                let answer = timeout(Duration::from_secs(10), peer.check(&credential)).await;
                assert_eq!(answer.expect("in time").expect("answered").status(), 200);
                longest = longest.max(begun.elapsed());
                counted.fetch_add(1, Relaxed);
                sleep(Duration::from_millis(5)).await;
            }
            longest
        });
        Self { stop, answered, task }
    }

    /// Whether they were answered each time.
    async fn were_answered(self) {
        assert!(self.answered.load(Relaxed) > 0);
        self.stop.store(true, Relaxed);
        self.task.await.expect("each check was answered with 200");
    }
}

/// Frames of this kind without end, until Keystile ends the connection: how, and how many there were.
async fn until_it_ends(
    address: SocketAddr,
    most: u32,
    frames: impl Fn(u32) -> Vec<u8>,
) -> (Option<u32>, u32) {
    let stream = begin(address, &[]).await;
    let (mut read, mut write) = stream.into_split();
    let reads = tokio::spawn(async move {
        let mut all = Vec::new();
        let _ = timeout(Duration::from_secs(60), read.read_to_end(&mut all)).await;
        all
    });
    let mut sent = 0;
    while sent < most {
        if write.write_all(&frames(sent)).await.is_err() {
            break;
        }
        sent += 1;
    }
    drop(write);
    let all = reads.await.unwrap();
    let mut rest = all.as_slice();
    let mut code = None;
    while rest.len() >= 9 {
        let length = u32::from_be_bytes([0, rest[0], rest[1], rest[2]]) as usize;
        if rest[3] == GOAWAY && rest.len() >= 17 {
            code = Some(u32::from_be_bytes(rest[13..17].try_into().unwrap()));
        }
        rest = rest.get(9 + length..).unwrap_or_default();
    }
    (code, sent)
}

#[tokio::test(flavor = "multi_thread")]
async fn stream_past_1024_is_refused_and_the_others_go_on() {
    let (keystile, key) = keystile(&[("KEYSTILE_TIMEOUT", "30s")]).await;
    let others = Others::ask(&keystile, &key).await;
    let mut stream = begin(keystile.setup.tcp, &[]).await;
    let settings = find(&mut stream, |frame| frame.kind == SETTINGS && frame.flags == 0).await.unwrap();
    let announced = settings.payload.chunks(6).find(|setting| setting[..2] == [0, 3]).expect("a limit");
    assert_eq!(u32::from_be_bytes(announced[2..].try_into().unwrap()), 1024);
    let headers = check_headers(&[]);
    for number in 0..1025 {
        stream.write_all(&frame(HEADERS, END_HEADERS, 2 * number + 1, &headers)).await.unwrap();
    }
    let refused = find(&mut stream, |frame| frame.kind == RST_STREAM).await.expect("a refusal");
    assert_eq!((refused.stream, refused.code()), (2 * 1024 + 1, REFUSED_STREAM));
    // One that ends makes room for one more.
    stream.write_all(&frame(RST_STREAM, 0, 1, &[0, 0, 0, 8])).await.unwrap();
    stream.write_all(&frame(HEADERS, END_HEADERS, 2 * 1025 + 1, &headers)).await.unwrap();
    stream.write_all(&frame(PING, 0, 0, b"keystile")).await.unwrap();
    let next = find(&mut stream, |frame| [RST_STREAM, GOAWAY, PING].contains(&frame.kind)).await.unwrap();
    assert_eq!((next.kind, next.flags), (PING, ACK));
    others.were_answered().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_past_128_kib_end_their_call_alone() {
    let (keystile, key) = keystile(&[]).await;
    let peer = Peer::connect(keystile.setup.tcp).await;
    let value = |length: usize| "v".repeat(length);
    // Each has its name and 32 bytes more, by which HTTP/2 counts.
    let (half, more) = (value(60_000), value(12_000));
    let headers = [("tracestate", half.as_str()), ("x-more", &half), ("x-most", &more)];
    let call = peer.begin(CHECK, &headers).await.expect("the connection lives");
    let refused = match call.answer.await {
        Ok(answer) => answer.status() == 431,
        Err(error) => error.is_reset(),
    };
    assert!(refused, "the headers are too large");
    assert_eq!(peer.check(&key.credential).await.expect("the connection lives").status(), 200);
    let call = peer.begin(CHECK, &headers[..2]).await.expect("the connection lives");
    drop(call);
    assert_eq!(peer.check(&key.credential).await.expect("the connection lives").status(), 200);
}

/// Rapid reset, CONTINUATION without end, pings and settings whose answers are read, empty frames.
#[tokio::test(flavor = "multi_thread")]
async fn floods_of_frames_end_or_are_answered_while_others_are_served() {
    let (keystile, key) = keystile(&[]).await;
    let address = keystile.setup.tcp;
    let others = Others::ask(&keystile, &key).await;
    let part = [0, 1, b'a', 100].into_iter().chain([b'v'; 100]).collect::<Vec<_>>().repeat(150);
    let continuation = until_it_ends(address, 20_000, |number| match number {
        0 => frame(HEADERS, 0, 1, &check_headers(&[])),
        _ => frame(CONTINUATION, 0, 1, &part),
    });
    let empty_continuation = until_it_ends(address, 200_000, |number| match number {
        0 => frame(HEADERS, 0, 1, &check_headers(&[])),
        _ => frame(CONTINUATION, 0, 1, &[]).repeat(50),
    });
    let reset = until_it_ends(address, 3_000, |number| {
        let one = |number: u32| {
            let headers = frame(HEADERS, END_HEADERS, 2 * number + 1, &check_headers(&[]));
            [headers, frame(RST_STREAM, 0, 2 * number + 1, &[0, 0, 0, 8])].concat()
        };
        (number * 50..number * 50 + 50).flat_map(one).collect()
    });
    let pings = until_it_ends(address, 2_000, |_| frame(PING, 0, 0, &[7; 8]).repeat(100));
    let settings = until_it_ends(address, 2_000, |_| frame(SETTINGS, 0, 0, &[]).repeat(100));
    let empty = until_it_ends(address, 2_000, |number| match number {
        0 => frame(HEADERS, END_HEADERS, 1, &check_headers(&[])),
        _ => frame(DATA, 0, 1, &[]).repeat(100),
    });
    let (continuation, empty_continuation, reset, pings, settings, empty) =
        tokio::join!(continuation, empty_continuation, reset, pings, settings, empty);
    for (what, (code, sent), most) in [
        ("CONTINUATION", continuation, 20_000),
        ("empty CONTINUATION", empty_continuation, 200_000),
        ("reset", reset, 3_000),
        ("empty DATA", empty, 2_000),
    ] {
        assert!(sent < most, "{what}: ended after {sent}");
        // The reason may be lost with what was on its way.
        assert!(code.is_none_or(|code| code == ENHANCE_YOUR_CALM), "{what}: {code:?}");
    }
    // These hold nothing, and are answered.
    for (what, (code, sent)) in [("pings", pings), ("settings", settings)] {
        assert_eq!((code, sent), (None, 2_000), "{what}");
    }
    others.were_answered().await;
    assert!(super::peak_memory(&keystile.process) < 128 * super::MIB);
}

#[tokio::test(flavor = "multi_thread")]
async fn connection_that_answers_no_ping_ends_after_thirty_seconds() {
    let (keystile, _) = keystile(&[]).await;
    let begun = Instant::now();
    let mut silent = begin(keystile.setup.tcp, &[]).await;
    // Headers that are not sent to their end leave no room for the answer to a ping.
    let mut unfinished = begin(keystile.setup.tcp, &[]).await;
    unfinished.write_all(&frame(HEADERS, 0, 1, &check_headers(&[]))).await.unwrap();
    for stream in [&mut silent, &mut unfinished] {
        let end = async { while receive(stream).await.is_some() {} };
        timeout(Duration::from_secs(45), end).await.expect("it ends");
        assert!(begun.elapsed() > Duration::from_secs(14), "{:?}", begun.elapsed());
    }
}

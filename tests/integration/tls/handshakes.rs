//! Handshakes by the thousand, of which none ends.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{ENVOY, Files, NAME, begin, borrowed, keystile};
use crate::harness::{authority::Issued, service::Setup, tls::Client, until};

/// Opens connections as fast as it can, and sends the beginning of a record of 16 KiB on each.
async fn flood(address: SocketAddr, stop: Arc<AtomicBool>, opened: Arc<AtomicU64>) {
    let mut open = VecDeque::new();
    while !stop.load(Relaxed) {
        let Ok(mut stream) = TcpStream::connect(address).await else { continue };
        let _ = stream.write_all(b"\x16\x03\x01\x40\x00\x01\x00").await;
        open.push_back(stream);
        opened.fetch_add(1, Relaxed);
        if open.len() > 300 {
            open.pop_front();
        }
    }
}

/// A connection from another address of this machine.
async fn elsewhere(address: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    socket.connect(address).await.unwrap()
}

/// Whether a client gets in on this connection.
async fn gets_in(tcp: TcpStream, files: &Files, own: &Issued) -> bool {
    let connected = async {
        let client = TlsConnector::from(Arc::new(files.client(Some(own))));
        let mut stream = client.connect(ServerName::try_from(NAME).unwrap(), tcp).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
        stream.read_exact(&mut [0; 9]).await
    };
    timeout(Duration::from_secs(10), connected).await.is_ok_and(|connected| connected.is_ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn flood_of_handshakes_from_one_address_starves_no_other() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let own = files.clients.issue(&[ENVOY]);
    // It was there before, and goes on.
    let mut before = begin(address, files.client(Some(&own))).await.unwrap();
    let (stop, opened) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let floods: Vec<_> =
        (0..6).map(|_| tokio::spawn(flood(address, Arc::clone(&stop), Arc::clone(&opened)))).collect();
    until("the flood", Duration::from_secs(20), async || opened.load(Relaxed) > 1000).await;
    let mut connected = 0;
    for _ in 0..20 {
        connected += u32::from(gets_in(elsewhere(address).await, &files, &own).await);
    }
    before.write_all(b"\0\0\x08\x06\0\0\0\0\0keystile").await.unwrap();
    let mut read = Vec::new();
    let answered = async {
        while !read.windows(8).any(|window| window == b"keystile") {
            assert!(before.read_buf(&mut read).await.unwrap() > 0);
        }
    };
    timeout(Duration::from_secs(10), answered).await.expect("the ping is answered");
    stop.store(true, Relaxed);
    assert_eq!(connected, 20, "of 20, during {} others", opened.load(Relaxed));
    let metrics = keystile.setup.metrics().await;
    let refused = "keystile_tls_handshakes_total{listener=\"grpc\",result=\"no_room\"} ";
    assert!(!metrics.contains(&format!("{refused}0\n")), "{metrics}");
    for flood in floods {
        flood.await.unwrap();
    }
}

/// Each new connection takes the place of one of its own network, and not of the oldest one.
#[tokio::test(flavor = "multi_thread")]
async fn slow_client_keeps_its_place_when_another_network_opens_hundreds() {
    let files = Files::new();
    let (keystile, _) = keystile(&files, Some(ENVOY)).await;
    let address = keystile.setup.tcp;
    let own = files.clients.issue(&[ENVOY]);
    let slow = elsewhere(address).await;
    let mut open = Vec::new();
    for _ in 0..600 {
        open.push(TcpStream::connect(address).await.unwrap());
    }
    assert!(gets_in(slow, &files, &own).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_do_not_end_hold_up_no_operator() {
    let files = Files::new();
    let settings = files.settings("KEYSTILE_ADMIN_TLS", Some("ops.internal"));
    let keystile = Setup::new().start_unready(&borrowed(&settings));
    let address = keystile.setup.admin;
    let own = files.clients.issue(&["ops.internal"]);
    let ask = async || {
        let client = Client::new(files.client(Some(&own)), NAME);
        let answer = client.send(address, "GET /livez", "text/plain", b"");
        timeout(Duration::from_secs(10), answer).await.ok()?.ok().map(|answer| answer.0)
    };
    until("alive", Duration::from_secs(20), async || ask().await == Some(200)).await;
    let mut open = Vec::new();
    for _ in 0..1000 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"\x16\x03\x01\x40\x00\x01\x00").await.unwrap();
        open.push(stream);
    }
    assert_eq!(ask().await, Some(200));
}

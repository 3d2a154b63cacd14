//! Postgres that moves: the next address is tried, the name is looked up again, and the connections to a server that is
//! the wrong one are left.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use keystile::{addresses::Resolver, metrics::Metrics, store::Database};
use tokio::net::TcpListener;

use crate::harness::{
    client::{ask, channel, status},
    failover::{Server, url},
    names::{BlackHole, Names},
    place::options,
    process::free_port,
    proxy::{Proxy, Wire},
    service::{Key, Keystile, Setup},
    until,
};

const SECOND: Duration = Duration::from_secs(1);
/// Within which everything is to be found again.
const FOUND: Duration = Duration::from_secs(5);

fn database(url: &str) -> Database {
    Database::connect(&options(url, 500), &Metrics::new().unwrap()).unwrap()
}

fn refusing() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

/// An address at which connections are accepted and nothing is said; how many there were.
async fn mute() -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, count) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
    let counted = Arc::clone(&count);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            held.push(stream);
        }
    });
    (address, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_addresses_are_passed_over_within_the_deadline_and_remembered() {
    let server = Server::start(&[]).await;
    let ((mute, attempts), black_hole) = (mute().await, BlackHole::open().await);
    let hosts = [mute, black_hole.address, refusing(), server.address()];
    let database = database(&url(&hosts, "sslmode=disable&application_name=pool"));
    database.migrate(None).await.unwrap();
    let begun = Instant::now();
    for _ in 0..20 {
        server
            .value("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'pool'")
            .await;
        database.ping().await.unwrap();
    }
    assert_eq!(attempts.load(Ordering::Relaxed), 1, "who does not answer is not asked first again");
    assert!(begun.elapsed() < 10 * SECOND, "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn each_address_of_a_name_is_tried_and_the_name_is_looked_up_again() {
    let mut first = Server::start(&[]).await;
    let black_hole = BlackHole::open().await;
    let names = Names::new(&[black_hole.address, first.address()]);
    let lookup: Arc<dyn Resolver> = names.clone();
    let url = "postgres://keystile@db.example/postgres?sslmode=disable";
    let database = Database::connect_by(&options(url, 500), &Metrics::new().unwrap(), &lookup).unwrap();
    until("it is found", FOUND, async || database.migrate(None).await.is_ok()).await;
    let second = first.standby().await;
    until("it is found again", FOUND, async || database.ping().await.is_ok()).await;
    first.stop();
    second.promote().await;
    names.set(&[second.address()]);
    until("the new server is found", FOUND, async || database.ping().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn name_that_still_leads_to_the_old_server_is_looked_up_until_it_does_not() {
    let mut first = Server::start(&[]).await;
    let names = Names::new(&[first.address()]);
    let lookup: Arc<dyn Resolver> = names.clone();
    let url = "postgres://keystile@db.example/postgres?sslmode=disable";
    let database = Database::connect_by(&options(url, 500), &Metrics::new().unwrap(), &lookup).unwrap();
    database.migrate(None).await.unwrap();
    let second = first.standby().await;
    let writes = async || database.invalidate(None, Duration::ZERO).await;
    until("it takes writes", FOUND, async || writes().await.is_ok()).await;
    second.promote().await;
    first.set_read_only(true).await;
    for _ in 0..10 {
        let error = writes().await.expect_err("read-only").to_string();
        assert!(error.contains("25006"), "{error}");
        database.ping().await.expect("it still answers reads");
        tokio::time::sleep(SECOND / 10).await;
    }
    names.set(&[second.address()]);
    until("the new server is found", FOUND, async || writes().await.is_ok()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn target_session_attrs_choose_the_server_that_libpq_would() {
    let mut primary = Server::start(&[]).await;
    database(&primary.url()).migrate(None).await.unwrap();
    let standby = primary.standby().await;
    let (on, off) = (primary.address(), standby.address());
    for (n, (hosts, session, expected)) in [
        ([on, off], "any", Some(on)),
        ([off, on], "any", Some(off)),
        ([off, on], "read-write", Some(on)),
        ([off, on], "primary", Some(on)),
        ([on, off], "read-only", Some(off)),
        ([on, off], "standby", Some(off)),
        ([on, off], "prefer-standby", Some(off)),
        ([on, refusing()], "prefer-standby", Some(on)),
        ([on, refusing()], "standby", None),
        ([off, refusing()], "primary", None),
    ]
    .into_iter()
    .enumerate()
    {
        let application = format!("session-{n}");
        let parameters =
            format!("sslmode=disable&target_session_attrs={session}&application_name={application}");
        let database = database(&url(&hosts, &parameters));
        let (asked, what) = (database.ping().await, format!("{session} {n}"));
        assert_eq!(asked.is_ok(), expected.is_some(), "{what}: {asked:?}");
        let at = |address| usize::from(expected == Some(address));
        // One that was looked at and will not do is closed a moment later.
        until(&what, SECOND, async || {
            (primary.connections(&application).await, standby.connections(&application).await)
                == (at(on), at(off))
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pooled_connections_to_a_server_that_became_another_are_dropped() {
    let mut first = Server::start(&[]).await;
    if !first.reports_its_role().await {
        println!("left out: this server does not report what it has become");
        return;
    }
    database(&first.url()).migrate(None).await.unwrap();
    let second = first.standby().await;
    let both = [first.address(), second.address()];
    let parameters =
        |session| format!("sslmode=disable&application_name={session}&target_session_attrs={session}");
    let (standby, read_write) =
        (database(&url(&both, &parameters("standby"))), database(&url(&both, &parameters("read-write"))));
    standby.ping().await.unwrap();
    read_write.ping().await.unwrap();
    assert_eq!((first.connections("read-write").await, second.connections("standby").await), (1, 1));
    second.promote().await;
    first.set_read_only(true).await;
    until("the writer has moved", FOUND, async || {
        read_write.ping().await.is_ok() && second.connections("read-write").await == 1
    })
    .await;
    until("no standby is left", FOUND, async || standby.ping().await.is_err()).await;
    assert_eq!(second.connections("standby").await, 0);
}

/// A Keystile on two servers, with one key that has been used.
struct Pair {
    first: Server,
    second: Server,
    keystile: Keystile,
    channel: tonic::transport::Channel,
    used: Key,
}

impl Pair {
    /// By these addresses in place of the servers'.
    async fn start(by_way: impl AsyncFn(SocketAddr) -> SocketAddr, parameters: &str) -> Self {
        let mut first = Server::start(&[]).await;
        let setup = Setup::with_database(&first.url());
        assert!(setup.run(&["migrate"]).status.success());
        setup.create_user("ada");
        let second = first.standby().await;
        let both = [by_way(first.address()).await, second.address()];
        let setup = Setup::with_database(&url(&both, &format!("sslmode=disable&{parameters}")));
        let settings = [("KEYSTILE_USAGE_INTERVAL", "200ms"), ("KEYSTILE_DATABASE_CONNECTIONS", "32")];
        let keystile = setup.start(&settings).await;
        let channel = channel(keystile.setup.tcp).await;
        let used = Self::key(&first);
        let pair = Self { first, second, keystile, channel, used };
        pair.until_allowed("the first server is used", &pair.used).await;
        until("changes are heard of", FOUND, async || pair.feed().await).await;
        pair
    }

    fn key(server: &Server) -> Key {
        Setup::with_database(&server.url()).create_key("ada", &[])
    }

    async fn feed(&self) -> bool {
        let stats = self.keystile.setup.stats().await;
        stats["change_feed"]["up"] == true && stats["change_feed"]["listening"] == true
    }

    async fn until_allowed(&self, what: &str, key: &Key) {
        until(what, FOUND, async || status(&ask(&self.channel, &key.credential).await) == 200).await;
    }

    /// A key that only the second server has is let in, changes there are heard of, and its use is written there.
    async fn expect_moved(&self) {
        let key = Self::key(&self.second);
        self.until_allowed("the second server is used", &key).await;
        let uses = format!("SELECT total_requests FROM api_keys WHERE id = {}", key.id);
        until("its use is written", FOUND, async || {
            self.second.value(&uses).await.is_some_and(|uses| uses != "0")
        })
        .await;
        until("its change feed is up", FOUND, async || self.feed().await).await;
        self.second.value(&format!("UPDATE api_keys SET is_active = false WHERE id = {}", key.id)).await;
        until("a revocation is heard of", SECOND, async || {
            status(&ask(&self.channel, &key.credential).await) == 401
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_is_stopped_is_left_for_the_one_that_is_promoted() {
    let mut pair = Pair::start(async |server| server, "target_session_attrs=read-write").await;
    pair.first.stop();
    pair.second.promote().await;
    pair.expect_moved().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_falls_silent_is_left_for_the_one_that_is_promoted() {
    let proxy = tokio::sync::OnceCell::new();
    let by_way = async |server| proxy.get_or_init(|| Proxy::before(server)).await.address;
    let pair = Pair::start(by_way, "target_session_attrs=read-write").await;
    // Many are asked for at once, so that the pool is full. What was asked for before is remembered.
    let mut unknown = (0..).map(|n| format!("zz{n:06}unknown"));
    until("the pool is full", 4 * FOUND, async || {
        let keys: Vec<_> = unknown.by_ref().take(500).collect();
        futures_util::future::join_all(keys.iter().map(|key| ask(&pair.channel, key))).await;
        pair.first.connections("keystile").await > 20
    })
    .await;
    // Nothing is closed: each of these connections has to be given up for dead.
    proxy.get().unwrap().set(Wire::Hanging);
    pair.second.promote().await;
    pair.expect_moved().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn server_that_becomes_read_only_is_left_for_the_one_that_is_promoted() {
    for parameters in ["", "target_session_attrs=read-write"] {
        let pair = Pair::start(async |server| server, parameters).await;
        pair.second.promote().await;
        pair.first.set_read_only(true).await;
        if !pair.first.reports_its_role().await {
            // The first write notices: the count of this use.
            pair.until_allowed("memory knows it", &pair.used).await;
        }
        pair.expect_moved().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn full_server_is_passed_over_and_a_refused_user_is_told_at_once() {
    let full =
        Server::start(&["max_connections=5", "superuser_reserved_connections=0", "max_wal_senders=0"]).await;
    let mut other = Server::start(&[]).await;
    let both = url(&[full.address(), other.address()], "sslmode=disable");
    database(&other.url()).migrate(None).await.unwrap();
    let mut held = Vec::new();
    while let Ok((client, connection)) = tokio_postgres::connect(&full.url(), tokio_postgres::NoTls).await {
        tokio::spawn(connection);
        held.push(client);
    }
    assert!(!held.is_empty());
    database(&both).ping().await.expect("the other has room");
    let nobody = both.replace("keystile@", "nobody:hunter2@");
    let error = database(&nobody).ping().await.expect_err("no such user").to_string();
    assert!(error.contains("nobody") && error.contains("28000") && !error.contains("hunter2"), "{error}");
    other.stop();
    let error = database(&both).ping().await.expect_err("none is left").to_string();
    assert!(error.contains("53300") && error.contains(&other.address().to_string()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn socket_is_named_by_its_folder() {
    let server = Server::start(&[]).await;
    let folder = server.folder().display().to_string();
    let port = server.address().port();
    let encoded = folder.replace('/', "%2F");
    for url in [
        format!("postgres:///postgres?user=keystile&host={folder}&port={port}"),
        format!("postgres://keystile@{encoded}:{port}/postgres?sslmode=require"),
        format!("postgres://keystile@localhost/postgres?host=/nowhere,{folder}&port={port}"),
    ] {
        database(&url).migrate(None).await.unwrap_or_else(|error| panic!("{url}: {error}"));
    }
}

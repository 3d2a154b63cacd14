//! PgBouncer between Keystile and the server. `make compat COMPAT=pgbouncer` installs it and runs this.

use std::{fs, time::Duration};

use super::{committed, denied, keys, revoke, warm};
use crate::harness::{
    cluster::Cluster,
    postgres::hand_over,
    process::{Guarded, free_port, program, scratch},
    promise::SECOND,
};

/// PgBouncer in one mode, in front of a server.
fn pooler(server: &Cluster, mode: &str) -> (Guarded, String) {
    let folder = scratch("pgbouncer");
    let port = free_port();
    // A session holds its connection for as long as it lives.
    let connections = if mode == "session" { 40 } else { 4 };
    let file = folder.join("pgbouncer.ini");
    let text = format!(
        "[databases]\npostgres = host=127.0.0.1 port={} user=keystile\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n\
         pool_mode = {mode}\ndefault_pool_size = {connections}\n",
        server.address().port()
    );
    fs::write(&file, text).unwrap();
    let user = hand_over(&folder);
    let pgbouncer = program("pgbouncer", ["/usr/sbin".into()]);
    let guarded = Guarded::spawn(folder, "INT", &[&user[..], &[&pgbouncer, file.to_str().unwrap()]].concat());
    guarded.wait_for_port(port);
    (guarded, format!("postgres://keystile@127.0.0.1:{port}/postgres?sslmode=disable"))
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "needs PgBouncer"]
async fn revocations_are_heard_of_through_a_pooler_in_either_mode() {
    let server = Cluster::start();
    let keys = keys::<4>(&server.url());
    for (mode, keys) in [("session", &keys[..2]), ("transaction", &keys[2..])] {
        let (_pooler, url) = pooler(&server, mode);
        let instance = warm(&url, keys).await;
        for key in keys {
            server.execute(&revoke(key)).await;
            let denied =
                denied(&instance, &committed(key, &format!("revoked behind a pooler of {mode}s"))).await;
            assert!(!denied.was_down && denied.after < 2 * SECOND, "{mode}: {denied:?}");
        }
        // A second instance finds room as well.
        let more = warm(&url, &[]).await;
        let bad = async { more.status("ks_nobodysKey").await };
        assert_eq!(tokio::time::timeout(Duration::from_secs(5), bad).await, Ok(401), "{mode}");
    }
}

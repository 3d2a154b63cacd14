//! `keystile probe`, beside a Keystile that runs or does not.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{keystile, service::Setup, until};

#[tokio::test]
async fn probe_tells_whether_the_service_is_ready() {
    let setup = Setup::new();
    let socket = format!("unix:{}", setup.socket().display());
    let nobody = keystile::keystile(&["probe", "--alive", "--address", &socket], "", "");
    let said = nobody.failed(1);
    assert!(said.contains(&socket), "{said}");
    assert_eq!(said.to_lowercase().matches("no such file").count(), 1, "the cause is said once: {said}");

    setup.run(&["migrate"]);
    let service = setup.start(&[]).await;
    let tcp = service.setup.tcp.to_string();
    for address in [&socket, &tcp] {
        keystile::keystile(&["probe", "--address", address], "", "").done();
    }
    service.process.signal(Signal::STOP);
    let hung = keystile::keystile(&["probe", "--timeout", "200ms", "--address", &socket], "", "");
    assert!(hung.failed(1).contains("200ms"));
    service.process.signal(Signal::CONT);
}

#[tokio::test]
async fn service_without_its_database_is_alive_and_not_ready() {
    let service = Setup::with_database("postgres://nobody@127.0.0.1:1/none").start_unready(&[]);
    let tcp = service.setup.tcp.to_string();
    let probe =
        |arguments: &[&str]| keystile::keystile(&[&["probe", "--address", &tcp], arguments].concat(), "", "");
    until("it is alive", Duration::from_secs(20), async || probe(&["--alive"]).status == 0).await;
    assert!(probe(&["--admin-address", "127.0.0.1:1"]).failed(1).contains("not ready; /readyz"));
    let admin = service.setup.admin.to_string();
    until("it knows why it is not ready", Duration::from_secs(20), async || {
        let said = probe(&["--admin-address", &admin]).failed(1);
        said.contains("not ready: starting") && said.contains("database: ") && said.contains("refused")
    })
    .await;
}

//! `keystile probe`, beside a Keystile that runs or does not.

use std::time::Duration;

use rustix::process::Signal;

use crate::harness::{keystile, service::Setup, until};

#[tokio::test]
async fn probe_tells_whether_the_service_is_ready() {
    let setup = Setup::new();
    let socket = format!("unix:{}", setup.socket().display());
    let nobody = keystile::keystile(&["probe", "--alive", "--address", &socket], "", "");
    assert!(nobody.failed(1).contains(&socket));

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
    assert!(probe(&[]).failed(1).contains("not ready"));
}

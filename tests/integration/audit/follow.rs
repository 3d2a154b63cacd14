//! `keystile audit --follow` prints each change once, however late it is committed.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    sync::mpsc,
    time::Duration,
};

use crate::harness::{
    cluster::Cluster,
    keystile::keystile,
    service::{Process, Setup},
};

#[tokio::test(flavor = "multi_thread")]
async fn change_that_is_committed_late_is_printed() {
    let server = Cluster::start();
    keystile(&["migrate"], &server.url(), "").done();
    let insert = |name: &str| {
        format!("INSERT INTO users (email, username, hashed_password) VALUES ('{name}', '{name}', '!')")
    };
    server.execute(&insert("before")).await;
    let mut client = server.client().await;
    let late = client.transaction().await.unwrap();
    late.batch_execute(&insert("late")).await.unwrap();
    let setup = Setup::with_database(&server.url());
    let mut follow = setup.command(&["audit", "--follow"]);
    let mut follow = Process(follow.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(follow.0.stdout.take().unwrap()).lines();
    let (sender, printed) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
    let next = || printed.recv_timeout(Duration::from_secs(20)).unwrap();
    assert!(next().contains("(before)"));
    for name in ["first", "second"] {
        server.execute(&insert(name)).await;
        assert!(next().contains(&format!("({name})")));
    }
    server.execute(&format!("BEGIN; {}; ROLLBACK", insert("never"))).await;
    late.commit().await.unwrap();
    assert!(next().contains("(late)"), "its number is lower than those that were printed");
    server.execute(&insert("last")).await;
    assert!(next().contains("(last)"));
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(printed.try_recv().is_err(), "no change is printed twice");
}

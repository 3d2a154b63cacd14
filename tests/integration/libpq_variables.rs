//! libpq's variables and its file with passwords, against a real Postgres that asks for a password.

use std::{fs, os::unix::fs::PermissionsExt, time::Duration};

use crate::harness::{cluster::Cluster, keystile, place::Place, postgres, service::Setup, until};

const PASSWORD: &str = "p@ss/w#rd:?";

#[tokio::test]
async fn variables_complete_a_url_and_url_wins() {
    let place = Place::postgres().await;
    let search_path = place.url().split_once('?').unwrap().1.to_owned();
    let address = postgres::server().address();
    let run = |url: &str, variables: &[(&str, &str)]| {
        let mut command = keystile::command(&["keys", "list"], url);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        (output.status.success(), String::from_utf8(output.stderr).unwrap())
    };
    let port = address.port().to_string();
    let all = [
        ("PGHOST", "127.0.0.1"),
        ("PGPORT", port.as_str()),
        ("PGUSER", "keystile"),
        ("PGDATABASE", "postgres"),
    ];
    let (done, said) = run(&format!("postgres://?{search_path}"), &all);
    assert!(done, "{said}");
    let (done, said) = run(&place.url(), &[("PGHOST", "host.invalid"), ("PGPORT", "1"), ("PGUSER", "eve")]);
    assert!(done, "what the URL says counts: {said}");
    let (done, said) =
        run(&format!("postgres://127.0.0.1:{port}/postgres?{search_path}"), &[("PGUSER", "no_such_role")]);
    assert!(!done && said.contains("no_such_role"), "{said}");
    let (done, said) =
        run(&format!("postgres://keystile@127.0.0.1:{port}/postgres"), &[("PGSSLMODE", "never")]);
    assert!(!done && said.contains("sslmode=never"), "{said}");
    let (done, said) = run(&place.url(), &[("PGPASSWORD", PASSWORD), ("PGHOST", "none")]);
    assert!(done && !said.contains("ss/w"), "{said}");
}

#[tokio::test]
async fn password_file_of_others_is_ignored_with_a_warning() {
    let place = Place::postgres().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(".pgpass");
    fs::write(&file, format!("*:*:*:*:{PASSWORD}\n")).unwrap();
    for (mode, warns) in [(0o644, true), (0o600, false)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        for (name, value) in [("HOME", folder.path()), ("PGPASSFILE", &file)] {
            let output =
                keystile::command(&["keys", "list"], &place.url()).env(name, value).output().unwrap();
            let said = String::from_utf8(output.stderr).unwrap();
            assert!(output.status.success(), "{said}");
            assert_eq!(said.contains("chmod 0600"), warns, "{name} {mode:o}: {said}");
            assert!(!said.contains("ss/w"), "{said}");
        }
    }
}

#[tokio::test]
async fn variables_that_are_not_supported_are_named_at_start() {
    let setup = Setup::with_database("postgres://nobody@127.0.0.1:1/none");
    let service = setup.start_unready(&[("PGSERVICE", "main"), ("PGOPTIONS", "-c x=y"), ("PGUSER", "eve")]);
    until("it has started", Duration::from_secs(20), async || service.setup.readyz().await.0 != 0).await;
    let log = service.setup.log();
    for name in ["PGSERVICE", "PGOPTIONS"] {
        let warning =
            log.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name} in {log}"));
        assert!(warning.contains("WARN") && warning.contains("not supported"), "{warning}");
    }
    assert!(!log.contains("PGUSER") && !log.contains("main\""), "{log}");
}

/// Makes a server ask `ada` for her password, and trust everybody else.
const ASK_ADA: &str =
    "DO $$ BEGIN EXECUTE format('COPY (VALUES (''host all ada 127.0.0.1/32 scram-sha-256''),
    (''host all all 127.0.0.1/32 trust''), (''local all all trust'')) TO %L',
    current_setting('data_directory') || '/pg_hba.conf'); END $$; SELECT pg_reload_conf();";

#[tokio::test]
async fn password_comes_from_the_url_the_variable_or_the_file_in_this_order() {
    let server = Cluster::start();
    keystile::keystile(&["migrate"], &server.url(), "").done();
    server.execute(&format!("SET password_encryption = 'scram-sha-256'; CREATE ROLE ada LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE ada_admin")).await;
    let grants =
        keystile::keystile(&["migrate", "--print-grants", "--role", "ada"], &server.url(), "").done();
    server.execute(&grants).await;
    server.execute(ASK_ADA).await;
    let folder = tempfile::tempdir().unwrap();
    let file = |port: u16| {
        let path = folder.path().join(port.to_string());
        let escaped = PASSWORD.replace(':', "\\:");
        fs::write(&path, format!("127.0.0.1:{port}:postgres:ada:{escaped}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (port, url) = (server.address().port(), server.url_as("ada", ""));
    let (good, other) = (file(port), file(1));
    let lists = |variables: &[(&str, &str)]| {
        let mut command = keystile::command(&["keys", "list"], &url);
        let output = command.envs(variables.iter().copied()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(!said.contains("ss/w") && !said.contains("wrong-one"), "{said}");
        output.status.success()
    };
    until("the server asks", Duration::from_secs(10), async || !lists(&[])).await;
    assert!(lists(&[("PGPASSWORD", PASSWORD)]));
    assert!(!lists(&[("PGPASSWORD", "wrong-one")]));
    assert!(lists(&[("PGPASSFILE", &good)]));
    assert!(!lists(&[("PGPASSFILE", &other)]));
    assert!(!lists(&[("PGPASSFILE", &good), ("PGPASSWORD", "wrong-one")]));
    let with_password = url.replace("ada@", "ada:p%40ss%2Fw%23rd%3A%3F@");
    let mut command = keystile::command(&["keys", "list"], &with_password);
    assert!(command.env("PGPASSWORD", "wrong-one").output().unwrap().status.success());
}

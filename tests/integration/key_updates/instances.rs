//! A change counts in a running instance within a second.

use std::time::Duration;

use crate::harness::{fleet::Fleet, service::Setup, until};

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test(flavor = "multi_thread")]
async fn each_update_is_seen_by_a_running_instance_within_a_second() {
    let fleet = Fleet::start(1, &[]).await;
    let key = fleet.key(&[]);
    let id = key.id.to_string();
    fleet.expect(&key, 200).await;
    for (update, code) in [
        (&["keys", "update", &id, "--disable"][..], Some("disabled")),
        (&["keys", "update", &id, "--enable", "--allowed-ip", "203.0.113.1"], Some("ip_not_allowed")),
        (
            &["keys", "update", &id, "--clear", "allowed-ips", "--allowed-model", "m"],
            Some("model_not_allowed"),
        ),
        (
            &["keys", "update", &id, "--clear", "allowed-models", "--budget-limit-cents", "0"],
            Some("budget_exhausted"),
        ),
        (&["keys", "update", &id, "--unlimited-budget"], None),
        (&["users", "update", "ada@example.com", "--locked"], Some("user_inactive")),
        (&["users", "update", "ada@example.com", "--locked=false"], None),
        (&["users", "disable", "ada@example.com"], Some("user_inactive")),
        (&["users", "enable", "ada@example.com"], None),
    ] {
        fleet.run_plain(update).done();
        until(&format!("{update:?}"), SECOND, async || fleet.code(0, &key).await.as_deref() == code).await;
    }
    // With --wait it counts once the command returns.
    for (update, expected) in [
        (&["keys", "update", &id, "--disable", "--wait"][..], 401),
        (&["keys", "update", &id, "--enable", "--wait"], 200),
        (&["users", "disable", "ada@example.com", "--wait"], 401),
        (&["users", "enable", "ada@example.com", "--wait"], 200),
        (&["keys", "revoke", "--user", "ada@example.com", "--yes", "--wait"], 401),
    ] {
        let said = fleet.run_plain(update).done();
        assert!(said.contains("by 1 instance"), "{said}");
        assert_eq!(fleet.status(0, &key).await, expected, "{update:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn update_of_a_file_is_seen_by_a_running_instance_within_a_second() {
    use crate::harness::client::{ask, channel, status};
    let setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]);
    let running = setup.start(&[]).await;
    let channel = channel(running.setup.tcp).await;
    until("it is let in", SECOND, async || status(&ask(&channel, &key.credential).await) == 200).await;
    let id = key.id.to_string();
    for (flag, expected) in [("--disable", 401), ("--enable", 200)] {
        running.setup.json(&["keys", "update", &id, flag]);
        until(flag, SECOND, async || status(&ask(&channel, &key.credential).await) == expected).await;
    }
}

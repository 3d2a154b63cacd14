//! The units of systemd.

use std::{collections::BTreeSet, path::Path, process::Command};

use keystile::config::{ManagementOptions, ServeOptions};

fn unit(name: &str) -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd").join(name)).unwrap()
}

/// The lines that set something, without the comments.
fn lines(unit: &str) -> BTreeSet<&str> {
    unit.lines().filter(|line| line.contains('=') && !line.starts_with('#')).collect()
}

#[test]
fn both_units_have_the_same_hardening() {
    let (serve, management) = (unit("keystile.service"), unit("keystile-management.service"));
    let of_its_own = [
        "Description=",
        "Documentation=",
        "User=",
        "Group=",
        "RuntimeDirectory",
        "StateDirectory=",
        "WorkingDirectory=",
        "Environment",
        "ExecStart=",
    ];
    let shared = |unit: &'static str| -> BTreeSet<&'static str> {
        lines(unit).into_iter().filter(|line| !of_its_own.iter().any(|own| line.starts_with(own))).collect()
    };
    let (serve, management) = (shared(serve.leak()), shared(management.leak()));
    assert_eq!(serve, management);
    for line in ["NoNewPrivileges=true", "ProtectSystem=strict", "LimitCORE=0", "CapabilityBoundingSet="] {
        assert!(serve.contains(line), "{line}");
    }
}

#[test]
fn commands_and_variables_of_the_units_exist() {
    use clap::{Args, Command as Clap};
    let commands = [
        ("keystile.service", "serve", ServeOptions::augment_args(Clap::new("serve"))),
        (
            "keystile-management.service",
            "management",
            ManagementOptions::augment_args(Clap::new("management")),
        ),
        ("keystile-mtls.env", "", ServeOptions::augment_args(Clap::new("serve"))),
    ];
    for (name, command, options) in commands {
        let text = unit(name);
        if !command.is_empty() {
            assert!(text.contains(&format!("\nExecStart=/usr/local/bin/keystile {command}\n")), "{name}");
        }
        let known: Vec<_> = options.get_arguments().filter_map(|option| option.get_env()?.to_str()).collect();
        let named = text.lines().map(|line| line.strip_prefix("Environment=").unwrap_or(line));
        let named: Vec<_> = named
            .filter(|line| line.starts_with("KEYSTILE_"))
            .filter_map(|line| line.split('=').next())
            .collect();
        assert!(!named.is_empty(), "{name}");
        for variable in named {
            assert!(known.contains(&variable), "{name}: {variable}");
        }
    }
}

/// The management API starts with the settings of its unit, and `/readyz` is where the guide says.
#[tokio::test]
async fn management_unit_starts() {
    use crate::harness::{
        process::free_port,
        service::{Process, Setup},
        until,
    };
    let setup = Setup::new();
    setup.run(&["migrate"]);
    setup.json(&["management-tokens", "create", "--name", "ci", "--scope", "write", "--expires-at", "90d"]);
    let text = unit("keystile-management.service");
    let start =
        text.lines().find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/keystile ")).unwrap();
    let environment = text.lines().find_map(|line| line.strip_prefix("Environment=")).unwrap();
    let (name, address) = environment.split_once('=').unwrap();
    let admin = free_port();
    let mut command: Command = setup.command(&start.split(' ').collect::<Vec<_>>());
    // Only the ports are others, since those may be taken on this machine.
    command.env(name, address.replace("9193", &free_port().to_string()));
    command.env("KEYSTILE_MANAGEMENT_ADMIN_LISTEN", format!("127.0.0.1:{admin}"));
    let _process = Process(command.spawn().unwrap());
    until("ready", std::time::Duration::from_secs(20), async || {
        let answer = reqwest::get(format!("http://127.0.0.1:{admin}/readyz")).await;
        answer.is_ok_and(|answer| answer.status() == 200)
    })
    .await;
}

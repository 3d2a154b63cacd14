//! Keystile in front of a service that checks API keys itself, in each step of the move that the guide describes.
//!
//! The settings are read from the guide, so that a reader who follows it gets what is tested here. The requests and the
//! facts are in `tests/backend`.

use std::{
    collections::BTreeSet,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::harness::{
    envoy::VERSIONS,
    postgres::Schema,
    python::{Environment, PythonGateway, PythonService, run},
    redis::Redis,
    service::{Keystile, Setup},
    tools::repository,
};

mod guide;

use guide::Guide;

/// The seed of the generated keys and requests, unless `KEYSTILE_TEST_SEED` says another.
const SEED: &str = "18";

/// The service with its database and Redis, before and during the move.
struct Move {
    schema: Schema,
    redis: Option<Redis>,
    folder: TempDir,
    guide: Guide,
}

/// One step of it.
struct Step {
    keystile: Keystile,
    service: PythonService,
    gateway: PythonGateway,
}

impl Move {
    /// The service's tables with a first key, and what `keystile migrate` adds to them.
    async fn start() -> Self {
        let schema = Schema::create().await;
        let (redis, folder) = (Some(Redis::start()), tempfile::tempdir().unwrap());
        let started = Self { schema, redis, folder, guide: Guide::read() };
        let create =
            "import client; world = client.World(); world.create_tables(); world.key(world.user('first'))";
        std::fs::write(started.folder.path().join("secret"), "a cache secret of this test and of no other")
            .unwrap();
        started.python_code(create);
        let migrated = Setup::with_database(&started.schema.url()).run(&["migrate"]);
        assert!(migrated.status.success(), "{}", String::from_utf8_lossy(&migrated.stderr));
        started.schema.execute(&started.role_statements()).await;
        started
    }

    /// The statements that make Keystile's roles, as the guides have them.
    fn role_statements(&self) -> String {
        let role = format!("keystile_{}", self.schema.name());
        let setup = Setup::with_database(&self.schema.url());
        let printed = setup.run(&["migrate", "--print-grants", "--role", &role]);
        assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
        let grants = self.guide.grants(&String::from_utf8(printed.stdout).unwrap());
        let grants = grants.replace("TO keystile;", &format!("TO {role};"));
        format!("CREATE ROLE {role} LOGIN; CREATE ROLE {role}_admin LOGIN; {grants}")
    }

    /// The database for that role.
    fn url(&self) -> String {
        self.schema.url().replacen("keystile@", &format!("keystile_{}@", self.schema.name()), 1)
    }

    /// The environment of the service in a step; before the first, it is as in the first.
    fn environment(&self, step: &str) -> Environment {
        let mut variables = vec![
            (
                "DATABASE_URL".to_owned(),
                self.schema.url().replacen("postgres://", "postgresql+psycopg://", 1),
            ),
            ("JWT_SECRET".to_owned(), "a secret for tokens, of this test alone".to_owned()),
        ];
        for (name, value) in self.guide.service_settings(step) {
            match (name.as_str(), &self.redis) {
                ("REDIS_URL", Some(redis)) => variables.push((name, redis.url())),
                ("REDIS_URL", None) => panic!("the guide keeps Redis in step {step}"),
                _ => variables.push((name, value)),
            }
        }
        variables
    }

    async fn step(&self, step: &str, version: &str) -> Step {
        let secret = self.folder.path().join("secret");
        let mut settings = self.guide.keystile_settings(step);
        settings.retain(|(name, _)| name != "KEYSTILE_DATABASE_URL" && name != "KEYSTILE_CACHE_SECRET_FILE");
        let of_test = [
            ("KEYSTILE_CACHE_SECRET_FILE", secret.to_str().unwrap()),
            ("KEYSTILE_USAGE_INTERVAL", "1s"),
            ("KEYSTILE_BCRYPT_COST", "auto"),
            // The machine of the tests is slower than a server, and busy.
            ("KEYSTILE_DATABASE_TIMEOUT", "5s"),
            ("KEYSTILE_TIMEOUT", "10s"),
        ];
        let settings: Vec<_> =
            settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).chain(of_test).collect();
        let keystile = Setup::with_database(&self.url()).start(&settings).await;
        let service = PythonService::start(&self.environment(step)).await;
        let gateway = PythonGateway::start(version, &keystile, &service).await;
        Step { keystile, service, gateway }
    }

    /// Runs a program of `tests/backend` with the service's settings in a step.
    fn python(&self, program: &str, arguments: &[&str], step: &str) -> (bool, String) {
        run(program, arguments, &self.environment(step), self.folder.path())
    }

    fn python_code(&self, code: &str) {
        let file = self.folder.path().join("code.py");
        let path = repository("tests/backend").display().to_string();
        std::fs::write(&file, format!("import sys; sys.path.insert(0, {path:?})\n{code}\n")).unwrap();
        let (succeeded, output) = self.python(file.to_str().unwrap(), &[], "shadow");
        assert!(succeeded, "{output}");
    }
}

/// Runs all facts of `rows.py` in one step.
async fn facts_hold_in(step: &str, version: &str) {
    let mut moving = Move::start().await;
    if step == "no-redis" {
        moving.redis = None;
    }
    let running = moving.step(step, version).await;
    let admin = format!("http://{}", running.keystile.setup.admin);
    let (hold, output) = tokio::task::block_in_place(|| {
        moving.python("rows.py", &[step, &running.gateway.url, &admin, &running.service.url()], step)
    });
    println!("{output}");
    assert!(hold, "{output}\n{}\n{}", running.service.log(), running.keystile.setup.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_notice_nothing_in_shadow_mode() {
    facts_hold_in("shadow", VERSIONS[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_get_the_same_when_both_check_the_key() {
    facts_hold_in("forward", VERSIONS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_get_the_same_when_the_service_trusts_the_headers() {
    facts_hold_in("headers", VERSIONS[1]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn callers_get_the_same_without_redis() {
    facts_hold_in("no-redis", VERSIONS[0]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_differ_only_as_the_guide_lists() {
    let moving = Move::start().await;
    let before = PythonService::start(&moving.environment("shadow")).await;
    let python = |moving: &Move, arguments: &[&str]| {
        tokio::task::block_in_place(|| moving.python("compare.py", arguments, "shadow"))
    };
    let chosen = std::env::var("KEYSTILE_TEST_SEED").ok();
    let seed = chosen.as_deref().unwrap_or(SEED);
    for arguments in [&["prepare", seed][..], &["reference", &before.url()]] {
        let (succeeded, output) = python(&moving, arguments);
        assert!(succeeded, "{output}");
    }
    let mut failures = Vec::new();
    let mut shown = BTreeSet::new();
    for step in guide::STEPS {
        let running = moving.step(step, VERSIONS[1]).await;
        let (is_listed, output) = python(&moving, &[step, &before.url(), &running.gateway.url]);
        print!("{output}");
        shown.extend(
            guide::difference_names().into_iter().filter(|name| output.contains(&format!("{name} "))),
        );
        if !is_listed {
            failures.push(output.clone());
        }
        if step == "shadow" {
            // The probe of the harness is one more.
            let requests = number_after(&output, "shadow: requests ") + 1;
            let report = report(&running.gateway, requests, moving.folder.path()).await;
            let differences = number_after(&output, ", listed differences ");
            assert_eq!(requests - report["agreeing"].as_u64().unwrap(), differences, "{report:#}\n{output}");
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    if chosen.is_none() {
        assert_eq!(shown, guide::difference_names(), "each difference of the guide occurs");
    }
}

/// The number in a text after `label`.
fn number_after(text: &str, label: &str) -> u64 {
    let (_, rest) = text.rsplit_once(label).unwrap_or_else(|| panic!("no {label:?} in {text}"));
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

/// What `envoy/shadow-report.py` makes of Envoy's access log, once that has so many requests.
async fn report(gateway: &PythonGateway, requests: u64, folder: &Path) -> Value {
    let log = folder.join("access.log");
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        std::fs::write(&log, gateway.log()).unwrap();
        let output = Command::new("python3")
            .arg(repository("envoy/shadow-report.py"))
            .args([log.to_str().unwrap(), "--output", "json"])
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        let report: Value = serde_json::from_slice(&output.stdout).unwrap();
        if report["requests"] == requests {
            return report;
        }
        assert!(Instant::now() < deadline, "{requests} requests, but {report:#}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

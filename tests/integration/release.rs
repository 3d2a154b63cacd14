//! What a release is made of, as far as it can be checked without a release build: the rest is in `tools/package`,
//! `tools/reproduce` and `tools/try-package`.

use std::{
    collections::BTreeSet,
    fs::{self, Permissions},
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::geteuid;
use serde_json::Value;

use crate::harness::{
    service::Process,
    tools::{python, read, repository},
};

const BINARY: &str = env!("CARGO_BIN_EXE_keystile");

/// The user that OpenShift assigns: a number without a name, and group 0.
const ASSIGNED_USER: u32 = 1_000_680_000;

fn hadolint(file: &Path) -> (bool, String) {
    let program = repository(".tools/hadolint-2.15.1/hadolint");
    assert!(program.exists(), "{} is missing: run tools/fetch-hadolint", program.display());
    let output = Command::new(program).arg(file).output().unwrap();
    (output.status.success(), text(&output))
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Cargo.toml, as JSON.
fn manifest() -> Value {
    let script =
        "import json, sys, tomllib; print(json.dumps(tomllib.load(open('Cargo.toml', 'rb')), default=str))";
    serde_json::from_str(&python(&["-c", script], "").good()).unwrap()
}

#[test]
fn dockerfile_passes_its_linters() {
    let (good, found) = hadolint(&repository("Dockerfile"));
    assert!(good, "{found}");
    // A linter that finds nothing anywhere is noticed.
    let folder = tempfile::tempdir().unwrap();
    let bad = folder.path().join("Dockerfile");
    fs::write(&bad, "FROM debian\nRUN cd /tmp && apt-get install curl\n").unwrap();
    assert!(hadolint(&bad).1.contains("DL3006"));
    let checkov = |folder: &Path| {
        let arguments = ["-m", "checkov.main", "--framework", "dockerfile", "--compact", "--quiet"];
        // No health check: the image also runs `inject` and `management`, and Kubernetes has probes.
        let further = ["--skip-download", "--skip-check", "CKV_DOCKER_2", "--file"];
        let file = folder.join("Dockerfile");
        python(&[&arguments[..], &further, &[file.to_str().unwrap()]].concat(), "")
    };
    assert!(checkov(folder.path()).text.contains("CKV_DOCKER_3"), "a root user is not noticed");
    checkov(&repository("")).good();
}

/// What no linter knows.
#[test]
fn image_has_the_binary_of_a_release_and_runs_as_any_user() {
    let dockerfile = read("Dockerfile");
    let lines: Vec<_> = dockerfile.lines().map(str::trim).filter(|line| !line.starts_with('#')).collect();
    let of = |instruction: &str| {
        let prefix = format!("{instruction} ");
        lines.iter().filter_map(|line| line.strip_prefix(&prefix)).map(str::to_owned).collect::<Vec<_>>()
    };
    assert!(of("RUN").contains(&"tools/build-binary".to_owned()));
    let release = read("Makefile");
    let release = release.split("\nrelease:").nth(1).unwrap().split("\n\n").next().unwrap();
    assert!(release.contains("\ttools/build-binary\n"), "{release}");

    // Each base image has a version, of the same Debian, so that the build has the image's C library.
    let images = of("FROM");
    assert!(
        images.len() == 2 && images[0].starts_with("rust:1.") && images[0].contains("bookworm"),
        "{images:?}"
    );
    assert!(images[1].contains("debian12"), "{images:?}");

    // Kubernetes can tell a number from root; group 0 owns what has to be writable.
    let user = of("USER").pop().unwrap();
    let id: u32 = user.split(':').next().unwrap().parse().unwrap();
    assert!(id > 10_000, "{user}");
    for folder in ["var/lib", "run"] {
        let copy = format!("--from=build --chown=65532:0 /folders/{folder}/ /{folder}/");
        assert!(of("COPY").contains(&copy), "{copy}");
        assert!(dockerfile.contains("chmod 0770 /folders/var/lib/keystile /folders/run/keystile"));
    }
    assert!(of("COPY").iter().all(|copy| copy.starts_with("--from=build ") || copy == ". ."));
}

/// The files that the container build copies are there, and cargo wants no others.
#[test]
fn container_build_gets_all_that_cargo_reads() {
    let context = tempfile::tempdir().unwrap();
    let ignore = read(".dockerignore");
    let kept: Vec<_> = ignore.lines().filter_map(|line| line.strip_prefix('!')).collect();
    assert!(ignore.lines().any(|line| line == "*") && kept.contains(&"tools/build-binary"), "{kept:?}");
    for name in kept {
        let (from, to) = (repository(name), context.path().join(name));
        assert!(from.exists(), "{name}");
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        let copied = Command::new("cp").arg("-R").args([&from, &to]).status().unwrap();
        assert!(copied.success(), "{name}");
    }
    let cargo = Command::new(env!("CARGO"))
        .args(["metadata", "--locked", "--offline", "--no-deps", "--format-version", "1"])
        .current_dir(context.path())
        .output()
        .unwrap();
    assert!(cargo.status.success(), "{}", text(&cargo));
    for script in ["build-binary", "commit", "linker"] {
        let mode = fs::metadata(context.path().join("tools").join(script)).unwrap().permissions().mode();
        assert!(mode & 0o111 != 0, "{script}");
    }
}

/// Each file that the package for Debian names is made, and each file that is made for it has a place in it.
#[test]
fn package_for_debian_has_every_file_that_is_made_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let staged = Command::new(repository("tools/stage")).arg(BINARY).arg(folder.path()).output().unwrap();
    assert!(staged.status.success(), "{}", text(&staged));

    let deb = &manifest()["package"]["metadata"]["deb"];
    let mut unplaced = files(folder.path());
    let mut modes = Vec::new();
    for asset in deb["assets"].as_array().unwrap() {
        let [source, target, mode] = [0, 1, 2].map(|index| asset[index].as_str().unwrap());
        let pattern = source.strip_prefix("target/package/").unwrap();
        let before = unplaced.len();
        unplaced.retain(|file| !matches(pattern, file));
        assert!(unplaced.len() < before, "{source} matches no file");
        modes.push((target, mode));
    }
    // The unit is placed by its name, and the next is the package's own.
    assert_eq!(deb["systemd-units"]["unit-name"], "keystile");
    assert_eq!(deb["maintainer-scripts"], "target/package/systemd");
    assert!(unplaced.remove("systemd/keystile.service"));
    assert_eq!(deb["changelog"], "target/package/debian-changelog");
    assert!(unplaced.remove("debian-changelog"));
    unplaced.retain(|file| !file.contains("/."));
    assert_eq!(unplaced, BTreeSet::new());
    assert!(modes.contains(&("usr/bin/", "755")));
    assert!(modes.contains(&("etc/keystile/", "600")), "others could read passwords");

    let unit = |path: &Path| {
        let unit = fs::read_to_string(path).unwrap();
        unit.lines().find_map(|line| line.strip_prefix("ExecStart=")).unwrap().to_owned()
    };
    let started = unit(&folder.path().join("systemd/keystile.service"));
    assert_eq!(started, "/usr/bin/keystile serve");
    assert_eq!(unit(&repository("systemd/keystile.service")), "/usr/local/bin/keystile serve");
    let management = unit(&folder.path().join("systemd/keystile-management.service"));
    assert_eq!(management, "/usr/bin/keystile management");
    let users = read("systemd/sysusers.d/keystile.conf");
    assert!(users.lines().any(|line| line.starts_with("u keystile ")), "{users}");
    assert!(users.lines().any(|line| line.starts_with("u keystile-management ")), "{users}");
    assert!(read("systemd/keystile.service").contains("User=keystile\nGroup=keystile\n"));
    let changelog = fs::read_to_string(folder.path().join("debian-changelog")).unwrap();
    let version = env!("CARGO_PKG_VERSION");
    assert!(
        changelog.starts_with(&format!("keystile ({version}-1) stable; urgency=medium\n")),
        "{changelog}"
    );
    assert!(folder.path().join("man/keystile-keys-create.1").exists());
}

/// The files below a folder.
fn files(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                found.insert(path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// Whether a pattern of the kinds in Cargo.toml has the file: `a/b`, `a/*.b` or `a/**/*`.
fn matches(pattern: &str, file: &str) -> bool {
    if let Some(folder) = pattern.strip_suffix("**/*") {
        return file.starts_with(folder) && !file.contains("/.");
    }
    match pattern.split_once('*') {
        Some((start, end)) => file
            .strip_prefix(start)
            .and_then(|rest| rest.strip_suffix(end))
            .is_some_and(|name| !name.contains('/')),
        None => file == pattern,
    }
}

/// The binary that the tests build is no release, and the check says why.
#[test]
fn binary_that_is_no_release_is_noticed() {
    let check = |binary: &Path| {
        let output = Command::new(repository("tools/check-binary")).arg(binary).output().unwrap();
        (output.status.success(), text(&output))
    };
    let (good, said) = check(Path::new(BINARY));
    assert!(!good && said.contains("needs more than glibc") && said.contains("libgcc_s.so.1"), "{said}");
}

#[test]
fn version_has_the_commit_of_a_release_only() {
    let output = Command::new(BINARY).arg("--version").env_clear().output().unwrap();
    assert_eq!(text(&output), concat!("keystile ", env!("CARGO_PKG_VERSION"), "\n"));
    let commit = Command::new(repository("tools/commit")).output().unwrap();
    let commit = text(&commit);
    let (hash, _) = commit.trim().split_once("-dirty").unwrap_or((commit.trim(), ""));
    assert!(hash == "unknown" || hash.len() == 12 && hash.bytes().all(|b| b.is_ascii_hexdigit()), "{commit}");
}

/// A root file system as the image has it: nothing is writable but two folders, by group 0.
struct Image {
    folder: tempfile::TempDir,
}

impl Image {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let image = Self { folder };
        let mode = |path: &Path, mode| fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        fs::copy(BINARY, image.path("keystile")).unwrap();
        mode(&image.path("keystile"), 0o755);
        for name in ["data", "run"] {
            fs::create_dir(image.path(name)).unwrap();
            mode(&image.path(name), 0o770);
            if geteuid().is_root() {
                chown(image.path(name), Some(65532), Some(0)).unwrap();
            }
        }
        mode(image.folder.path(), 0o555);
        image
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `keystile ARGUMENTS`, as a user without a name and a home, in a folder that it cannot write to.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = if geteuid().is_root() {
            let mut command = Command::new("setpriv");
            let user = format!("--reuid={ASSIGNED_USER}");
            command.args([&user, "--regid=0", "--clear-groups", "--bounding-set=-all", "--no-new-privs"]);
            command.arg(self.path("keystile"));
            command
        } else {
            Command::new(self.path("keystile"))
        };
        command
            .args(arguments)
            .current_dir(self.folder.path())
            .env_clear()
            .env("KEYSTILE_BCRYPT_COST", "4")
            .env("KEYSTILE_ADMIN_LISTEN", "127.0.0.1:0")
            .stdin(Stdio::null());
        command
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        // So that its content can be removed without root, too.
        let _ = fs::set_permissions(self.folder.path(), Permissions::from_mode(0o755));
    }
}

#[test]
fn arbitrary_user_without_name_and_home_can_run_everything() {
    let image = Image::new();
    let database = format!("sqlite:{}", image.path("data/keystile.db").display());
    let socket = format!("unix:{}", image.path("run/keystile.sock").display());
    let run = |arguments: &[&str]| {
        let output = image.command(arguments).env("KEYSTILE_DATABASE_URL", &database).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        text(&output)
    };
    run(&["migrate"]);
    run(&["users", "create", "--email", "ada@example.com", "--username", "ada"]);
    run(&["keys", "create", "--user", "ada@example.com", "--name", "laptop"]);
    let audit = run(&["audit"]);
    assert!(audit.contains("create users"), "{audit}");
    // A user without a name is known by number.
    assert!(!geteuid().is_root() || audit.contains(&format!("uid {ASSIGNED_USER}")), "{audit}");

    let log = fs::File::create(image.path("data/log")).unwrap();
    let mut serve = image.command(&["serve", "--listen", &socket]);
    let serve = serve.env("KEYSTILE_DATABASE_URL", &database).stderr(log).spawn().unwrap();
    let _serve = Process(serve);
    let deadline = Instant::now() + Duration::from_secs(20);
    while !image.command(&["probe", "--address", &socket]).output().unwrap().status.success() {
        let log = || fs::read_to_string(image.path("data/log")).unwrap_or_default();
        assert!(Instant::now() < deadline, "not ready:\n{}", log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn folder_that_cannot_be_written_to_is_named() {
    let image = Image::new();
    // The default database is in the working folder.
    let output = image.command(&["migrate"]).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("keystile.db"), "{said}");
    let missing = format!("unix:{}", image.path("keystile.sock").display());
    let database = format!("sqlite:{}", image.path("data/keystile.db").display());
    let mut serve = image.command(&["serve", "--listen", &missing]);
    let output = serve.env("KEYSTILE_DATABASE_URL", database).output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && said.contains("--listen") && said.contains(&missing), "{said}");
}

/// libpq takes the name of the user, too: it has none here.
#[test]
fn user_without_a_name_is_told_to_name_the_database_user() {
    let image = Image::new();
    let mut command = image.command(&["keys", "list"]);
    let output = command.env("KEYSTILE_DATABASE_URL", "postgres://127.0.0.1:1/keys").output().unwrap();
    let said = text(&output);
    assert!(!output.status.success() && !said.contains("panicked"), "{said}");
    assert!(said.contains("127.0.0.1") || said.contains("user"), "{said}");
}

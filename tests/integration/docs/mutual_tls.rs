//! The commands of the guide to mutual TLS make a request go through a real Envoy to a shared instance, by files copied
//! unchanged to the places that the page names.

use std::process::{Command, Output, Stdio};

use super::read;
use crate::harness::envoy::{VERSIONS, binary};

/// Stands in for the rest of the two machines: name service, systemd, Keystile's user, and the service behind Envoy. The
/// script has an /etc, a /run and a network of its own.
const MACHINES: &str = r####"
set -e
python3 -c 'import fcntl, socket, struct
up, loopback = 0x1, 0x8
fcntl.ioctl(socket.socket(), 0x8914, struct.pack("16sh22x", b"lo", up | loopback))' # SIOCSIFFLAGS
cp -a /etc "$SCRATCH/etc" 2> /dev/null || true
echo '127.0.0.1 keystile.internal' >> "$SCRATCH/etc/hosts"
rm -rf "$SCRATCH/etc/keystile" "$SCRATCH/etc/envoy"
mount --bind "$SCRATCH/etc" /etc
mount -t tmpfs none /run
mkdir /run/keystile
trap 'kill $(jobs -p) 2> /dev/null' EXIT
unit() { sed -n "s/^$1=-\{0,1\}//p" systemd/keystile.service; }
systemctl() {
    [ "$*" = 'restart keystile' ]
    ( set -a; eval "$(unit Environment)"; . "$(unit EnvironmentFile)"; set +a
      command=$(unit ExecStart); cd "$SCRATCH/lib"; exec $KEYSTILE ${command#* } > "$SCRATCH/keystile.log" 2>&1 ) &
}
install() {
    local arguments=()
    for argument; do [ "$argument" = -g ] || [ "$argument" = keystile ] || arguments+=("$argument"); done
    command install "${arguments[@]}"
}
envoy() { exec "$ENVOY" --use-dynamic-base-id --concurrency 2 --log-level warning "$@" > "$SCRATCH/envoy.log" 2>&1; }
answers() {     # answers STATUS WHAT: waits until a request gets this status
    for _ in $(seq 150); do
        got=$(curl -s -o /dev/null -w '%{http_code}' localhost:8080/v1/models -H "x-api-key: $KEY" || true)
        [ "$got" = "$1" ] && { echo "### $2: $got"; return; }
        sleep 0.2
    done
    echo "$2: $got, and not $1"; tail -n 20 "$SCRATCH"/*.log; exit 1
}
mkdir "$SCRATCH/lib"
( cd "$SCRATCH/lib"
  $KEYSTILE users create --email ada@example.com --username ada
  $KEYSTILE keys create --user ada@example.com --name laptop --output json > "$SCRATCH/key.json" )
KEY=$(python3 -c 'import json, os; print(json.load(open(os.environ["SCRATCH"] + "/key.json"))["credential"])')
python3 -c '
from http.server import *
class Upstream(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.send_header("content-length", "0"); self.end_headers()
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", 8081), Upstream).serve_forever()' &
"####;

/// The commands in the page's blocks marked `bash`, block by block.
fn blocks(page: &str) -> Vec<String> {
    let parts = page.split("\n```bash\n").skip(1);
    parts.map(|part| part.split("\n```").next().unwrap().to_owned()).collect()
}

/// Runs them in the repository, with this Envoy, and with what the page promises after each block.
fn run(version: &str) -> Output {
    let folder = tempfile::tempdir().unwrap();
    let page = read("docs/guides/mutual-tls.md");
    let [certificates, keystile, envoy, renew, revoke]: [String; 5] = blocks(&page).try_into().unwrap();
    // The repository is read only, and the commands write where they are called.
    let copies = "cp -r \"$REPOSITORY/envoy\" \"$REPOSITORY/systemd\" .";
    let script = [
        MACHINES,
        copies,
        &certificates,
        &keystile,
        &envoy,
        "answers 200 'a key that is good'",
        "(KEY=ks_nobodysKey; answers 401 'another key')",
        // What was copied is what the repository has.
        "cmp /etc/keystile/keystile.env \"$REPOSITORY/systemd/keystile-mtls.env\"",
        "cmp /etc/envoy/envoy.yaml \"$REPOSITORY/envoy/mtls.yaml\"",
        "cp envoy.crt first.crt; cp envoy.key first.key",
        &renew,
        "sleep 3",
        &revoke,
        "until grep -q 'no longer valid' \"$SCRATCH/keystile.log\"; do sleep 0.2; done",
        "answers 200 'with the renewed certificate'",
        "put 0600 first.key /etc/envoy/keystile/tls.key; put 0644 first.crt /etc/envoy/keystile/tls.crt; sleep 2",
        "cp envoy.crt envoy-old.crt",
        &revoke,
        "answers 503 'with a revoked certificate'",
        "grep -q -i revoked \"$SCRATCH/keystile.log\" && echo '### the log says so'",
    ];
    Command::new("timeout")
        .args(["300", "unshare", "--user", "--map-root-user", "--mount", "--net", "bash", "-c"])
        .arg(script.join("\n"))
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap())
        .env("HOME", folder.path())
        .env("SCRATCH", folder.path())
        .env("REPOSITORY", env!("CARGO_MANIFEST_DIR"))
        .env("KEYSTILE", env!("CARGO_BIN_EXE_keystile"))
        .env("ENVOY", binary(version))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn commands_of_the_guide_to_mutual_tls_work_with_envoy() {
    let judge = |version: &str| {
        let output = run(version);
        let text = [output.stdout, output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        assert!(output.status.success(), "Envoy {version}:\n{text}");
        assert_eq!(text.matches("### ").count(), 5, "Envoy {version}:\n{text}");
    };
    std::thread::scope(|scope| {
        for version in VERSIONS {
            scope.spawn(move || judge(version));
        }
    });
}

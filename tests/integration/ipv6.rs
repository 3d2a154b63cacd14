//! IPv6, alone and together with IPv4: listeners, the database, and Envoy.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    process::{Command, Stdio},
    time::Duration,
};

use crate::harness::{
    client::{ask, channel, status},
    envoy::{Gateway, VERSIONS},
    keystile::keystile,
    postgres::{self, Schema},
    process::free_port,
    service::{Process, Setup},
    until,
};

const SOON: Duration = Duration::from_secs(20);
const BOTH: [IpAddr; 2] = [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];

/// With a key, and listeners at these addresses.
fn setup(ip: impl Into<IpAddr>) -> (Setup, String) {
    let ip = ip.into();
    let mut setup = Setup::new();
    setup.create_user("ada");
    let key = setup.create_key("ada", &[]).credential;
    setup.tcp.set_ip(ip);
    setup.admin.set_ip(ip);
    (setup, key)
}

#[tokio::test(flavor = "multi_thread")]
async fn wildcard_of_ipv6_is_every_address() {
    let (setup, key) = setup(Ipv6Addr::UNSPECIFIED);
    let service = setup.start(&[]).await;
    let (tcp, admin) = (service.setup.tcp.port(), service.setup.admin.port());
    for ip in BOTH {
        let answer = ask(&channel((ip, tcp).into()).await, &key).await;
        assert_eq!(status(&answer), 200, "{ip}");
        let metrics = reqwest::get(format!("http://{}/metrics", SocketAddr::from((ip, admin)))).await;
        assert_eq!(metrics.unwrap().status(), 200, "{ip}");
    }
    let address = service.setup.tcp.to_string();
    keystile(&["probe", "--address", &address], "", "").done();
}

/// Where both wildcards have one port, each has its own version of IP, in either order.
#[tokio::test(flavor = "multi_thread")]
async fn both_wildcards_may_share_a_port() {
    for order in [["0.0.0.0", "[::]"], ["[::]", "0.0.0.0"]] {
        let (setup, key) = setup(Ipv4Addr::LOCALHOST);
        let port = free_port();
        let listen = order.map(|ip| format!("{ip}:{port}")).join(",");
        let _service = setup.start(&[("KEYSTILE_LISTEN", &listen)]).await;
        for ip in BOTH {
            assert_eq!(status(&ask(&channel((ip, port).into()).await, &key).await), 200, "{listen}, {ip}");
        }
    }
}

/// Starts `keystile serve` on `[::]` in a network namespace of its own, and says at which addresses it answers.
const NAMESPACE: &str = r#"
import ctypes, fcntl, os, socket, struct, subprocess, sys, time

kind, keystile = sys.argv[1:]
control = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# SIOCSIFFLAGS: the loopback interface is up, and gets its addresses.
fcntl.ioctl(control, 0x8914, struct.pack("16sh14x", b"lo", 0x1 | 0x8 | 0x40))

def sysctl(name):
    with open(f"/proc/sys/net/ipv6/{name}", "w") as file:
        file.write("1")

def refuse_ipv6():
    # As a kernel without IPv6 does: socket(AF_INET6) fails with EAFNOSUPPORT.
    number = {"x86_64": 41, "aarch64": 198}[os.uname().machine]
    program = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, socket.AF_INET6),
               (0x06, 0, 0, 0x00050000 | 97), (0x06, 0, 0, 0x7FFF0000)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *line) for line in program))
    header = struct.pack("HxxxxxxP", len(program), ctypes.addressof(filters))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, ctypes.create_string_buffer(header)):
        raise OSError(ctypes.get_errno(), "prctl")

if kind == "bindv6only":
    sysctl("bindv6only")
if kind == "no-address-of-ipv6":
    sysctl("conf/all/disable_ipv6")
if kind == "no-address-of-ipv4":
    # SIOCSIFADDR
    address = struct.pack("HH4s8x", socket.AF_INET, 0, bytes(4))
    fcntl.ioctl(control, 0x8916, struct.pack("16s16s", b"lo", address))
before = refuse_ipv6 if kind == "no-ipv6" else None
listen = ["--listen", "[::]:9191", "--admin-listen", "[::]:9192"]
serve = subprocess.Popen([keystile, "serve", *listen], preexec_fn=before)
probe = [keystile, "probe", "--address", "[::]:9191", "--admin-address", "[::]:9192"]
for _ in range(200):
    if subprocess.run(probe, preexec_fn=before, stderr=subprocess.DEVNULL).returncode == 0:
        print("probe")
        break
    time.sleep(0.1)
for family, address in [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]:
    try:
        for port in [9191, 9192]:
            client = socket.socket(family)
            client.connect((address, port))
        print(address)
    except OSError:
        pass
serve.terminate()
serve.wait()
"#;

#[test]
fn wildcard_of_ipv6_works_on_each_kind_of_machine() {
    for (kind, expected) in [
        ("usual", "probe 127.0.0.1 ::1"),
        ("bindv6only", "probe 127.0.0.1 ::1"),
        ("no-address-of-ipv6", "probe 127.0.0.1"),
        ("no-address-of-ipv4", "probe ::1"),
        ("no-ipv6", "probe 127.0.0.1"),
    ] {
        let setup = Setup::new();
        assert!(setup.run(&["migrate"]).status.success());
        // Root of a user namespace where the tests have no root.
        let output = Command::new("unshare")
            .args([
                "--map-root-user",
                "--net",
                "python3",
                "-c",
                NAMESPACE,
                kind,
                env!("CARGO_BIN_EXE_keystile"),
            ])
            .env("KEYSTILE_DATABASE_URL", &setup.database_url)
            .output()
            .unwrap();
        let log = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{kind}: {log}");
        let answered = String::from_utf8_lossy(&output.stdout);
        let answered: Vec<_> = answered.lines().filter(|line| !line.contains(' ')).collect();
        assert_eq!(answered.join(" "), expected, "{kind}: {log}");
        assert_eq!(log.contains("this machine has no IPv6"), kind == "no-ipv6", "{kind}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn management_on_loopback_of_ipv6_needs_no_tls() {
    let setup = Setup::new();
    setup.create_user("ada");
    let token = setup.create_token("portal", &["--scope", "read"]);
    let address = |ip: Ipv6Addr| SocketAddr::from((ip, free_port()));
    let (listen, admin) = (address(Ipv6Addr::LOCALHOST), address(Ipv6Addr::UNSPECIFIED));
    let mut command = setup.management(listen, admin, &[]);
    let _management = Process(command.stderr(Stdio::null()).spawn().unwrap());
    let answers = async |url: String, token: &str| {
        let answer = reqwest::Client::new().get(url).bearer_auth(token).send().await;
        answer.is_ok_and(|answer| answer.status() == 200)
    };
    until("the API answers", SOON, async || answers(format!("http://{listen}/v1/users"), &token).await).await;
    for ip in BOTH {
        let admin = SocketAddr::from((ip, admin.port()));
        assert!(answers(format!("http://{admin}/readyz"), "").await, "{ip}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn database_url_may_have_an_address_of_ipv6() {
    let schema = Schema::create().await;
    let authority = postgres::server().authority.display().to_string();
    let verified = format!("sslmode=verify-full&sslrootcert={authority}");
    for parameters in ["sslmode=disable", &verified] {
        let url = schema.url_with("[::1]", parameters);
        keystile(&["migrate"], &url, "").done();
        let service = Setup::with_database(&url).start(&[]).await;
        let readyz = service.setup.readyz().await.1;
        assert_eq!(readyz["change_feed"]["up"], true, "{readyz}");
    }
}

/// Client, Envoy and Keystile speak IPv6, and the client's address is one of a key's networks.
#[tokio::test(flavor = "multi_thread")]
async fn envoy_asks_over_ipv6_for_a_client_of_ipv6() {
    for version in VERSIONS {
        let (mut setup, _) = setup(Ipv6Addr::LOCALHOST);
        setup.admin.set_ip(Ipv4Addr::LOCALHOST.into());
        let key = setup.create_key("ada", &["--allowed-ip", "::1/128"]).credential;
        let port = free_port();
        let listener = "address:\n      socket_address: {address: 0.0.0.0, port_value: 8080}";
        let both = format!(
            "{listener}\n    additional_addresses:\n    - address:\n        socket_address: {{address: \"::1\", port_value: {port}}}"
        );
        let edits = [
            (listener, both.as_str()),
            ("{address: 127.0.0.1, port_value: 9191}", "{address: \"::1\", port_value: 9191}"),
        ];
        let gateway = Gateway::before(version, "tcp.yaml", setup.start(&[]).await, &edits).await;
        let request = reqwest::Client::new().get(format!("http://[::1]:{port}/v1/models"));
        let answer = request.header("x-api-key", &key).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{version}");
        assert_eq!(gateway.status(&key).await, 403, "{version}: from 127.0.0.1");
    }
}

"""Requests through a real Envoy: the cost of the check, and the cost of the answer."""

import re
import subprocess

import running
from results import log

# Envoy's own filter: keys in its configuration, and nothing else.
API_KEY_AUTH = """\
          - name: envoy.filters.http.api_key_auth
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.api_key_auth.v3.ApiKeyAuth
              credentials:
              - {key: ks_00000NobodysKeyOfTheBenchmarks00001, client: ada}
              key_sources:
              - header: x-api-key
"""
# An Envoy that answers every request itself.
UPSTREAM = """\
static_resources:
  listeners:
  - address:
      socket_address: {address: 0.0.0.0, port_value: 8080}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: upstream
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {prefix: /}
                direct_response: {status: 200, body: {inline_string: ok}}
          http_filters:
          - name: envoy.filters.http.router
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router
"""
FILTER = "- name: envoy.filters.http.ext_authz"
# The least that an upstream and the access log of uds.yaml need.
FEW = {
    "KEYSTILE_UPSTREAM_HEADERS": "x-auth-user-id,x-auth-key-id",
    "KEYSTILE_METADATA": "key_id,user_id,reason,tier",
    "KEYSTILE_REMOVE_HEADERS": "seen",
}
# The request that wrk sends. benches/load sends the same to Envoy.
HEADERS = {
    "x-api-key": "ks_00000NobodysKeyOfTheBenchmarks00001",
    "user-agent": "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36",
    "accept": "application/json",
    "accept-encoding": "gzip, deflate",
    "content-type": "application/json",
    "x-stainless-lang": "python",
    "x-stainless-package-version": "1.54.3",
    "x-stainless-runtime": "CPython",
    "x-stainless-async": "false",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
}


class Envoy(running.Process):
    """Envoy with one worker, so that the load generator and the service have the other cores."""

    def __init__(self, binary, scratch, name, config):
        self.port, admin = running.free_port(), running.free_port()
        path = scratch / f"{name}.yaml"
        edits = {"0.0.0.0, port_value: 8080": f"127.0.0.1, port_value: {self.port}", "port_value: 9901": f"port_value: {admin}"}
        for old, new in edits.items():
            config = config.replace(old, new)
        path.write_text(config)
        options = ["--disable-hot-restart", "--concurrency", "1", "--log-level", "error"]
        super().__init__(name, [binary, "-c", path, *options], scratch)
        running.wait_for_port(self, f"127.0.0.1:{self.port}")


def run(programs, binary, results, scratch, null, keystile, few, repetitions, seconds, rate):
    """All Envoys run at the same time. Each gets requests in turn."""
    upstream = Envoy(binary, scratch, "upstream", UPSTREAM)
    base = (running.ROOT / "envoy/uds.yaml").read_text().replace("port_value: 8081", f"port_value: {upstream.port}")
    # No access log, whose cost is the same everywhere, and no health checks, which are not requests.
    base = without(without(base, "access_log:"), "health_checks:")
    ask = lambda service: base.replace("/run/keystile/keystile.sock", service.unix.removeprefix("unix:"))
    subjects = [
        ("envoy-none", "Envoy, no authorization", without(base, FILTER), None),
        ("envoy-built-in", "Envoy, built-in api_key_auth", without(base, FILTER, API_KEY_AUTH), None),
        ("envoy-null", "Envoy and the null service", ask(null), null),
        ("envoy-keystile", "Envoy and Keystile", ask(keystile), keystile),
        ("envoy-few", "Envoy and Keystile, two headers", ask(few), few),
    ]
    gateways = {name: Envoy(binary, scratch, name, config) for name, _, config, _ in subjects}
    for name, label, *_ in subjects:
        results.subject(name, label, "envoy-null")
    for repetition in range(repetitions):
        for name, _, _, service in subjects:
            results.add(name, **measure(programs, gateways[name], service, seconds, rate))
        log(f"  through Envoy, repetition {repetition + 1} of {repetitions}")
    for process in [*gateways.values(), upstream]:
        process.stop()


def measure(programs, envoy, service, seconds, rate):
    before = envoy.cpu(), service.cpu() if service else 0
    report = wrk(envoy.port, seconds)
    used = envoy.cpu() - before[0], (service.cpu() - before[1]) if service else 0
    paced = running.load(programs, f"127.0.0.1:{envoy.port}", "--rate", rate, "--count", int(rate * seconds))
    services = {"service_cpu_us": used[1] / report["requests"] * 1e6} if service else {}
    return {
        **services,
        "cpu_us": used[0] / report["requests"] * 1e6,
        "both_cpu_us": sum(used) / report["requests"] * 1e6,
        "per_second": report["per_second"],
        "rate": rate,
        **{measure: paced[measure] for measure in ("p50_us", "p99_us", "p999_us")},
    }


def wrk(port, seconds):
    headers = [word for name, value in HEADERS.items() for word in ("-H", f"{name}: {value}")]
    url = f"http://127.0.0.1:{port}/v1/models?limit=20&after=gpt-4o-2024-11-20"
    command = ["wrk", "-t1", "-c16", f"-d{max(1, round(seconds))}s", *headers, url]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        raise RuntimeError(f"wrk: {said}")
    return {
        "requests": int(re.search(r"(\d+) requests in", said)[1]),
        "per_second": float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]),
    }


def without(config, head, instead=""):
    """The configuration without the block that begins with this line, and without the lines indented below it."""
    kept, depth, replaced = [], None, False
    for line in config.splitlines(keepends=True):
        indent = len(line) - len(line.lstrip())
        is_item = line.lstrip().startswith("- ") and not head.startswith("- ")
        if depth is not None and (not line.strip() or indent > depth or (indent == depth and is_item)):
            continue
        depth = None
        if line.strip() == head:
            depth, replaced = indent, True
            kept.append(instead)
            continue
        kept.append(line)
    assert replaced, f"the configuration has no {head}"
    return "".join(kept)

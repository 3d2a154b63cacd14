#!/usr/bin/env python3
"""Shows Keystile at work behind a real Envoy, on this machine alone. `make demo` runs it.

It starts an upstream that echoes, Keystile with a SQLite file, and Envoy with envoy/uds.yaml. They use a scratch
directory and free ports, and stop when the demo ends.
"""

import argparse
import http.client
import json
import os
import random
import signal
import socket
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from upstream import Upstream

ROOT = Path(__file__).resolve().parent.parent
PATH = "/v1/models"
KEYS_SHOWN = 8  # characters of a key that are printed: its prefix, which proves nothing
TIMEOUT = 15  # seconds for a process to start, and for the revocation to take effect


class Failure(Exception):
    """The demo cannot continue; the text says why."""


def main():
    options = arguments()
    sys.stdout.reconfigure(line_buffering=True)
    # Without this, a plain `kill` would leave Keystile and Envoy running.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))

    with tempfile.TemporaryDirectory(prefix="keystile-demo-") as scratch:
        stage = Stage(Path(scratch), options)
        try:
            stage.set()
            wrong = story(stage)
            if wrong:
                count = f"{wrong} answer was" if wrong == 1 else f"{wrong} answers were"
                raise Failure(f"{count} wrong, marked above. From Keystile:{stage.log_tail('keystile')}")
            if options.once:
                print(good("\nEvery answer was right."))
            else:
                keep_running(stage)
        except Failure as failure:
            print(bad(f"\n{failure}"), file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("\nStopped.")
            return 130
        finally:
            stage.strike()
    return 0


def arguments():
    parser = argparse.ArgumentParser(description="Shows Keystile at work behind Envoy.")
    parser.add_argument("--keystile", type=binary, default=ROOT / "target/debug/keystile", help="its binary")
    parser.add_argument("--envoy", type=binary, default=ROOT / ".tools/envoy-1.40.0/envoy", help="its binary")
    parser.add_argument("--once", action="store_true", help="stop after the demo, with status 0 if every answer was right")
    options = parser.parse_args()
    for path in (options.keystile, options.envoy):
        if not os.access(path, os.X_OK):
            parser.error(f"{path} does not exist; `make demo` builds and fetches what is needed")
    return options


def binary(text):
    # Absolute, because the processes start in the scratch directory.
    return Path(text).resolve()


# The story


def story(stage):
    """Sends the requests, and returns the number of wrong answers."""
    # The first user is not Ada, so that her id is not 1, which a client claims below.
    stage.cli("users", "create", "--email", "grace@example.com", "--username", "grace")
    stage.cli("users", "create", "--email", "ada@example.com", "--username", "ada")
    key = new_key(stage, "demo")
    secret = key["credential"]
    print(f"\nAda has a key, {short(secret)} (id {key['id']}).")
    wrong = 0

    def step(title, headers, *, status, code=None, holds=None):
        nonlocal wrong
        print(bold(f"\n{next(number)}  {title}"))
        answer = stage.ask(headers)
        show(headers, answer, secret)
        problems = complaints(answer, status, code, secret)
        if holds and not problems:
            problems = [text for text, held in holds(answer.seen) if not held]
        for problem in problems:
            print("   " + bad(f"WRONG: {problem}"))
        wrong += bool(problems)
        return answer

    number = iter(range(1, 100))
    step("A request without a key", {}, status=401, code="missing_credential")

    made_up = secret[:3] + random_text(len(secret) - 3)
    step("A key that does not exist", bearer(made_up), status=401, code="invalid_credential")

    step(
        "Ada's key",
        bearer(secret),
        status=200,
        holds=lambda seen: [
            ("the upstream did not receive the key's id", seen.get("x-auth-key-id") == str(key["id"])),
            ("the upstream did not receive the user's name", seen.get("x-auth-user-name") == "ada"),
            ("the upstream did not receive the user's id", bool(seen.get("x-auth-user-id"))),
        ],
    )

    sibling = secret[:KEYS_SHOWN] + random_text(len(secret) - KEYS_SHOWN)
    step(
        "Right after it, a key that begins with the same eight characters",
        bearer(sibling),
        status=401,
        code="invalid_credential",
    )

    step(
        "Ada's key, from a client that claims to be user 1",
        {**bearer(secret), "x-auth-user-id": "1"},
        status=200,
        holds=lambda seen: [("the upstream believed the client", seen.get("x-auth-user-id") not in (None, "1"))],
    )

    stage.cli("keys", "revoke", str(key["id"]))
    revoked = time.monotonic()
    while stage.ask(bearer(secret)).status == 200 and time.monotonic() - revoked < TIMEOUT:
        time.sleep(0.02)
    waited = time.monotonic() - revoked
    if step("Ada's key, revoked", bearer(secret), status=401, code="disabled").status == 200:
        return wrong
    print(f"   The key was denied after {waited * 1000:.0f} ms: the database logs changes of keys, and Keystile reads that log.")
    print("   With Postgres every instance reads it, as soon as Postgres notifies it of a change.")
    return wrong


def complaints(answer, status, code, secret):
    """The errors of an answer, in sentences."""
    if answer.status != status:
        return [f"the status should be {status}"]
    if answer.code != code:
        return [f"the code should be {code}"]
    if answer.seen is not None and secret in json.dumps(answer.body):
        return ["the upstream received the key"]
    return []


def show(headers, answer, secret):
    print(f"   -> GET {PATH}")
    for name, value in headers.items():
        print(f"      {name}: {shorten(value)}")
    if answer.seen is None:
        print(f"   <- {answer.status} {bold(answer.code or '(no code)')}")
        if answer.body.get("detail"):
            print(f"      {dim(answer.body['detail'])}")
        return
    print(f"   <- {answer.status}; the upstream received")
    ours = {name: value for name, value in answer.seen.items() if name.startswith(("x-auth-", "x-ratelimit-"))}
    width = max(map(len, ours), default=0)
    for name, value in sorted(ours.items()):
        print(f"      {name:<{width}}  {value}")
    if secret not in json.dumps(answer.body):
        print(f"      {dim('and not the key')}")


def keep_running(stage):
    """Keeps everything running, with a new key to try."""
    key = new_key(stage, "yours")
    url = f"http://127.0.0.1:{stage.port}"
    print(f"""
Your turn, with another key of Ada's. Ctrl-C stops the demo.

  curl -i {url}{PATH}
  curl -i {url}{PATH} -H 'authorization: Bearer {key['credential']}'
  curl -i {url}{PATH} -H 'x-api-key: {key['credential']}'
  curl -s http://127.0.0.1:{stage.keystile_port}/metrics | grep keystile_checks

  export KEYSTILE_DATABASE_URL={stage.database}
  {stage.options.keystile} keys list
  {stage.options.keystile} keys revoke {key['id']}

Logs: {stage.scratch}/*.log""")
    while True:
        stage.everyone_alive()
        time.sleep(0.5)


def new_key(stage, name):
    text = stage.cli("keys", "create", "--user", "ada@example.com", "--name", name, "--output", "json")
    try:
        key = json.loads(text)
        return {"id": key["id"], "credential": key["credential"]}
    except (ValueError, KeyError, TypeError) as error:
        raise Failure(f"`keystile keys create --output json` printed no key: {error!r}") from None


# The stage


class Answer:
    """The answer to one request."""

    def __init__(self, status, text):
        self.status = status
        try:
            self.body = json.loads(text)
        except ValueError:
            self.body = {"detail": text.decode(errors="replace").strip()}
        # The headers that the upstream received; None if the request did not reach it.
        self.seen = self.body.get("headers") if status == 200 else None
        self.code = self.body.get("code")


class Stage:
    """The processes, and the ways to use them."""

    def __init__(self, scratch, options):
        self.scratch = scratch
        self.options = options
        self.database = f"sqlite:{scratch}/keystile.db"
        self.running = {}
        # The caller's own settings must not apply here, above all a database.
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("KEYSTILE_")}
        self.environment["KEYSTILE_DATABASE_URL"] = self.database

    def set(self):
        upstream = Upstream()
        path = self.scratch / "keystile.sock"
        self.keystile_port = free_port()
        self.start(
            "keystile",
            [self.options.keystile, "serve"],
            KEYSTILE_LISTEN=f"unix:{path}",
            KEYSTILE_ADMIN_LISTEN=f"127.0.0.1:{self.keystile_port}",
        )
        self.wait("keystile", self.keystile_port, "/readyz")

        config = self.scratch / "envoy.yaml"
        self.port, admin_port = free_port(), free_port()
        config.write_text(
            substitute(
                (ROOT / "envoy/uds.yaml").read_text(),
                {
                    "address: 0.0.0.0, port_value: 8080": f"address: 127.0.0.1, port_value: {self.port}",
                    "port_value: 8081": f"port_value: {upstream.port}",
                    "port_value: 9901": f"port_value: {admin_port}",
                    "/run/keystile/keystile.sock": str(path),
                },
            )
        )
        # With its own base id it can run next to other Envoys of this machine.
        arguments = ["--use-dynamic-base-id", "--concurrency", "2", "--log-level", "warning"]
        self.start("envoy", [self.options.envoy, "-c", config, *arguments])
        self.wait("envoy", admin_port, "/ready")
        print(f"Envoy is on 127.0.0.1:{self.port}, and asks Keystile about every request.")

    def start(self, name, command, **settings):
        with open(self.scratch / f"{name}.log", "wb") as log:
            self.running[name] = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.scratch,
                env={**self.environment, **settings},
                # Ctrl-C reaches only this script, which then stops the others in order.
                start_new_session=True,
            )

    def wait(self, name, port, path):
        """Waits until `path` answers 200."""
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            self.everyone_alive()
            try:
                if get(port, path)[0] == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.05)
        raise Failure(f"{name} was not ready after {TIMEOUT} s.{self.log_tail(name)}")

    def ask(self, headers):
        self.everyone_alive()
        try:
            return Answer(*get(self.port, PATH, headers))
        except (OSError, http.client.HTTPException) as error:
            self.everyone_alive()
            raise Failure(f"Envoy did not answer: {error!r}.{self.log_tail('envoy')}") from None

    def cli(self, *arguments):
        """Runs `keystile ARGUMENTS` and returns its output."""
        print(dim("$ keystile " + " ".join(arguments)))
        done = subprocess.run(
            [self.options.keystile, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            cwd=self.scratch,
            env=self.environment,
            timeout=60,
        )
        if done.returncode:
            raise Failure(f"`keystile {' '.join(arguments)}` ended with {done.returncode}: {done.stderr.strip()}")
        return done.stdout

    def everyone_alive(self):
        for name, process in self.running.items():
            if process.poll() is not None:
                raise Failure(f"{name} ended by itself with status {process.returncode}.{self.log_tail(name)}")

    def log_tail(self, name):
        lines = (self.scratch / f"{name}.log").read_text(errors="replace").splitlines()[-20:]
        return " The end of its log:\n  " + "\n  ".join(lines) if lines else " Its log is empty."

    def strike(self):
        """Stops Envoy first, so that it does not ask a stopped Keystile."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for process in reversed(self.running.values()):
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(timeout=12)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def get(port, path, headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def substitute(text, replacements):
    for old, new in replacements.items():
        if old not in text:
            raise Failure(f"envoy/uds.yaml no longer has `{old}`, which the demo replaces")
        text = text.replace(old, new)
    return text


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# Texts


def bearer(key):
    return {"authorization": f"Bearer {key}"}


def short(key):
    return key[:KEYS_SHOWN] + "..."


def shorten(value):
    scheme, space, key = value.rpartition(" ")
    return scheme + space + short(key) if space else value


def random_text(length):
    return "".join(random.choices(string.ascii_letters + string.digits, k=length))


def styled(code):
    plain = not sys.stdout.isatty() or "NO_COLOR" in os.environ
    return lambda text: text if plain else f"\x1b[{code}m{text}\x1b[0m"


bold, dim, good, bad = styled(1), styled(2), styled(32), styled(31)


if __name__ == "__main__":
    sys.exit(main())

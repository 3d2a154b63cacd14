"""Servers that the measurements start, on free ports and in a scratch folder, and their CPU and memory."""

import contextlib
import json
import os
import pathlib
import shutil
import socket
import sqlite3
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
# Not a secret: what is cached under it is removed with the scratch folder.
CACHE_SECRET = "the cache secret of the benchmarks and of nothing else"


class Programs:
    """The built programs, by cargo profile."""

    def __init__(self, profile, tools=None):
        folder = lambda name: TARGET / ("debug" if name == "dev" else name)
        self.keystile = folder(profile) / "keystile"
        self.null, self.load, self.keys, self.bcrypt = (
            folder(tools or profile) / "examples" / f"bench-{name}" for name in ("null", "load", "keys", "bcrypt")
        )


class Process:
    """A server that stops with the scratch folder. Its log is in the folder, and is printed if the server ends too early."""

    running = []

    def __init__(self, name, command, scratch, env=None):
        self.name, self.log = name, scratch / f"{name}.log"
        # Without the caller's settings, so that each run measures the same.
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "LANG") if key in os.environ}
        with open(self.log, "wb") as log:
            self.child = subprocess.Popen(
                [str(word) for word in command], env=kept | (env or {}), stdout=log, stderr=log, cwd=scratch
            )
        self.pid = self.child.pid
        self.running.append(self)

    def stop(self, timeout=60):
        self.running.remove(self)
        self.child.terminate()
        try:
            return self.child.wait(timeout)
        except subprocess.TimeoutExpired:
            self.child.kill()
            return self.child.wait()

    def check(self):
        if self.child.poll() is not None:
            tail = self.log.read_text(errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self.child.returncode}:\n{tail}")

    def cpu(self):
        """Seconds of CPU, of all threads, in user and system mode."""
        tasks = pathlib.Path("/proc", str(self.pid), "task")
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9

    def resident(self):
        """Bytes of memory."""
        status = pathlib.Path("/proc", str(self.pid), "status").read_text()
        return int(status.split("VmRSS:")[1].split()[0]) * 1024


class Keystile(Process):
    """`keystile serve` on a TCP port and a Unix socket, ready."""

    def __init__(self, programs, scratch, database, name="keystile", settings=None, wrapper=()):
        port, self.admin = free_port(), free_port()
        self.tcp, self.unix = f"127.0.0.1:{port}", f"unix:{scratch}/{name}.sock"
        base = {
            "KEYSTILE_DATABASE_URL": database,
            "KEYSTILE_DATABASE_TIMEOUT": "5s",
            "KEYSTILE_LISTEN": f"{self.tcp},{self.unix}",
            "KEYSTILE_ADMIN_LISTEN": f"127.0.0.1:{self.admin}",
            "KEYSTILE_CACHE_SECRET": CACHE_SECRET,
            "KEYSTILE_RECORD_TTL": "1h",
            "KEYSTILE_BCRYPT_COST": "4",
            "KEYSTILE_LOG": "warn",
        }
        begun = time.monotonic()
        super().__init__(name, [*wrapper, programs.keystile, "serve"], scratch, base | (settings or {}))
        self.wait_until_ready()
        self.seconds_to_ready = time.monotonic() - begun

    def wait_until_ready(self):
        def ready():
            self.check()
            with contextlib.suppress(OSError, urllib.error.HTTPError):
                return urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/readyz", timeout=5).status == 200

        until(ready, "Keystile is ready", interval=0.002)


class Null(Process):
    """The null service, on a TCP port and a Unix socket."""

    def __init__(self, programs, scratch):
        self.tcp, self.unix = f"127.0.0.1:{free_port()}", f"unix:{scratch}/null.sock"
        super().__init__("null", [programs.null, self.tcp, self.unix], scratch)
        wait_for_port(self, self.tcp)


class Redis(Process):
    """An empty Redis."""

    def __init__(self, scratch, name="redis"):
        self.address = f"127.0.0.1:{free_port()}"
        port = self.address.split(":")[1]
        settings = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--dir", scratch]
        super().__init__(name, ["redis-server", *settings], scratch)
        wait_for_port(self, self.address)


@contextlib.contextmanager
def scratch_folder():
    """A folder in memory if there is one, so that disks have no effect."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    folder = pathlib.Path(tempfile.mkdtemp(prefix="keystile-bench-", dir=parent))
    try:
        yield folder
    finally:
        for process in reversed(Process.running[:]):
            process.stop()
        shutil.rmtree(folder, ignore_errors=True)


def make_database(programs, path, count, cost=4, redis=None, edits=()):
    """A SQLite file with this many keys, some of which the statements in `edits` change."""
    url = f"sqlite:{path}"
    subprocess.run([programs.keystile, "migrate", "--database-url", url], check=True, stdout=subprocess.DEVNULL)
    shared = ["--redis", redis, "--cache-secret", CACHE_SECRET] if redis else []
    command = [programs.keys, "--database", path, "--count", str(count), "--cost", str(cost), *shared]
    subprocess.run(command, check=True)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        for statement, values in edits:
            connection.execute(statement, values)
        connection.commit()
    return url


def fetch(port, path):
    """The answer of an HTTP server on this machine."""
    return urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).read().decode()


def load(programs, target, *options, check=None):
    """Runs the load generator to its end, and returns its report. An unexpected answer is a failure."""
    kind = ["--check", check] if check else []
    command = [programs.load, "--target", target, *kind, *options]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr}")
    report = json.loads(done.stdout)
    if report["unexpected"]:
        raise RuntimeError(f"{' '.join(map(str, command))}: {report['unexpected']} answers were not as expected")
    return report


def wait_for_port(process, address):
    host, port = address.split(":")

    def answers():
        process.check()
        with contextlib.suppress(OSError):
            socket.create_connection((host, int(port))).close()
            return True

    until(answers, f"{process.name} listens on {address}")


def until(condition, what, timeout=120, interval=0.02):
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise RuntimeError(f"after {timeout} s, still waiting until {what}")
        time.sleep(interval)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]

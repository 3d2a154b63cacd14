"""Checks sent to the services directly, in turn: their cost, their rate, their latency."""

import collections
import dataclasses

from results import log
import running

HERE = running.ROOT / "benches"
STOCK, LEAN, BODY = (HERE / f"check-{name}.bin" for name in ("stock", "lean", "body"))
# Keys of the main database in addition to the ordinary ones, from number 0 on.
ORDINARY = 10_000
DISABLED, LADEN, LIMITED = ORDINARY, ORDINARY + 1, ORDINARY + 2
ALL = ORDINARY + 3


@dataclasses.dataclass
class Subject:
    name: str
    label: str
    process: running.Process
    target: str
    check: object = STOCK
    options: tuple = ()
    base: str = None
    # Fraction of the usual number of checks, for subjects that are much slower.
    share: float = 1.0
    # The tier that must answer, or the label would be wrong.
    tier: str = "memory"


def edits():
    """The statements that restrict some keys. A key's id is its number plus one."""
    networks = [f'"10.{n}.0.0/16"' for n in range(19)] + ['"127.0.0.0/8"']
    endpoints = [f'"GET /v1/files/{n}/**"' for n in range(19)] + ['"POST /v1/chat/completions"']
    plenty = 2_000_000_000
    lists = f"[{', '.join(networks)}]", f"[{', '.join(endpoints)}]", '["o1", "gpt-4o*"]'
    return [
        ("UPDATE api_keys SET is_active = 0 WHERE id = ?", (DISABLED + 1,)),
        ("UPDATE api_keys SET allowed_ips = ?, allowed_endpoints = ?, allowed_models = ? WHERE id = ?", (*lists, LADEN + 1)),
        (
            "UPDATE api_keys SET rate_limit_per_minute = ?1, rate_limit_per_hour = ?1, rate_limit_per_day = ?1 WHERE id = ?2",
            (plenty, LIMITED + 1),
        ),
    ]


def warm(programs, process, keys, check=LEAN, streams=2):
    """Each key once, so that it is known and proven."""
    running.load(programs, process.unix, "--in-turn", "--keys", keys, "--count", keys, "--streams", streams, check=check)


def subjects(null, keystile):
    """The subjects that need only these two services."""
    many = ("--keys", ORDINARY)
    return [
        Subject("null-tcp", "null service, TCP", null, null.tcp),
        Subject("null-unix", "null service, Unix socket", null, null.unix),
        Subject("null-lean", "null service, lean check", null, null.unix, LEAN),
        Subject("hot-tcp", "Keystile, TCP", keystile, keystile.tcp, base="null-tcp"),
        Subject("hot-unix", "Keystile, Unix socket", keystile, keystile.unix, base="null-unix"),
        Subject("hot-lean", "Keystile, lean check", keystile, keystile.unix, LEAN, base="null-lean"),
        Subject("keys-10k", "Keystile, 10,000 keys", keystile, keystile.unix, options=many, base="null-unix"),
        Subject(
            "denied", "Keystile, a denial", keystile, keystile.unix, base="null-unix",
            options=("--first", DISABLED, "--expect", "deny"),
        ),
        Subject("null-body", "null service, 4 KB body", null, null.unix, BODY),
        Subject(
            "laden", "Keystile, 4 KB body, model, 20 networks, 20 endpoints", keystile, keystile.unix, BODY,
            ("--first", LADEN), "null-body",
        ),
    ]


def measure(programs, results, subject, checks, rate, seconds):
    """One repetition: as fast as it is answered, then at a fixed rate."""
    connections = ("--connections", 2)
    count = max(200, int(checks * subject.share))
    before = subject.process.cpu()
    report = running.load(
        programs, subject.target, *subject.options, *connections, "--streams", 16, "--count", count, check=subject.check
    )
    used = subject.process.cpu() - before
    rate = rate * subject.share
    before = subject.process.cpu()
    paced = running.load(
        programs, subject.target, *subject.options, *connections, "--rate", rate, "--count", int(rate * seconds), check=subject.check
    )
    paced_used = subject.process.cpu() - before
    results.add(
        subject.name,
        cpu_us=used / report["answers"] * 1e6,
        per_second=report["answers"] / report["seconds"],
        paced_cpu_us=paced_used / paced["answers"] * 1e6,
        rate=rate,
        **{measure: paced[measure] for measure in ("p50_us", "p99_us", "p999_us")},
    )


def run(programs, results, all_subjects, repetitions, checks, rate, seconds):
    for subject in all_subjects:
        results.subject(subject.name, subject.label, subject.base)
    before = {subject.name: answers(subject) for subject in all_subjects}
    for repetition in range(repetitions):
        for subject in all_subjects:
            measure(programs, results, subject, checks, rate, seconds)
        log(f"  checks, repetition {repetition + 1} of {repetitions}")
    for subject in all_subjects:
        counts = answers(subject) - before[subject.name]
        if counts and counts[subject.tier] < 0.95 * counts.total():
            raise RuntimeError(f"{subject.label}: too few of the answers are from {subject.tier}: {counts}")


def answers(subject):
    """The number of answers of each tier so far."""
    counts = collections.Counter()
    if isinstance(subject.process, running.Keystile):
        for line in running.fetch(subject.process.admin, "/metrics").splitlines():
            if line.startswith("keystile_check_duration_seconds_count"):
                counts[line.split('tier="')[1].split('"')[0]] = float(line.split()[1])
    return counts


def threads(programs, results, scratch, database, repetitions, checks):
    """One worker thread and two, one connection and many: the cost of a check must not grow with their number."""
    kinds = [(threads, connections) for threads in (1, 2) for connections in (1, 2, 64)]
    services = {
        n: running.Keystile(programs, scratch, database, f"threads-{n}", {"TOKIO_WORKER_THREADS": str(n)}) for n in (1, 2)
    }
    name = lambda threads, connections: f"threads-{threads}-connections-{connections}"
    for n, connections in kinds:
        label = f"Keystile, {n} worker thread{'s' * (n > 1)}, {connections} connection{'s' * (connections > 1)}"
        results.subject(name(n, connections), label, name(1, connections) if n > 1 else None)
    for _ in range(repetitions):
        for n, connections in kinds:
            service = services[n]
            before = service.cpu()
            options = ("--connections", connections, "--streams", max(1, 64 // connections), "--count", checks)
            report = running.load(programs, service.unix, *options, check=STOCK)
            results.add(
                name(n, connections),
                cpu_us=(service.cpu() - before) / report["answers"] * 1e6,
                per_second=report["answers"] / report["seconds"],
            )
    for service in services.values():
        service.stop()
    log("  worker threads and connections")

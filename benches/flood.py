"""Floods of made-up keys and wrong secrets: their effect on good keys, and what the sender can learn."""

import json
import statistics
import subprocess
import time

import cold
import direct
import running
from results import log

COST = 10
# In the database: one known key, keys whose prefixes are guessed at, and good keys that were never used.
HOT, GUESSED, GOOD = 1, 20, 100
# Numbers from here on belong to no key.
MADE_UP = 600_000
HOT_RATE = 500
# A known key's latencies are measured in turns of so many seconds. Their median p99 counts: one pause of the machine spoils one turn.
TURN = 4
FLOODS = {
    "flood-addresses": ("from three addresses", "203.0.113.9,198.51.100.7,192.0.2.3"),
    "flood-64s": ("from a new IPv6 /64 each", "2001:db8:1:{}::1"),
}


def run(programs, results, scratch, extent):
    """Each flood has a Keystile that knows none of the keys."""
    results.subject("flood-bcrypt", f"bcrypt alone, cost {COST}")
    database = running.make_database(programs, scratch / "flood.db", HOT + GUESSED + GOOD, COST)
    good = min(GOOD, extent.flood_keys)
    for name, (where, clients) in FLOODS.items():
        label = f"first use of {good} good keys, one each half second, in a flood {where}"
        results.subject(name, label, "flood-bcrypt")
        results.add("flood-bcrypt", **cold.bcrypt(programs, COST, 40))
        keystile = running.Keystile(programs, scratch, database, name, {"KEYSTILE_BCRYPT_COST": "auto"})
        try:
            results.add(name, **flood(programs, keystile, clients, good))
        finally:
            keystile.stop()
        log(f"  {label}")
    reference = "the null service in the same floods, and one bcrypt thread without a pause"
    results.subject("flood-null", reference)
    results.add("flood-null", **machine(programs, scratch, good))
    log(f"  {reference}")
    results.subject("alike", "made-up prefixes against wrong secrets of prefixes that exist")
    alike(programs, results, scratch, extent)


def flood(programs, keystile, clients, good):
    """1,000 made-up keys and 200 wrong secrets per second, while a known key and new good keys are used."""
    seconds = good / 2 + 4
    direct.warm(programs, keystile, HOT)
    alone = hot_p99(programs, keystile, 20)
    senders = start_senders(programs, keystile, clients, seconds, "--expect", "deny")
    # In the first seconds Keystile notices the failing networks and prefixes.
    time.sleep(2)
    first = start(
        *(programs, keystile, "--rate", 2, "--first", HOT + GUESSED, "--keys", good, "--count", good, "--in-turn"),
        *("--clients", "100.64.{}.5", "--latencies"),
    )
    meanwhile = hot_p99(programs, keystile, good / 2)
    report = json.loads(first.communicate()[0])
    for process in senders:
        answers = json.loads(process.communicate()[0])
        if process.returncode or answers["unexpected"]:
            raise RuntimeError(f"a wrong key got in, or no answer: {answers}")
    return {
        "denied": report["unexpected"],
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
        "hot_p99_ratio": meanwhile / alone,
    }


def machine(programs, scratch, good):
    """What the same senders do to the latencies of a service that has no work, while bcrypt takes one core as in a flood."""
    seconds = good / 2
    null = running.Null(programs, scratch)
    alone = hot_p99(programs, null, 20)
    senders = start_senders(programs, null, "203.0.113.9,198.51.100.7,192.0.2.3", seconds)
    words = ["nice", "-n", "7", programs.bcrypt, "--cost", COST, "--count", 10_000_000]
    bcrypt = subprocess.Popen([str(word) for word in words], stdout=subprocess.DEVNULL)
    try:
        meanwhile = hot_p99(programs, null, seconds)
    finally:
        for process in (bcrypt, *senders):
            process.terminate()
            process.wait()
        null.stop()
    return {"hot_p99_ratio": meanwhile / alone}


def hot_p99(programs, service, seconds):
    """The median of the turns."""
    options = ("--rate", HOT_RATE, "--first", 0, "--keys", HOT, "--count", HOT_RATE * TURN)
    turns = [running.load(programs, service.unix, *options, check=direct.LEAN) for _ in range(max(1, round(seconds / TURN)))]
    return statistics.median(turn["p99_us"] for turn in turns)


def start_senders(programs, service, clients, seconds, *options):
    options = ("--clients", clients, "--in-turn", *options)
    made_up = ("--rate", 1000, "--first", MADE_UP, "--keys", 400_000, "--count", int(1000 * seconds))
    wrong = ("--rate", 200, "--first", HOT, "--keys", GUESSED, "--wrong", 1, "--count", int(200 * seconds))
    return [start(programs, service, *sender, *options) for sender in (made_up, wrong)]


def start(programs, service, *options):
    return subprocess.Popen(command(programs, service, *options), stdout=subprocess.PIPE)


def alike(programs, results, scratch, extent):
    """How well the time of an answer shows that a prefix exists: the area under the curve of the best threshold.
    0.5 means not at all, and 1.0 or 0.0 means always. With bcrypt hashes, and with SHA-256 hashes, of which none is right."""
    keys = 50
    sha256 = ("UPDATE api_keys SET key_hash = ?", ("$sha256$" + "0" * 64,))
    for hashes, edits in (("", ()), ("sha256_", (sha256,))):
        database = running.make_database(programs, scratch / f"alike-{hashes}.db", keys, extent.alike_cost, edits=edits)
        cost = str(extent.alike_cost) if hashes else "auto"
        settings = {"KEYSTILE_BCRYPT_COST": cost, "KEYSTILE_FAILED_ATTEMPTS": "off"}
        keystile = running.Keystile(programs, scratch, database, "alike", settings)
        time.sleep(1)
        for load in ("idle", "busy"):
            # The keys of the load have to be right.
            hot = ("--rate", HOT_RATE, "--first", 0, "--count", 1_000_000)
            busy = load == "busy" and not hashes and subprocess.Popen(command(programs, keystile, *hot), stdout=subprocess.DEVNULL)
            try:
                for burst in (1, 10) if busy or load == "idle" else ():
                    real, made_up = sample(programs, keystile, extent, keys, burst)
                    results.add("alike", **{f"auc_{hashes}{load}_{burst}": area(real, made_up)})
                    results.add("alike", **{f"samples_{hashes}{load}_{burst}": min(len(real), len(made_up))})
            finally:
                if busy:
                    busy.terminate()
                    busy.wait()
            log(f"  made-up prefixes and wrong secrets, {hashes.strip('_') or 'bcrypt'}, {load}")
        keystile.stop()


def sample(programs, keystile, extent, keys, burst):
    """Both kinds in turns of some dozens, so that other load on the machine affects both. A burst uses one or two prefixes,
    and each burst uses others."""
    latencies = {"real": [], "made_up": []}
    turns, count = 20, max(burst * 2, extent.alike // 20)
    for turn in range(turns):
        for kind in ("real", "made_up") if turn % 2 else ("made_up", "real"):
            sample.runs += 1
            first = MADE_UP + keys * sample.runs if kind == "made_up" else 0
            options = ("--first", first, "--keys", keys if burst == 1 else 2, "--wrong", sample.runs, "--in-turn")
            pace = ("--rate", extent.alike_rate, "--burst", burst) if burst > 1 else ("--streams", 1)
            report = running.load(
                programs, keystile.unix, *options, *pace, "--count", count, "--latencies", "--expect", "deny", check=direct.LEAN
            )
            latencies[kind] += report["latencies_us"]
    return latencies["real"], latencies["made_up"]


sample.runs = 0


def area(real, made_up):
    """The share of pairs in which the real prefix took longer. Ties count half."""
    ordered = sorted([(value, 1) for value in real] + [(value, 0) for value in made_up])
    ranks, at = 0.0, 0
    while at < len(ordered):
        end = at
        while end < len(ordered) and ordered[end][0] == ordered[at][0]:
            end += 1
        ranks += sum(kind for _, kind in ordered[at:end]) * (at + 1 + end) / 2
        at = end
    return (ranks - len(real) * (len(real) + 1) / 2) / (len(real) * len(made_up))


def command(programs, keystile, *options):
    words = [programs.load, "--target", keystile.unix, "--check", direct.LEAN, *options]
    return [str(word) for word in words]

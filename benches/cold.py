"""Keys at their first use: bcrypt and, as far as possible, nothing else."""

import json
import subprocess

import direct
import running
from results import log

# Checks per second of a known key at the same time.
HOT_RATE = 500


def run(programs, results, scratch, repetitions, keys_at_cost):
    """Each repetition measures bcrypt alone, and then a Keystile that knows none of the keys."""
    for cost, keys in keys_at_cost.items():
        cold, raw = f"cold-{cost}", f"bcrypt-{cost}"
        results.subject(raw, f"bcrypt alone, cost {cost}")
        results.subject(cold, f"Keystile, unproven keys, cost {cost}", raw)
        # One more key, which is known.
        database = running.make_database(programs, scratch / f"{cold}.db", keys + 1, cost)
        for _ in range(repetitions):
            results.add(raw, **bcrypt(programs, cost, max(4, keys // 4)))
            keystile = running.Keystile(programs, scratch, database, cold, {"KEYSTILE_BCRYPT_COST": str(cost)})
            try:
                results.add(cold, **flood(programs, keystile, keys))
            finally:
                keystile.stop()
        log(f"  cold, cost {cost}")


def bcrypt(programs, cost, count):
    """In as many threads as Keystile uses on two cores, and one computation alone in one thread."""
    per_second = {}
    for threads in (1, 2):
        command = [programs.bcrypt, "--cost", str(cost), "--count", str(count), "--threads", str(threads)]
        report = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
        per_second[threads] = report["per_second"]
    return {"per_second": per_second[2], "p50_us": 1e6 / per_second[1]}


def flood(programs, keystile, keys):
    """A few keys one after the other, for the time of the first check. Then all others as fast as they are proven, while a
    known key is used."""
    cold = ("--in-turn", "--first", 1)
    single = max(3, keys // 10)
    first = running.load(programs, keystile.unix, *cold, "--keys", single, "--count", single, check=direct.LEAN)
    running.load(programs, keystile.unix, check=direct.LEAN, *("--count", 1))
    hot = ("--rate", HOT_RATE, "--count", HOT_RATE * 3)
    alone = running.load(programs, keystile.unix, *hot, check=direct.LEAN)
    rest = keys - single
    options = ("--in-turn", "--first", 1 + single, "--keys", rest, "--count", rest, "--streams", 3)
    command = [programs.load, "--target", keystile.unix, "--check", direct.LEAN, *options]
    flood = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE)
    meanwhile = running.load(programs, keystile.unix, *hot, check=direct.LEAN)
    report = json.loads(flood.communicate()[0])
    if flood.returncode or report["unexpected"]:
        raise RuntimeError(f"cold keys: {report}")
    return {
        "per_second": report["answers"] / report["seconds"],
        "p50_us": first["p50_us"],
        "hot_p99_us_alone": alone["p99_us"],
        "hot_p99_us_meanwhile": meanwhile["p99_us"],
        "hot_p99_ratio": meanwhile["p99_us"] / alone["p99_us"],
    }

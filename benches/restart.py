"""A restart with keys that were proven before it, and no Redis."""

import json
import subprocess

import direct
import running
import tiers
from results import log

# Checks per second, of each key in turn.
RATE = 100
COST = 10


def run(programs, results, scratch, repetitions, keys):
    """The same file after a restart: with stored proofs, and without, as a restart was before."""
    database = running.make_database(programs, scratch / "restart.db", keys, COST)
    # Keystile has not generated these keys, so their brand is named.
    settings = {"KEYSTILE_BCRYPT_COST": str(COST), "KEYSTILE_DURABLE_PROOFS": "ks_"}
    log(f"  {keys:,} keys are proven")
    prove(programs, scratch, database, settings, keys)
    for name, label, durable in [
        ("restart", f"Keystile, {keys:,} proven keys, restarted", "ks_"),
        ("restart-none", "the same without stored proofs", "none"),
    ]:
        results.subject(name, label)
        for _ in range(repetitions):
            of = settings | {"KEYSTILE_DURABLE_PROOFS": durable}
            results.add(name, **restarted(programs, scratch, database, name, of, keys))
    log("  restart")


def prove(programs, scratch, database, settings, keys):
    """Each key once. On a busy machine some take longer than the check's deadline, and are sent again."""
    keystile = running.Keystile(programs, scratch, database, "restart", settings | {"KEYSTILE_BCRYPT_THREADS": "2"})
    options = ("--in-turn", "--keys", keys, "--count", keys, "--streams", 2)
    for _ in range(50):
        if load(programs, keystile, *options)["unexpected"] == 0:
            break
    else:
        raise RuntimeError("the keys could not be proven")
    keystile.stop()


def restarted(programs, scratch, database, name, settings, keys):
    """Each key once, at a rate that does not wait for answers, from the moment at which Keystile is ready."""
    keystile = running.Keystile(programs, scratch, database, name, settings)
    options = ("--in-turn", "--keys", keys, "--count", keys, "--rate", RATE, "--connections", 2)
    report = load(programs, keystile, *options)
    measured = {
        "denied": report["unexpected"],
        "bcrypt_runs": tiers.bcrypt_runs(keystile),
        "p50_us": report["p50_us"],
        "p99_us": report["p99_us"],
    }
    keystile.stop()
    return measured


def load(programs, keystile, *options):
    """Like `running.load`, but denials are counted and are not a failure."""
    command = [programs.load, "--target", keystile.unix, "--check", direct.LEAN, *options]
    return json.loads(subprocess.run([str(word) for word in command], capture_output=True, check=True).stdout)

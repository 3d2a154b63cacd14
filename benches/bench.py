"""Measures what the README claims, side by side in one run: `make bench`.

    python3 benches/bench.py            everything, into benches/results.json, the README and docs/performance.md
    python3 benches/bench.py quick      a part of it in a minute or two, to see that it works; printed, not kept
    python3 benches/bench.py tables     no measurement: writes the tables of benches/results.json again

Figures of different runs or machines cannot be compared. The ratios within one run can.
"""

import argparse
import dataclasses
import time

import cold
import direct
import flood
import gateway
import limits
import restart
import running
import table
import tiers
from results import Results, log

README, PERFORMANCE = running.ROOT / "README.md", running.ROOT / "docs/performance.md"
KEPT = running.ROOT / "benches/results.json"


@dataclasses.dataclass
class Extent:
    """How much is measured."""

    repetitions: int
    # For each subject and repetition: checks as fast as they are answered, then a second or two at a fixed rate.
    checks: int
    seconds: float
    # Checks per second, and requests per second through Envoy: well below the capacity of a core or two.
    rate: int = 4000
    gateway_rate: int = 1000
    million: int = 1_000_000
    # Unproven keys by bcrypt cost, and the number of repetitions.
    cold: dict = dataclasses.field(default_factory=lambda: {6: 10_000, 10: 100, 12: 24})
    cold_repetitions: int = 3
    # Keys that were proven before a restart.
    restart_keys: int = 1000
    # Good keys that are used during each flood; refusals of each kind that are timed, the cost that they imitate, and their
    # rate per second in bursts: the rate at which the simulation refuses at that cost.
    flood_keys: int = 100
    alike: int = 2000
    alike_cost: int = 6
    alike_rate: int = 60


EXTENTS = {
    "full": Extent(repetitions=5, checks=40_000, seconds=2.0),
    "quick": Extent(
        repetitions=2, checks=8000, seconds=0.5, million=5000, cold={6: 600, 10: 30, 12: 8}, cold_repetitions=1,
        restart_keys=100, flood_keys=10, alike=400,
    ),
}
PARTS = ("checks", "threads", "cold", "restart", "flood", "envoy")


def main():
    options = parse()
    if options.mode == "tables":
        return write_tables(Results.read(KEPT))
    results = Results(options.mode)
    programs = running.Programs(options.profile, options.tools)
    with running.scratch_folder() as scratch:
        measure(programs, options, results, scratch)
    took = time.monotonic() - results.begun
    print(f"\n{table.summary(results)}\n\n{table.full(results)}\n\nin {took / 60:.1f} minutes")
    if options.mode == "full" and options.parts == list(PARTS):
        results.write(KEPT)
        write_tables(results)
    else:
        results.write(running.TARGET / "bench.json")


def write_tables(results):
    table.put_into(README, "bench", table.summary(results))
    table.put_into(PERFORMANCE, "bench", table.full(results))
    print(f"written: {README.name} and docs/{PERFORMANCE.name}, from {KEPT.relative_to(running.ROOT)}")


def measure(programs, options, results, scratch):
    extent = EXTENTS[options.mode]
    log("keys are made and proven")
    database = running.make_database(programs, scratch / "keys.db", direct.ALL, edits=direct.edits())
    null = running.Null(programs, scratch)
    # Its keys are proven beforehand, on all cores. The speed of bcrypt is measured elsewhere.
    keystile = running.Keystile(programs, scratch, database, settings={"KEYSTILE_BCRYPT_THREADS": "2"})
    if "checks" in options.parts:
        direct.warm(programs, keystile, direct.ORDINARY)
        limited = limits.subjects(programs, scratch, database)
        below = tiers.subjects(programs, scratch, database)
        million = tiers.million(programs, results, scratch, null, database, extent.million)
        subjects = [*direct.subjects(null, keystile), *limited, million, *below]
        direct.run(programs, results, subjects, extent.repetitions, extent.checks, extent.rate, extent.seconds)
    if "envoy" in options.parts:
        extents = extent.repetitions, extent.seconds, extent.gateway_rate
        few = running.Keystile(programs, scratch, database, "few", gateway.FEW)
        gateway.run(programs, options.envoy, results, scratch, null, keystile, few, *extents)
    if "threads" in options.parts:
        direct.threads(programs, results, scratch, database, extent.repetitions, extent.checks)
    if "cold" in options.parts:
        cold.run(programs, results, scratch, extent.cold_repetitions, extent.cold)
    if "restart" in options.parts:
        restart.run(programs, results, scratch, extent.cold_repetitions, extent.restart_keys)
    if "flood" in options.parts:
        flood.run(programs, results, scratch, extent)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("mode", nargs="?", choices=[*EXTENTS, "tables"], default="full")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--profile", default="release", help="the cargo profile that keystile was built with")
    parser.add_argument("--tools", help="that of the other programs, if it is another")
    parser.add_argument("--envoy", default=running.ROOT / ".tools/envoy-1.40.0/envoy")
    return parser.parse_args()


if __name__ == "__main__":
    main()

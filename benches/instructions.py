"""Counts the instructions of one check of a known key, and fails if there are more than recorded.

    python3 benches/instructions.py            compare with benches/instructions.json
    python3 benches/instructions.py --record   write it
    python3 benches/instructions.py --runs 3   and say how far apart they are

`keystile serve` runs under callgrind with one worker thread and answers checks one at a time. Two parts of its instructions are
divided by the checks: those of the connection, which answers them, and those of every task of the runtime, so that work which moves
from the connection to another task is still seen. What a process does each second outside checks, such as reading the log of changes, is in
the second alone, and its share depends on the machine. The first is the same on a busy machine and, but for the system's libraries,
on another one. It says nothing about memory or the kernel.
"""

import argparse
import contextlib
import itertools
import json
import pathlib
import sys

import running
import shares

HERE = pathlib.Path(__file__).resolve().parent
RECORD = HERE / "instructions.json"
KEPT = running.TARGET / "instructions" / "callgrind"
CHECKS = 8000
# What is counted: a function with all that it calls, and above which growth it fails.
PARTS = {
    "connection": (shares.CONNECTION, 0.03),
    "tasks": ("tokio::runtime::scheduler::multi_thread::worker::Context::run_task", 0.15),
}
# The recorded checks, and their differences from an ordinary one.
SUBJECTS = {"stock": "check-stock.bin", "lean": "check-lean.bin"}


def main():
    options = parse()
    programs = running.Programs("instructions", tools="dev")
    counts = {name: [] for name in SUBJECTS}
    with running.scratch_folder() as scratch:
        database = running.make_database(programs, scratch / "keys.db", 1)
        for name, check in SUBJECTS.items():
            for _ in range(options.runs):
                counts[name].append(count(programs, scratch, database, name, check))
                print(f"{name}: " + ", ".join(f"{part} {n:,}" for part, n in counts[name][-1].items()), flush=True)
    if options.runs > 1:
        for name, part in itertools.product(SUBJECTS, PARTS):
            of_part = [counted[part] for counted in counts[name]]
            print(f"{name}, {part}: {max(of_part) / min(of_part) - 1:.2%} between the least and the most of {len(of_part)}")
    lowest = {name: {part: min(counted[part] for counted in counts[name]) for part in PARTS} for name in SUBJECTS}
    if options.record:
        RECORD.write_text(json.dumps(lowest, indent=2) + "\n")
        return print(f"recorded in {RECORD.relative_to(running.ROOT)}")
    sys.exit(compare(lowest, json.loads(RECORD.read_text())))


def count(programs, scratch, database, name, check):
    """Instructions of one check, by part."""
    output = KEPT.with_suffix(f".{name}")
    wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", "--dump-instr=no", "--quiet"]
    # Usage is not written during the measurement, because that would count as well.
    settings = {"TOKIO_WORKER_THREADS": "1", "KEYSTILE_USAGE_INTERVAL": "1h"}
    keystile = running.Keystile(programs, scratch, database, "callgrind", settings, wrapper)

    def is_known():
        with contextlib.suppress(RuntimeError):
            return running.load(programs, keystile.unix, "--count", 1, check=HERE / check)

    try:
        # The first proof may be late on a busy machine.
        running.until(is_known, "the key is proven")
        running.load(programs, keystile.unix, "--count", CHECKS, check=HERE / check)
    finally:
        status = keystile.stop()
    if status != 0:
        raise RuntimeError(f"keystile ended with {status}:\n{keystile.log.read_text(errors='replace')}")
    _, inclusive, _, _ = shares.read(output)
    return {part: round(inclusive[function] / CHECKS) for part, (function, _) in PARTS.items()}


def compare(counts, recorded):
    failed = False
    for name, (part, (_, tolerated)) in itertools.product(SUBJECTS, PARTS.items()):
        now, before = counts[name][part], recorded[name][part]
        growth = now / before - 1
        print(f"{name}, {part}: {now:,} instructions, {growth:+.1%} of the {before:,} that are recorded; {tolerated:.0%} is tolerated")
        failed |= growth > tolerated
    if failed:
        print(
            "\nA hot check takes more instructions than is tolerated. This shows where they are:\n\n"
            f"    callgrind_annotate --inclusive=yes {KEPT.with_suffix('.stock')} | less\n\n"
            "and the same after `git stash` what they were. If it is worth it: make instructions RECORD=yes",
            file=sys.stderr,
        )
    return int(failed)


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

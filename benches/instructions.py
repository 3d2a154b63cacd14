"""Counts the instructions of one check of a known key, and fails if there are more than recorded.

    python3 benches/instructions.py            compare with benches/instructions.json
    python3 benches/instructions.py --record   write it
    python3 benches/instructions.py --runs 3   and say how far apart they are

`keystile serve` runs under callgrind with one worker thread and answers checks one at a time: first N of them, in another run
2N. What lies between the two counts is N checks; starting and stopping cancel out. Unlike time, the count is the same on a
busy machine and, but for the system's libraries, on another one. It says nothing about memory or the kernel.
"""

import argparse
import json
import pathlib
import re
import subprocess
import sys

import running

HERE = pathlib.Path(__file__).resolve().parent
RECORD = HERE / "instructions.json"
KEPT = running.TARGET / "instructions" / "callgrind.out"
# A process also does work each second: it probes the database and reads the log of changes. The two runs do not take the
# same time, so this work does not cancel out. With this many checks it is small compared with theirs.
CHECKS = 16000
# Growth above this fails.
TOLERATED = 0.10
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
                once, twice = (total(programs, scratch, database, name, check, n) for n in (CHECKS, 2 * CHECKS))
                counts[name].append(round((twice - once) / CHECKS))
                print(f"{name}: {counts[name][-1]:,} instructions a check", flush=True)
    if options.runs > 1:
        for name, all_counts in counts.items():
            print(f"{name}: {spread(all_counts):.2%} between the least and the most of {len(all_counts)}")
    lowest = {name: min(all_counts) for name, all_counts in counts.items()}
    if options.record:
        RECORD.write_text(json.dumps(lowest, indent=2) + "\n")
        return print(f"recorded in {RECORD.relative_to(running.ROOT)}")
    sys.exit(compare(lowest, json.loads(RECORD.read_text())))


def total(programs, scratch, database, name, check, checks):
    """Instructions of a whole run with this many checks."""
    output = KEPT.with_suffix(f".{name}")
    wrapper = ["valgrind", "--tool=callgrind", f"--callgrind-out-file={output}", "--dump-instr=no", "--quiet"]
    # Usage is not written during the measurement, because that would count as well.
    settings = {"TOKIO_WORKER_THREADS": "1", "KEYSTILE_USAGE_INTERVAL": "1h"}
    keystile = running.Keystile(programs, scratch, database, "callgrind", settings, wrapper)
    try:
        running.load(programs, keystile.unix, "--count", checks, check=HERE / check)
    finally:
        status = keystile.stop()
    if status != 0:
        raise RuntimeError(f"keystile ended with {status}:\n{keystile.log.read_text(errors='replace')}")
    return int(re.search(r"^(?:summary|totals): (\d+)", output.read_text(), re.MULTILINE)[1])


def compare(counts, recorded):
    failed = False
    for name, count in counts.items():
        growth = count / recorded[name] - 1
        print(f"{name}: {count:,} instructions, {growth:+.1%} of the {recorded[name]:,} that are recorded")
        failed |= growth > TOLERATED
    if failed:
        print(
            f"\nA hot check takes more than {TOLERATED:.0%} more instructions than were recorded. This shows where they are:\n\n"
            f"    callgrind_annotate --inclusive=yes {KEPT}.stock | less\n\n"
            "and the same after `git stash` what they were. If it is worth it: make instructions RECORD=yes",
            file=sys.stderr,
        )
    return int(failed)


def spread(counts):
    return max(counts) / min(counts) - 1


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--record", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

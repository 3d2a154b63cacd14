"""Measurements, and the figures made of several repetitions: medians, their spread, and ratios.

A ratio is taken within a repetition, where both sides were measured seconds apart. The median of these is reported, so other
load on the machine affects both sides of it.
"""

import collections
import json
import os
import pathlib
import platform
import statistics
import subprocess
import time

import running


class Results:
    """Values by subject and measure, one a repetition."""

    def __init__(self, mode):
        self.mode = mode
        self.labels, self.bases = {}, {}
        self.values = collections.defaultdict(lambda: collections.defaultdict(list))
        self.begun = time.monotonic()
        self.machine = machine()

    def subject(self, name, label, base=None):
        """Announces a subject, and the subject that it is compared with."""
        self.labels[name] = label
        self.bases[name] = base

    def add(self, subject, **measures):
        for measure, value in measures.items():
            self.values[subject][measure].append(value)

    def median(self, subject, measure):
        values = self.values[subject].get(measure)
        return statistics.median(values) if values else None

    def ratio(self, subject, measure, base=None):
        """The median of the ratios to the base."""
        ratios = self.ratios(subject, measure, base)
        return statistics.median(ratios) if ratios else None

    def ratios(self, subject, measure, base=None):
        base = base or self.bases[subject]
        pairs = zip(self.values[subject].get(measure, ()), self.values[base].get(measure, ())) if base else ()
        # No ratio to 0: without a service there is no service time.
        return [value / other for value, other in pairs if other]

    @classmethod
    def read(cls, path):
        """The results of an earlier run."""
        kept = json.loads(path.read_text())
        results = cls(kept["mode"])
        results.machine = kept["machine"]
        for name, subject in kept["subjects"].items():
            results.subject(name, subject["label"], subject["base"])
            results.add_all(name, {measure: figures["all"] for measure, figures in subject["measures"].items()})
        return results

    def add_all(self, subject, measures):
        """Adds the values of all repetitions."""
        for measure, values in measures.items():
            self.values[subject][measure].extend(values)

    def write(self, path):
        subjects = {
            name: {
                "label": label,
                "base": self.bases[name],
                "measures": {
                    measure: {"median": statistics.median(values), "least": min(values), "most": max(values), "all": values}
                    for measure, values in self.values[name].items()
                },
                "ratios": {
                    measure: {"median": statistics.median(ratios), "least": min(ratios), "most": max(ratios)}
                    for measure in self.values[name]
                    if (ratios := self.ratios(name, measure))
                },
            }
            for name, label in self.labels.items()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": self.machine, "mode": self.mode, "subjects": subjects}, indent=1) + "\n")


def machine():
    """The machine of this run."""
    cpu = [line.split(":")[1].strip() for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=running.ROOT, capture_output=True, text=True)
    return {
        "cpu": cpu[0] if cpu else platform.machine(),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "commit": commit.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def log(text):
    print(text, flush=True)

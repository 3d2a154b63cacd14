#!/usr/bin/env python3
"""Compares Keystile's decisions in shadow mode with the answers of the service, from Envoy's access log.

    shadow-report.py access.log [--output json]
    kubectl logs deploy/envoy | shadow-report.py

Reads the JSON lines that envoy/python-service.yaml writes; other lines are ignored. Exit status: 0 if all decisions
agree with the answers, 1 if some do not, 2 for wrong usage or a log without decisions.
"""

import argparse
import collections
import json
import sys

# The statuses of Keystile's denials (docs/reference/denials.md); all others are 403.
STATUS = {
    "malformed_request": 400,
    "not_http": 400,
    "missing_credential": 401,
    "malformed_credential": 401,
    "ambiguous_credential": 401,
    "invalid_credential": 401,
    "disabled": 401,
    "expired": 401,
    "user_inactive": 401,
    "budget_exhausted": 402,
    "rate_limited": 429,
    "too_many_attempts": 429,
    "overloaded": 503,
    "unavailable": 503,
    "route_misconfigured": 503,
}
# From the field of the JSON output to the sentence of the text.
KINDS = {
    "keystile_denies": "Keystile would deny what the service lets through",
    "service_refuses": "the service refuses what Keystile would let through",
    "other_status": "both refuse, with different statuses",
    "other_key": "both let through, with different keys",
}


def main():
    options = arguments()
    report = Report(options.refusals)
    for file in options.logs or [None]:
        with open(file, encoding="utf-8", errors="replace") if file else sys.stdin as lines:
            for line in lines:
                report.add(line)
    print(json.dumps(report.as_json(), indent=2) if options.output == "json" else report.as_text())
    if not report.requests:
        print("shadow-report: no line has `result`, `status` and `details`: is this the access log of "
              "envoy/python-service.yaml, and does KEYSTILE_METADATA have `result`?", file=sys.stderr)
        return 2
    return 1 if report.differences else 0


def arguments():
    parser = argparse.ArgumentParser(description="Compares Keystile's decisions with the service's answers.")
    parser.add_argument("logs", nargs="*", metavar="LOG", help="access logs; standard input without any")
    parser.add_argument("--output", choices=["text", "json"], default="text")
    parser.add_argument(
        "--refusals", type=lambda text: {int(status) for status in text.split(",")}, default={401, 402, 403, 429},
        metavar="STATUS,…", help="the statuses with which the service refuses callers (default: 401,402,403,429)",
    )
    return parser.parse_args()


class Report:
    def __init__(self, refusals):
        self.refusals = refusals
        self.requests = self.agreeing = self.not_checked = 0
        # (kind, Keystile's result, the service's status, route) -> number of requests, id of the first one
        self.differences = {}

    def add(self, line):
        entry = self._parse(line)
        if entry is None:
            return
        # Routes that do not ask Keystile have no result. Without an answer of the service there is nothing to compare.
        if not entry.get("result") or entry.get("details") != "via_upstream":
            self.not_checked += 1
            return
        self.requests += 1
        kind = self._difference(entry)
        if kind is None:
            self.agreeing += 1
            return
        found = (kind, entry["result"], entry["status"], entry.get("route") or "")
        count, first = self.differences.get(found, (0, entry.get("request_id")))
        self.differences[found] = (count + 1, first)

    def _parse(self, line):
        """The entry of a line, also of one that a log collector has put a time before."""
        try:
            entry = json.loads(line[line.index("{"):])
            return entry if isinstance(entry.get("status"), int) and "details" in entry else None
        except (ValueError, AttributeError):
            return None

    def _difference(self, entry):
        result, status = entry["result"], entry["status"]
        is_denial, is_refusal = result not in ("allow", "anonymous"), status in self.refusals
        if is_denial and not is_refusal:
            return "keystile_denies"
        if is_refusal and not is_denial:
            return "service_refuses"
        if is_denial:
            return "other_status" if STATUS.get(result, 403) != status else None
        # Only where the service names the key that it has found.
        of_service, of_keystile = entry.get("backend_key_id"), entry.get("key_id") or "none"
        return "other_key" if of_service and str(of_service) != str(of_keystile) else None

    def rows(self):
        """The differences, most frequent first."""
        rows = sorted(self.differences.items(), key=lambda item: (-item[1][0], item[0]))
        for (kind, result, status, route), (count, first) in rows:
            row = {"kind": kind, "result": result, "status": status, "route": route}
            yield row | {"requests": count, "request_id": first}

    def as_json(self):
        return {
            "requests": self.requests,
            "agreeing": self.agreeing,
            "not_checked": self.not_checked,
            "differences": list(self.rows()),
        }

    def as_text(self):
        lines = [f"{self.requests} requests: {self.agreeing} agree, {self.requests - self.agreeing} differ "
                 f"({self.not_checked} more were not checked)"]
        by_kind = collections.defaultdict(list)
        for row in self.rows():
            by_kind[row["kind"]].append(row)
        for kind, sentence in KINDS.items():
            if by_kind[kind]:
                lines.append(f"\n{sentence}:")
                lines.append(f"  {'requests':>8}  {'Keystile':24} {'service':>7}  {'route':20} first request")
            for row in by_kind[kind]:
                columns = f"{row['requests']:8}  {row['result']:24} {row['status']:7}  {row['route']:20}"
                lines.append(f"  {columns} {row['request_id']}")
        return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())

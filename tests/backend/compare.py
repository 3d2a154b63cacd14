"""Compares the answers of the service alone with those behind Envoy and Keystile.

    compare.py prepare SEED              makes users, keys, budgets and requests
    compare.py reference SERVICE         asks the service alone
    compare.py STEP SERVICE GATEWAY      asks through Envoy, in one step of the move

Requests and answers are kept in the current folder between the calls. In shadow mode the answers must be the same, and
Keystile's decisions are compared with them. In the other steps the answers are compared. Ends with status 1 if a
difference is not listed in the guide.
"""

import collections
import concurrent.futures
import json
import pathlib
import sys
import time

from sqlalchemy import text

import cases
from client import Client, World
from differences import Outcome, reason

CASES, REFERENCE = pathlib.Path("cases.json"), pathlib.Path("reference.json")
# The status of Keystile's denials, where shadow mode only reports them. 403 if not here.
STATUS = {"budget_exhausted": 402, "too_many_attempts": 429, "overloaded": 503, "unavailable": 503}
STATUS |= dict.fromkeys(
    ["missing_credential", "malformed_credential", "ambiguous_credential", "invalid_credential", "disabled", "expired",
     "user_inactive"],
    401,
)


def ask(chosen, base):
    """The answers, in the order of the cases. Cases of one group are sent in order."""
    client, groups, answers = Client(), collections.defaultdict(list), [None] * len(chosen)
    for at, case in enumerate(chosen):
        groups[case.group].append(at)

    def ask_group(group):
        for at in group:
            answers[at] = client.send(base, chosen[at].request)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(ask_group, groups.values()))
    return answers


def outcome(answer):
    return Outcome(answer.status, answer.caller if answer.status == 200 else None)


def decision(answer, old):
    """Keystile's decision, which shadow mode only reports."""
    if answer.verdict not in ("allow", "anonymous"):
        return Outcome(STATUS.get(answer.verdict, 403))
    key_id = answer.headers["x-seen-x-auth-key-id"]
    is_same = old.caller is None or key_id == str(old.caller[2] or "")
    return Outcome(200, old.caller if is_same else ("key", None, key_id))


def agrees(decision, old):
    """Whether a decision lets through what the service does, for the same caller."""
    if decision.is_refusal or old.is_refusal:
        return decision.status == old.status
    return old.caller is None or decision.caller == old.caller


def revoke(step):
    """Revokes keys past the service, which has them in its cache, and waits until Keystile must know."""
    session = World().session
    session.execute(text("UPDATE api_keys SET is_active = false WHERE name = :name"), {"name": f"revoked in {step}"})
    session.commit()
    time.sleep(1.2)


def compare(step, service, gateway):
    chosen = cases.from_json(CASES.read_text())
    olds = [Outcome(status, caller and tuple(caller)) for status, caller in json.loads(REFERENCE.read_text())]
    answers = ask(chosen, gateway)
    again = [case for case in chosen if case.revoked_in == step]
    revoke(step)
    olds += [outcome(answer) for answer in ask(again, service)]
    answers += ask(again, gateway)

    is_shadow, counts, unlisted = step == "shadow", collections.Counter(), []
    for case, old, answer in zip(chosen + again, olds, answers):
        new = outcome(answer)
        if is_shadow and old == new:
            new = decision(answer, old)
            is_same = agrees(new, old)
            why = None if is_same else reason(case.traits, old, new, is_shadow)
        else:
            is_same = old == new
            # In shadow mode nothing changes for callers.
            why = None if is_same or is_shadow else reason(case.traits, old, new, is_shadow)
        if is_same or why:
            counts[why or "same"] += 1
        else:
            unlisted.append((case, old, new, answer))
    for case, old, new, answer in unlisted[:20]:
        print(f"{step}: UNLISTED: {case}: {old} became {new}; {answer.verdict}, {answer.body}")
    same = counts.pop("same", 0)
    listed = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
    print(f"{step}: requests {len(answers)}, same answer {same}, listed differences {counts.total()} ({listed}), "
          f"unlisted differences {len(unlisted)}")
    return 1 if unlisted else 0


def main(command, *arguments):
    if command == "prepare":
        CASES.write_text(cases.to_json(cases.Generator(int(arguments[0])).run()))
    elif command == "reference":
        answers = [outcome(answer) for answer in ask(cases.from_json(CASES.read_text()), *arguments)]
        REFERENCE.write_text(json.dumps([(answer.status, answer.caller) for answer in answers]))
    else:
        return compare(command, *arguments)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

"""Where the instructions of a check are, from callgrind's output:

    python3 benches/shares.py target/instructions/callgrind.stock

By step: a function with all that it calls, as a share of the connection, so that steps within steps count twice. By source: each
instruction of the whole process once, by the crate or the library that its line is written in, wherever it was inlined.
"""

import collections
import re
import sys

# The function of each step, in the order of a check. Indented: part of the one before.
STEPS = [
    ("connection: frames read, streams opened, answers written", r"h2::proto::connection::Connection<T,P,B>::poll$"),
    ("request: from its task to its answer's last frame", r"H2Stream<.*>? as .*Future>::poll$"),
    ("  check: from the message to the answer", r"AssertUnwindSafe<F> as core::future::future::Future>::poll$"),
    ("    attributes read", r"request::ParsedRequest::read$"),
    ("    records, from memory", r"memory::Inner<S,R>::recall$"),
    ("    proof", r"verifier::Verifier::prove::\{\{closure\}\}$"),
    ("      digest of the key", r"credential::Credential::digest$"),
    ("    policy", r"policy::check$"),
    ("    metrics", r"metrics::CheckMetrics::count$"),
    ("    usage", r"usage::Usage::count$"),
    ("    response written", r"allow::AllowResponses::write$"),
]
CONNECTION = "keystile::serve::connection::serve::{{closure}}"


def main(path):
    self_by_source, inclusive, _, total = read(path)
    connection = inclusive[CONNECTION]
    print(f"{connection / total:.0%} of all instructions are the connection's\n\nby step, inclusive, of the connection:")
    for step, pattern in STEPS:
        matching = [cost for name, cost in inclusive.items() if re.search(pattern, name)]
        print(f"  {max(matching) / connection:6.1%}  {step}" if matching else f"       -  {step}")
    print("\nby source, of all:")
    for source, cost in self_by_source.most_common():
        if cost > total / 200:
            print(f"  {cost / total:6.1%}  {source}")


def read(path):
    """Own instructions by source, instructions by function including its callees, calls by function, all instructions."""
    names = {"fl": {}, "fn": {}}
    self_by_source, own, called, calls = (collections.Counter() for _ in range(4))
    source = function = callee = None
    is_call = False
    for line in open(path, errors="replace"):
        if match := re.match(r"(c?f[lien]|c?ob)=\((\d+)\)(?: (.*))?$", line):
            key, number, name = match.groups()
            kind = {"fl": "fl", "fi": "fl", "fe": "fl", "cfi": "fl", "cfl": "fl", "fn": "fn", "cfn": "fn"}.get(key)
            if kind is None:
                continue
            name = names[kind].setdefault(number, name)
            if key in ("fl", "fi", "fe"):
                source = name
            elif key == "fn":
                function = name
            elif key == "cfn":
                callee = name
        elif line.startswith("calls="):
            is_call = True
            calls[plain(callee)] += int(line[6:].split()[0])
        elif re.match(r"[+*\-\d]", line) and (fields := line.split()) and len(fields) > 1:
            cost = int(fields[1])
            if is_call:
                called[plain(callee)] += cost
            else:
                self_by_source[origin(source)] += cost
                own[plain(function)] += cost
            is_call = False
    total = sum(self_by_source.values())
    # A function counts by its calls. The start function of a thread has no caller.
    inclusive = {name: called[name] or own[name] for name in own.keys() | called.keys()}
    return self_by_source, {name: cost for name, cost in inclusive.items() if cost <= total}, calls, total


def plain(name):
    """The name without callgrind's mark for recursion."""
    return name if name is None else re.sub(r"'\d+$", "", name)


def origin(source):
    for pattern in (r"/registry/src/[^/]+/(.+?)-\d[^/]*/", r"/rustc/\w+/library/(\w+/src/\w+)", r"/rust/deps/(\w+)-", r"\./(malloc)/"):
        if match := re.search(pattern, source or ""):
            return match[1]
    if source and re.search(r"(^|/)src/", source):
        return "keystile " + re.sub(r"^.*?src/", "src/", source)
    return source or "unknown"


if __name__ == "__main__":
    main(*sys.argv[1:])

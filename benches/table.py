"""The tables of the README and of docs/performance.md, made of the measurements."""

import statistics


# The rows of the README: label, subject, and the measure of its CPU time.
SUMMARY = [
    ("a check of a known key, over a Unix socket", "hot-unix", "cpu_us"),
    ("the same, with 10,000 keys in turn", "keys-10k", "cpu_us"),
    ("a denial", "denied", "cpu_us"),
    ("a request through Envoy, with all headers and metadata", "envoy-keystile", "both_cpu_us"),
    ("a request through Envoy, with two headers", "envoy-few", "both_cpu_us"),
]


def summary(results):
    """The README's table: five rows."""
    rows = [
        [
            label,
            median(results, name, measure, "{:.0f} us"),
            ratio(results, name, measure),
            *(median(results, name, percentile, "{:,.0f} us") for percentile in ("p50_us", "p99_us")),
        ]
        for label, name, measure in SUMMARY
        if name in results.labels
    ]
    return table(["", "CPU", "of the null service's", "p50", "p99"], rows)


def full(results):
    """The tables of docs/performance.md: everything."""
    parts = (where, checks, through_envoy, cold, restart, floods, alike, threads, million)
    return join(*(part(results) for part in parts))


def where(results):
    machine, repetitions = results.machine, max(len(values.get("cpu_us", ())) for values in results.values.values())
    return (
        f"Measured on {machine['date']} at {machine['commit']}, {repetitions} times each: a virtual machine with "
        f"{machine['cores']} cores ({machine['cpu']}), which the load generator and Envoy share."
    )


def checks(results):
    rows = []
    for name in results.labels:
        if results.values[name].get("p999_us") and not name.startswith("envoy-"):
            rows.append(
                [
                    results.labels[name],
                    spread(results, name, "cpu_us", "{:.1f} us"),
                    ratio(results, name, "cpu_us"),
                    spread(results, name, "per_second", "{:,.0f}"),
                    *(median(results, name, measure, "{:,.0f} us") for measure in ("p50_us", "p99_us", "p999_us")),
                ]
            )
    heads = ["", "CPU a check", "of null's", "checks/s", "p50", "p99", "p99.9"]
    return table(heads, rows)


def through_envoy(results):
    rows = [
        [
            results.labels[name],
            spread(results, name, "cpu_us", "{:.1f} us"),
            ratio(results, name, "cpu_us"),
            median(results, name, "service_cpu_us", "{:.1f} us"),
            ratio(results, name, "both_cpu_us"),
            median(results, name, "per_second", "{:,.0f}"),
            *(median(results, name, measure, "{:,.0f} us") for measure in ("p50_us", "p99_us", "p999_us")),
        ]
        for name in results.labels
        if name.startswith("envoy-")
    ]
    heads = ["", "CPU of Envoy", "of null's", "CPU of the service", "both, of null's", "requests/s", "p50", "p99", "p99.9"]
    return table(heads, rows)


def cold(results):
    rows = [
        [
            results.labels[name],
            median(results, name, "per_second", "{:,.1f}"),
            ratio(results, name, "per_second"),
            median(results, name, "p50_us", "{:,.0f} us"),
            median(results, name, "hot_p99_ratio", "{:.2f}x"),
        ]
        for name in results.labels
        if name.startswith(("cold-", "bcrypt-"))
    ]
    return table(["", "keys/s", "of bcrypt's", "a key's first check, p50", "known keys' p99 at the same time"], rows)


def restart(results):
    rows = [
        [
            results.labels[name],
            f"**{max(results.values[name]['denied']):,.0f}**",
            median(results, name, "bcrypt_runs", "{:,.0f}"),
            *(median(results, name, measure, "{:,.0f} us") for measure in ("p50_us", "p99_us")),
        ]
        for name in results.labels
        if name.startswith("restart")
    ]
    return table(["100 checks a second, no Redis", "denied", "bcrypt runs", "p50", "p99"], rows)


def floods(results):
    """Good keys in a flood, as ratios to bcrypt alone."""
    rows = []
    for name in (name for name in results.labels if name.startswith("flood-") and results.bases[name]):
        p50 = results.ratio(name, "p50_us")
        bcrypt = results.median("flood-bcrypt", "p50_us")
        rows.append(
            [
                results.labels[name],
                median(results, name, "denied", "{:.0f}"),
                f"{p50:.2f}x",
                f"{results.median(name, 'p99_us') / bcrypt:.2f}x",
                median(results, name, "hot_p99_ratio", "{:.2f}x"),
            ]
        )
    if "flood-null" in results.labels:
        rows.append([results.labels["flood-null"], "", "", "", median(results, "flood-null", "hot_p99_ratio", "{:.2f}x")])
    heads = ["1,000 made-up keys and 200 wrong secrets a second", "denied", "p50 of bcrypt's", "p99 of bcrypt's", "known keys' p99, of that without a flood"]
    return table(heads, rows)


def alike(results):
    """How well the time of a refusal shows whether its prefix exists."""
    if "alike" not in results.labels:
        return ""
    kinds = [("", load, burst) for load in ("idle", "busy") for burst in (1, 10)]
    kinds += [("sha256_", "idle", burst) for burst in (1, 10) if f"auc_sha256_idle_{burst}" in results.values["alike"]]
    rows = [
        [
            f"{'SHA-256, ' if hashes else ''}{load}, {'one at a time' if burst == 1 else f'{burst} at once'}",
            median(results, "alike", f"samples_{hashes}{load}_{burst}", "{:,.0f}"),
            median(results, "alike", f"auc_{hashes}{load}_{burst}", "{:.3f}"),
        ]
        for hashes, load, burst in kinds
    ]
    return table([f"{results.labels['alike']}", "of each", "area under the curve (0.5: not told apart)"], rows)


def threads(results):
    rows = [
        [results.labels[name], spread(results, name, "cpu_us", "{:.1f} us"), ratio(results, name, "cpu_us"),
         median(results, name, "per_second", "{:,.0f}"), ratio(results, name, "per_second")]
        for name in results.labels
        if name.startswith("threads-")
    ]
    return table(["", "CPU a check", "of one thread's", "checks/s", "of one thread's"], rows)


def million(results):
    measured = results.values.get("million")
    if not measured:
        return ""
    slowest = lambda of: (
        f"{measured[f'{of}_worst_us_meanwhile'][0] / 1000:.1f} ms,"
        f" usually {measured[f'{of}_usual_worst_us_meanwhile'][0] / 1000:.1f} ms in 50"
    )
    said = {
        "start to ready": median(results, "million", "ms_to_ready", "{:.0f} ms"),
        "the same with 200,000 changes in the log": median(results, "million", "ms_to_ready_with_full_log", "{:.0f} ms"),
        "memory of 100,000 keys": f"{statistics.median(measured['bytes_a_key']) / 10:,.0f} MB",
        "keys loaded from Redis per second": median(results, "million", "loaded_per_second", "{:,.0f}"),
        "a known key's slowest check while they are loaded": slowest("hot"),
        "the slowest check of the null service while they are loaded": slowest("null"),
        "bcrypt runs while they are loaded": median(results, "million", "bcrypt_runs", "{:.0f}"),
    }
    return table([results.labels["million"], ""], [[what, value] for what, value in said.items()])


def join(*parts):
    return "\n\n".join(filter(None, parts))


def table(heads, rows):
    if not rows:
        return ""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def median(results, name, measure, form):
    value = results.median(name, measure)
    return "" if value is None else form.format(value)


def spread(results, name, measure, form):
    """The median, and the greatest deviation of a repetition from it."""
    values = results.values[name][measure]
    middle = statistics.median(values)
    return f"{form.format(middle)} ±{max(abs(value / middle - 1) for value in values):.0%}"


def ratio(results, name, measure):
    value = results.ratio(name, measure)
    return "" if value is None else f"**{value:.2f}x**"


def put_into(path, name, text):
    """Replaces the text between the markers of this name."""
    whole = path.read_text()
    begin, end = f"<!-- {name} -->\n", f"\n<!-- /{name} -->"
    head, rest = whole.split(begin)
    path.write_text(head + begin + text + end + rest.split(end, 1)[1])

"""Keys that are not in memory, and a million keys that are."""

import concurrent.futures
import statistics

import direct
import running
from direct import LEAN, ORDINARY, Subject
from postgres import Postgres
from results import log


def redis_tier(programs, scratch):
    """Almost no memory, so that nearly each check is answered from Redis: record and proof."""
    redis = running.Redis(scratch)
    database = running.make_database(programs, scratch / "redis-tier.db", ORDINARY, redis=redis.address)
    settings = from_redis(redis) | {"KEYSTILE_MEMORY_CAPACITY": "16"}
    keystile = running.Keystile(programs, scratch, database, "redis-tier", settings)
    options = ("--keys", ORDINARY)
    return Subject("redis", "Keystile, keys from Redis", keystile, keystile.unix, options=options, base="null-unix", share=0.2, tier="redis")


def from_redis(redis):
    """Settings with a long timeout, so that records and proofs are found in Redis, however busy the machine is."""
    return {"KEYSTILE_REDIS_URL": f"redis://{redis.address}", "KEYSTILE_REDIS_TIMEOUT": "5s"}


def database_tier(programs, scratch, database, name, label):
    """Records are believed for a millisecond, so that each check asks the database. Proofs stay valid."""
    keystile = running.Keystile(programs, scratch, database, f"{name}-tier", {"KEYSTILE_RECORD_TTL": "1ms"})
    # Few keys, since each is proven by bcrypt first.
    keys = 1000
    direct.warm(programs, keystile, keys)
    options = ("--keys", keys)
    return Subject(name, label, keystile, keystile.unix, options=options, base="null-unix", share=0.2, tier="database")


def subjects(programs, scratch, database):
    """One subject for each tier below memory."""
    postgres = Postgres(scratch)
    postgres.fill(programs, database.removeprefix("sqlite:"))
    return [
        redis_tier(programs, scratch),
        database_tier(programs, scratch, database, "sqlite", "Keystile, records from SQLite"),
        database_tier(programs, scratch, postgres.url, "postgres", "Keystile, records from Postgres"),
    ]


def million(programs, results, scratch, null, ordinary, keys):
    """Loads that many keys by checks, from Redis as after a restart, while a known key and the null service are checked."""
    redis = running.Redis(scratch)
    log(f"  {keys:,} keys are made")
    database = running.make_database(programs, scratch / "million.db", keys, redis=redis.address)
    # Usage is counted, but not written, while so many keys are new.
    settings = from_redis(redis) | {"KEYSTILE_MEMORY_CAPACITY": str(keys + keys // 4), "KEYSTILE_USAGE_INTERVAL": "1h"}
    results.subject("million", f"Keystile with {keys:,} keys")
    # Most of the million changes are still in the log.
    for _ in range(5):
        for measure, of in [("ms_to_ready", ordinary), ("ms_to_ready_with_full_log", database)]:
            keystile = running.Keystile(programs, scratch, of, "million", settings)
            results.add("million", **{measure: keystile.seconds_to_ready * 1000})
            keystile.stop()
    keystile = running.Keystile(programs, scratch, database, "million", settings)
    # Keystile believes no entry in Redis until it has read the log of changes.
    feed_is_up = lambda: "keystile_change_feed_up 1" in running.fetch(keystile.admin, "/metrics").splitlines()
    running.until(feed_is_up, "the change feed is up")
    running.load(programs, keystile.unix, *("--count", 1), check=LEAN)
    empty, proven_before = keystile.resident(), bcrypt_runs(keystile)
    log(f"  {keys:,} keys are loaded")
    with concurrent.futures.ThreadPoolExecutor() as pool:
        options = ("--in-turn", "--keys", keys, "--count", keys, "--connections", 2, "--streams", 8)
        loading = pool.submit(running.load, programs, keystile.unix, *options, check=LEAN)
        # A wait for a core affects the null service as well: both in turn, a tenth of a second each.
        slowest = {keystile: [], null: []}
        while not loading.done():
            for service, measured in slowest.items():
                measured.append(running.load(programs, service.unix, "--rate", 500, "--count", 50, check=LEAN)["max_us"])
        loaded = loading.result()
    results.add(
        "million",
        bytes_a_key=(keystile.resident() - empty) / keys,
        loaded_per_second=loaded["answers"] / loaded["seconds"],
        hot_worst_us_meanwhile=max(slowest[keystile]),
        hot_usual_worst_us_meanwhile=statistics.median(slowest[keystile]),
        null_worst_us_meanwhile=max(slowest[null]),
        null_usual_worst_us_meanwhile=statistics.median(slowest[null]),
        bcrypt_runs=bcrypt_runs(keystile) - proven_before,
    )
    redis.stop()
    options = ("--keys", keys)
    return Subject(
        "keys-1m", f"Keystile, {keys:,} keys", keystile, keystile.unix, options=options, base="null-unix"
    )


def bcrypt_runs(keystile):
    """The number of bcrypt runs: none after a restart with Redis."""
    lines = running.fetch(keystile.admin, "/metrics").splitlines()
    return sum(float(line.split()[1]) for line in lines if line.startswith("keystile_bcrypt_duration_seconds_count"))

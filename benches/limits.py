"""A key whose limits are counted: by one instance, and in Redis for all instances."""

import running
from direct import LIMITED, Subject


def subjects(programs, scratch, database):
    redis = running.Redis(scratch, "redis-limits")
    url = {"KEYSTILE_REDIS_URL": f"redis://{redis.address}"}
    return [
        limited(programs, scratch, database, "local", "Keystile, three limits counted in memory"),
        limited(programs, scratch, database, "redis", "Keystile, three limits counted in Redis", url),
    ]


def limited(programs, scratch, database, by, label, settings=None):
    keystile = running.Keystile(programs, scratch, database, f"limited-{by}", {"KEYSTILE_RATE_LIMIT": by} | (settings or {}))
    options = ("--first", LIMITED)
    return Subject(f"limited-{by}", label, keystile, keystile.unix, options=options, base="null-unix")

"""The cache of keys in Redis.

It has a fault, which the tests rely on: a verification is remembered under the first eight characters of the key.
"""

import json


class KeyCache:
    def __init__(self, settings):
        # Imported here, since the service runs without the package once Keystile has taken over.
        import redis

        self.redis = redis.Redis.from_url(settings.REDIS_URL, decode_responses=True)
        self.settings = settings
        self.hits = self.misses = self.errors = 0

    def get_record(self, prefix):
        """The rows with this prefix, as they were when they were cached."""
        text = self._call("get", f"api_key:record:{prefix}")
        self.hits, self.misses = self.hits + bool(text), self.misses + (not text)
        return json.loads(text) if text else None

    def set_record(self, prefix, rows):
        self._call("set", f"api_key:record:{prefix}", json.dumps(rows), ex=self.settings.API_KEY_CACHE_SECONDS)

    def get_verification(self, prefix):
        """The id of the key that was verified."""
        key_id = self._call("get", f"api_key:verified:{prefix}")
        return int(key_id) if key_id else None

    def set_verification(self, prefix, key_id):
        self._call("set", f"api_key:verified:{prefix}", key_id, ex=self.settings.API_KEY_VERIFICATION_SECONDS)

    def is_last_used_due(self, key_id):
        """Whether `last_used_at` is to be written. True once in each interval."""
        seconds = self.settings.API_KEY_LAST_USED_SECONDS
        return bool(self._call("set", f"api_key:used:{key_id}", 1, ex=seconds, nx=True))

    def invalidate(self, prefix):
        self._call("delete", f"api_key:record:{prefix}", f"api_key:verified:{prefix}")

    def statistics(self):
        total = self.hits + self.misses
        return {"hits": self.hits, "misses": self.misses, "errors": self.errors, "hit_rate": self.hits / max(total, 1)}

    def _call(self, command, *arguments, **options):
        """A cache that fails is a cache without entries."""
        import redis

        try:
            return getattr(self.redis, command)(*arguments, **options)
        except redis.RedisError:
            self.errors += 1
            return None

"""The settings of the service, from environment variables."""

import dataclasses
import os


@dataclasses.dataclass(frozen=True)
class Settings:
    DATABASE_URL: str
    JWT_SECRET: str
    # Where the caller of a request comes from: `own` for own_identity.py, `headers` for trusted_identity.py.
    IDENTITY: str = "own"
    # None: no cache. Each request reads the key and runs bcrypt.
    REDIS_URL: str | None = None
    API_KEY_BCRYPT_ROUNDS: int = 6
    API_KEY_CACHE_SECONDS: int = 300
    API_KEY_VERIFICATION_SECONDS: int = 3600
    API_KEY_LAST_USED_SECONDS: int = 300
    LOGIN_MAX_FAILURES: int = 5
    LOGIN_LOCK_HOURS: int = 24

    @classmethod
    def from_environment(cls):
        fields = {field.name: field.type for field in dataclasses.fields(cls)}
        found = {name: os.environ[name] for name in fields if os.environ.get(name)}
        settings = cls(**{name: int(text) if fields[name] is int else text for name, text in found.items()})
        if settings.IDENTITY not in ("own", "headers"):
            raise SystemExit(f"IDENTITY is {settings.IDENTITY!r}: it must be own or headers")
        return settings

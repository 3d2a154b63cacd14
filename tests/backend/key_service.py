"""Creates, proves, counts and revokes API keys."""

import datetime
import secrets
import string

from passlib.hash import bcrypt
from sqlalchemy import select

from caller import Caller, refused
from models import ApiKey, now

BRAND = "en_"
PREFIX_LENGTH = 8
CHARACTERS = string.ascii_letters + string.digits
LISTS = [
    "allowed_models", "allowed_endpoints", "allowed_ips", "allowed_chatbots", "allowed_agents",
    "allowed_extract_templates",
]


class KeyService:
    """The keys, for one request. `cache` is None where there is no Redis."""

    def __init__(self, session, settings, cache=None):
        self.session, self.settings, self.cache = session, settings, cache

    @staticmethod
    def generate_key():
        return BRAND + "".join(secrets.choice(CHARACTERS) for _ in range(32))

    def hash_key(self, key):
        return bcrypt.using(rounds=self.settings.API_KEY_BCRYPT_ROUNDS).hash(key)

    @staticmethod
    def verify_key(key, key_hash):
        return bcrypt.verify(key, key_hash)

    def create_key(self, user_id, key=None, **columns):
        """The row of a new key, and the key itself, which is shown once."""
        key = key or self.generate_key()
        columns.setdefault("key_hash", None)
        columns["key_hash"] = columns["key_hash"] or self.hash_key(key)
        row = ApiKey(user_id=user_id, key_prefix=key[:PREFIX_LENGTH], **columns)
        self.session.add(row)
        self.session.flush()
        return row, key

    def validate_key(self, key, path, address):
        """The caller with this key. Raises the answer of a request that the key does not allow."""
        row = self._find(key)
        if row is None:
            raise refused(401, "invalid_key")
        if not row["is_active"]:
            raise refused(401, "inactive_key")
        if row["expires_at"] and datetime.datetime.fromisoformat(row["expires_at"]) <= now():
            raise refused(401, "expired_key")
        if not row["user_is_active"]:
            raise refused(401, "inactive_user")
        caller = Caller("key", row["user_id"], row["id"], row["scopes"] or [], *(row[name] for name in LISTS))
        caller.require_address(address)
        caller.require_endpoint(path)
        self.update_last_used(row["id"])
        return caller

    def revoke_key(self, key_id):
        row = self.session.get(ApiKey, key_id)
        row.is_active = False
        self.session.commit()
        if self.cache:
            self.cache.invalidate(row.key_prefix)

    def update_last_used(self, key_id):
        if self.cache is None or self.cache.is_last_used_due(key_id):
            self.session.get(ApiKey, key_id).last_used_at = now()
            self.session.commit()

    def count_request(self, key_id, tokens=0, cost=0):
        """Reads the numbers and writes them back. Another writer of `total_requests` in between is overwritten."""
        row = self.session.get(ApiKey, key_id)
        row.total_requests = (row.total_requests or 0) + 1
        row.total_tokens = (row.total_tokens or 0) + tokens
        row.total_cost = (row.total_cost or 0) + cost
        self.session.commit()

    def _find(self, key):
        prefix = key[:PREFIX_LENGTH]
        rows = self._rows(prefix)
        verified = self.cache and self.cache.get_verification(prefix)
        if verified:
            # The fault: nothing of the key after its prefix was looked at.
            return next((row for row in rows if row["id"] == verified), None)
        for row in rows:
            if self.verify_key(key, row["key_hash"]):
                if self.cache:
                    self.cache.set_verification(prefix, row["id"])
                return row
        return None

    def _rows(self, prefix):
        rows = self.cache and self.cache.get_record(prefix)
        if rows:
            return rows
        found = self.session.scalars(select(ApiKey).where(ApiKey.key_prefix == prefix).order_by(ApiKey.id))
        rows = [as_record(row) for row in found]
        if self.cache and rows:
            self.cache.set_record(prefix, rows)
        return rows


def as_record(row):
    """A row as JSON can hold it."""
    record = {name: getattr(row, name) for name in ["id", "key_hash", "user_id", "is_active", "scopes", *LISTS]}
    record["expires_at"] = row.expires_at and row.expires_at.isoformat()
    record["user_is_active"] = row.user.is_active
    return record

"""The tables. Timestamps are UTC, without a zone."""

import datetime
from typing import Any

from sqlalchemy import JSON, ForeignKey, Numeric, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


def now():
    return datetime.datetime.now(datetime.UTC).replace(tzinfo=None)


# NULL in SQL, not the JSON value null.
List = JSON(none_as_null=True)


class Base(DeclarativeBase):
    pass


class Role(Base):
    __tablename__ = "roles"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    permissions: Mapped[Any | None] = mapped_column(List)


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(255), unique=True)
    username: Mapped[str] = mapped_column(String(100), unique=True)
    hashed_password: Mapped[str] = mapped_column(String(255))
    role_id: Mapped[int | None] = mapped_column(ForeignKey("roles.id"))
    permissions: Mapped[Any | None] = mapped_column(List)
    is_active: Mapped[bool | None] = mapped_column(default=True)
    is_superuser: Mapped[bool | None] = mapped_column(default=False)
    failed_login_attempts: Mapped[int] = mapped_column(default=0)
    account_locked: Mapped[bool | None] = mapped_column(default=False)
    account_locked_until: Mapped[datetime.datetime | None]
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime] = mapped_column(default=now, onupdate=now)
    last_login: Mapped[datetime.datetime | None]

    role: Mapped[Role | None] = relationship(lazy="joined")


class ApiKey(Base):
    __tablename__ = "api_keys"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(100))
    key_hash: Mapped[str] = mapped_column(String(255))
    key_prefix: Mapped[str] = mapped_column(String(8), index=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    is_active: Mapped[bool | None] = mapped_column(default=True)
    permissions: Mapped[Any | None] = mapped_column(List)
    scopes: Mapped[Any | None] = mapped_column(List)
    rate_limit_per_minute: Mapped[int | None]
    rate_limit_per_hour: Mapped[int | None]
    rate_limit_per_day: Mapped[int | None]
    allowed_models: Mapped[Any | None] = mapped_column(List)
    allowed_endpoints: Mapped[Any | None] = mapped_column(List)
    allowed_ips: Mapped[Any | None] = mapped_column(List)
    allowed_chatbots: Mapped[Any | None] = mapped_column(List)
    allowed_agents: Mapped[Any | None] = mapped_column(List)
    allowed_extract_templates: Mapped[Any | None] = mapped_column(List)
    is_unlimited: Mapped[bool | None] = mapped_column(default=True)
    budget_limit_cents: Mapped[int | None]
    budget_type: Mapped[str | None] = mapped_column(String(20))
    description: Mapped[str | None] = mapped_column(Text)
    tags: Mapped[Any | None] = mapped_column(List)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    # Moves with every write of the row, so with most requests.
    updated_at: Mapped[datetime.datetime] = mapped_column(default=now, onupdate=now)
    last_used_at: Mapped[datetime.datetime | None]
    expires_at: Mapped[datetime.datetime | None]
    total_requests: Mapped[int | None] = mapped_column(default=0)
    total_tokens: Mapped[int | None] = mapped_column(default=0)
    total_cost: Mapped[float | None] = mapped_column(Numeric(12, 4, asdecimal=False), default=0)

    user: Mapped[User] = relationship(lazy="joined")


class Budget(Base):
    __tablename__ = "budgets"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str | None] = mapped_column(String(100))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    api_key_id: Mapped[int | None] = mapped_column(ForeignKey("api_keys.id"))
    limit_cents: Mapped[int]
    period_type: Mapped[str | None] = mapped_column(String(20))
    period_start: Mapped[datetime.datetime]
    period_end: Mapped[datetime.datetime]
    current_usage_cents: Mapped[int | None] = mapped_column(default=0)
    is_active: Mapped[bool | None] = mapped_column(default=True)
    enforce_hard_limit: Mapped[bool | None] = mapped_column(default=True)
    allowed_models: Mapped[Any | None] = mapped_column(List)
    allowed_endpoints: Mapped[Any | None] = mapped_column(List)
    auto_renew: Mapped[bool | None] = mapped_column(default=True)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime] = mapped_column(default=now, onupdate=now)
    last_reset_at: Mapped[datetime.datetime | None]

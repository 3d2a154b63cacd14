"""Sends the requests of the tests, and makes what they need in the database."""

import dataclasses
import http.client
import json
import threading
import uuid
from urllib.parse import urlsplit

import jwt
from passlib.hash import bcrypt
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from key_service import KeyService
from models import Base, Budget, Role, User
from settings import Settings

REFUSALS = (401, 402, 403, 423, 429)


@dataclasses.dataclass(frozen=True)
class Request:
    path: str
    headers: tuple = ()
    # An object, or the text of a body.
    body: object = None
    method: str = ""

    def with_key(self, key, place="bearer"):
        """The request with a credential: in one of the three places where the service looks, or in its own way."""
        if place == "query":
            mark = "&" if "?" in self.path else "?"
            return dataclasses.replace(self, path=f"{self.path}{mark}api_key={key}")
        header = {
            "bearer": ("authorization", f"Bearer {key}"),
            "header": ("x-api-key", key),
            "scheme in header": ("x-api-key", f"Bearer {key}"),
            "lower case": ("authorization", f"bearer {key}"),
            "blanks": ("authorization", f"Bearer   {key} "),
        }[place]
        return self.with_header(*header)

    def with_header(self, name, value):
        return dataclasses.replace(self, headers=(*self.headers, (name, value)))


@dataclasses.dataclass
class Answer:
    status: int
    headers: dict
    body: dict

    @property
    def is_of_backend(self):
        return self.headers.get("x-answered-by") == "backend"

    @property
    def verdict(self):
        """What Keystile said: `allow`, `anonymous`, or the code of a denial, which shadow mode only reports."""
        return self.headers.get("x-seen-x-auth-result") if self.is_of_backend else self.body.get("code")

    @property
    def caller(self):
        """Who the backend took the caller for."""
        found = self.body.get("caller") or {}
        return found.get("kind"), found.get("user_id"), found.get("key_id")

    @property
    def is_refusal(self):
        return self.status in REFUSALS


class Client:
    """Keeps a connection to each server for each thread."""

    def __init__(self):
        self.local = threading.local()

    def send(self, base, request):
        connections = self.local.__dict__.setdefault("connections", {})
        if base not in connections:
            connections[base] = http.client.HTTPConnection(urlsplit(base).netloc, timeout=20)
        body, headers = request.body, list(request.headers)
        if body is not None:
            body = body if isinstance(body, str) else json.dumps(body)
            headers += [("content-type", "application/json"), ("content-length", str(len(body)))]
        connection = connections[base]
        try:
            connection.putrequest(request.method or ("GET" if body is None else "POST"), request.path)
            for name, value in headers:
                connection.putheader(name, value)
            connection.endheaders((body or "").encode())
            answer = connection.getresponse()
            text = answer.read()
        except (http.client.HTTPException, OSError):
            connections.pop(base).close()
            raise
        try:
            parsed = json.loads(text)
        except ValueError:
            parsed = {}
        return Answer(answer.status, dict(answer.getheaders()), parsed if isinstance(parsed, dict) else {})


class World:
    """The database of the service, and what the tests put into it."""

    def __init__(self, settings=None):
        self.settings = settings or Settings.from_environment()
        self.engine = create_engine(self.settings.DATABASE_URL)
        self.session = Session(self.engine, expire_on_commit=False)
        self.keys = KeyService(self.session, self.settings)

    def create_tables(self):
        Base.metadata.create_all(self.engine)

    def user(self, name, **columns):
        role = columns.pop("role_permissions", None)
        if role is not None:
            columns["role"] = Role(name=f"role of {name}", permissions=role)
        # Cheap: nothing here is about passwords.
        columns.setdefault("hashed_password", bcrypt.using(rounds=4).hash("right"))
        user = User(username=name, email=f"{name}@example.com", **columns)
        self.session.add(user)
        self.session.commit()
        return user

    def key(self, user, key=None, **columns):
        """A key of the user; the row and the key itself."""
        row, key = self.keys.create_key(user.id, key, **columns)
        self.session.commit()
        return row, key

    def budget(self, user, **columns):
        row = Budget(user_id=user.id, **columns)
        self.session.add(row)
        self.session.commit()
        return row

    def refreshed(self, row):
        self.session.commit()
        self.session.refresh(row)
        return row

    def token(self, user, nonce=None, expiry=4102444800):
        """A JWT of the user."""
        claims = {"sub": str(user.id), "exp": expiry, "jti": nonce or uuid.uuid4().hex}
        return jwt.encode(claims, self.settings.JWT_SECRET, algorithm="HS256")

"""What callers of the service rely on, in one step of the move: `rows.py STEP GATEWAY ADMIN SERVICE`.

Each function is one fact. Prints one line for each, and ends with status 1 if one does not hold.
"""

import concurrent.futures
import datetime
import re
import sys
import time
import traceback
import urllib.request

from passlib.hash import bcrypt

from client import Client, Request, World
from models import now

CHAT = {"model": "gpt-4o"}


class Walk:
    """The requests of one step, and what they are to bring."""

    def __init__(self, step, gateway, admin, service):
        self.step, self.gateway, self.admin, self.service = step, gateway, admin, service
        self.world, self.client = World(), Client()
        self.number = 0
        # Who a request comes from is decided by Keystile alone.
        self.is_trusted = step in ("headers", "no-redis")

    def user(self, **columns):
        self.number += 1
        return self.world.user(f"{self.step}-{self.number}", **columns)

    def send(self, request):
        return self.client.send(self.gateway, request)

    def allowed(self, request, kind="key", owner=None):
        """It reaches its route, as this key or user."""
        answer = self.send(request)
        assert answer.status == 200, f"{request}: {answer}"
        assert answer.verdict in ("allow", "anonymous"), f"{request}: {answer}"
        if owner is not None:
            expected = (kind, owner.user_id, owner.id) if kind == "key" else (kind, owner.id, None)
            assert answer.caller == expected, f"{request}: {answer}, not {expected}"
        return answer

    def denied(self, request, status, code):
        """Keystile denies it, with the status that the service has for it. In shadow mode the service answers."""
        answer = self.send(request)
        assert (answer.status, answer.verdict) == (status, code), f"{request}: {answer}"
        assert answer.is_of_backend == (self.step == "shadow"), f"{request}: {answer}"

    def refused(self, request, status):
        """The service itself refuses what Keystile lets through."""
        answer = self.send(request)
        assert answer.status == status and answer.is_of_backend, f"{request}: {answer}"
        assert answer.verdict in ("allow", "anonymous"), f"{request}: {answer}"

    def metric(self, name):
        """The sum of a counter of Keystile's."""
        text = urllib.request.urlopen(f"{self.admin}/metrics").read().decode()
        return sum(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if re.match(rf"{name}[ {{]", line))


def key_is_read_from_three_places(walk):
    row, key = walk.world.key(walk.user())
    for place in ["bearer", "header", "query"]:
        answer = walk.allowed(Request("/api/v1/me").with_key(key, place), owner=row)
        assert answer.body["carries_key"] != walk.is_trusted, f"{place}: {answer}"
    walk.denied(Request("/api/v1/me"), 401, "missing_credential")


def users_jwt_works_alone_and_beside_a_key(walk):
    user = walk.user()
    row, key = walk.world.key(user, scopes=["chat.completions"])
    token = walk.world.token(user)
    for request in [Request("/api/v1/me"), Request("/api/v1/chat/completions", body=CHAT), Request("/api/v1/news")]:
        walk.allowed(request.with_key(token), kind="user", owner=user)
        both = request.with_key(token).with_key(key, "header")
        # Keystile proves the key, and its identity counts once the service trusts the headers.
        walk.allowed(both, owner=row) if walk.is_trusted else walk.allowed(both, kind="user", owner=user)
    walk.refused(Request("/api/v1/me").with_key(token[:-4] + "AAAA"), 401)
    other = walk.world.token(user, expiry=1)
    walk.refused(Request("/api/v1/me").with_key(other), 401)
    # A token does not help a wrong key past Keystile, nor a key without the scope.
    answer = walk.send(Request("/api/v1/me").with_key(token).with_key("en_" + 32 * "x", "header"))
    assert answer.verdict == "invalid_credential", answer
    request = Request("/api/v1/embeddings", body={"model": "embed-small"})
    answer = walk.send(request.with_key(token).with_key(key, "header"))
    assert answer.verdict == "scope_missing", answer


def requests_are_counted_once_and_by_the_service(walk):
    row, key = walk.world.key(walk.user(), scopes=["chat.completions"])
    for _ in range(7):
        walk.allowed(Request("/api/v1/chat/completions", body=CHAT).with_key(key), owner=row)
    deadline = time.monotonic() + 10
    while walk.world.refreshed(row).last_used_at is None and time.monotonic() < deadline:
        time.sleep(0.1)
    assert row.last_used_at, "last_used_at is not written"
    # Past the interval in which Keystile writes usage.
    time.sleep(1.2)
    assert walk.world.refreshed(row).total_requests == 7, row.total_requests


def budgets_bind_paths_that_end_in_their_endpoints(walk):
    user = walk.user()
    row, key = walk.world.key(user, scopes=["chat.completions", "embeddings.create"])
    year = {"period_start": now(), "period_end": now() + datetime.timedelta(days=365)}
    walk.world.budget(user, limit_cents=100, current_usage_cents=100, allowed_endpoints=["chat/completions"], **year)
    for path in ["/api/v1/chat/completions", "/api/v1/llm/chat/completions", "/v1/chat/completions"]:
        walk.denied(Request(path, body=CHAT).with_key(key), 402, "budget_exhausted")
    walk.allowed(Request("/api/v1/embeddings", body={"model": "embed-small"}).with_key(key), owner=row)


def estimates_are_reserved_and_busy_keys_stay_in_memory(walk):
    year = {"period_start": now(), "period_end": now() + datetime.timedelta(days=365)}
    chat = lambda cents: Request("/api/v1/chat/completions", body=CHAT | {"max_cents": cents})
    user = walk.user()
    row, key = walk.world.key(user, scopes=["chat.completions"])
    budget = walk.world.budget(user, limit_cents=100, current_usage_cents=95, api_key_id=row.id, **year)
    # Keystile does not know the estimate.
    walk.refused(chat(10).with_key(key), 402)
    assert walk.world.refreshed(budget).current_usage_cents == 95
    budget.limit_cents, budget.current_usage_cents = 1000, 980
    walk.world.session.commit()
    walk.allowed(chat(2).with_key(key), owner=row)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: walk.send(chat(4).with_key(key)), range(12)))
    statuses = [answer.status for answer in answers]
    assert set(statuses) <= {200, 402} and statuses.count(200) >= 5, statuses
    assert walk.world.refreshed(budget).current_usage_cents == 981 + 2 * statuses.count(200) <= 1000, statuses

    row, key = walk.world.key(walk.user(), scopes=["chat.completions"])
    walk.allowed(chat(2).with_key(key), owner=row)
    time.sleep(0.6)
    before, moved = walk.metric("keystile_invalidations_total"), row.updated_at
    for _ in range(8):
        walk.allowed(chat(2).with_key(key), owner=row)
    time.sleep(0.6)
    assert walk.world.refreshed(row).updated_at > moved
    assert walk.metric("keystile_invalidations_total") == before


def agents_and_chatbots_are_numbers_or_strings_in_path_or_body(walk):
    row, key = walk.world.key(
        walk.user(), scopes=["agent.chat", "chatbot.chat"], allowed_agents=[7, "8"], allowed_chatbots=["a", 5]
    )
    for agent in [7, 8]:
        walk.allowed(Request(f"/api/v1/agents/{agent}/chat", method="POST").with_key(key), owner=row)
        for named in [agent, str(agent)]:
            walk.allowed(Request("/api/v1/agents/chat", body={"agent_config_id": named}).with_key(key), owner=row)
    walk.denied(Request("/api/v1/agents/9/chat", method="POST").with_key(key), 403, "agent_not_allowed")
    walk.denied(Request("/api/v1/agents/chat", body={"agent_config_id": 9}).with_key(key), 403, "agent_not_allowed")
    for chatbot in ["a", "5"]:
        walk.allowed(Request(f"/api/v1/chatbots/{chatbot}/chat", method="POST").with_key(key), owner=row)
    walk.denied(Request("/api/v1/chatbots/b/chat", method="POST").with_key(key), 403, "chatbot_not_allowed")


def templates_and_permissions_stay_with_the_service(walk):
    row, key = walk.world.key(walk.user(), allowed_extract_templates=["invoice", "a, b"])
    for template in ["invoice", "a, b"]:
        walk.allowed(Request("/api/v1/extract", body={"template": template}).with_key(key), owner=row)
    walk.refused(Request("/api/v1/extract", body={"template": "letter"}).with_key(key), 403)
    for columns in [{"role_permissions": ["reports.read"]}, {"permissions": ["reports.read"]}]:
        row, key = walk.world.key(walk.user(**columns))
        walk.allowed(Request("/api/v1/reports").with_key(key), owner=row)
    row, key = walk.world.key(walk.user(role_permissions=["other"]), permissions={"reports.read": True})
    walk.refused(Request("/api/v1/reports").with_key(key), 403)


def each_route_needs_its_scope(walk):
    user = walk.user()
    routes = {
        "chat.completions": [
            Request("/api/v1/chat/completions", body=CHAT),
            Request("/api/v1/llm/chat/completions", body=CHAT),
            Request("/v1/chat/completions", body=CHAT),
        ],
        "embeddings.create": [Request("/api/v1/embeddings", body={"model": "embed-small"})],
        "models.list": [Request("/api/v1/models"), Request("/v1/models")],
        "chatbot.chat": [Request("/api/v1/chatbots/a/chat", method="POST")],
        "agent.chat": [
            Request("/api/v1/agents/7/chat", method="POST"),
            Request("/api/v1/agents/chat", body={"agent_config_id": 7}),
        ],
    }
    for scope, requests in routes.items():
        row, key = walk.world.key(user, scopes=[scope])
        _, without = walk.world.key(user, scopes=[other for other in routes if other != scope])
        for request in requests:
            walk.allowed(request.with_key(key), owner=row)
            walk.denied(request.with_key(without), 403, "scope_missing")


def models_are_listed_for_keys_with_a_list_of_models(walk):
    row, key = walk.world.key(walk.user(), scopes=["models.list"], allowed_models=["gpt-4o", "embed-*"])
    for path in ["/v1/models", "/api/v1/models"]:
        answer = walk.allowed(Request(path).with_key(key), owner=row)
        assert [model["id"] for model in answer.body["data"]] == ["gpt-4o", "embed-small"], answer


def empty_credential_is_none(walk):
    row, key = walk.world.key(walk.user())
    for path in ["/api/v1/me", "/api/v1/news"]:
        walk.allowed(Request(path).with_key(key).with_header("x-api-key", ""), owner=row)
        walk.allowed(Request(path).with_key("").with_key(key, "header"), owner=row)
        walk.allowed(Request(f"{path}?api_key=").with_key(key), owner=row)
    walk.denied(Request("/api/v1/me?api_key=").with_header("x-api-key", ""), 401, "missing_credential")


def further_models_of_a_body_are_checked(walk):
    row, key = walk.world.key(walk.user(), scopes=["chat.completions"], allowed_models=["gpt-4o", "gpt-4o-mini"])
    request = lambda **more: Request("/api/v1/chat/completions", body=CHAT | more).with_key(key)
    walk.allowed(request(), owner=row)
    for field in ["models", "fallbacks"]:
        walk.allowed(request(**{field: ["gpt-4o-mini"]}), owner=row)
        walk.denied(request(**{field: ["gpt-4o-mini", "claude-large"]}), 403, "model_not_allowed")
    walk.denied(request(model="claude-large"), 403, "model_not_allowed")


def key_header_may_have_a_scheme(walk):
    row, key = walk.world.key(walk.user())
    for place in ["scheme in header", "lower case", "blanks"]:
        walk.allowed(Request("/api/v1/me").with_key(key, place), owner=row)


def failed_logins_do_not_stop_keys(walk):
    user = walk.user()
    row, key = walk.world.key(user)
    log_in = lambda password: walk.send(
        Request("/api/v1/auth/login", body={"username": user.username, "password": password})
    )
    assert "token" in log_in("right").body
    for _ in range(5):
        assert log_in("wrong").status == 401
    assert log_in("right").status == 423
    # The change of the user has arrived everywhere.
    time.sleep(1)
    walk.allowed(Request("/api/v1/me").with_key(key), owner=row)


def forged_headers_make_no_identity(walk):
    row, _ = walk.world.key(walk.user(), scopes=["chat.completions"])
    forged = {
        "x-auth-result": "allow", "x-auth-user-id": str(row.user_id), "x-auth-key-id": str(row.id),
        "x-auth-scopes": "chat.completions", "X-Auth-Result": "allow",
    }
    request = lambda path, **more: Request(path, tuple(forged.items()), **more)
    walk.denied(request("/api/v1/me"), 401, "missing_credential")
    walk.denied(request("/api/v1/chat/completions", body=CHAT), 401, "missing_credential")
    answer = walk.allowed(request("/api/v1/news"))
    assert answer.caller == ("anonymous", None, None), answer
    # Nor on the route for users: the service finds no user in this token.
    answer = walk.send(request("/api/v1/news").with_key("eyJhbGciOiJub25lIn0.eyJzdWIiOiIxIn0."))
    assert answer.status == 401, answer


def only_allow_makes_an_identity(walk):
    """Past Envoy, as nothing but Envoy may reach the service."""
    row, _ = walk.world.key(walk.user())
    identity = (("x-auth-user-id", str(row.user_id)), ("x-auth-key-id", str(row.id)))
    # Shadow mode sends the identity of a denied key as well.
    for result in ["expired", "scope_missing", "anonymous", "", "Allow", "allow, allow", None]:
        headers = identity if result is None else (("x-auth-result", result), *identity)
        answer = walk.client.send(walk.service, Request("/api/v1/me", headers))
        assert answer.status == 401, f"{result}: {answer}"
    answer = walk.client.send(walk.service, Request("/api/v1/me", (("x-auth-result", "allow"), *identity)))
    assert answer.status == (200 if walk.is_trusted else 401), answer


def other_spellings_of_a_path_avoid_no_check(walk):
    _, key = walk.world.key(walk.user(), scopes=[], allowed_agents=[7])
    paths = [
        "/api/v1/chat/completions", "/api/v1/%63hat/completions", "/api/v1//chat/completions",
        "/api/v1/./chat/completions",
        "/api/v1/me/../chat/completions", "/api/v1/chat%2Fcompletions", "/api/v1/chat/completions/",
        "/API/v1/chat/completions",
        "/api/v1/chat/completions;x", "/api/v1/me/..;/chat/completions", "/api/v1/chat/completions%20",
        "/api/v1/agents/9/chat", "/api/v1/agent%73/9/chat", "/api/v1/agents/9/chat/",
    ]
    for path in paths:
        answer = walk.send(Request(path, body=CHAT).with_key(key))
        # The service would refuse as well. It is not to be asked.
        is_missed = answer.verdict == "allow" and answer.status in (200, 403)
        assert not is_missed, f"{path}: {answer}"


def key_that_the_service_revokes_is_denied(walk):
    user = walk.user()
    row, key = walk.world.key(user)
    walk.allowed(Request("/api/v1/me").with_key(key), owner=row)
    token = walk.world.token(user)
    revoked = walk.send(Request(f"/api/v1/keys/{row.id}", method="DELETE").with_key(token))
    assert revoked.status == 200, revoked
    time.sleep(1)
    walk.denied(Request("/api/v1/me").with_key(key), 401, "disabled")


# Last, since refusals take as long as the costliest hash from then on.
def keys_of_cost_6_and_12_work(walk):
    for rounds in [6, 12]:
        key = walk.world.keys.generate_key()
        row, key = walk.world.key(walk.user(), key, key_hash=bcrypt.using(rounds=rounds).hash(key))
        walk.allowed(Request("/api/v1/me").with_key(key), owner=row)
        walk.denied(Request("/api/v1/me").with_key("en_" + 32 * str(rounds)[0]), 401, "invalid_credential")


ROWS = [value for value in list(globals().values()) if callable(value) and getattr(value, "__module__", "") == __name__]
ROWS = [row for row in ROWS if not isinstance(row, type)]


def main(step, *addresses):
    walk, failed = Walk(step, *addresses), []
    for row in ROWS:
        try:
            row(walk)
            outcome = "holds"
        except Exception as error:
            failed.append(row)
            where = traceback.extract_tb(error.__traceback__)[1:2]
            outcome = f"FAILS at line {where[0].lineno if where else '?'}: {error or type(error).__name__}"
            walk.world.session.rollback()
        print(f"{step}: {row.__name__}: {outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

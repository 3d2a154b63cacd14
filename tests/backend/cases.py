"""Generates users, keys, budgets and requests: the same ones for the same seed."""

import dataclasses
import datetime
import json
import random

from client import Request, World
from differences import LEFT_TO_THE_SERVICE
from key_service import CHARACTERS
from models import now

KEYS = 120
STEPS = ["shadow", "forward", "headers", "no-redis"]
# Keys that are revoked by SQL in each step.
REVOKED = 3
SCOPES = ["chat.completions", "embeddings.create", "models.list", "chatbot.chat", "agent.chat"]
PLACES = ["bearer", "bearer", "header", "query", "scheme in header", "lower case", "blanks"]
YES_AND_NO = [True] * 12 + [False, None]


@dataclasses.dataclass
class Case:
    """A request. Those of one group are sent one after the other, since the service's cache remembers earlier ones."""

    group: int
    request: Request
    # Why its answers may differ: names of differences.
    traits: list
    # The step in which SQL revokes its key.
    revoked_in: str | None = None


class Generator:
    def __init__(self, seed):
        self.random, self.world, self.cases = random.Random(seed), World(), []
        self.pick = self.random.choice

    def run(self):
        accounts = [{}, {}, {}, {}]
        accounts += [{"is_active": False}, {"is_active": None}, {"is_superuser": True}, {"account_locked": True}]
        users = [self.world.user(f"compared-{n}", **columns) for n, columns in enumerate(accounts)]
        for group in range(KEYS):
            self.key_with_requests(group, self.pick(users))
        self.two_keys_of_a_prefix(KEYS, users[0])
        self.add(KEYS, Request("/api/v1/news").with_key("sk-" + self.secret()), {"foreign_token", LEFT_TO_THE_SERVICE})
        for n, step in enumerate(STEPS * REVOKED):
            _, key = self.world.key(users[0], name=f"revoked in {step}")
            self.add(KEYS + 1 + n, Request("/api/v1/me").with_key(key), {"cached_record"}, step)
        return self.cases

    def add(self, group, request, traits, revoked_in=None):
        self.cases.append(Case(group, request, sorted(traits), revoked_in))

    def secret(self, length=32):
        return "".join(self.pick(CHARACTERS) for _ in range(length))

    def key_with_requests(self, group, user):
        pick, traits = self.pick, set()
        columns = {
            "scopes": pick([SCOPES, SCOPES, SCOPES, self.random.sample(SCOPES, 2), [], None]),
            "allowed_models": pick(
                [None, None, [], ["gpt-4o"], ["gpt-4o*", "embed-small"], ["claude-large"], {"gpt-4o": True}]
            ),
            "allowed_endpoints": pick([None] * 6 + [["/api/v1/chat/completions", "/api/v1/me"], ["/api/v1/*"]]),
            "allowed_ips": pick([None] * 6 + [["127.0.0.0/8"], ["10.0.0.0/8", "192.168.1.7"]]),
            "allowed_chatbots": pick([None, ["a"], ["a", 5]]),
            "allowed_agents": pick([None, [7, "8"], ["9"]]),
            "allowed_extract_templates": pick([None, ["invoice"]]),
            "is_active": pick(YES_AND_NO),
            "expires_at": pick([None] * 6 + [now() + datetime.timedelta(days=days) for days in (-1, 1)]),
        }
        if isinstance(columns["allowed_models"], dict):
            traits.add("unreadable_list")
        if pick([False] * 8 + [True]):
            columns |= {"is_unlimited": False, "budget_type": "total", "budget_limit_cents": 50}
            columns["total_cost"] = pick([0, 50, 49.5])
            traits.add(LEFT_TO_THE_SERVICE)
        row, key = self.world.key(user, "en_" + self.secret(), **columns)
        if pick([False] * 3 + [True]):
            traits |= self.budget(user, row)
        for _ in range(2):
            request, more = self.route()
            self.add(group, request.with_key(key, pick(PLACES)), traits | more)
        # Last, when the service has verified the key.
        request, more = self.route()
        request, further = self.variant(request, user, key)
        self.add(group, request, traits | more | further)

    def budget(self, user, row):
        """A budget that is far from its limit, reached it, or has no room for an estimate."""
        days_ago, length = self.pick([(2, 30)] * 5 + [(2, 1), (-2, 30)])
        start = now() - datetime.timedelta(days=days_ago)
        self.world.budget(
            user,
            api_key_id=row.id,
            period_start=start,
            period_end=start + datetime.timedelta(days=length),
            limit_cents=100_000,
            current_usage_cents=self.pick([0, 100_000, 99_999]),
            allowed_endpoints=self.pick(
                [None, [], ["chat/completions"], ["embeddings", "/api/v1/llm/chat/completions"]]
            ),
            allowed_models=self.pick([None, None, ["gpt-4o"]]),
            enforce_hard_limit=self.pick([True, True, True, False]),
            auto_renew=self.pick([True, False]),
        )
        return {LEFT_TO_THE_SERVICE} | ({"budget_not_begun"} if days_ago < 0 else set())

    def route(self):
        """A request without a key, and its traits."""
        pick, free, left = self.pick, {"free_route"}, {LEFT_TO_THE_SERVICE}
        model = pick(["gpt-4o", "gpt-4o-mini", "claude-large", "embed-small"])
        chat = {"model": model} | pick([{}, {}, {"models": ["gpt-4o"]}, {"fallbacks": ["gpt-4o", "claude-large"]}])
        further = {"further_models"} if len(chat) > 1 else set()
        path = pick(["/api/v1/chat/completions", "/api/v1/llm/chat/completions", "/v1/chat/completions"])
        return pick([
            (Request(path, body=chat), further),
            (Request(path, body=chat), further),
            (Request(path, body=chat), further),
            (Request(path, body='{"model": "gpt-4o", "model": "claude-large"}'), {"unclear_body"}),
            (Request(path, body={"messages": []}), {"unclear_body"}),
            (Request("/api/v1/embeddings", body={"model": model}), set()),
            (Request(pick(["/api/v1/models", "/v1/models"])), free),
            (Request(f"/api/v1/chatbots/{pick(['a', 'b', '5'])}/chat", method="POST"), free),
            (Request(f"/api/v1/agents/{pick([7, 8, 9])}/chat", method="POST"), free),
            (Request("/api/v1/agents/chat", body={"agent_config_id": pick([7, "8", 9, "9"])}), free),
            (Request("/api/v1/extract", body={"template": pick(["invoice", "letter"])}), free | left),
            (Request("/api/v1/reports"), free | left),
            (Request("/api/v1/me"), free),
            (Request("/api/v1/news"), free),
            (Request("/api/v1/nowhere"), free | {"unknown_path"}),
        ])

    def variant(self, request, user, key):
        """The request with another credential than the key, or with the key in an unusual way; and its traits."""
        wrong = "en_" + self.secret()
        token = self.world.token(user, self.secret())
        bad_token = token[:-6] + "AAAAAA"
        left = {LEFT_TO_THE_SERVICE}
        return self.pick([
            (request.with_key(key[:8] + self.secret(27)), {"shared_prefix"}),
            (request.with_key(key[:8] + self.secret(27), "header"), {"shared_prefix"}),
            (request.with_key(key[:-1]), {"shared_prefix"}),
            (request.with_key(wrong), set()),
            (request.with_key("en_1"), set()),
            (request.with_key("en_" + self.secret(70), "header"), set()),
            (request.with_key(key.upper()), set()),
            (request, set()),
            (request.with_key(key).with_header("x-api-key", ""), set()),
            (request.with_header("authorization", "Basic YTpi").with_key(key, "header"), set()),
            (request.with_key(key).with_key(key, "header"), set()),
            (request.with_key(key).with_key(wrong, "header"), {"two_keys"}),
            (request.with_key(token), left),
            (request.with_key(bad_token), left),
            (request.with_key(token).with_key(key, "header"), {"jwt_and_key"}),
            (request.with_key(token).with_key(wrong, "header"), {"jwt_and_key"}),
            (request.with_key("sk-" + self.secret()), {"foreign_token"} | left),
        ])

    def two_keys_of_a_prefix(self, group, user):
        """Both are good. The service takes the second for the first, once it has verified that one."""
        prefix = "en_" + self.secret(5)
        for traits in [set(), {"shared_prefix"}]:
            _, key = self.world.key(user, prefix + self.secret(27))
            self.add(group, Request("/api/v1/me").with_key(key), traits)


def to_json(cases):
    return json.dumps([dataclasses.asdict(case) for case in cases])


def from_json(text):
    cases = json.loads(text)
    for case in cases:
        request = case["request"]
        request["headers"] = tuple((name, value) for name, value in request["headers"])
        case["request"] = Request(**request)
    return [Case(**case) for case in cases]

"""Who a request comes from, and what that caller may do. Both ways to find the caller make this."""

import dataclasses
import ipaddress

from fastapi import HTTPException


@dataclasses.dataclass
class Caller:
    """A user with a JWT, or an API key and its user. A list that is None or empty restricts nothing."""

    kind: str  # "user", "key" or "anonymous"
    user_id: int | None = None
    key_id: int | None = None
    scopes: list = dataclasses.field(default_factory=list)
    allowed_models: list | None = None
    allowed_endpoints: list | None = None
    allowed_ips: list | None = None
    allowed_chatbots: list | None = None
    allowed_agents: list | None = None
    allowed_extract_templates: list | None = None

    def require_scope(self, scope):
        """Users may do everything that their account may do. Keys need the scope."""
        if self.kind == "key" and scope not in (self.scopes or []):
            raise refused(403, "scope")

    def require_models(self, names):
        for name in names:
            self._require("model", self.allowed_models, lambda pattern, name=name: model_matches(pattern, name))

    def require_endpoint(self, path):
        self._require("endpoint", self.allowed_endpoints, lambda pattern: endpoint_matches(pattern, path))

    def require_address(self, address):
        client = ipaddress.ip_address(address)
        self._require("address", self.allowed_ips, lambda network: client in ipaddress.ip_network(network))

    def require_chatbot(self, chatbot):
        self._require("chatbot", self.allowed_chatbots, lambda entry: str(entry) == str(chatbot))

    def require_agent(self, agent):
        self._require("agent", self.allowed_agents, lambda entry: str(entry) == str(agent))

    def require_extract_template(self, template):
        self._require("template", self.allowed_extract_templates, lambda entry: str(entry) == template)

    def _require(self, what, entries, matches):
        if entries and not any(matches(entry) for entry in entries):
            raise refused(403, what)


def model_matches(pattern, name):
    return name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern


def endpoint_matches(pattern, path):
    """`*` stands for one segment."""
    parts, segments = pattern.split("/"), path.split("/")
    return len(parts) == len(segments) and all(part in ("*", segment) for part, segment in zip(parts, segments))


def refused(status, code):
    return HTTPException(status, {"code": code})

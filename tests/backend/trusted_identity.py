"""Finds the caller of a request by the headers that Keystile sets.

Only Envoy may reach a service that uses this: the headers of any other client are not to be trusted.
"""

from urllib.parse import unquote

from caller import Caller


def find_caller(request, users):
    """The caller, or None without one."""
    headers = request.headers
    if headers.get("x-auth-result") == "allow":
        return Caller(
            "key",
            user_id=int(headers["x-auth-user-id"]),
            key_id=int(headers["x-auth-key-id"]),
            scopes=list_of(headers.get("x-auth-scopes")) or [],
            allowed_models=list_of(headers.get("x-auth-allowed-models")),
            allowed_chatbots=list_of(headers.get("x-auth-allowed-chatbots")),
            allowed_agents=list_of(headers.get("x-auth-allowed-agents")),
            allowed_extract_templates=list_of(headers.get("x-auth-allowed-extract-templates")),
        )
    # A user's JWT, which Keystile leaves to the service. An API key is never looked at here.
    scheme, _, token = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip().startswith("eyJ"):
        return users.caller_of_token(token.strip())
    return None


def list_of(value):
    """The items of a list. None means unrestricted; `!truncated` is an item that names nothing."""
    return None if value is None else [unquote(item) for item in value.split(",")]

"""Finds the caller of a request by the service's own check of the credential."""

from caller import refused


def find_caller(request, keys, users):
    """`Authorization: Bearer`, else `X-API-Key`, else `?api_key=`: the first that is there. None without any."""
    credential = (
        token(request.headers.get("authorization"), is_scheme_needed=True)
        or token(request.headers.get("x-api-key"))
        or request.query_params.get("api_key")
    )
    if not credential:
        return None
    if credential.startswith("eyJ"):
        return users.caller_of_token(credential)
    if len(credential) > 72:
        raise refused(401, "invalid_key")
    address = request.headers.get("x-real-ip") or request.client.host
    return keys.validate_key(credential, request.url.path, address)


def token(value, is_scheme_needed=False):
    scheme, _, rest = (value or "").strip().partition(" ")
    if scheme.lower() == "bearer":
        return rest.strip()
    return None if is_scheme_needed else (value or "").strip()

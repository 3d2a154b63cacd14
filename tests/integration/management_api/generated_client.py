"""Makes, rotates and revokes a key with the client that openapi-python-client generates from the OpenAPI document.

Arguments: the folder of the generated client, the URL of the API, a token.
"""

import json
import sys

folder, url, token = sys.argv[1:]
sys.path.insert(0, folder)

from keystile_management_api_client import AuthenticatedClient
from keystile_management_api_client.api.keys import create_key, get_key, list_keys, revoke_key, rotate_key
from keystile_management_api_client.models import NewKeyBody, RotationBody

with AuthenticatedClient(base_url=url, token=token, timeout=30) as client:
    key = create_key.sync(
        client=client,
        body=NewKeyBody(user="ada@example.com", name="generated", scopes=["chat"]),
        idempotency_key="generated-1",
        wait="5s",
    )
    rotated = rotate_key.sync(key.id, client=client, body=RotationBody(overlap="1d"))
    listed = list_keys.sync(client=client, user="ada@example.com")
    revoked = revoke_key.sync(key.id, client=client, wait="5s")
    read = get_key.sync(rotated.successor.id, client=client)
    refused = get_key.sync_detailed(999999, client=client)

json.dump(
    {
        "created": [key.name, key.scopes, key.credential],
        "successor": rotated.successor.credential,
        "listed": len(listed.keys),
        "revoked": revoked.is_active,
        "also_revoked": revoked.also_revoked == [rotated.successor.id],
        "successor_is_active": read.is_active,
        "refused": [refused.status_code, refused.parsed.code if refused.parsed else None],
    },
    sys.stdout,
)

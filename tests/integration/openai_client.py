"""Asks for a chat completion with OpenAI's own package, and prints in JSON what became of it.

    openai_client.py BASE_URL API_KEY
"""

import json
import sys

import openai


def ask(url, key):
    client = openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)
    try:
        # Raw: the upstream of the tests echoes requests, and completes no chat.
        answer = client.chat.completions.with_raw_response.create(
            model="gpt-4o", messages=[{"role": "user", "content": "hello"}]
        )
    except openai.APIStatusError as error:
        return {
            "error": type(error).__name__,
            "status": error.status_code,
            "code": error.code,
            "type": error.type,
            "message": error.body["message"],
        }
    return {"status": answer.status_code}


json.dump(ask(*sys.argv[1:]), sys.stdout)

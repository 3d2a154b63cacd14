"""Sends requests with OpenAI's and Anthropic's own packages, and prints in JSON what became of each.

    clients.py URL API_KEY [CALL...]

Every call, or those that are named, is made by the synchronous and by the asynchronous client. Its result is what the
client returned, or the error that it raised.
"""

import asyncio
import inspect
import json
import sys

import anthropic
import openai
from websockets.exceptions import InvalidStatus

ASK = {"messages": [{"role": "user", "content": "hello"}]}
CALLS = {"openai": {}, "anthropic": {}}


def call(package):
    def register(function):
        CALLS[package][function.__name__] = function
        return function

    return register


async def settle(value):
    """The value, awaited if it comes from an asynchronous client."""
    return await value if inspect.isawaitable(value) else value


async def collect(client, stream, text):
    """The text of all events of a stream. The provider sends the rest after the client has reacted to the first."""
    texts = []
    asynchronous = hasattr(stream, "__aiter__")
    events = aiter(stream) if asynchronous else iter(stream)
    while (event := await anext(events, None) if asynchronous else next(events, None)) is not None:
        if (found := text(event)) is None:
            continue
        texts.append(found)
        if len(texts) == 1:
            await settle(client.get("/files/release" if isinstance(client, OPENAI) else "/v1/files/release", cast_to=object))
    return "|".join(texts)


@call("openai")
async def models(client):
    return [model.id for model in (await settle(client.models.list())).data]


@call("openai")
async def chat(client):
    answer = await settle(client.chat.completions.create(model="gpt-4o", **ASK))
    return answer.choices[0].message.content


@call("openai")
async def chat_stream(client):
    stream = await settle(client.chat.completions.create(model="gpt-4o", stream=True, **ASK))
    return await collect(client, stream, lambda chunk: chunk.choices[0].delta.content)


@call("openai")
async def responses(client):
    return (await settle(client.responses.create(model="gpt-4o", input="hello"))).output_text


@call("openai")
async def responses_stream(client):
    stream = await settle(client.responses.create(model="gpt-4o", input="hello", stream=True))
    return await collect(client, stream, lambda event: event.delta)


@call("openai")
async def responses_stored(client):
    return (await settle(client.responses.retrieve("resp_1"))).id


@call("openai")
async def embeddings(client):
    answer = await settle(client.embeddings.create(model="gpt-4o", input="hello", encoding_format="float"))
    return answer.data[0].embedding


@call("openai")
async def moderations(client):
    return (await settle(client.moderations.create(model="gpt-4o", input="hello"))).results[0].flagged


@call("openai")
async def images(client):
    return (await settle(client.images.generate(model="gpt-4o", prompt="a cat"))).data[0].url


@call("openai")
async def speech(client):
    return (await settle(client.audio.speech.create(model="gpt-4o", voice="alloy", input="hello"))).content.decode()


@call("openai")
async def transcription(client):
    """A recording that is larger than any body that Envoy holds back."""
    return await transcribe(client, LARGE)


@call("openai")
async def transcription_short(client):
    return await transcribe(client, SHORT)


async def transcribe(client, size):
    answer = await settle(client.audio.transcriptions.create(model="gpt-4o", file=("a.wav", bytes(size))))
    return int(answer.text.removesuffix(" bytes")) > size


@call("openai")
async def upload(client):
    """A file that is larger than any body that Envoy holds back."""
    return (await settle(client.files.create(file=("a.jsonl", bytes(LARGE)), purpose="batch"))).bytes > LARGE


@call("openai")
async def realtime(client):
    manager = client.realtime.connect(model="gpt-4o")
    if hasattr(manager, "__aenter__"):
        async with manager as connection:
            hello = await connection.recv()
            await connection.send({"type": "response.create"})
            return f"{hello.session.id}: {(await connection.recv()).response.id}"
    with manager as connection:
        hello = connection.recv()
        connection.send({"type": "response.create"})
        return f"{hello.session.id}: {connection.recv().response.id}"


@call("anthropic")
async def models(client):
    return [model.id for model in (await settle(client.models.list())).data]


@call("anthropic")
async def messages(client):
    answer = await settle(client.messages.create(model="claude-opus", max_tokens=9, **ASK))
    return answer.content[0].text


@call("anthropic")
async def messages_stream(client):
    stream = await settle(client.messages.create(model="claude-opus", max_tokens=9, stream=True, **ASK))
    return await collect(client, stream, lambda event: event.delta.text if event.type == "content_block_delta" else None)


@call("anthropic")
async def count_tokens(client):
    return (await settle(client.messages.count_tokens(model="claude-opus", **ASK))).input_tokens


LARGE = 9 * 1024 * 1024
SHORT = 100 * 1024
OPENAI = (openai.OpenAI, openai.AsyncOpenAI)


async def outcome(function, client):
    try:
        return await function(client)
    except (openai.APIStatusError, anthropic.APIStatusError) as error:
        # Anthropic's package leaves the body as it is.
        body = error.body if isinstance(error.body, dict) else {}
        return described(error, error.status_code, body.get("error", body))
    except InvalidStatus as error:
        return described(error, error.response.status_code, json.loads(error.response.body)["error"])


def described(error, status, body):
    described = {name: body.get(name) for name in ["code", "type", "message"]}
    return {"error": type(error).__name__, "status": status, **described}


async def main(url, key, *names):
    options = {"api_key": key, "max_retries": 0, "timeout": 30}
    clients = {
        "openai": [openai.OpenAI(base_url=f"{url}/v1", **options), openai.AsyncOpenAI(base_url=f"{url}/v1", **options)],
        "anthropic": [anthropic.Anthropic(base_url=url, **options), anthropic.AsyncAnthropic(base_url=url, **options)],
    }
    outcomes = {
        f"{package}.{name}": [await outcome(function, client) for client in clients[package]]
        for package, calls in CALLS.items()
        for name, function in calls.items()
        if not names or f"{package}.{name}" in names
    }
    json.dump(outcomes, sys.stdout)


asyncio.run(main(*sys.argv[1:]))

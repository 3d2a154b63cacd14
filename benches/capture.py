"""Records the CheckRequest that a real Envoy sends, for `benches/load`:

    python3 benches/capture.py ENVOY LOAD        (the two programs)

check-lean.bin comes from envoy/tcp.yaml. check-stock.bin comes from the same file without `allowed_headers` and
`encode_raw_headers`, like most configurations: all headers, in a map. check-body.bin comes from envoy/body.yaml, for a chat
of 4 KB. In place of Keystile runs a minimal HTTP/2 server that receives one message. Run this again only after a new version
of Envoy or a change of those files.
"""

import http.client
import json
import pathlib
import re
import socket
import subprocess
import sys

import gateway
import running

HERE = pathlib.Path(__file__).resolve().parent
CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, SETTINGS = 0, 4
SERVICE = "socket_address: {address: 127.0.0.1, port_value: 9191}"
# As long as the real one, which is a random number. benches/load writes another into each check.
STREAM_ID = b"0" * 19


def main(envoy, load):
    get = lambda port: subprocess.Popen([load, "--target", f"127.0.0.1:{port}", "--count", "1"])
    tcp, body = ((HERE.parent / "envoy" / name).read_text() for name in ("tcp.yaml", "body.yaml"))
    body = replace(body, "pipe: {path: /run/keystile/keystile.sock}", SERVICE)
    for name, config, ask in [("lean", tcp, get), ("stock", stock(tcp), get), ("body", body, post)]:
        message = capture(envoy, config, ask)
        (HERE / f"check-{name}.bin").write_bytes(message)
        print(f"check-{name}.bin: {len(message)} bytes")


def post(port):
    """A chat that names its model at the end, as is allowed."""
    text = "What is the answer to life, the universe and everything? " * 72
    body = json.dumps({"messages": [{"role": "user", "content": text[:4000]}], "model": "gpt-4o-mini"})
    headers = {"x-api-key": gateway.HEADERS["x-api-key"], "content-type": "application/json"}
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("POST", "/v1/chat/completions", body, headers)
    return connection


def capture(binary, config, ask):
    with socket.create_server(("127.0.0.1", 0)) as listener, running.scratch_folder() as scratch:
        config = replace(config, SERVICE, SERVICE.replace("9191", str(listener.getsockname()[1])))
        # No client here sends one.
        config = gateway.without(config, "health_checks:")
        envoy = gateway.Envoy(pathlib.Path(binary).resolve(), scratch, "envoy", config)
        # It gets no answer. Only Envoy's check matters.
        asking = ask(envoy.port)
        message = receive(listener.accept()[0])
        close(asking)
    return anonymous(message)


def close(asking):
    if isinstance(asking, subprocess.Popen):
        asking.kill()
        asking.wait()
    else:
        asking.close()


def receive(connection):
    """The first gRPC message on this connection."""
    stream = connection.makefile("rb")
    assert stream.read(len(CLIENT_PREFACE)) == CLIENT_PREFACE
    connection.sendall(frame(SETTINGS, 0))
    body = b""
    while len(body) < 5 or len(body) < 5 + int.from_bytes(body[1:5], "big"):
        head = stream.read(9)
        payload = stream.read(int.from_bytes(head[:3], "big"))
        if head[3] == SETTINGS and not head[4] & 1:
            connection.sendall(frame(SETTINGS, 1))
        if head[3] == DATA:
            body += payload
    return body[5:]


def anonymous(message):
    ids = set(re.findall(rb"\x0a\x13(\d{19})", message)) | set(re.findall(rb"\x0a\x14(\d{20})", message))
    assert len(ids) == 1, f"which of these is the stream's id? {ids}"
    [stream_id] = ids
    return message.replace(stream_id, STREAM_ID.ljust(len(stream_id), b"0"))


def stock(config):
    """The configuration without the settings that choose headers and their form."""
    all_sent = gateway.without(config, "allowed_headers:")
    return replace(all_sent, "encode_raw_headers: true", "encode_raw_headers: false")


def replace(text, old, new):
    assert old in text, f"the configuration has no {old}"
    return text.replace(old, new)


def frame(kind, flags):
    return bytes([0, 0, 0, kind, flags, 0, 0, 0, 0])


if __name__ == "__main__":
    main(*sys.argv[1:])

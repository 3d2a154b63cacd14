"""Records the CheckRequest that a real Envoy sends, for `benches/load`:

    python3 benches/capture.py ENVOY LOAD        (the two programs)

check-lean.bin is what it sends with envoy/tcp.yaml; check-stock.bin with the same less `allowed_headers` and
`encode_raw_headers`, which is what most configurations are: all headers, in a map. In place of Keystile there is just
enough HTTP/2 to be sent one message. Only a new version of Envoy or of that file asks for this to be run again.
"""

import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
CLIENT_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, SETTINGS = 0, 4
# As long as the real one, which is a random number: benches/load puts another into each check.
STREAM_ID = b"0" * 19


def main(envoy, load):
    for name, edit in {"check-lean.bin": lambda config: config, "check-stock.bin": stock}.items():
        message = capture(envoy, load, edit)
        (HERE / name).write_bytes(message)
        print(f"{name}: {len(message)} bytes")


def capture(envoy, load, edit):
    with socket.create_server(("127.0.0.1", 0)) as listener, tempfile.TemporaryDirectory() as folder:
        ingress, admin = free_port(), free_port()
        config = (HERE.parent / "envoy/tcp.yaml").read_text()
        config = replace(config, "0.0.0.0, port_value: 8080", f"127.0.0.1, port_value: {ingress}")
        config = replace(config, "port_value: 9901", f"port_value: {admin}")
        config = replace(config, "port_value: 9191", f"port_value: {listener.getsockname()[1]}")
        # Nobody here would pass one.
        config = re.sub(r"    health_checks:\n(    [- ] .*\n)+", "", config)
        path = pathlib.Path(folder, "envoy.yaml")
        path.write_text(edit(config))
        command = [envoy, "-c", path, "--use-dynamic-base-id", "--concurrency", "1", "--log-level", "error"]
        running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            wait_for_port(ingress)
            # It will not be answered; what matters is what Envoy asks.
            asking = subprocess.Popen([load, "--target", f"127.0.0.1:{ingress}", "--count", "1"])
            message = receive(listener.accept()[0])
            asking.kill()
            asking.wait()
        finally:
            running.terminate()
            running.wait()
    return anonymous(message)


def receive(connection):
    """The first gRPC message that comes over this connection."""
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
    """As if nothing had been said about which headers to send, and how."""
    all_sent = re.sub(r"              allowed_headers:\n                patterns:\n(                .*\n)+", "", config)
    assert all_sent != config
    return replace(all_sent, "encode_raw_headers: true", "encode_raw_headers: false")


def replace(text, old, new):
    assert old in text, f"the configuration has no {old}"
    return text.replace(old, new)


def frame(kind, flags):
    return bytes([0, 0, 0, kind, flags, 0, 0, 0, 0])


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def wait_for_port(port):
    for _ in range(200):
        try:
            return socket.create_connection(("127.0.0.1", port)).close()
        except ConnectionRefusedError:
            time.sleep(0.05)
    sys.exit(f"nobody listens on port {port}")


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Bedrock on the wire: a local server with the replies it was told to give, and real clients of it.

What it sends has the names and the framing of the real service: JSON and headers of its service model, and event
streams in AWS's binary framing with both checksums.
"""

from __future__ import annotations

import base64
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

REGION = "us-west-2"
MODEL = "amazon.nova-pro-v1:0"
CLAUDE = "global.anthropic.claude-sonnet-4-5-20250929-v1:0"

USAGE = {
    "inputTokens": 100,
    "outputTokens": 20,
    "totalTokens": 1127,
    "cacheReadInputTokens": 1000,
    "cacheWriteInputTokens": 7,
    "cacheDetails": [{"ttl": "1h", "inputTokens": 4}, {"ttl": "5m", "inputTokens": 3}],
}


def converse(**changed: Any) -> dict[str, Any]:
    """A Converse response."""
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": "Hello."}]}},
        "stopReason": "end_turn",
        "usage": USAGE,
        "metrics": {"latencyMs": 551},
        "serviceTier": {"type": "default"},
        **changed,
    }


Event = tuple[str, dict[str, Any]]


def converse_events(words: int = 3, **metadata: Any) -> list[Event]:
    """Events of ConverseStream."""
    return [
        ("messageStart", {"role": "assistant"}),
        *(("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": f"w{n} "}}) for n in range(words)),
        ("contentBlockStop", {"contentBlockIndex": 0}),
        ("messageStop", {"stopReason": "max_tokens"}),
        (
            "metadata",
            {"usage": USAGE, "metrics": {"latencyMs": 551}, "serviceTier": {"type": "default"}, **metadata},
        ),
    ]


def chunks(*bodies: dict[str, Any]) -> list[Event]:
    """Events of InvokeModelWithResponseStream: bodies of the model's own."""
    return [("chunk", {"bytes": base64.b64encode(json.dumps(body).encode()).decode(), "p": "abc"}) for body in bodies]


def headers_of(tokens: dict[str, int]) -> dict[str, str]:
    """Headers of InvokeModel: ``input``, ``output``, ``cache_read`` and ``cache_write`` tokens."""
    words = {
        "input": "Input",
        "output": "Output",
        "cache_read": "Cache-Read-Input",
        "cache_write": "Cache-Write-Input",
    }
    counts = {f"X-Amzn-Bedrock-{words[name]}-Token-Count": str(count) for name, count in tokens.items()}
    return {"X-Amzn-Bedrock-Invocation-Latency": "551", **counts}


def metrics(**counts: int) -> dict[str, Any]:
    """What the last chunk of an invocation's stream carries beside the model's own."""
    return {"amazon-bedrock-invocationMetrics": {**counts, "invocationLatency": 551, "firstByteLatency": 99}}


def frame(event: Event) -> bytes:
    """One message of an event stream; an event whose name ends in ``Exception`` is one."""
    kind, body = event
    exception = kind.endswith("Exception")
    fields = {
        ":exception-type" if exception else ":event-type": kind,
        ":content-type": "application/json",
        ":message-type": "exception" if exception else "event",
    }
    packed = b"".join(
        struct.pack("!B", len(name)) + name.encode() + struct.pack("!BH", 7, len(value)) + value.encode()
        for name, value in fields.items()
    )
    payload = json.dumps(body).encode()
    prelude = struct.pack("!II", 16 + len(packed) + len(payload), len(packed))
    message = prelude + struct.pack("!I", zlib.crc32(prelude)) + packed + payload
    return message + struct.pack("!I", zlib.crc32(message))


class Reply:
    """One reply: a status, headers, and pieces of a body; ``cut`` breaks off the connection after them."""

    def __init__(self, status: int, headers: dict[str, str], pieces: list[bytes], cut: bool = False) -> None:
        self.status, self.headers, self.pieces, self.cut = status, headers, pieces, cut
        self.gate: threading.Event | None = None
        """Waited for before the last piece."""


class Stub:
    """A Bedrock that gives the replies it was told to, in order, the last one again and again."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, bytes]] = []

    def json(self, body: Any, status: int = 200, headers: dict[str, str] | None = None) -> Stub:
        return self.raw(json.dumps(body).encode(), status, headers)

    def raw(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Stub:
        fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}
        self.replies.append(Reply(status, fields, [body]))
        return self

    def invoked(self, body: Any, tokens: dict[str, int] | None = None, headers: dict[str, str] | None = None) -> Stub:
        """A reply of InvokeModel."""
        return self.json(body, headers={**headers_of(tokens or {}), **(headers or {})})

    def error(self, status: int, kind: str = "ThrottlingException") -> Stub:
        return self.json({"message": f"no: {status}"}, status, {"x-amzn-ErrorType": kind})

    def events(self, events: list[Event], cut: bool = False) -> Stub:
        fields = {"Content-Type": "application/vnd.amazon.eventstream", "Transfer-Encoding": "chunked"}
        self.replies.append(Reply(200, fields, [frame(event) for event in events], cut))
        return self

    def drop(self) -> Stub:
        """A connection closed without a word."""
        self.replies.append(Reply(0, {}, []))
        return self

    def next(self) -> Reply:
        return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def options(self, **config: Any) -> dict[str, Any]:
        from botocore.config import Config

        return {
            "region_name": REGION,
            "endpoint_url": self.url,
            "aws_access_key_id": "none",
            "aws_secret_access_key": "none",
            "config": Config(**{"max_pool_connections": 50, **config}),
        }

    def client(self, service: str = "bedrock-runtime", **config: Any) -> Any:
        """A real client of this service."""
        import botocore.session

        return _session(botocore.session.Session).create_client(service, **self.options(**config))

    def async_client(self, service: str = "bedrock-runtime", **config: Any) -> Any:
        """A real asynchronous client, to be entered."""
        import aiobotocore.session

        return _session(aiobotocore.session.AioSession).create_client(service, **self.options(**config))


_sessions: dict[Any, Any] = {}


def _session(kind: Callable[[], Any]) -> Any:
    # Kept: a session reads the service's model from disk once.
    if kind not in _sessions:
        _sessions[kind] = kind()
    return _sessions[kind]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stub: Stub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients of these tests go away in the middle."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        stub: Stub = self.server.stub  # type: ignore[attr-defined]
        stub.requests.append((self.path, body))
        reply = stub.next()
        if not reply.status:
            self.close_connection = True
            return
        self.send_response(reply.status)
        for name, value in {"x-amzn-RequestId": "7f", **reply.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        chunked = "Transfer-Encoding" in reply.headers
        for number, piece in enumerate(reply.pieces):
            if reply.gate is not None and number == len(reply.pieces) - 1:
                reply.gate.wait(30)
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
            self.wfile.flush()
        if reply.cut:
            self.close_connection = True
        elif chunked:
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serve() -> Iterator[Stub]:
    """A running service that nobody has told what to say yet."""
    server = _Server(("127.0.0.1", 0), _Handler)
    server.stub = Stub(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server.stub
    finally:
        server.shutdown()
        server.server_close()

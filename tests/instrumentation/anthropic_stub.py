"""Anthropic's Messages API on a local port: real sockets, real framing, and replies that a test has queued.

Bodies have the field names and the order of events of the API's reference (platform.claude.com/docs, "Messages",
"Streaming" and "Message Batches").
"""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "claude-sonnet-4-6"
SERVED = "claude-sonnet-4-6"

USAGE: dict[str, Any] = {
    "input_tokens": 10,
    "cache_creation_input_tokens": 7,
    "cache_read_input_tokens": 100,
    "cache_creation": {"ephemeral_5m_input_tokens": 3, "ephemeral_1h_input_tokens": 4},
    "output_tokens": 20,
    "output_tokens_details": {"thinking_tokens": 5},
    "server_tool_use": {"web_search_requests": 2, "web_fetch_requests": 1},
    "service_tier": "standard",
    "inference_geo": "us",
}
"""Usage of a call that has some of everything."""


def message(text: str = "Hello.", **changed: Any) -> dict[str, Any]:
    """A message as the service sends it."""
    return {
        "id": "msg_7",
        "type": "message",
        "role": "assistant",
        "model": SERVED,
        "content": [{"type": "text", "text": text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": USAGE,
        **changed,
    }


def tool_use(**changed: Any) -> dict[str, Any]:
    """A message that asks for a tool."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"a": 1, "b": 2}}
    return message(**{"content": [call], "stop_reason": "tool_use", **changed})


def events(text: str = "Hello.", deltas: int = 1, usage: dict[str, Any] | None = None) -> list[dict[str, Any]]:
    """The events of a streamed message: the input is told at the start, the output cumulatively in ``deltas`` steps."""
    usage = USAGE if usage is None else usage
    at_end = ("output_tokens", "output_tokens_details", "server_tool_use", "iterations")
    start = {**{name: value for name, value in usage.items() if name not in at_end}, "output_tokens": 1}
    end = {name: value for name, value in usage.items() if name in (*at_end, "input_tokens")}
    words = [text[n : n + 2] for n in range(0, len(text), 2)]
    return [
        {
            "type": "message_start",
            "message": message(content=[], stop_reason=None, usage=start),
        },
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "ping"},
        *({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in words),
        {"type": "content_block_stop", "index": 0},
        *(
            {
                "type": "message_delta",
                "delta": {"stop_reason": None, "stop_sequence": None},
                "usage": {"output_tokens": end["output_tokens"] * step // deltas},
            }
            for step in range(1, deltas)
        ),
        {"type": "message_delta", "delta": {"stop_reason": "end_turn", "stop_sequence": None}, "usage": end},
        {"type": "message_stop"},
    ]


def batch(**changed: Any) -> dict[str, Any]:
    """A message batch that has ended; ``results_url`` is filled in by the server."""
    return {
        "id": "msgbatch_1",
        "type": "message_batch",
        "processing_status": "ended",
        "request_counts": {"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0},
        "created_at": "2026-11-01T10:00:00Z",
        "ended_at": "2026-11-01T10:30:00.123456Z",
        "expires_at": "2026-11-02T10:00:00Z",
        "archived_at": None,
        "cancel_initiated_at": None,
        "results_url": None,
        **changed,
    }


def batch_results() -> list[dict[str, Any]]:
    """Lines of a batch's results: two succeeded, one did not."""
    usage = {**USAGE, "service_tier": "batch"}
    error = {"type": "error", "error": {"type": "invalid_request_error", "message": "no"}}
    return [
        {"custom_id": "one", "result": {"type": "succeeded", "message": message(id="msg_1", usage=usage)}},
        {"custom_id": "two", "result": {"type": "errored", "error": error}},
        {"custom_id": "three", "result": {"type": "succeeded", "message": message(id="msg_3", usage=usage)}},
    ]


def aws_frame(payload: bytes) -> bytes:
    """One message of the event stream encoding: prelude, headers and payload, with both checksums."""
    headers = b"".join(
        bytes([len(name)]) + name.encode() + b"\x07" + struct.pack(">H", len(value)) + value.encode()
        for name, value in (
            (":event-type", "chunk"),
            (":content-type", "application/json"),
            (":message-type", "event"),
        )
    )
    prelude = struct.pack(">II", 16 + len(headers) + len(payload), len(headers))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + headers + payload
    return message + struct.pack(">I", zlib.crc32(message))


Reply = Callable[[BaseHTTPRequestHandler], None]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: Stub

    def _answer(self) -> None:
        length = int(self.headers.get("content-length") or 0)
        body = self.rfile.read(length)
        self.stub.requests.append((self.command, self.path, dict(self.headers), json.loads(body) if body else None))
        with self.stub.lock:
            replies = self.stub.replies
            reply = replies.pop(0) if len(replies) > 1 else replies[0]
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            reply(self)

    do_POST = do_GET = _answer

    def log_message(self, format: str, *args: Any) -> None: ...

    def start(self, status: int, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"content-type": kind, "request-id": "req_1", **headers}.items():
            self.send_header(name, value)

    def whole(self, status: int, kind: str, body: bytes, headers: dict[str, str]) -> None:
        self.start(status, kind, {**headers, "content-length": str(len(body))})
        self.end_headers()
        self.wfile.write(body)

    def piece(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is what many tests are about."""


class Stub:
    """A service that gives the replies it was told to, in order, the last one again and again.

    Attributes:
        requests: method, path, headers and decoded body of each request.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.replies: list[Reply] = []
        self.requests: list[tuple[str, str, dict[str, str], Any]] = []
        handler = type("Handler", (_Handler,), {"stub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, reply: Any) -> Stub:
        self.replies.append(reply)
        return self

    def json(self, body: Any, status: int = 200, **headers: str) -> Stub:
        data = json.dumps(body).encode()
        return self._reply(lambda to: to.whole(status, "application/json", data, headers))

    def error(self, status: int, kind: str = "api_error") -> Stub:
        """A refusal that may be tried again at once."""
        body = {"type": "error", "error": {"type": kind, "message": f"no: {status}"}, "request_id": "req_1"}
        return self.json(body, status, **{"retry-after-ms": "1"})

    def hang(self) -> threading.Event:
        """A reply that never comes; the event is set when a request waits for it."""
        reached = threading.Event()

        def wait(to: Any) -> None:
            reached.set()
            to.connection.settimeout(20)
            with contextlib.suppress(OSError):
                to.rfile.read(1)  # until the client gives up
            to.close_connection = True

        self._reply(wait)
        return reached

    def stream(
        self, of: list[dict[str, Any]], *, broken: bool = False, gate: threading.Semaphore | None = None
    ) -> Stub:
        """Server-sent events, one piece each. ``broken``: the connection is cut after them. ``gate``: is acquired
        before each event, so that the test says when the next one comes."""

        def send(to: Any) -> None:
            to.start(200, "text/event-stream; charset=utf-8", {"transfer-encoding": "chunked"})
            to.end_headers()
            for event in of:
                if gate is not None and not gate.acquire(timeout=20):
                    return
                to.piece(f"event: {event['type']}\ndata: {json.dumps(event)}\n\n".encode())
            if broken:
                to.close_connection = True
                to.connection.shutdown(2)
            else:
                to.wfile.write(b"0\r\n\r\n")

        return self._reply(send)

    def event_stream(self, of: list[dict[str, Any]]) -> Stub:
        """The same events as Amazon Bedrock frames them."""

        def send(to: Any) -> None:
            to.start(200, "application/vnd.amazon.eventstream", {"transfer-encoding": "chunked"})
            to.end_headers()
            for event in of:
                chunk = {"bytes": base64.b64encode(json.dumps(event).encode()).decode()}
                to.piece(aws_frame(json.dumps(chunk).encode()))
            to.wfile.write(b"0\r\n\r\n")

        return self._reply(send)

    def lines(self, of: list[dict[str, Any]]) -> Stub:
        """Lines of JSON, in pieces that do not end where lines do."""
        data = "".join(json.dumps(line) + "\n" for line in of).encode()

        def send(to: Any) -> None:
            to.start(200, "application/x-jsonl", {"transfer-encoding": "chunked"})
            to.end_headers()
            for start in range(0, len(data), 200):
                to.piece(data[start : start + 200])
            to.wfile.write(b"0\r\n\r\n")

        return self._reply(send)

    def batch(self, **changed: Any) -> Stub:
        """A batch, whose results are to be had here."""
        url = f"{self.url}/v1/messages/batches/msgbatch_1/results"
        return self.json(batch(**{"results_url": url, **changed}))

    def client(self, kind: str = "Anthropic", **options: Any) -> Any:
        """A real client of this service."""
        import anthropic

        given = {"api_key": "none", "base_url": self.url, "max_retries": 2, **options}
        return getattr(anthropic, kind)(**{name: value for name, value in given.items() if value is not None})

    def async_client(self, **options: Any) -> Any:
        """A real asynchronous client of this service."""
        return self.client("AsyncAnthropic", **options)


@contextlib.contextmanager
def serve() -> Iterator[Stub]:
    """A service for one test."""
    stub = Stub()
    try:
        yield stub
    finally:
        stub.close()

"""One local server under every stub: real sockets and framing, and replies that a test has queued.

In: replies, each a function that answers one request. Out: `StubServer.url` for a real client, and what it asked.
A provider's stub is a subclass with the bodies of that provider, or this one with bodies from a table.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Answer = Callable[[BaseHTTPRequestHandler], None]

LONGEST_WAIT = 10.0
"""Seconds after which a reply that a test has forgotten goes on."""


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # as many clients as a test likes may come at once
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that goes away is what many tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    stub: StubServer

    def _answer(self) -> None:
        reply = self.stub.asked(self, self.rfile.read(int(self.headers.get("content-length") or 0)))
        try:
            reply(self)
        except OSError:  # the client went away
            self.close_connection = True

    do_POST = do_GET = _answer

    def date_time_string(self, timestamp: float | None = None) -> str:
        return "Sat, 21 Nov 2026 12:00:00 GMT"  # answers that are equal look equal

    def log_message(self, *_: Any) -> None: ...


class StubServer:
    """A service that gives the replies it was told to, in order, the last one again and again.

    Attributes:
        requests: path and body of each request that came; a body of JSON is decoded.
        headers: headers of each request that came, names in lower case.
        hold: an event that a slow reply waits for.
        arrived: how many requests came, to be waited for.
    """

    def __init__(self) -> None:
        self.replies: list[Answer] = []
        self.requests: list[tuple[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.hold = threading.Event()
        self.arrived = threading.Semaphore(0)
        self._lock = threading.Lock()
        self.server = _Server(("127.0.0.1", 0), type("Handler", (_Handler,), {"stub": self}))
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def forget(self) -> None:
        """As new, at the same address: no replies, no requests; whoever was held goes on."""
        self.hold.set()
        with self._lock:
            self.hold = threading.Event()
            self.arrived = threading.Semaphore(0)
            self.replies, self.requests, self.headers = [], [], []

    def asked(self, handler: BaseHTTPRequestHandler, body: bytes) -> Answer:
        """Note a request; returns the reply to it."""
        with self._lock:
            self.requests.append((handler.path, json.loads(body) if body.startswith(b"{") else body))
            self.headers.append({name.lower(): value for name, value in handler.headers.items()})
            self.arrived.release()
            return self.replies.pop(0) if len(self.replies) > 1 else self.replies[0]

    def reply(self, answer: Answer) -> Self:
        self.replies.append(answer)
        return self

    def json(self, body: Any, status: int = 200, **headers: str) -> Self:
        return self.raw(json.dumps(body).encode(), "application/json", status, **headers)

    def raw(self, body: bytes, kind: str, status: int = 200, **headers: str) -> Self:
        """A whole body. An underscore in the name of a header stands for a hyphen."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            begin(handler, kind, status, headers, ("content-length", str(len(body))))
            handler.wfile.write(body)

        return self.reply(answer)

    def stall(self) -> Self:
        """Answer nothing until `hold` is set."""
        hold = self.hold

        def answer(handler: BaseHTTPRequestHandler) -> None:
            hold.wait(LONGEST_WAIT)
            handler.close_connection = True

        return self.reply(answer)

    def drop(self) -> Self:
        """Close the connection without a word."""

        def answer(handler: BaseHTTPRequestHandler) -> None:
            handler.close_connection = True

        return self.reply(answer)

    def stream(
        self, pieces: Iterable[bytes], kind: str, breaking: bool = False, slow: bool = False, **headers: str
    ) -> Self:
        """Pieces in chunked transfer. ``breaking``: the connection breaks before the end; ``slow``: all but the first
        wait for `hold`."""
        frames = [f"{len(piece):x}\r\n".encode() + piece + b"\r\n" for piece in pieces]
        hold = self.hold

        def answer(handler: BaseHTTPRequestHandler) -> None:
            begin(handler, kind, 200, headers, ("transfer-encoding", "chunked"))
            # Sent at once where nothing waits, so that what a client has read when it stops is the same every time.
            handler.wfile.write(frames[0] if slow else b"".join(frames))
            if slow:
                hold.wait(LONGEST_WAIT)
                handler.wfile.write(b"".join(frames[1:]))
            if breaking:
                handler.close_connection = True
                with contextlib.suppress(OSError):
                    handler.connection.shutdown(2)
            else:
                handler.wfile.write(b"0\r\n\r\n")

        return self.reply(answer)


def begin(
    handler: BaseHTTPRequestHandler, kind: str, status: int, headers: dict[str, str], framing: tuple[str, str]
) -> None:
    """Status line and headers."""
    handler.send_response(status)
    handler.send_header("content-type", kind)
    handler.send_header(*framing)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()

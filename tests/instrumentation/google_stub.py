"""A local server that speaks the wire of the Gemini API and of Vertex AI: paths, JSON, server-sent events, errors.

Field names and framing are those of the services' REST references; the client under test is the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "gemini-2.5-flash"

USAGE: dict[str, Any] = {
    "promptTokenCount": 1000,
    "candidatesTokenCount": 200,
    "thoughtsTokenCount": 50,
    "toolUsePromptTokenCount": 30,
    "cachedContentTokenCount": 400,
    "totalTokenCount": 1280,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 900}, {"modality": "AUDIO", "tokenCount": 100}],
    "cacheTokensDetails": [{"modality": "TEXT", "tokenCount": 380}, {"modality": "AUDIO", "tokenCount": 20}],
    "candidatesTokensDetails": [{"modality": "TEXT", "tokenCount": 200}],
    "toolUsePromptTokensDetails": [{"modality": "TEXT", "tokenCount": 30}],
}
"""A usage object with everything in it."""


def content(usage: Any = USAGE, text: str = "Hello.", reason: str | None = "STOP", **changed: Any) -> dict[str, Any]:
    """A response of ``generateContent``, or one chunk of its stream."""
    candidate: dict[str, Any] = {"content": {"role": "model", "parts": [{"text": text}]}, "index": 0}
    if reason is not None:
        candidate["finishReason"] = reason
    body: dict[str, Any] = {"candidates": [candidate], "modelVersion": MODEL, "responseId": "resp-7", **changed}
    if usage is not None:
        body["usageMetadata"] = usage
    return body


def chunks(usage: Any = USAGE) -> list[dict[str, Any]]:
    """A stream: its usage grows from chunk to chunk, the last one has it whole."""
    early = {"promptTokenCount": 1000, "candidatesTokenCount": 3, "totalTokenCount": 1003}
    return [content(early, "Hel", None), content(early, "lo", None), content(usage, ".", "STOP")]


def calling(name: str = "weather", **usage: int) -> dict[str, Any]:
    """A response that asks for a function to be called."""
    part = {"functionCall": {"name": name, "args": {"city": "Berlin"}}}
    return {
        "candidates": [{"content": {"role": "model", "parts": [part]}, "finishReason": "STOP", "index": 0}],
        "modelVersion": MODEL,
        "responseId": "resp-call",
        "usageMetadata": usage,
    }


def refusal(status: int) -> dict[str, Any]:
    return {"error": {"code": status, "message": f"no: {status}", "status": "UNAVAILABLE"}}


Answer = Callable[[BaseHTTPRequestHandler], None]


class GoogleStub:
    """A service that gives the replies it was told to, in order, the last one again and again.

    Attributes:
        requests: path and body of each request that came.
        hold: an event that a slow reply waits for.
    """

    def __init__(self) -> None:
        self.replies: list[Answer] = []
        self.requests: list[tuple[str, Any]] = []
        self.hold = threading.Event()
        self.clients: list[Any] = []  # one that nobody holds closes its connections
        self._lock = threading.Lock()
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                length = int(self.headers.get("content-length") or 0)
                body = self.rfile.read(length)
                with stub._lock:
                    stub.requests.append((self.path, json.loads(body) if body else None))
                    reply = stub.replies.pop(0) if len(stub.replies) > 1 else stub.replies[0]
                try:
                    reply(self)
                except OSError:  # the client went away
                    self.close_connection = True

            do_GET = do_POST

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.hold.set()
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def json(self, body: Any, status: int = 200, **headers: str) -> GoogleStub:
        text = json.dumps(body).encode()

        def reply(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(status)
            handler.send_header("content-type", "application/json; charset=UTF-8")
            handler.send_header("content-length", str(len(text)))
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            handler.wfile.write(text)

        self.replies.append(reply)
        return self

    def error(self, status: int) -> GoogleStub:
        return self.json(refusal(status), status)

    def stall(self) -> GoogleStub:
        """Answer nothing until `hold` is set."""

        def reply(handler: BaseHTTPRequestHandler) -> None:
            self.hold.wait(10)
            handler.close_connection = True

        self.replies.append(reply)
        return self

    def stream(self, events: list[Any], breaking: bool = False, slow: bool = False, **headers: str) -> GoogleStub:
        """Server-sent events in chunked transfer. ``breaking``: the connection breaks before the end; ``slow``: all
        but the first event wait for `hold`."""

        def reply(handler: BaseHTTPRequestHandler) -> None:
            handler.send_response(200)
            handler.send_header("content-type", "text/event-stream")
            handler.send_header("transfer-encoding", "chunked")
            for name, value in headers.items():
                handler.send_header(name.replace("_", "-"), value)
            handler.end_headers()
            for number, event in enumerate(events):
                if slow and number:
                    self.hold.wait(10)
                line = f"data: {event if isinstance(event, str) else json.dumps(event)}\r\n\r\n".encode()
                handler.wfile.write(f"{len(line):x}\r\n".encode() + line + b"\r\n")
                handler.wfile.flush()
            if breaking:
                handler.close_connection = True
                handler.connection.close()
            else:
                handler.wfile.write(b"0\r\n\r\n")

        self.replies.append(reply)
        return self

    def client(self, **http_options: Any) -> Any:
        """A real client of the Gemini API."""
        from google import genai

        client = genai.Client(api_key="none", vertexai=False, http_options={"base_url": self.url, **http_options})
        self.clients.append(client)
        return client

    def vertex(self, **http_options: Any) -> Any:
        """A real client of Vertex AI."""
        from google import genai
        from google.oauth2.credentials import Credentials

        client = genai.Client(
            vertexai=True,
            project="p",
            location="us-central1",
            credentials=Credentials(token="none"),  # type: ignore[no-untyped-call]
            http_options={"base_url": self.url, **http_options},
        )
        self.clients.append(client)
        return client

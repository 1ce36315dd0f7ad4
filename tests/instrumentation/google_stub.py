"""A local server that speaks the wire of the Gemini API and of Vertex AI: paths, JSON, server-sent events, errors.

Field names and framing are those of the services' REST references; the client under test is the real one.
"""

from __future__ import annotations

import json
from typing import Any, Self

from tests.instrumentation.stub_server import StubServer

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


class GoogleStub(StubServer):
    """A service that gives the replies it was told to, in order, the last one again and again."""

    def __init__(self) -> None:
        super().__init__()
        self.clients: list[Any] = []  # one that nobody holds closes its connections

    def error(self, status: int) -> Self:
        return self.json(refusal(status), status)

    def stream(  # type: ignore[override]
        self, events: list[Any], breaking: bool = False, slow: bool = False, **headers: str
    ) -> Self:
        """Server-sent events in chunked transfer. ``breaking``: the connection breaks before the end; ``slow``: all
        but the first event wait for `hold`."""
        pieces = [
            f"data: {event if isinstance(event, str) else json.dumps(event)}\r\n\r\n".encode() for event in events
        ]
        return super().stream(pieces, "text/event-stream", breaking, slow, **headers)

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

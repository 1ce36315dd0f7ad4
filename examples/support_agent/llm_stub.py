"""A local server that speaks OpenAI's and Anthropic's HTTP APIs well enough for their real clients, and keeps count.

    python llm_stub.py [--port 0] [--tally FILE] [--ready FILE] [--seed 0] [--pace 0.002] [--faults on|off]

It answers ``POST /v1/chat/completions`` and ``POST /v1/responses`` (`stub_openai`) and ``POST /v1/messages``
(`stub_anthropic`), in one piece or as server-sent events, and ``GET /v1/models``. Standard library only, and nothing of
Tollspan: its tally is the providers' own record, the one a bill would be made from.

What it serves depends only on the seed and the request, never on time or order, so a run can be repeated: the answer,
the token counts (OpenAI: prompt cache hits in steps of 128 from 1,024 on, reasoning counted inside the output;
Anthropic: cache reads and cache writes for five minutes or an hour), the tier served (``priority`` is sometimes served
as ``default``, as the real one does when it ramps), and the faults: about one call in fifteen meets a 429, 500 or 529
that the client's next attempt gets past, about one in sixty fails whatever the client does.

The tally has one JSON line for each HTTP request answered, written when its last byte has left:

    {"path", "attempt", "stream", "request_model", "model", "service_tier", "status", "error", "complete", "usage"}

``usage`` is ``{"input", "cached", "written_5m", "written_1h", "output", "reasoning"}`` (input includes what was read
from the cache and written to it, output includes reasoning) or null where nothing was generated. ``complete`` is false
when the client went away before the end: the provider has generated and bills those tokens although the client never
saw its usage, so they belong to the bill but no client can know them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import stub_anthropic
import stub_openai
from stub_served import Json

APIS = {path: api for api in (stub_openai, stub_anthropic) for path in api.PATHS}


def fault_for(rng: random.Random, attempt: int) -> str | None:
    """Key of ``FAULTS`` that this attempt meets, or None."""
    draw = rng.randrange(1000)
    if draw < 35:
        return "rate_limit" if attempt == 0 else None
    if draw < 55:
        return "server" if attempt == 0 else None
    if draw < 65:
        return ("rate_limit", "server")[attempt] if attempt < 2 else None
    if draw < 72:
        return "server"
    if draw < 77:
        return "quota"
    return "refused" if draw < 82 else None


class StubServer(ThreadingHTTPServer):
    """The server, its settings, and the tally that all its threads write to."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, port: int, *, tally: Path | None, seed: int, pace: float, faults: bool) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.seed = seed
        self.pace = pace
        self.faults = faults
        self._tally = tally.open("a", encoding="utf-8") if tally else None
        self._changed = threading.Condition()
        self._in_flight = 0

    def record(self, **line: Any) -> None:
        """Append one line to the tally; it is on file, complete, when this returns."""
        if self._tally is None:
            return
        with self._changed:
            self._tally.write(json.dumps(line) + "\n")
            self._tally.flush()

    def enter(self) -> None:
        with self._changed:
            self._in_flight += 1

    def leave(self) -> None:
        with self._changed:
            self._in_flight -= 1
            self._changed.notify_all()

    def drain(self, timeout: float) -> None:
        """Wait until no request is being answered, so that the tally is whole when the process ends."""
        with self._changed:
            self._changed.wait_for(lambda: self._in_flight == 0, timeout)


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: StubServer
    protocol_version = "HTTP/1.1"
    # Streams are many small writes; with Nagle's algorithm each would wait for the client's delayed acknowledgement.
    disable_nagle_algorithm = True
    api: Any = stub_openai

    def log_message(self, format: str, *args: Any) -> None:
        """Silence the access log: the tally is the record."""

    def do_GET(self) -> None:
        if self.path.split("?")[0] == "/v1/models":
            listed = [{"id": name, "object": "model", "created": 0, "owned_by": "stub"} for name in stub_openai.MODELS]
            self._json(200, {"object": "list", "data": listed})
        else:
            self._error(404, "unknown_url", f"Unknown request URL: GET {self.path}")

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length", 0)))
        self.server.enter()
        try:
            self._answer(self.path.split("?")[0], raw)
        finally:
            self.server.leave()

    def _answer(self, path: str, raw: bytes) -> None:
        # What there is no API for is refused in the words of the first.
        api = self.api = APIS.get(path, stub_openai)
        try:
            body = json.loads(raw)
        except ValueError:
            return self._error(400, "invalid_json", "We could not parse the JSON body of your request.")
        if path not in APIS:
            return self._error(404, "unknown_url", f"Unknown request URL: POST {path}")
        if refusal := api.refusal(self.headers, body):
            return self._error(*refusal)

        attempt = int(self.headers.get("x-stainless-retry-count", 0))
        digest = hashlib.sha256(f"{self.server.seed}:{path}:".encode() + raw).digest()
        rng = random.Random(digest)
        line: Json = {
            "path": path,
            "attempt": attempt,
            "stream": bool(body.get("stream")),
            "request_model": body["model"],
            "model": None,
            "service_tier": None,
            "status": 200,
            "error": None,
            "complete": True,
            "usage": None,
        }
        fault = fault_for(rng, attempt) if self.server.faults else None
        if fault:
            status, code, message = api.FAULTS[fault]
            line |= {"status": status, "error": code}
            retry = {"retry-after-ms": str(rng.randrange(5, 40))} if status != 400 else {}
            line["complete"] = self._sent(lambda: self._error(status, code, message, retry))
        else:
            served = api.serve(body, rng)
            created = int(time.time())
            line |= {"model": served.model, "service_tier": served.tier, "usage": served.tally}
            if body.get("stream"):
                line["complete"] = self._sent(lambda: self._stream(api.events(path, served, body, created)))
            else:
                time.sleep(self.server.pace * 5)
                line["complete"] = self._sent(lambda: self._json(200, api.whole(path, served, body, created)))
        self.server.record(**line)

    def _sent(self, send: Any) -> bool:
        """Whether the client was there to the end; a client that hangs up is no error of ours."""
        try:
            send()
        except (BrokenPipeError, ConnectionResetError, ConnectionAbortedError):
            self.close_connection = True
            return False
        return True

    def _json(self, status: int, body: Json, headers: dict[str, str] | None = None) -> None:
        raw = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(raw)))
        self.send_header(self.api.REQUEST_ID, f"req_{random.getrandbits(64):016x}")
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(raw)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._json(status, self.api.error(status, code, message), headers)

    def _stream(self, events: Iterator[tuple[str | None, Json | str]]) -> None:
        self.send_response(200)
        self.send_header("content-type", "text/event-stream; charset=utf-8")
        self.send_header("transfer-encoding", "chunked")
        self.send_header(self.api.REQUEST_ID, f"req_{random.getrandbits(64):016x}")
        self.end_headers()
        for name, data in events:
            text = data if isinstance(data, str) else json.dumps(data)
            raw = (f"event: {name}\n" if name else "").encode() + f"data: {text}\n\n".encode()
            self.wfile.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
            time.sleep(self.server.pace)
        self.wfile.write(b"0\r\n\r\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="A local stand-in for OpenAI's and Anthropic's HTTP APIs that counts what it serves."
    )
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--tally", type=Path, help="append one JSON line for each request answered")
    parser.add_argument("--ready", type=Path, help="write the base URLs here, as JSON, when the server listens")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pace", type=float, default=0.002, help="seconds between two chunks of a stream")
    parser.add_argument("--faults", choices=["on", "off"], default="on")
    args = parser.parse_args()

    server = StubServer(args.port, tally=args.tally, seed=args.seed, pace=args.pace, faults=args.faults == "on")
    # Where a client's own paths begin is the provider's choice: OpenAI's base URL has the version, Anthropic's not.
    origin = f"http://127.0.0.1:{server.server_address[1]}"
    base_url = f"{origin}/v1"
    for number in (signal.SIGTERM, signal.SIGINT):
        # shutdown() waits for serve_forever() to return, which runs in this very thread.
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    served = ", ".join([*stub_openai.MODELS, *stub_anthropic.MODELS])
    print(
        f"serving {served}\nOPENAI_BASE_URL={base_url} OPENAI_API_KEY=stub\n"
        f"ANTHROPIC_BASE_URL={origin} ANTHROPIC_API_KEY=stub",
        file=sys.stderr,
        flush=True,
    )
    if args.ready:
        partial = args.ready.with_name(args.ready.name + ".part")
        partial.write_text(json.dumps({"base_url": base_url, "anthropic_base_url": origin, "pid": os.getpid()}))
        partial.replace(args.ready)
    server.serve_forever(poll_interval=0.05)
    server.drain(timeout=10)
    server.server_close()


if __name__ == "__main__":
    main()

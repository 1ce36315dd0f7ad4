"""A real ``tollspan serve`` in a process of its own, and spans for it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

METHOD = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
TOLLSPAN = [sys.executable, "-m", "tollspan.processor.main"]
BEGAN = 1_763_600_000_000_000_000


def tollspan(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [*TOLLSPAN, *arguments], capture_output=True, text=True, timeout=100, env={**os.environ, **environment}
    )


@dataclass
class Service:
    """``with Service(folder) as s:`` starts it, waits until it is ready, and stops it gracefully."""

    folder: Path
    options: Sequence[str] = ()
    process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    info: dict[str, Any] = field(default_factory=dict, init=False)

    @property
    def url(self) -> str:
        return f"chdb://{self.folder}"

    def start(self) -> Service:
        ready = self.folder / "serve.json"
        command = [*TOLLSPAN, "serve", "--store", self.url, "--listen", "127.0.0.1:0", "--sql", "127.0.0.1:0"]
        command += ["--http", "127.0.0.1:0"]
        self.process = subprocess.Popen([*command, *self.options], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                assert self.process.stderr is not None
                raise AssertionError(self.process.stderr.read().decode())
            try:
                info = json.loads(ready.read_text())
            except (FileNotFoundError, json.JSONDecodeError):
                info = {}
            # After kill -9 the dead service's file is still there.
            if info.get("pid") == self.process.pid:
                self.info = info
                return self
            time.sleep(0.05)
        raise AssertionError("the service did not get ready")

    def stop(self) -> dict[str, int]:
        """SIGTERM, and the counters it leaves."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        assert self.process.stderr is not None
        assert code == 0, self.process.stderr.read().decode()
        stats: dict[str, int] = json.loads((self.folder / "stats.json").read_text())
        return stats

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def export(self, payload: bytes, timeout: float = 20.0) -> bytes:
        with grpc.insecure_channel(self.info["grpc"]) as channel:
            return bytes(channel.unary_unary(METHOD)(payload, timeout=timeout))

    def query(self, name: str, *more: str) -> Any:
        done = tollspan("query", name, "--store", self.url, "--format", "json", *more)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()


def chat(
    number: int, *, tokens: tuple[int, int] | None = (1000, 100), parent: int = 0, error: bool = False, **more: Any
) -> Span:
    """An LLM call as a span: ids from ``number``, tokens as (input, output); ``trace=`` joins another's trace."""
    trace = more.pop("trace", number)
    span = Span(
        trace_id=trace.to_bytes(16, "big"),
        span_id=number.to_bytes(8, "big"),
        parent_span_id=parent.to_bytes(8, "big") if parent else b"",
        name="chat gpt-5-mini",
        kind=Span.SPAN_KIND_CLIENT,
        start_time_unix_nano=BEGAN + number,
        end_time_unix_nano=BEGAN + number + 5_000_000,
        status=Status(code=Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET),
    )
    facts: dict[str, Any] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-5-mini",
    }
    if tokens is not None:
        facts |= {"gen_ai.usage.input_tokens": tokens[0], "gen_ai.usage.output_tokens": tokens[1]}
    for key, value in {**facts, **more}.items():
        target = span.attributes.add(key=key).value
        if isinstance(value, bool):
            target.bool_value = value
        elif isinstance(value, int):
            target.int_value = value
        elif isinstance(value, float):
            target.double_value = value
        else:
            target.string_value = value
    return span


def payload(spans: Sequence[Span]) -> bytes:
    """One export request."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "test"
    resource.scope_spans.add().spans.extend(spans)
    return request.SerializeToString()

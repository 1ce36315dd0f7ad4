"""Anthropic's client under the real launcher, its own spans on by default: each request has one span that bears usage,
ours, or the client's own where the user prefers those."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from .anthropic_stub import MODEL, USAGE, Stub, events, message, serve
from .test_openai_launcher import json_objects

NATIVE = "anthropic."
"""What the names of the client's own spans begin with."""
OURS = f"chat {MODEL}"
INPUT = "gen_ai.usage.input_tokens"
OUTPUT = "gen_ai.usage.output_tokens"
TOTAL_INPUT = USAGE["input_tokens"] + USAGE["cache_creation_input_tokens"] + USAGE["cache_read_input_tokens"]

PROGRAM = f"""
import asyncio
import anthropic
from tollspan.instrumentation import faults, tag

ask = dict(model={MODEL!r}, max_tokens=64, messages=[{{"role": "user", "content": "hello"}}])
client = anthropic.Anthropic()

with tag(tenant="acme"):
    client.messages.create(**ask)
    client.messages.with_raw_response.create(**ask)
    client.beta.messages.create(**ask)
    for event in client.messages.create(**ask, stream=True):
        pass
    with client.messages.stream(**ask) as stream:
        stream.until_done()

async def main():
    async with anthropic.AsyncAnthropic() as client:
        await client.messages.create(**ask)

asyncio.run(main())
assert faults() == {{}}, faults()
print("done", flush=True)
"""
REQUESTS = 6


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub.json(message()).json(message()).json(message()).stream(events()).stream(events()).json(message())


def launched(stub: Stub, folder: Path, **switches: str) -> list[dict[str, Any]]:
    """Spans of the program, run under the launcher with the console exporter."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(PROGRAM))
    own = ("OTEL_", "ANTHROPIC_", "TOLLSPAN_")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(own)},
        "ANTHROPIC_API_KEY": "none",
        "ANTHROPIC_BASE_URL": stub.url,
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "tollspan_torch,tollspan_onnxruntime,tollspan_feast",
        **switches,
    }
    launcher = Path(sys.executable).with_name("opentelemetry-instrument")
    command = [str(launcher), sys.executable, str(script)]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (ran.returncode, "done" in ran.stdout) == (0, True), ran.stderr
    return json_objects(ran.stdout)


def bearing(spans: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Spans that bear usage, each with all of it."""
    found = [span for span in spans if INPUT in span["attributes"] or OUTPUT in span["attributes"]]
    for span in found:
        assert (span["attributes"][INPUT], span["attributes"][OUTPUT]) == (TOTAL_INPUT, USAGE["output_tokens"])
    return found


def test_each_request_has_one_span_with_usage_and_it_is_ours(stub: Stub, tmp_path: Path) -> None:
    spans = bearing(launched(stub, tmp_path))
    assert len(stub.requests) == REQUESTS
    assert [span["name"] for span in spans] == [OURS] * REQUESTS
    tenants = [span["attributes"].get("tollspan.tenant") for span in spans]
    assert tenants == ["acme"] * (REQUESTS - 1) + [None]


@pytest.mark.skipif(find_spec("anthropic._tracing") is None, reason="this version of the client makes no spans")
def test_the_clients_own_spans_bear_it_where_they_are_preferred(stub: Stub, tmp_path: Path) -> None:
    spans = launched(stub, tmp_path, TOLLSPAN_ANTHROPIC_NATIVE_SPANS="true")
    assert len(stub.requests) == REQUESTS
    assert len(bearing(spans)) == len(spans) == REQUESTS
    assert all(span["name"].startswith(NATIVE) for span in spans)

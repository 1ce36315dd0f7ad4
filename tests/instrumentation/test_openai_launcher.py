"""Under the real launcher, with the console exporter, no processor of ours and a server on a real socket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from openai import __version__ as VERSION

PROGRAM = """
import asyncio, os, threading
import openai
from tollspan.instrumentation import faults, tag

client = openai.OpenAI()
ask = dict(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])

def work():
    client.chat.completions.create(**ask)

with tag(tenant="acme", feature="search"):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    for chunk in client.chat.completions.create(**ask, stream=True):
        pass
try:
    client.chat.completions.create(**{**ask, "model": "cut"}, stream=True).close()
    list(client.chat.completions.create(**{**ask, "model": "cut"}, stream=True))
except Exception as error:  # version 2 hands on the transport's own error
    assert isinstance(error, openai.APIConnectionError) or openai.__version__ < "3", error
    print("cut off", flush=True)
assert faults() == {}, faults()

async def main():
    async with openai.AsyncOpenAI() as client:
        with tag(tenant="globex"):
            await client.chat.completions.create(**ask)

asyncio.run(main())
print("done", flush=True)
"""

LEFT_OPEN = """
import asyncio, sys
import openai

client = openai.OpenAI()
ask = dict(model="gpt-5-mini", messages=[{"role": "user", "content": "hello"}])

stream = client.chat.completions.create(**ask, stream=True)
next(stream)
unparsed = client.chat.completions.with_raw_response.create(**ask, stream=True)
parsed = client.chat.completions.with_raw_response.create(**ask, stream=True).parse()
whole = client.chat.completions.create(**ask, stream=True)
list(whole)

async def main():
    global other, stream_of_other
    other = openai.AsyncOpenAI()
    stream_of_other = await other.chat.completions.create(**ask, stream=True)
    await anext(stream_of_other)

asyncio.new_event_loop().run_until_complete(main())
print("done", flush=True)
sys.exit(7)
"""


@pytest.fixture
def server(wire: Any) -> Iterator[str]:
    """Speaks the wire format: JSON, chunked server-sent events, and for the model ``cut`` a stream that breaks off."""

    class Service(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if not request.get("stream"):
                body = json.dumps(wire.completion()).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                return
            self.send_response(200)
            self.send_header("content-type", "text/event-stream")
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for chunk in wire.completion_chunks():
                event = f"data: {json.dumps(chunk)}\n\n".encode()
                self.wfile.write(f"{len(event):x}\r\n".encode() + event + b"\r\n")
                self.wfile.flush()
                if request["model"] == "cut":
                    self.close_connection = True
                    return
            self.wfile.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as service:
        thread = threading.Thread(target=service.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{service.server_port}/v1"
        service.shutdown()
        thread.join()


def json_objects(text: str) -> list[dict[str, Any]]:
    """The JSON objects that the console exporter wrote between other lines."""
    decoder, found, at = json.JSONDecoder(), [], text.find("{\n")
    while at >= 0:
        value, end = decoder.raw_decode(text, at)
        found.append(value)
        at = text.find("{\n", end)
    return found


def launch(program: str, server: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a program under the launcher with the console exporter, against ``server``."""
    script = folder / "program.py"
    script.write_text(textwrap.dedent(program))
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("OTEL_")},
        "OPENAI_API_KEY": "none",
        "OPENAI_BASE_URL": server,
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        # The peers that the benchmark compares with instrument the same library, and are installed beside us.
        "OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "openai,tollspan_torch,tollspan_onnxruntime,tollspan_feast",
    }
    launcher = Path(sys.executable).with_name("opentelemetry-instrument")
    return subprocess.run(
        [str(launcher), sys.executable, str(script)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_launcher_switches_everything_on_and_the_program_does_not_notice(server: str, tmp_path: Path) -> None:
    ran = launch(PROGRAM, server, tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert "cut off" in ran.stdout
    assert "done" in ran.stdout
    assert ran.stderr == ""
    spans = [span for span in json_objects(ran.stdout) if span["name"].startswith("chat")]
    seen = [
        (
            span["attributes"].get("tollspan.tenant"),
            span["attributes"].get("gen_ai.usage.input_tokens"),
            span["attributes"].get("error.type"),
            span["attributes"].get("tollspan.stream.abandoned"),
        )
        for span in spans
    ]
    assert seen == [
        ("acme", 100, None, None),  # in a thread
        ("acme", 100, None, None),
        (None, None, None, True),
        (None, None, "httpx.RemoteProtocolError" if VERSION < "3" else "openai.APIConnectionError", None),
        ("globex", 100, None, None),
    ]
    assert {span["attributes"]["gen_ai.provider.name"] for span in spans} == {"openai"}


def test_what_is_still_open_when_the_program_ends_has_its_span(server: str, tmp_path: Path) -> None:
    ran = launch(LEFT_OPEN, server, tmp_path)
    assert ran.returncode == 7
    assert "done" in ran.stdout
    assert "tollspan" not in ran.stderr
    seen = sorted(
        (
            span["attributes"].get("tollspan.stream.abandoned", False),
            span["attributes"].get("gen_ai.usage.input_tokens", 0),
        )
        for span in json_objects(ran.stdout)
        if span["name"].startswith("chat")
    )
    # The raw response that was not parsed is not known to have been a stream that somebody gave up.
    assert seen == [(False, 0), (False, 100), (True, 0), (True, 0), (True, 0)]

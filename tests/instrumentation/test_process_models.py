"""Programs of other shapes: their work in greenlets, a fork in the middle of a stream, modules that are loaded again.

Each in a process of its own, for what they do cannot be undone in this one.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from . import anthropic_stub
from .conftest import completion, completion_chunks
from .stub_server import StubServer

pytest.importorskip("openai")
pytest.importorskip("anthropic")
needs_gevent = pytest.mark.skipif(importlib.util.find_spec("gevent") is None, reason="gevent is not installed")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")

BEGINNING = """
import json, os, sys
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

def instrument(batches=True):
    global exporter, provider
    from tollspan.instrumentation.anthropic import AnthropicInstrumentor
    from tollspan.instrumentation.openai import OpenAIInstrumentor
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    processor = BatchSpanProcessor(exporter, schedule_delay_millis=20) if batches else SimpleSpanProcessor(exporter)
    provider.add_span_processor(processor)
    OpenAIInstrumentor().instrument(tracer_provider=provider)
    AnthropicInstrumentor().instrument(tracer_provider=provider)

clients = {}

def asked(kind, **changed):
    ask = {"model": "m", "messages": [{"role": "user", "content": "hello"}], **changed}
    if not clients:
        import anthropic, openai
        clients["openai"] = openai.OpenAI(api_key="none", base_url=sys.argv[1] + "/openai", max_retries=0)
        clients["anthropic"] = anthropic.Anthropic(api_key="none", base_url=sys.argv[1] + "/anthropic", max_retries=0)
    if kind == "openai":
        return clients[kind].chat.completions.create(**ask)
    return clients[kind].messages.create(max_tokens=9, **ask)

def told():
    provider.force_flush()
    from tollspan.instrumentation import faults
    print(json.dumps({
        "faults": faults(),
        "spans": [
            {"name": span.name, "parent": span.parent and span.parent.span_id, "id": span.context.span_id,
             **dict(span.attributes)}
            for span in exporter.get_finished_spans()
        ],
    }))
"""


class Service(StubServer):
    """OpenAI and Anthropic on one port, each with its answers to what is asked for whole and as a stream."""

    def asked(self, handler: Any, body: bytes) -> Any:
        stream = json.loads(body).get("stream")
        if handler.path.startswith("/openai"):
            events = [("", chunk) for chunk in completion_chunks()]
            whole: Any = completion()
        else:
            events = [(event["type"], event) for event in anthropic_stub.events()]
            whole = anthropic_stub.message()

        def answer(to: Any) -> None:
            lines = (f"event: {kind}\n" * bool(kind) + f"data: {json.dumps(event)}\n\n" for kind, event in events)
            sent = [line.encode() for line in lines] if stream else [json.dumps(whole).encode()]
            to.send_response(200)
            to.send_header("Content-Type", "text/event-stream" if stream else "application/json")
            to.send_header("Content-Length", str(sum(map(len, sent))))
            to.end_headers()
            for piece in sent:
                to.wfile.write(piece)
                to.wfile.flush()

        return answer


@pytest.fixture
def run() -> Iterator[Callable[[str], Any]]:
    """Runs a program after `BEGINNING` and gives what it tells."""
    with Service() as service:

        def run(program: str) -> Any:
            source = BEGINNING + textwrap.dedent(program)
            done = subprocess.run(
                [sys.executable, "-c", source, service.url], capture_output=True, text=True, timeout=100, check=False
            )
            assert done.returncode == 0, done.stderr
            return json.loads(done.stdout.splitlines()[-1])

        yield run


GREENLETS = """
    import gevent.event
    from tollspan.instrumentation import tag
    from opentelemetry.instrumentation.utils import suppress_instrumentation
    tracer = provider.get_tracer("program")
    # The clients fork, once, to find out where they run, and the SDK starts a thread in the child: greenlets that are
    # there would go on in it.
    with suppress_instrumentation():
        asked("openai")
        asked("anthropic")

    def work(number):
        kind = ("openai", "anthropic")[number % 2]
        with tag(tenant=f"t{number}"), tracer.start_as_current_span(f"work {number}") as span:
            if number % 4 < 2:
                asked(kind)
            else:
                for chunk in asked(kind, stream=True):
                    gevent.sleep(0)
            assert trace.get_current_span() is span

    jobs = [gevent.spawn(work, number) for number in range(8)]
    gevent.joinall(jobs, raise_error=True)
    reading = gevent.event.Event()

    def read():
        for chunk in asked("openai", stream=True):
            reading.set()
            gevent.sleep(60)

    killed = gevent.spawn(read)
    reading.wait()
    killed.kill()
    told()
"""


@needs_gevent
@pytest.mark.parametrize(
    "begin",
    [
        "from gevent import monkey; monkey.patch_all(); instrument()",
        # Patched when all of us is there. (A thread of the SDK's that is there too is what gevent warns of.)
        "instrument(batches=False); from gevent import monkey; monkey.patch_all()",
    ],
)
def test_calls_of_greenlets_are_their_own(run: Callable[[str], Any], begin: str) -> None:
    said = run(f"{begin}\n{textwrap.dedent(GREENLETS)}")
    assert said["faults"] == {}
    parents = {span["id"]: span["name"] for span in said["spans"] if span["name"].startswith("work")}
    calls = [span for span in said["spans"] if "gen_ai.operation.name" in span]
    assert len(parents) == 8
    assert len(calls) == 9
    *whole, abandoned = sorted(calls, key=lambda span: span.get("tollspan.stream.abandoned", False))
    for span in whole:
        assert parents[span["parent"]] == f"work {span['tollspan.tenant'][1:]}"
        assert span["gen_ai.usage.output_tokens"] == 20
    assert abandoned["tollspan.stream.abandoned"] is True


@needs_fork
def test_a_stream_that_a_fork_leaves_in_two_processes_is_ended_by_the_one_that_began_it(
    run: Callable[[str], Any],
) -> None:
    said = run(
        """
        instrument()
        stream = asked("openai", stream=True)
        next(stream)
        child = os.fork()
        if not child:
            del stream
            asked("anthropic")
            provider.force_flush()
            os._exit(len(exporter.get_finished_spans()))
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 1, "the child's own call, and no half of the parent's"
        list(stream)
        told()
        """
    )
    assert said["faults"] == {}
    (span,) = said["spans"]
    assert span["gen_ai.usage.output_tokens"] == 20
    assert "tollspan.stream.abandoned" not in span


def test_a_client_whose_modules_are_loaded_again_is_still_instrumented_and_can_be_restored(
    run: Callable[[str], Any],
) -> None:
    said = run(
        """
        import importlib, openai
        from openai.resources.chat.completions import completions
        from tollspan.instrumentation.openai import OpenAIInstrumentor
        old = completions.Completions
        original = vars(old)["create"]
        instrument()
        asked("openai")
        importlib.reload(completions)
        importlib.reload(openai)
        asked("openai")
        clients.clear()
        asked("openai")
        new = completions.Completions
        fresh = vars(new)["create"]
        assert new is not old
        OpenAIInstrumentor().uninstrument()
        asked("openai")
        assert vars(old)["create"] is original
        assert vars(new)["create"] is fresh
        OpenAIInstrumentor().instrument(tracer_provider=provider)
        assert vars(new)["create"] is not fresh
        OpenAIInstrumentor().uninstrument()
        assert vars(new)["create"] is fresh
        told()
        """
    )
    assert said["faults"] == {}
    assert [span["name"] for span in said["spans"]] == ["chat m"] * 3

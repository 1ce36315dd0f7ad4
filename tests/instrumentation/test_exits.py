"""What is still open when a program ends has its span ended while the span can still be sent."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
from typing import Any

import pytest
from opentelemetry import context
from opentelemetry.sdk.trace import TracerProvider

from tollspan.instrumentation import exits, faults
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.streams import observe
from tollspan.pricing.attributes import STREAM_ABANDONED

POINT = WrapPoint(target="library:Client.stream", request=lambda args, kwargs: None)


def open_stream(telemetry: Any, chunks: list[Any]) -> Any:
    provider: TracerProvider = telemetry.provider
    span = provider.get_tracer("tests").start_span("chat m")
    call = Call(POINT, "tollspan.call.gen_ai", span, context.get_current(), None)
    return observe(call, iter(chunks), lambda call, chunk: chunk == "usage")


def test_an_open_stream_is_ended_as_abandoned_and_goes_on_for_the_program(telemetry: Any) -> None:
    stream = open_stream(telemetry, [1, 2, 3])
    assert next(stream) == 1
    exits.abandon_all()
    assert telemetry.attributes()[STREAM_ABANDONED] is True
    assert list(stream) == [2, 3]
    exits.abandon_all()
    del stream
    assert len(telemetry.spans()) == 1


def test_a_stream_whose_usage_was_seen_is_not_called_abandoned(telemetry: Any) -> None:
    stream = open_stream(telemetry, ["usage", 2])
    next(stream)
    exits.abandon_all()
    assert STREAM_ABANDONED not in telemetry.attributes()


def test_a_stream_that_has_ended_is_not_ended_again(telemetry: Any) -> None:
    stream = open_stream(telemetry, [1])
    assert list(stream) == [1]
    exits.abandon_all()
    assert STREAM_ABANDONED not in telemetry.attributes()


def test_remembering_a_stream_does_not_keep_it(telemetry: Any) -> None:
    kept = len(exits._open)
    stream = open_stream(telemetry, [1])
    assert len(exits._open) == kept + 1
    gc.disable()
    try:
        del stream
        assert len(telemetry.spans()) == 1
        assert len(exits._open) == kept
    finally:
        gc.enable()


def test_one_that_cannot_be_ended_leaves_the_others_theirs(faulty_telemetry: Any) -> None:
    class Broken:
        def abandon(self) -> None:
            raise RuntimeError("a fault of ours")

    stream = open_stream(faulty_telemetry, [1])
    broken = [Broken() for _ in range(5)]
    for holder in broken:
        exits.remember(stream._tollspan_reading._call, holder)
    counted = faults().get("exits.abandon", 0)
    exits.abandon_all()
    assert faults()["exits.abandon"] == counted + 5
    assert len(faulty_telemetry.spans()) == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this platform")
def test_a_forked_child_leaves_the_parents_streams_to_the_parent(telemetry: Any) -> None:
    stream = open_stream(telemetry, [1])
    child = os.fork()
    if child == 0:
        exits.abandon_all()
        os._exit(len(telemetry.spans()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    exits.abandon_all()
    assert len(telemetry.spans()) == 1
    del stream


PROGRAM = """
import threading
from opentelemetry import context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.streams import observe

class Lines(SpanExporter):
    def export(self, spans):
        for span in spans:
            print(span.name, dict(span.attributes), flush=True)
        return SpanExportResult.SUCCESS

POINT = WrapPoint(target="library:Client.stream", request=lambda args, kwargs: None)

def open_stream(provider, name, chunks):
    span = provider.get_tracer("tests").start_span(name)
    return observe(Call(POINT, "key", span, context.get_current(), None), chunks, lambda call, chunk: None)

def provider():
    made = TracerProvider()
    made.add_span_processor(BatchSpanProcessor(Lines()))
    return made
"""


def run(program: str) -> list[str]:
    """The lines that a program of its own printed, in order of their names."""
    ran = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM) + textwrap.dedent(program)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ran.stderr == ""
    assert ran.returncode == 0
    return sorted(line.replace("{'tollspan.stream.abandoned': True}", "abandoned") for line in ran.stdout.splitlines())


def test_a_provider_made_after_the_first_stream_gets_its_spans_too() -> None:
    assert run(
        """
        one = open_stream(provider(), "one", iter([1]))
        two = open_stream(provider(), "two", iter([1]))
        three = open_stream(provider(), "three", iter([1]))
        """
    ) == ["one abandoned", "three abandoned", "two abandoned"]


def test_a_thread_that_outlives_the_main_one_reads_its_stream_to_the_end() -> None:
    """Ended when threads that the interpreter waits for are done, not when the program's last line has run."""
    assert run(
        """
        main = threading.main_thread()

        def chunks():
            main.join()
            return
            yield

        stream = open_stream(provider(), "thread", chunks())
        held = open_stream(provider(), "held", iter([1]))
        threading.Thread(target=lambda: list(stream)).start()
        """
    ) == ["held abandoned", "thread {}"]

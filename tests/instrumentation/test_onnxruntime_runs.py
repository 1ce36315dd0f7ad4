"""Every way to run a session is one span with what it was given, and the program notices nothing of it."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import gc
import inspect
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
from onnxruntime.capi import _pybind_state as C
from onnxruntime.capi import onnxruntime_inference_collection as library
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, StatusCode

from tollspan.instrumentation import guard
from tollspan.instrumentation.cpu_clock import CPU
from tollspan.instrumentation.onnxruntime import BINDINGS, LOADS, RUNS, OnnxRuntimeInstrumentor, sessions
from tollspan.pricing import attributes

from .conftest import Telemetry
from .test_onnxruntime import batch, model_bytes

CPU_SECONDS = attributes.usage("cpu.seconds")
METHODS = [*RUNS, "Session.run_async", *LOADS, *BINDINGS, "IOBinding.clear_binding_inputs"]


@pytest.fixture
def session() -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model_bytes())


@pytest.fixture
def onnx_spans(telemetry: Telemetry, session: onnxruntime.InferenceSession) -> Iterator[Telemetry]:
    """Instrumented after the session was made."""
    OnnxRuntimeInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OnnxRuntimeInstrumentor().uninstrument()
    assert CPU.in_flight == 0


def ort(array: np.ndarray) -> onnxruntime.OrtValue:
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def bound(session: Any, bind: Callable[[Any], object]) -> Any:
    binding = session.io_binding()
    bind(binding)
    binding.bind_output("y")
    return binding


def by_vector(session: Any, array: np.ndarray) -> None:
    feeds, fetches = C.OrtValueVector(), C.OrtValueVector()
    value = ort(array)
    feeds.push_back(value._ortvalue)
    device = C.OrtDevice(C.OrtDevice.cpu(), C.OrtDevice.default_memory(), 0)
    session.run_with_ortvaluevector(onnxruntime.RunOptions(), ["x"], feeds, ["y"], fetches, [device])
    assert fetches[0].shape() == list(array.shape)


def by_pointer(binding: Any) -> None:
    binding.kept = batch(6)
    binding.bind_input("x", "cpu", 0, np.float32, binding.kept.shape, binding.kept.ctypes.data)


WAYS: dict[str, Callable[[Any], object]] = {
    "run": lambda s: s.run(None, {"x": batch(6)}),
    "run, by names": lambda s: s.run(input_feed={"x": batch(6)}, output_names=["y"]),
    "run with an OrtValue": lambda s: s.run(None, {"x": ort(batch(6))}),
    "run_with_ort_values": lambda s: s.run_with_ort_values(None, {"x": ort(batch(6))}),
    "run_with_ortvaluevector": lambda s: by_vector(s, batch(6)),
    "binding of an array": lambda s: s.run_with_iobinding(bound(s, lambda b: b.bind_cpu_input("x", batch(6)))),
    "binding of a value": lambda s: s.run_with_iobinding(
        iobinding=bound(s, lambda b: b.bind_ortvalue_input("x", ort(batch(6))))
    ),
    "binding of a pointer": lambda s: s.run_with_iobinding(bound(s, by_pointer)),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_way_to_run_is_one_inference_of_a_batch(
    onnx_spans: Telemetry, session: Any, way: Callable[[Any], object]
) -> None:
    way(session)
    span = onnx_spans.only()
    assert span.name == "inference intent"
    about = onnx_spans.attributes()
    assert about[attributes.BATCH_SIZE] == 6
    assert about[attributes.COLD_START] is True
    assert about[attributes.MODEL_DTYPE] == "float32"
    assert about[CPU_SECONDS] > 0


def test_a_binding_tells_its_batch_as_it_was_bound_last(onnx_spans: Telemetry, session: Any) -> None:
    binding = bound(session, lambda b: b.bind_cpu_input("x", batch(6)))
    session.run_with_iobinding(binding)
    binding.bind_cpu_input("x", batch(2))
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    binding.clear_binding_inputs()
    with pytest.raises(Exception):
        session.run_with_iobinding(binding)
    assert [dict(s.attributes or {}).get(attributes.BATCH_SIZE) for s in onnx_spans.spans()] == [6, 2, None]


def test_a_binding_made_before_us_has_no_batch(telemetry: Telemetry, session: Any) -> None:
    binding = bound(session, lambda b: b.bind_cpu_input("x", batch(6)))
    OnnxRuntimeInstrumentor().instrument(tracer_provider=telemetry.provider)
    try:
        session.run_with_iobinding(binding)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert attributes.BATCH_SIZE not in telemetry.attributes()


def test_a_session_made_anew_is_a_load_and_cold(onnx_spans: Telemetry, session: Any) -> None:
    session.run(None, {"x": batch()})
    session.set_providers(["CPUExecutionProvider"])
    session.run(None, {"x": batch()})
    spans = onnx_spans.spans()
    assert [span.name for span in spans] == ["inference intent", "model_load intent", "inference intent"]
    assert [dict(span.attributes or {}).get(attributes.COLD_START) for span in spans] == [True, None, True]
    about = dict(spans[1].attributes or {})
    assert about[attributes.MODEL_SOURCE] == "buffer"
    assert about[attributes.EXECUTION_PROVIDERS_ASKED] == ("CPUExecutionProvider",)


# -- called back -------------------------------------------------------------------------------------------------------


def run_async(session: Any, callback: Callable[..., Any], feed: Any = None, data: object = None) -> None:
    """Returns when the callback has returned."""
    done = threading.Event()

    def called_back(*args: Any) -> Any:
        try:
            return callback(*args)
        finally:
            done.set()

    assert session.run_async(None, {"x": batch()} if feed is None else feed, called_back, data) is None
    assert done.wait(10)


def test_an_asynchronous_run_ends_before_the_programs_callback_which_runs_where_it_was_asked_for(
    onnx_spans: Telemetry, session: Any
) -> None:
    seen: list[Any] = []
    data = object()
    tracer = onnx_spans.provider.get_tracer("program")

    def callback(results: Any, user_data: object, error: str) -> None:
        seen.extend([results[0].shape, user_data, error, len(onnx_spans.spans()), threading.get_ident()])
        tracer.start_span("after").end()

    with tracer.start_as_current_span("request") as request:
        run_async(session, callback, data=data)
    assert seen[:4] == [(3, 4), data, "", 1]
    assert seen[4] != threading.get_ident()
    inference, after, _ = onnx_spans.spans()
    assert inference.name == "inference intent"
    assert [span.parent and span.parent.span_id for span in (inference, after)] == [request.context.span_id] * 2
    about = dict(inference.attributes or {})
    assert about[attributes.BATCH_SIZE] == 3
    assert about[attributes.CPU_TIME_SOURCE] == "process"
    assert about[CPU_SECONDS] > 0


def test_an_asynchronous_run_that_fails_says_so_on_its_span_and_to_the_callback(
    onnx_spans: Telemetry, session: Any
) -> None:
    said: list[str] = []
    run_async(session, lambda results, data, error: said.append(error), {"x": np.zeros((2, 3), np.float32)})
    span = onnx_spans.only()
    assert said
    assert "invalid dimensions" in said[0]
    assert span.status.status_code is StatusCode.ERROR
    assert onnx_spans.attributes()[attributes.ERROR_TYPE] == "_OTHER"


def test_an_asynchronous_run_that_is_refused_raises_what_it_raises(onnx_spans: Telemetry, session: Any) -> None:
    with pytest.raises(ValueError, match="Required inputs"):
        session.run_async(None, {}, print, None)
    assert onnx_spans.attributes()[attributes.ERROR_TYPE] == "ValueError"


def test_a_callback_that_is_none_is_refused_as_without_us(onnx_spans: Telemetry, session: Any) -> None:
    with pytest.raises(TypeError):
        session.run_async(None, {"x": batch()}, 7, None)
    assert onnx_spans.spans() == []


def test_asynchronous_runs_beside_each_other_do_not_guess_their_cpu_time(onnx_spans: Telemetry, session: Any) -> None:
    beside = CPU.begin_apart()
    run_async(session, lambda *_: None)
    assert CPU.end_apart(beside) is None
    assert CPU_SECONDS not in onnx_spans.attributes()


def test_a_future_resolved_by_the_callback(onnx_spans: Telemetry, session: Any) -> None:
    async def program() -> Any:
        loop = asyncio.get_running_loop()
        future = loop.create_future()
        with trace.use_span(onnx_spans.provider.get_tracer("program").start_span("request")):
            session.run_async(
                ["y"], {"x": batch(5)}, lambda r, d, e: loop.call_soon_threadsafe(future.set_result, r), None
            )
            return await asyncio.wait_for(future, 10)

    (result,) = asyncio.run(program())
    assert result.shape == (5, 4)
    assert [span.name for span in onnx_spans.spans()] == ["inference intent"]


def test_an_unseen_asynchronous_run_calls_back_without_us(session: Any) -> None:
    OnnxRuntimeInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    seen: list[context.Context] = []
    try:
        with trace.use_span(TracerProvider().get_tracer("t").start_span("request")):
            run_async(session, lambda *_: seen.append(context.get_current()))
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert not seen[0]


def test_a_program_that_ends_before_its_asynchronous_run_ends_the_span() -> None:
    program = """
        import sys
        sys.path.insert(0, {tests!r})
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor, ConsoleSpanExporter
        from opentelemetry.trace import SpanKind
        from opentelemetry.context import Context
        from tollspan.instrumentation.onnxruntime.runs import Queued
        from tollspan.instrumentation.onnxruntime.sessions import SessionNote
        from instrumentation.test_onnxruntime import model_bytes
        import onnxruntime
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter(formatter=lambda span: span.name + "\\n")))
        note = SessionNote(onnxruntime.InferenceSession(model_bytes()))
        kept = Queued(provider.get_tracer("t").start_span("inference"), Context(), print, note, None)
    """
    program = textwrap.dedent(program).format(tests=os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "inference\n", done.stderr


# -- the program cannot tell that we are there -------------------------------------------------------------------------


def outcome(function: Callable[[], Any]) -> tuple[Any, ...]:
    try:
        return ("returned", type(function()))
    except BaseException as error:
        return ("raised", type(error), str(error))


BAD: dict[str, Callable[[Any], Any]] = {
    "no arguments": lambda s: s.run(),
    "no feed": lambda s: s.run(None, None),
    "a missing input": lambda s: s.run(None, {}),
    "a wrong shape": lambda s: s.run(None, {"x": np.zeros((2, 3), np.float32)}),
    "a wrong type": lambda s: s.run(None, {"x": "text"}),
    "an unknown output": lambda s: s.run(["z"], {"x": batch()}),
    "an unknown argument": lambda s: s.run(None, {"x": batch()}, speed=9),
    "no values": lambda s: s.run_with_ort_values(None, 7),
    "no binding": lambda s: s.run_with_iobinding(None),
    "a binding of nobody": lambda s: s.run_with_iobinding(object()),
    "no vector": lambda s: s.run_with_ortvaluevector(None, ["x"], 7, ["y"], 7, []),
    "no providers": lambda s: s.set_providers(7),
    "no source": lambda s: type(s)(),
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
def test_what_goes_wrong_goes_wrong_as_without_us(session: Any, bad: Callable[[Any], Any]) -> None:
    plain = outcome(lambda: bad(session))
    OnnxRuntimeInstrumentor().instrument(tracer_provider=TracerProvider())
    try:
        before = context.get_current()
        assert outcome(lambda: bad(session)) == plain
        assert context.get_current() is before
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert CPU.in_flight == 0


def found(method: str) -> tuple[type, str, Any]:
    owner, _, name = method.partition(".")
    return getattr(library, owner), name, vars(getattr(library, owner))[name]


@pytest.mark.parametrize("method", METHODS)
def test_a_wrapper_looks_like_the_original_and_goes_without_a_trace(method: str) -> None:
    owner, name, original = found(method)
    OnnxRuntimeInstrumentor().instrument(tracer_provider=TracerProvider())
    try:
        wrapper = vars(owner)[name]
        assert wrapper is not original
        assert inspect.signature(wrapper) == inspect.signature(original)
        assert (wrapper.__qualname__, wrapper.__module__, wrapper.__doc__) == (
            original.__qualname__,
            original.__module__,
            original.__doc__,
        )
        assert pickle.loads(pickle.dumps(wrapper)) is wrapper
        assert copy.deepcopy(wrapper) is wrapper
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert vars(owner)[name] is original


def test_a_bound_method_that_outlives_us_passes_its_call(onnx_spans: Telemetry, session: Any) -> None:
    run = session.run
    OnnxRuntimeInstrumentor().uninstrument()
    assert run(None, {"x": batch()})[0].shape == (3, 4)
    assert onnx_spans.spans() == []
    OnnxRuntimeInstrumentor().instrument(tracer_provider=onnx_spans.provider)


def test_a_suppressed_run_has_no_span(onnx_spans: Telemetry, session: Any) -> None:
    with suppress_instrumentation():
        for way in WAYS.values():
            way(session)
        run_async(session, lambda *_: None)
        onnxruntime.InferenceSession(model_bytes())
    assert onnx_spans.spans() == []


@pytest.mark.parametrize("provider", [NoOpTracerProvider(), TracerProvider(sampler=ALWAYS_OFF)], ids=["no SDK", "off"])
def test_an_unseen_run_leaves_nothing_behind(session: Any, provider: Any) -> None:
    OnnxRuntimeInstrumentor().instrument(tracer_provider=provider)
    before = context.get_current()
    try:
        for way in WAYS.values():
            way(session)
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert context.get_current() is before
    assert CPU.in_flight == 0


def test_a_fault_of_ours_stays_ours(session: Any, faulty_telemetry: Telemetry, monkeypatch: Any) -> None:
    def broken(*_: Any) -> Any:
        raise RuntimeError("ours")

    monkeypatch.setattr(sessions.SessionNote, "refresh", broken)
    OnnxRuntimeInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    before = sum(guard.faults().values())
    try:
        for way in WAYS.values():
            way(session)
        run_async(session, lambda *_: None)
        onnxruntime.InferenceSession(model_bytes()).run(None, {"x": batch()})
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert sum(guard.faults().values()) - before == len(WAYS) + 3
    assert [span.name for span in faulty_telemetry.spans()] == ["model_load"]
    assert CPU.in_flight == 0


def test_a_feed_unlike_all_others_costs_its_batch_size_and_not_the_span(
    session: Any, faulty_telemetry: Telemetry
) -> None:
    class Feed(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise RuntimeError("of the program")

    OnnxRuntimeInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    try:
        session.run(None, Feed(x=batch()))
    finally:
        OnnxRuntimeInstrumentor().uninstrument()
    assert attributes.BATCH_SIZE not in faulty_telemetry.attributes()


def test_runs_on_many_threads_are_each_one_span(onnx_spans: Telemetry, session: Any) -> None:
    def work() -> None:
        for _ in range(50):
            session.run(None, {"x": batch()})

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = onnx_spans.spans()
    assert len(spans) == 400
    assert sum(attributes.COLD_START in (span.attributes or {}) for span in spans) == 1


def test_a_run_keeps_nothing_alive_and_leaves_nothing_to_the_collector(onnx_spans: Telemetry) -> None:
    session = onnxruntime.InferenceSession(model_bytes())
    binding = session.io_binding()
    feed = batch()
    binding.bind_cpu_input("x", feed)
    alive = [weakref.ref(each) for each in (session, feed, binding)]
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            session.run(None, {"x": feed})
        run_async(session, lambda *_: None)
        del session, feed, binding
        assert [each() for each in alive] == [None] * 3
    finally:
        gc.enable()
    onnx_spans.exporter.clear()


def test_the_programs_context_variables_stay_its_own(onnx_spans: Telemetry, session: Any) -> None:
    variable: contextvars.ContextVar[int] = contextvars.ContextVar("variable", default=0)
    seen: list[int] = []
    variable.set(7)
    run_async(session, lambda *_: seen.append(variable.get()))
    assert seen == [0]  # as without us: another thread


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_traces_its_own_sessions() -> None:
    program = """
        import os, sys
        sys.path.insert(0, {tests!r})
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import SimpleSpanProcessor
        from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
        from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
        from tollspan.instrumentation.onnxruntime.devices import wall_clock
        from instrumentation.test_onnxruntime import batch, model_bytes
        import onnxruntime
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        OnnxRuntimeInstrumentor().instrument(tracer_provider=provider)
        wall = wall_clock("cuda", 0)
        wall._lock.acquire()  # as if another thread of the parent were inside
        child = os.fork()
        if child == 0:
            wall.end(wall.begin())
            onnxruntime.InferenceSession(model_bytes()).run(None, {{"x": batch()}})
            os._exit(len(exporter.get_finished_spans()))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """
    program = textwrap.dedent(program).format(tests=os.path.dirname(os.path.dirname(__file__)))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "2\n", done.stderr

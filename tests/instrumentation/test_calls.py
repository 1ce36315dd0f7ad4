"""The call engine, on a made-up library: one span a call, and a program that cannot tell we are there."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import gc
import inspect
import logging
import os
import sys
import textwrap
import threading
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from tollspan.instrumentation import faults, tag
from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, open_call
from tollspan.instrumentation.guard import guard
from tollspan.pricing.attributes import ERROR_TYPE, HTTP_STATUS, TENANT

LIBRARY = "library_for_the_call_tests"


class Refused(Exception):
    def __init__(self) -> None:
        super().__init__("too many requests")
        self.status_code = 429


def make_library() -> types.ModuleType:
    """A client library: plain, inherited, asynchronous and decorated methods, and a function."""
    module = types.ModuleType(LIBRARY)

    def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inner(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return inner

    class Base:
        def inherited(self, value: Any) -> Any:
            return value

    class Client(Base):
        def ask(self, value: Any, *, hook: Callable[[], Any] | None = None) -> Any:
            """Asks."""
            if hook is not None:
                hook()
            if isinstance(value, BaseException):
                raise value
            return value

        def ask_twice(self, value: Any) -> Any:
            self.ask(value)
            return self.ask(value)

        async def ask_async(self, value: Any, *, wait: Any = None) -> Any:
            if wait is not None:
                await wait.wait()
            if isinstance(value, BaseException):
                raise value
            return value

        @decorated
        async def ask_decorated(self, value: Any) -> Any:
            return value

    def function(value: Any) -> Any:
        return value

    module.Base, module.Client, module.function = Base, Client, function  # type: ignore[attr-defined]
    return module


def point(name: str, **options: Any) -> WrapPoint:
    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
        return Opening(f"chat {name}", {"request": name}, {"seen": []})

    def response(call: Call, result: Any) -> None:
        call.attributes["result"] = repr(result)

    target = f"{LIBRARY}:{name}"
    return WrapPoint(**{"target": target, "request": request, "response": response, **options})


class Instrumentor(CallInstrumentor):
    scope: ClassVar[str] = "tests"
    requires: ClassVar[tuple[str, ...]] = ()
    points: ClassVar[tuple[WrapPoint, ...]] = ()


@pytest.fixture
def library() -> Iterator[Any]:
    module = make_library()
    sys.modules[LIBRARY] = module
    yield module
    del sys.modules[LIBRARY]


Instrument = Callable[..., CallInstrumentor]


@pytest.fixture
def instrument(library: Any) -> Iterator[Instrument]:
    """Instruments the library with the given points, until the test ends."""
    made: list[CallInstrumentor] = []

    def start(telemetry: Any, *points: WrapPoint, **attributes: Any) -> CallInstrumentor:
        kind = type("Instrumentor", (Instrumentor,), {"points": points, "_instance": None, **attributes})
        instrumentor: CallInstrumentor = kind()
        made.append(instrumentor)
        instrumentor.instrument(tracer_provider=getattr(telemetry, "provider", telemetry))
        return instrumentor

    yield start
    for instrumentor in made:
        if instrumentor.is_instrumented_by_opentelemetry:
            instrumentor.uninstrument()


# -- the program cannot tell -----------------------------------------------------------------------------------------


def test_a_call_gives_the_very_object_and_one_span(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"))
    value = object()
    assert library.Client().ask(value) is value
    span = telemetry.only()
    assert (span.name, span.kind) == ("chat Client.ask", SpanKind.CLIENT)
    assert span.attributes == {"request": "Client.ask", "result": repr(value)}
    assert span.status.status_code is StatusCode.UNSET
    assert span.instrumentation_scope.name == "tests"


def test_an_exception_is_the_very_object_with_its_traceback_and_is_on_the_span(
    telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrument(telemetry, point("Client.ask"))
    error = Refused()
    with pytest.raises(Refused) as caught:
        library.Client().ask(error)
    assert caught.value is error
    assert caught.traceback[-1].name == "ask"
    assert error.__context__ is None
    assert error.__cause__ is None
    span = telemetry.only()
    assert span.attributes == {
        "request": "Client.ask",
        ERROR_TYPE: f"{__name__}.Refused",
        HTTP_STATUS: 429,
    }
    # What a client says of an error may repeat the prompt, or a key.
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, None)


def test_an_errors_text_is_on_the_span_only_where_content_is_asked_for(
    telemetry: Any, library: Any, instrument: Instrument, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_only")
    instrument(telemetry, point("Client.ask"))
    with pytest.raises(Refused):
        library.Client().ask(Refused())
    assert telemetry.only().status.description == "too many requests"


@pytest.mark.parametrize(
    ("code", "told"), [("rate_limit_exceeded", "rate_limit_exceeded"), ("Invalid: my prompt", None), (7, None)]
)
def test_a_providers_code_is_no_content(
    telemetry: Any, library: Any, instrument: Instrument, code: Any, told: str | None
) -> None:
    instrument(telemetry, point("Client.ask"))
    error = Refused()
    error.code = code  # type: ignore[attr-defined]
    with pytest.raises(Refused):
        library.Client().ask(error)
    assert telemetry.only().status.description == told


def test_the_text_of_errors_of_our_own_hardware_is_told(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, dataclasses.replace(point("Client.ask"), layer="execution"))
    with pytest.raises(Refused):
        library.Client().ask(Refused())
    assert telemetry.only().status.description == "too many requests"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_forks_child_does_not_end_its_parents_call(telemetry: Any, library: Any, instrument: Instrument) -> None:
    open_calls: list[Call] = []

    def keep(call: Call, result: Any) -> Any:
        open_calls.append(call)
        return result

    instrument(telemetry, dataclasses.replace(point("Client.ask"), outlives=keep))
    library.Client().ask("a stream")
    child = os.fork()
    if child == 0:
        open_calls[0].end()
        os._exit(len(telemetry.spans()))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    open_calls[0].end()
    assert telemetry.only().name == "chat Client.ask"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(3), ValueError("x")])
def test_what_is_no_exception_passes_too(
    telemetry: Any, library: Any, instrument: Instrument, error: BaseException
) -> None:
    instrument(telemetry, point("Client.ask"))
    with pytest.raises(type(error)) as caught:
        library.Client().ask(error)
    assert caught.value is error
    assert telemetry.attributes()[ERROR_TYPE] == type(error).__name__


def test_an_exception_that_cannot_be_printed_is_the_users_still(
    faulty_telemetry: Any, library: Any, instrument: Instrument
) -> None:
    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    instrument(faulty_telemetry, point("Client.ask"))
    error = Unprintable()
    with pytest.raises(Unprintable) as caught:
        library.Client().ask(error)
    assert caught.value is error
    assert faulty_telemetry.attributes()[ERROR_TYPE].endswith("Unprintable")


@pytest.mark.parametrize("method", ["ask", "ask_async", "ask_decorated"])
def test_to_introspection_a_wrapped_method_is_the_original(
    telemetry: Any, library: Any, instrument: Instrument, method: str
) -> None:
    original = getattr(library.Client, method)
    instrument(telemetry, point(f"Client.{method}", asynchronous=method != "ask"))
    wrapped = getattr(library.Client, method)
    assert wrapped is not original
    assert inspect.iscoroutinefunction(wrapped) == inspect.iscoroutinefunction(original)
    assert inspect.signature(wrapped) == inspect.signature(original)
    assert (wrapped.__name__, wrapped.__qualname__, wrapped.__doc__) == (
        original.__name__,
        original.__qualname__,
        original.__doc__,
    )


@pytest.mark.parametrize("method", ["ask_async", "ask_decorated"])
async def test_the_table_says_what_is_asynchronous(
    telemetry: Any, library: Any, instrument: Instrument, method: str
) -> None:
    instrument(telemetry, point(f"Client.{method}", asynchronous=True))
    value = object()
    coroutine = getattr(library.Client(), method)(value)
    assert inspect.iscoroutine(coroutine)
    assert telemetry.spans() == []
    assert await coroutine is value
    assert telemetry.attributes()["result"] == repr(value)


def test_uninstrument_puts_back_the_very_objects(telemetry: Any, library: Any, instrument: Instrument) -> None:
    names = ["Client.ask", "Client.ask_async", "Client.inherited", "function"]
    before = {**vars(library.Client)}, {**vars(library)}
    instrumentor = instrument(telemetry, *(point(name, asynchronous="async" in name) for name in names))
    assert "inherited" in vars(library.Client)
    kept = library.Client().ask
    instrumentor.uninstrument()
    assert {**vars(library.Client)} == before[0]
    assert "inherited" not in vars(library.Client)
    assert library.function is before[1]["function"]
    assert all(vars(library.Client)[name] is thing for name, thing in before[0].items())
    assert kept("still works") == "still works"
    assert telemetry.spans() == []


def test_a_wrapper_of_somebody_elses_on_top_stays_and_ours_falls_silent(
    telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrumentor = instrument(telemetry, point("Client.ask"))
    ours = library.Client.ask

    def theirs(self: Any, *args: Any, **kwargs: Any) -> Any:
        return ours(self, *args, **kwargs)

    library.Client.ask = theirs
    instrumentor.uninstrument()
    assert library.Client.ask is theirs
    assert library.Client().ask(1) == 1
    assert telemetry.spans() == []


def test_instrumenting_again_works(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrumentor = instrument(telemetry, point("Client.ask"))
    instrumentor.uninstrument()
    instrumentor.instrument(tracer_provider=telemetry.provider)
    library.Client().ask(1)
    assert len(telemetry.spans()) == 1


# -- when libraries come and what they lack --------------------------------------------------------------------------


def test_a_library_is_imported_by_the_program_and_not_by_us(
    telemetry: Any, library: Any, instrument: Instrument, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("library_that_comes", "library_that_stays_away"):
        (tmp_path / f"{name}.py").write_text("def function(value):\n    return value\n")
    points = [
        point("function", target=f"{name}:function") for name in ("library_that_comes", "library_that_stays_away")
    ]
    instrumentor = instrument(telemetry, *points)
    assert "library_that_comes" not in sys.modules
    import library_that_comes  # type: ignore[import-not-found]

    assert library_that_comes.function(1) == 1
    assert len(telemetry.spans()) == 1
    instrumentor.uninstrument()
    import library_that_stays_away  # type: ignore[import-not-found]

    assert not hasattr(library_that_stays_away.function, "__wrapped__")
    assert not hasattr(library_that_comes.function, "__wrapped__")


def test_a_wrap_point_that_this_version_lacks_is_left_out(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.gone"), point("Gone.ask"), point("Client.ask"))
    assert not hasattr(library.Client, "gone")
    library.Client().ask(1)
    assert len(telemetry.spans()) == 1


def test_a_version_that_is_not_supported_is_left_alone_with_a_word(
    telemetry: Any, library: Any, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    original = library.Client.ask
    # As the launcher calls it, which skips the check of its own that BaseInstrumentor would make.
    kind = type("Instrumentor", (Instrumentor,), {"points": (point("Client.ask"),), "requires": ("pytest >= 999",)})
    instrumentor: Any = kind()
    instrumentor.instrument(tracer_provider=telemetry.provider, skip_dep_check=True)
    assert library.Client.ask is original
    assert "pytest >= 999" in caplog.text
    instrumentor.uninstrument()


# -- context ---------------------------------------------------------------------------------------------------------


def test_the_span_is_current_during_the_call_and_the_context_is_back_after(
    telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrument(telemetry, point("Client.ask"))
    tracer = telemetry.provider.get_tracer("user")
    before = context.get_current()
    library.Client().ask(1, hook=lambda: tracer.start_span("inside").end())
    assert context.get_current() is before
    inside, call = telemetry.spans()
    assert inside.parent.span_id == call.context.span_id


def test_a_context_that_the_library_left_attached_goes_with_the_call(
    telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrument(telemetry, point("Client.ask"))
    before = context.get_current()
    library.Client().ask(1, hook=lambda: context.attach(context.set_value("left", "behind")))
    assert context.get_current() is before


def test_tags_are_on_the_span_with_no_processor_of_ours(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"))
    with tag(tenant="acme"):
        library.Client().ask(1)
    assert telemetry.attributes()[TENANT] == "acme"


def test_a_call_within_a_call_of_its_layer_is_part_of_it(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"), point("Client.ask_twice"))
    library.Client().ask_twice(1)
    assert telemetry.only().name == "chat Client.ask_twice"
    library.Client().ask(1)
    assert len(telemetry.spans()) == 2


def test_a_call_within_a_call_of_another_layer_has_its_span(
    telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrument(telemetry, point("Client.ask"), point("Client.ask_twice", layer="feast"))
    library.Client().ask_twice(1)
    first, second, outer = telemetry.spans()
    assert first.parent.span_id == second.parent.span_id == outer.context.span_id


def test_what_was_started_inside_a_call_and_outlives_it_is_on_its_own(
    telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrument(telemetry, point("Client.ask"))
    inherited: list[context.Context] = []
    library.Client().ask("first", hook=lambda: inherited.append(context.get_current()))
    token = context.attach(inherited[0])
    library.Client().ask("later")
    context.detach(token)
    assert [span.attributes["result"] for span in telemetry.spans()] == ["'first'", "'later'"]


def test_the_open_call_can_be_found_inside_and_only_there(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"))
    found: list[Call | None] = []
    library.Client().ask(1, hook=lambda: found.append(open_call()))
    assert found[0] is not None
    assert found[0].ended
    assert open_call() is None


def test_suppression_is_respected(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"))
    with suppress_instrumentation():
        assert library.Client().ask(1) == 1
    assert telemetry.spans() == []


# -- when nobody looks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("provider", [TracerProvider(sampler=ALWAYS_OFF), NoOpTracerProvider()])
async def test_for_a_span_that_nobody_will_see_nothing_is_read(
    library: Any, instrument: Instrument, provider: Any
) -> None:
    def not_to_be_called(*_: Any) -> Any:
        raise AssertionError("read for nobody")

    readers = {"response": not_to_be_called, "outlives": not_to_be_called, "finish": not_to_be_called}
    counted = faults()
    instrument(provider, point("Client.ask", **readers), point("Client.ask_async", asynchronous=True, **readers))
    client = library.Client()
    current: list[trace.Span] = []
    value = object()
    assert client.ask(value, hook=lambda: current.append(trace.get_current_span())) is value
    assert await client.ask_async(value) is value
    error = ValueError()
    with pytest.raises(ValueError) as caught:
        client.ask(error)
    assert caught.value is error
    assert not current[0].is_recording()
    assert faults() == counted


def test_without_an_sdk_calls_pass(library: Any, instrument: Instrument) -> None:
    instrument(None, point("Client.ask"))
    assert library.Client().ask(1) == 1


# -- faults of ours --------------------------------------------------------------------------------------------------


def broken(*_: Any) -> Any:
    raise RuntimeError("a fault of ours")


@pytest.mark.parametrize("hook", ["request", "response", "finish", "outlives"])
@pytest.mark.parametrize("result", ["fine", Refused()])
def test_a_fault_in_any_hook_never_reaches_the_user_and_is_counted(
    faulty_telemetry: Any, library: Any, instrument: Instrument, hook: str, result: Any
) -> None:
    counted = sum(faults().values())
    instrument(faulty_telemetry, point("Client.ask", **{hook: broken}))
    before = context.get_current()
    outcomes: list[Any] = []
    try:
        outcomes.append(library.Client().ask(result))
    except Refused as error:
        outcomes.append(error)
    assert outcomes[0] is result
    assert context.get_current() is before
    reached = hook in ("request", "finish") or result == "fine"
    assert sum(faults().values()) - counted == int(reached)
    assert len(faulty_telemetry.spans()) == (0 if hook == "request" else 1)


async def test_a_fault_never_reaches_an_asynchronous_caller(
    faulty_telemetry: Any, library: Any, instrument: Instrument
) -> None:
    instrument(faulty_telemetry, point("Client.ask_async", asynchronous=True, response=broken, finish=broken))
    value = object()
    assert await library.Client().ask_async(value) is value
    assert len(faulty_telemetry.spans()) == 1


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
def test_a_span_processor_that_raises_does_not_reach_the_user_through_us(
    faulty_telemetry: Any, library: Any, instrument: Instrument, moment: str
) -> None:
    processor = SpanProcessor()
    setattr(processor, moment, lambda *_, **__: broken())
    faulty_telemetry.provider.add_span_processor(processor)
    instrument(faulty_telemetry, point("Client.ask"))
    before = context.get_current()
    assert library.Client().ask(1) == 1
    assert context.get_current() is before


def test_a_guard_swallows_exceptions_only_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    site = guard("tests.site")
    counted = faults().get("tests.site", 0)
    with caplog.at_level(logging.DEBUG, "tollspan.instrumentation"):
        for _ in range(3):
            with site:
                raise RuntimeError("ours")
    levels = [record.levelno for record in caplog.records]
    assert levels == [logging.WARNING, logging.DEBUG, logging.DEBUG]
    assert caplog.records[0].exc_info is not None
    assert faults()["tests.site"] == counted + 3
    for error in (KeyboardInterrupt, SystemExit, asyncio.CancelledError, GeneratorExit):
        with pytest.raises(error), site:
            raise error


def test_a_logging_handler_that_raises_is_no_way_out_either() -> None:
    class Raising(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise OSError("disk full")

    handler = Raising()
    logger = logging.getLogger("tollspan.instrumentation")
    logger.addHandler(handler)
    try:
        with guard("tests.raising_handler"):
            raise RuntimeError("ours")
    finally:
        logger.removeHandler(handler)
    assert faults()["tests.raising_handler"] >= 1


# -- many at once, and cut off ---------------------------------------------------------------------------------------


def test_calls_from_many_threads_keep_apart(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"))
    meet = threading.Barrier(4)
    client = library.Client()

    def work(number: int) -> None:
        with tag(tenant=f"t{number}"):
            for _ in range(5):
                client.ask(number, hook=lambda: meet.wait(10))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    spans = telemetry.spans()
    assert len(spans) == 20
    assert all(span.parent is None and span.attributes[TENANT] == f"t{span.attributes['result']}" for span in spans)


async def test_calls_from_many_tasks_keep_apart(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask_async", asynchronous=True))
    go = asyncio.Event()
    client = library.Client()

    async def work(number: int) -> Any:
        with tag(tenant=f"t{number}"):
            return await client.ask_async(number, wait=go)

    tasks = [asyncio.create_task(work(number)) for number in range(8)]
    await asyncio.sleep(0)
    go.set()
    assert await asyncio.gather(*tasks) == list(range(8))
    spans = telemetry.spans()
    assert len(spans) == 8
    assert all(span.parent is None and span.attributes[TENANT] == f"t{span.attributes['result']}" for span in spans)


async def test_a_cancelled_task_ends_its_span(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask_async", asynchronous=True))
    task = asyncio.create_task(library.Client().ask_async(1, wait=asyncio.Event()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    span = telemetry.only()
    assert span.attributes[ERROR_TYPE] == "asyncio.exceptions.CancelledError"
    assert span.status.status_code is StatusCode.ERROR


def test_a_coroutine_thrown_away_half_way_ends_its_span_and_disturbs_nobody(
    telemetry: Any, library: Any, instrument: Instrument, caplog: pytest.LogCaptureFixture
) -> None:
    instrument(telemetry, point("Client.ask_async", asynchronous=True))

    class Never:
        async def wait(self) -> None:
            await asyncio.get_running_loop().create_future()

    async def begin() -> Any:
        coroutine = library.Client().ask_async(1, wait=Never())
        coroutine.send(None)
        return coroutine

    coroutine = asyncio.run(begin())  # begun in the context of a task that is no more
    with tag(tenant="somebody else"):
        current = context.get_current()
        coroutine.close()
        assert context.get_current() is current
    assert telemetry.only().attributes[ERROR_TYPE] == "GeneratorExit"
    assert "detach" not in caplog.text


def test_calls_leave_nothing_for_the_garbage_collector(telemetry: Any, library: Any, instrument: Instrument) -> None:
    instrument(telemetry, point("Client.ask"))
    client = library.Client()

    def calls() -> int:
        return sum(type(thing) is Call for thing in gc.get_objects())

    client.ask(1)
    gc.collect()
    gc.disable()
    try:
        before = calls()
        for _ in range(20):
            client.ask(1)
        assert calls() == before
    finally:
        gc.enable()


def test_importing_us_imports_no_library_and_opens_no_connection(tmp_path: Path) -> None:
    import subprocess

    program = """
    import socket, sys
    def refuse(*_, **__):
        raise AssertionError("a connection at import")
    socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
    from tollspan.instrumentation import tag
    from tollspan.instrumentation.openai import OpenAIInstrumentor
    from opentelemetry.sdk.trace import TracerProvider
    OpenAIInstrumentor().instrument(tracer_provider=TracerProvider())
    heavy = {"openai", "torch", "onnxruntime", "feast", "numpy", "pyarrow", "httpx2", "grpc"} & set(sys.modules)
    assert not heavy, heavy
    """
    script = tmp_path / "program.py"
    script.write_text(textwrap.dedent(program))
    subprocess.run([sys.executable, str(script)], check=True, timeout=60)

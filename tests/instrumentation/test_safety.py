"""What holds for every instrumented client alike: the program cannot tell that we are there.

Walks every instrumentor of this distribution and every row of its table, with everything on that can be switched on.
The library's own functions are looked at, and stand-ins for them are called: they return and raise what no library
would, so that every reader meets what it does not expect.
"""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import importlib
import inspect
import pickle
import pkgutil
import sys
import weakref
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
from opentelemetry import context, trace
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import NoOpTracerProvider

import tollspan.instrumentation
from tollspan.instrumentation import extras, faults, launch
from tollspan.instrumentation.calls import CallInstrumentor, Opening, WrapPoint, wrap
from tollspan.instrumentation.content import Transcript
from tollspan.instrumentation.launch import OnImport
from tollspan.instrumentation.wrapping import Patches

GROUP = "opentelemetry_instrumentor"


def gen_ai(kind: type[CallInstrumentor]) -> bool:
    return any(point.layer == "gen_ai" for point in getattr(kind, "points", ()))


def instrumentors() -> list[type[CallInstrumentor]]:
    """Every instrumentor that is a table of calls of an LLM client."""
    found = {}
    for module in pkgutil.iter_modules(tollspan.instrumentation.__path__, "tollspan.instrumentation."):
        try:
            members = vars(importlib.import_module(module.name))
        except ImportError:
            continue  # one whose library is not installed and that needs it at once
        for value in members.values():
            if isinstance(value, type) and issubclass(value, CallInstrumentor) and gen_ai(value):
                found[value.scope] = value
    return [found[scope] for scope in sorted(found)]


INSTRUMENTORS = instrumentors()
POINTS = {
    f"{kind.scope.rpartition('.')[2]}|{point.target}": (kind, point) for kind in INSTRUMENTORS for point in kind.points
}
every_point = pytest.mark.parametrize("key", POINTS)
SHAPES = {
    (
        kind.scope,
        point.asynchronous,
        *(
            getattr(reader, "__qualname__", type(reader))
            for reader in (point.request, point.response, point.outlives, point.finish, point.prepare, point.error)
        ),
    ): key
    for key, (kind, point) in POINTS.items()
}
"""Functions that are read by the same readers differ in nothing that is tried here: one of each."""
every_shape = pytest.mark.parametrize("key", SHAPES.values())
every_instrumentor = pytest.mark.parametrize("kind", INSTRUMENTORS, ids=lambda kind: kind.scope.rpartition(".")[2])


def found(target: str) -> tuple[Any, str, Any]:
    """Owner of a target, its name there, and what stands in the owner's own namespace."""
    module, _, path = target.partition(":")
    owner: Any = pytest.importorskip(module, exc_type=ImportError)
    *outer, name = path.split(".")
    for part in outer:
        owner = getattr(owner, part, None)
    if not hasattr(owner, name):
        pytest.skip(f"{target} is not in the installed version")
    return owner, name, vars(owner).get(name)


@pytest.fixture
def everything_on(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """All that can be switched on is on. Options for ``instrument``."""
    monkeypatch.setenv("TOLLSPAN_CLIENT_COST", "true")
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret")
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "span_and_event")
    return {"meter_provider": MeterProvider([InMemoryMetricReader()])}


class Hostile:
    """A value that no reader can make anything of."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} of a hostile value")

    def __bool__(self) -> bool:
        raise RuntimeError("truth of a hostile value")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("equality with a hostile value")

    __hash__ = object.__hash__


class Ours(RuntimeError):
    """A fault of ours."""


def broken(*_: Any, **__: Any) -> Any:
    raise Ours


def opened(*_: Any) -> Opening:
    return Opening("call", {"a": 1})


# -- the tables --------------------------------------------------------------------------------------------------------


def test_the_walk_finds_every_instrumentor_that_is_registered() -> None:
    registered = {
        entry.load()
        for entry in entry_points(group=GROUP)
        if entry.name.startswith("tollspan_") and entry.value.startswith("tollspan.instrumentation.")
    }
    stands = {kind for kind in registered if issubclass(kind, OnImport)}
    assert stands == {value for value in vars(launch).values() if getattr(value, "real", "")}
    real = {
        getattr(importlib.import_module(module), name) for module, _, name in (s.real.partition(":") for s in stands)
    }
    assert {kind for kind in real if gen_ai(kind)} == set(INSTRUMENTORS)


@every_instrumentor
def test_a_table_has_each_function_once_and_at_least_one(kind: type[CallInstrumentor]) -> None:
    targets = [point.target for point in kind.points]
    assert targets
    assert len(targets) == len(set(targets))


@every_instrumentor
def test_instrumenting_imports_nothing_and_uninstrumenting_restores_the_identical_objects(
    kind: type[CallInstrumentor], everything_on: dict[str, Any]
) -> None:
    before = {}
    for point in kind.points:
        try:
            owner, name, stood = found(point.target)
        except pytest.skip.Exception:
            continue
        before[point.target] = (owner, name, stood)
    instrumentor = kind()
    instrumentor.instrument(tracer_provider=TracerProvider(), **everything_on)
    try:
        placed = list(instrumentor._patches._placed) if instrumentor._patches else []
        for owner, name, _, wrapper in placed:
            assert vars(owner)[name] is wrapper
    finally:
        instrumentor.uninstrument()
    for target, (owner, name, stood) in before.items():
        assert vars(owner).get(name) is stood, target
    first: dict[Any, Any] = {}
    for owner, name, stood, wrapper in placed:
        assert vars(owner).get(name) is not wrapper
        first.setdefault((owner, name), stood)
    for (owner, name), stood in first.items():
        assert vars(owner).get(name) is stood or name not in vars(owner)


@every_point
def test_a_wrapper_looks_like_the_original(key: str, everything_on: dict[str, Any]) -> None:
    _, point = POINTS[key]
    owner, name, _ = found(point.target)
    original = getattr(owner, name)
    wrapper = wrap(point, TracerProvider().get_tracer("t"), Patches(), original)
    for attribute in ("__name__", "__qualname__", "__module__", "__doc__"):
        assert getattr(wrapper, attribute, None) == getattr(original, attribute, None)
    assert inspect.signature(wrapper) == inspect.signature(original)
    for looks in (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction):
        assert looks(wrapper) == looks(original)
    if inspect.isfunction(original):
        assert repr(wrapper).partition(" at ")[0] == repr(original).partition(" at ")[0]


@every_instrumentor
def test_what_could_be_pickled_still_can(kind: type[CallInstrumentor], everything_on: dict[str, Any]) -> None:
    pickled = []
    for point in kind.points:
        try:
            owner, name, _ = found(point.target)
            pickle.dumps(getattr(owner, name))
        except (pytest.skip.Exception, Exception):
            continue
        pickled.append((owner, name))
    instrumentor = kind()
    instrumentor.instrument(tracer_provider=TracerProvider(), **everything_on)
    try:
        for owner, name in pickled:
            function = getattr(owner, name)
            assert pickle.loads(pickle.dumps(function)) == function
    finally:
        instrumentor.uninstrument()


# -- calls -------------------------------------------------------------------------------------------------------------


def stand_in(point: WrapPoint) -> Callable[..., Any]:
    """A function that returns what it is given, or raises it."""

    def function(self: Any, outcome: Any = None, **kwargs: Any) -> Any:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    async def coroutine(self: Any, outcome: Any = None, **kwargs: Any) -> Any:
        await asyncio.sleep(0)
        return function(self, outcome)

    return coroutine if point.asynchronous else function


_applied: list[Patches] = []


@pytest.fixture(autouse=True)
def taken_off() -> Iterator[None]:
    """What `wrapped` patched of the libraries is put back."""
    yield
    while _applied:
        _applied.pop().remove()


def wrapped(
    kind: type[CallInstrumentor], point: WrapPoint, provider: trace.TracerProvider, options: dict[str, Any]
) -> Callable[..., Any]:
    """A stand-in for the point's function, wrapped with all there is."""
    patches = Patches()
    patches.active = True
    (point,) = extras.extended([point], kind.scope, None, patches, options)
    _applied.append(patches)
    return wrap(point, provider.get_tracer("t"), patches, stand_in(point))


def outcome_of(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """What a call returns or raises; checks that it leaves the context as it was."""
    before = context.get_current()
    try:
        result = function(*args, **kwargs)
        if inspect.iscoroutine(result):
            result = driven(result)
    except BaseException as error:
        result = error
    assert context.get_current() is before
    return result


def driven(coroutine: Any) -> Any:
    """Result of a coroutine that waits for nothing: a loop for each would be most of the time that this takes."""
    while True:
        try:
            coroutine.send(None)
        except StopIteration as stopped:
            return stopped.value


ARGUMENTS: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
    ((object(),), {}),
    ((Hostile(),), {"model": Hostile(), "messages": Hostile(), "stream": Hostile()}),
    ((None,), {"model": 7, "messages": 7, "input": {}, "stream": True, "config": Hostile(), "api_params": None}),
]
OUTCOMES: list[Any] = [
    None,
    Hostile(),
    {"usage": "none", "choices": 7},
    {"usage": {"prompt_tokens": -1, "input_tokens": "many"}, "model": 7, "id": []},
    object(),
    ValueError("refused"),
    KeyboardInterrupt(),
    asyncio.CancelledError(),
]


@every_shape
@pytest.mark.parametrize("provider", ["sampled", "not sampled", "no SDK"])
def test_whatever_goes_in_and_out_the_program_gets_it(
    key: str, provider: str, everything_on: dict[str, Any], faulty_telemetry: Any
) -> None:
    kind, point = POINTS[key]
    chosen: Any = {
        "sampled": faulty_telemetry.provider,
        "not sampled": TracerProvider(sampler=ALWAYS_OFF),
        "no SDK": NoOpTracerProvider(),
    }[provider]
    function = wrapped(kind, point, chosen, everything_on if provider == "sampled" else {})
    for args, kwargs in ARGUMENTS:
        for outcome in OUTCOMES:
            got = outcome_of(function, *args, outcome, **kwargs)
            assert got is outcome, (args, kwargs, type(outcome), got)


@every_shape
@pytest.mark.parametrize("hook", ["request", "prepare", "response", "error", "outlives", "finish", "content", "began"])
def test_a_fault_in_any_reader_never_reaches_the_program_and_is_counted(
    key: str, hook: str, everything_on: dict[str, Any], faulty_telemetry: Any
) -> None:
    kind, point = POINTS[key]
    readers: dict[str, Any] = {"request": opened, "response": None, "outlives": None, "finish": None, "prepare": None}
    point = dataclasses.replace(
        point, **{**readers, "asked": None, "error": None, "content": lambda *_: Transcript((), {}), hook: broken}
    )
    if hook == "began":
        patches = Patches()
        patches.active = True
        function = wrap(point, faulty_telemetry.provider.get_tracer("t"), patches, stand_in(point))
    else:
        function = wrapped(kind, point, faulty_telemetry.provider, everything_on)
    counted = sum(faults().values())
    fine, error = object(), ValueError("refused")
    assert outcome_of(function, object(), fine) is fine
    assert outcome_of(function, object(), error) is error
    reached = {"response": 1, "outlives": 1, "error": 1, "content": 2 * (point.layer == "gen_ai")}.get(hook, 2)
    assert sum(faults().values()) - counted == reached
    assert len(faulty_telemetry.spans()) == (0 if hook == "request" else 2)


@every_shape
def test_a_suppressed_call_and_one_of_a_removed_wrapper_pass(
    key: str, everything_on: dict[str, Any], telemetry: Any
) -> None:
    kind, point = POINTS[key]
    point = dataclasses.replace(point, request=opened)
    value = object()
    with suppress_instrumentation():
        assert outcome_of(wrapped(kind, point, telemetry.provider, everything_on), object(), value) is value
    gone = wrap(point, telemetry.provider.get_tracer("t"), Patches(), stand_in(point))
    assert outcome_of(gone, object(), value) is value
    assert telemetry.spans() == []


@every_shape
def test_a_call_keeps_nothing_alive(key: str, everything_on: dict[str, Any], faulty_telemetry: Any) -> None:
    class Thing:
        pass

    kind, point = POINTS[key]
    function = wrapped(kind, point, faulty_telemetry.provider, everything_on)
    gc.disable()  # told by the last reference, not by the collector
    try:
        thing, result = Thing(), Thing()
        alive = [weakref.ref(thing), weakref.ref(result)]
        assert outcome_of(function, thing, result) is result
        del thing, result
        assert [reference() for reference in alive] == [None, None]
    finally:
        gc.enable()


# -- ten thousand streams ----------------------------------------------------------------------------------------------


class Chunks:
    """A stream that is no object of the client's."""

    def __init__(self, chunks: list[Any]) -> None:
        self._chunks = iter(chunks)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        return next(self._chunks)


@pytest.mark.parametrize("reading", ["whole", "left", "never read"])
def test_memory_stays_flat_over_ten_thousand_streams(everything_on: dict[str, Any], wire: Any, reading: str) -> None:
    kind, point = POINTS["openai|openai.resources.chat.completions.completions:Completions.create"]
    client = wire.client()
    provider = TracerProvider()
    function = wrapped(kind, point, provider, everything_on)
    chunks = wire.completion_chunks()
    ask: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}], "stream": True}

    def streams(count: int) -> None:
        for _ in range(count):
            stream = function(client.chat.completions, Chunks(chunks), **ask)
            if reading == "whole":
                for _ in stream:
                    pass
            elif reading == "left":
                next(stream)

    streams(500)  # whatever is remembered once
    gc.collect()
    before = sys.getallocatedblocks()
    streams(10_000)
    gc.collect()
    grown = sys.getallocatedblocks() - before
    assert grown < 1_000, f"{grown} blocks of memory more"

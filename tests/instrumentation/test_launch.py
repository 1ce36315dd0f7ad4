"""What the launcher loads: nothing of a client's instrumentation before the program imports the client."""

from __future__ import annotations

import importlib.machinery
import itertools
import subprocess
import sys
import textwrap
import types
from collections.abc import Iterator
from importlib import import_module
from typing import Any

import pytest
import wrapt
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor  # type: ignore[attr-defined]

from tollspan.instrumentation import faults, launch
from tollspan.instrumentation.calls import CallInstrumentor
from tollspan.instrumentation.launch import OnImport

ALL = [value for value in vars(launch).values() if isinstance(value, type) and getattr(value, "real", "")]


_numbers = itertools.count()


class Real:
    """An instrumentor that notes what is done to it."""

    seen: list[Any] = []  # noqa: RUF012 (cleared for every test)

    def instrument(self, **options: Any) -> None:
        self.seen.append(options)

    def uninstrument(self, **_: Any) -> None:
        self.seen.append("off")


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a library that nobody has imported, and its instrumentor's module."""
    Real.seen.clear()
    module = types.ModuleType("the_instrumentation")
    module.Real = Real  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "the_instrumentation", module)
    name = f"a_client_{next(_numbers)}"
    yield name
    sys.modules.pop(name, None)


def standing_for(library: str, real: str = "the_instrumentation:Real") -> Any:
    return type("Stand", (OnImport,), {"real": real, "libraries": (library,)})()


def imported(name: str) -> None:
    module = types.ModuleType(name)
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    sys.modules[name] = module
    wrapt.notify_module_loaded(module)


def test_it_comes_with_the_library_and_goes_with_the_switch(library: str) -> None:
    stand = standing_for(library)
    stand.instrument(tracer_provider="mine")
    assert Real.seen == []
    imported(library)
    imported(library)
    assert [each["tracer_provider"] for each in Real.seen] == ["mine"]
    stand.uninstrument()
    assert Real.seen[1:] == ["off"]


def test_a_library_that_is_there_already_is_instrumented_at_once(library: str) -> None:
    imported(library)
    stand = standing_for(library)
    stand.instrument()
    assert len(Real.seen) == 1
    stand.uninstrument()


def test_switched_off_before_the_library_came_nothing_comes(library: str) -> None:
    stand = standing_for(library)
    stand.instrument()
    stand.uninstrument()
    imported(library)
    assert Real.seen == []


def test_a_fault_of_ours_does_not_fail_the_programs_import(library: str) -> None:
    counted = faults().get("launch.load", 0)
    stand = standing_for(library, "no_such_module_of_ours:Real")
    stand.instrument()
    imported(library)
    assert faults()["launch.load"] == counted + 1
    stand.uninstrument()


def test_a_program_that_imports_a_client_is_instrumented_and_one_that_does_not_loads_nothing() -> None:
    program = """
    import sys
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
    from tollspan.instrumentation import launch
    provider, exporter = TracerProvider(), InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    for stand in [each for each in vars(launch).values() if getattr(each, "real", "")]:
        stand().instrument(tracer_provider=provider)
    heavy = ("tollspan.pricing.m", "tollspan.instrumentation.openai")
    loaded = [name for name in sys.modules if name.startswith(heavy)]
    assert not loaded, loaded
    import openai
    from openai.resources.chat.completions import Completions
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [],
            "usage": {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}}
    http = vars(openai._base_client).get("httpx2") or openai._base_client.httpx
    transport = http.MockTransport(lambda request: http.Response(200, json=body))
    client = openai.OpenAI(api_key="none", http_client=http.Client(transport=transport))
    client.chat.completions.create(model="m", messages=[])
    (span,) = exporter.get_finished_spans()
    assert span.attributes["gen_ai.usage.input_tokens"] == 7
    original = Completions.create.__wrapped__
    launch.OpenAIInstrumentor().uninstrument()
    assert Completions.create is original
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)


@pytest.mark.parametrize("stand", ALL, ids=lambda stand: stand.__name__)
def test_every_one_stands_for_an_instrumentor_that_is_there(stand: type[OnImport]) -> None:
    module, _, name = stand.real.partition(":")
    real = getattr(import_module(module), name)
    assert issubclass(real, BaseInstrumentor)
    assert getattr(launch, name) is stand
    points = real.points if issubclass(real, CallInstrumentor) else ()  # what holds devices wraps no calls
    roots = {point.target.partition(".")[0].partition(":")[0] for point in points}
    if roots:  # of functions that are patched in ways of their own nothing stands in a table
        assert {library.partition(".")[0] for library in stand.libraries} <= roots


@pytest.mark.parametrize("stand", ALL, ids=lambda stand: stand.__name__)
def test_the_import_of_the_library_really_brings_it(stand: type[OnImport], monkeypatch: pytest.MonkeyPatch) -> None:
    """The hooks are at modules that the library has."""
    found = []
    for library in stand.libraries:
        try:
            found.append(import_module(library))
        except ImportError:
            continue
    if not found:
        pytest.skip("not installed")
    module, _, name = stand.real.partition(":")
    monkeypatch.setattr(import_module(module), name, Real)
    Real.seen.clear()
    one = stand()
    one.instrument()
    try:
        assert len(Real.seen) == 1
    finally:
        one.uninstrument()

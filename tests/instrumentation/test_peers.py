"""Another vendor's instrumentation beside ours, with both exporting to the same place: one call is billed once, by what
our span says, whichever wrapped first. And what the switch does."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import importlib.machinery
import logging
import sys
import time
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import wrapt
from opentelemetry import context
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import calls, faults, peers, tag
from tollspan.instrumentation.calls import WrapPoint, wrap
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import PriceEngine, shipped_book
from tollspan.pricing import attributes as names
from tollspan.processor.assemble import Assembler
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.identity import span_keys, trace_keys, words
from tollspan.processor.normalize import normalize

MODULES = ("opentelemetry.instrumentation.openai", "openinference.instrumentation.openai")
OURS = "tollspan.instrumentation.openai"
ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}
RESOURCES = (
    *("chat.completions.completions", "completions", "embeddings", "images", "responses.responses"),
    *("beta.assistants", "beta.threads.messages", "beta.threads.runs.runs"),
)
STREAM: Any = {**ASK, "stream": True, "stream_options": {"include_usage": True}}


def ledger(telemetry: Any) -> list[dict[str, Any]]:
    """Ledger rows that cost something, of all spans of a test together: roll-ups are told by their structure."""
    spans = telemetry.spans()
    table = normalize(decode([encode_spans(spans).SerializeToString()]), received_ns=time.time_ns())
    columns = table.table
    traces = trace_keys(words(columns["trace_id"], 2))
    parent = words(columns["parent_span_id"], 1)[:, 0]
    rollups, _ = Assembler().mark(
        span_keys(traces, words(columns["span_id"], 1)[:, 0]),
        span_keys(traces, parent),
        parent == 0,
        np.asarray(columns["token_bearing"]),
        embeddings=np.asarray(pc.fill_null(pc.equal(columns["operation"].cast(pa.string()), "embeddings"), False)),
    )
    rows: list[dict[str, Any]] = charge(table, rollups, PriceEngine(shipped_book())).ledger.to_pylist()
    # Encoding sorts spans by scope, so a row's span is found by its id.
    scopes = {span.context.span_id: span.instrumentation_scope.name for span in spans}
    for row in rows:
        row["scope"] = scopes[int.from_bytes(row["span_id"], "big")]
    return [row for row in rows if row["cost_status"] != "rollup"]


def billed_once_on_ours(telemetry: Any, tier: str) -> None:
    rows = ledger(telemetry)
    assert [(row["scope"], row["service_tier"], row["cost_status"]) for row in rows] == [(OURS, tier, "priced")]
    assert len(telemetry.spans()) == 2, "the peer's span is still there"


def client_function(value: Any) -> Any:
    """The client's own function beneath what instrumentations put in its place."""
    chain = [value]
    while hasattr(chain[-1], "__wrapped__"):
        chain.append(chain[-1].__wrapped__)
    for place in reversed(range(len(chain) - 1)):
        file = getattr(getattr(chain[place], "__code__", None), "co_filename", "")
        if isinstance(chain[place], wrapt.FunctionWrapper) or file == calls.__file__:
            return chain[place + 1]
    return value


@pytest.fixture
def pristine() -> Iterator[None]:
    """The client's classes, put back as they were: one peer leaves some of its wrappers behind."""
    modules = [importlib.import_module(f"openai.resources.{name}") for name in RESOURCES]
    owners = [each for module in modules for each in vars(module).values() if isinstance(each, type)]
    owners = [owner for owner in owners if owner.__module__.startswith("openai.resources.")]
    for owner in owners:
        for name, value in list(vars(owner).items()):
            if callable(value) and (beneath := client_function(value)) is not value:  # left by a test before
                setattr(owner, name, beneath)
    before = [(owner, dict(vars(owner))) for owner in owners]
    yield
    for owner, attributes in before:
        for name, value in attributes.items():
            if callable(value) and vars(owner).get(name) is not value:
                setattr(owner, name, value)


@pytest.fixture(params=[(module, first) for module in MODULES for first in ("ours", "theirs")], ids="-".join)
def both(request: pytest.FixtureRequest, pristine: None, telemetry: Any) -> Iterator[Any]:
    """Ours and a peer's on one provider; the one named first is instrumented first."""
    module, first = request.param
    order = [OpenAIInstrumentor(), pytest.importorskip(module).OpenAIInstrumentor()]
    if first == "theirs":
        order.reverse()
    for instrumentor in order:
        instrumentor.instrument(tracer_provider=telemetry.provider)
    yield telemetry
    for instrumentor in reversed(order):
        instrumentor.uninstrument()


def chat(client: Any) -> None:
    client.chat.completions.create(**ASK)


def chat_raw(client: Any) -> None:
    client.chat.completions.with_raw_response.create(**ASK).parse()


def chat_stream(client: Any) -> None:
    list(client.chat.completions.create(**STREAM))


@pytest.mark.parametrize("use", [chat, chat_raw])
def test_a_chat_is_billed_once_on_our_span(both: Any, wire: Any, use: Callable[[Any], None]) -> None:
    before = context.get_current()
    use(wire.json(wire.completion(service_tier="priority")).client())
    assert context.get_current() is before
    billed_once_on_ours(both, "priority")


def test_a_streamed_chat_is_billed_once_on_our_span(both: Any, wire: Any) -> None:
    chat_stream(wire.stream(wire.completion_chunks()).client())
    billed_once_on_ours(both, "flex")


async def test_an_asynchronous_chat_is_billed_once_on_our_span(both: Any, wire: Any) -> None:
    before = context.get_current()
    async with wire.json(wire.completion()).async_client() as client:
        await asyncio.gather(*(client.chat.completions.create(**ASK) for _ in range(3)))
    assert context.get_current() is before
    rows = ledger(both)
    assert [row["scope"] for row in rows] == [OURS] * 3
    assert len({row["trace_id"] for row in rows}) == 3


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_response_is_billed_once_on_our_span(pristine: None, telemetry: Any, wire: Any, first: str) -> None:
    # The other peer makes its span of a response when the answer is there, outside of everything.
    theirs = pytest.importorskip(MODULES[1]).OpenAIInstrumentor()
    order = [OpenAIInstrumentor(), theirs] if first == "ours" else [theirs, OpenAIInstrumentor()]
    for instrumentor in order:
        instrumentor.instrument(tracer_provider=telemetry.provider)
    try:
        wire.json(wire.response()).client().responses.create(model="gpt-5-mini", input="hello")
    finally:
        for instrumentor in reversed(order):
            instrumentor.uninstrument()
    billed_once_on_ours(telemetry, "priority")


def test_retries_keep_to_one_span(both: Any, wire: Any) -> None:
    wire.error(500).json(wire.completion()).client().chat.completions.create(**ASK)
    assert len(both.spans()) == 2
    (row,) = ledger(both)
    assert (row["scope"], row["retries"]) == (OURS, 1)


def test_a_call_that_fails_keeps_its_error_and_its_status(both: Any, wire: Any) -> None:
    with pytest.raises(Exception, match="no: 400"):
        wire.error(400).client().chat.completions.create(**ASK)
    (ours,) = [span for span in both.spans() if span.instrumentation_scope.name == OURS]
    assert ours.status.status_code is StatusCode.ERROR
    assert ours.attributes[names.HTTP_STATUS] == 400


def test_a_call_that_sends_nothing_has_its_span_all_the_same(both: Any, wire: Any) -> None:
    with pytest.raises(TypeError):
        wire.client().chat.completions.create(messages=[])
    (ours,) = [span for span in both.spans() if span.instrumentation_scope.name == OURS]
    assert ours.attributes[names.CALL_SENT] is False


def test_our_span_has_the_times_and_tags_of_its_call(both: Any, wire: Any) -> None:
    began = time.time_ns()
    with tag(tenant="acme"):
        wire.json(wire.completion()).client().chat.completions.create(**ASK)
    (ours,) = [span for span in both.spans() if span.instrumentation_scope.name == OURS]
    (theirs,) = [span for span in both.spans() if span.instrumentation_scope.name != OURS]
    assert began <= ours.start_time <= ours.end_time <= time.time_ns()
    assert ours.parent.span_id == theirs.context.span_id
    assert ours.attributes[names.TENANT] == "acme"


def test_an_embedding_is_billed_once(both: Any, wire: Any) -> None:
    body = {
        "object": "list",
        "model": "text-embedding-3-small",
        "data": [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2]}],
        "usage": {"prompt_tokens": 8, "total_tokens": 8},
    }
    wire.json(body).client().embeddings.create(model="text-embedding-3-small", input="hello", encoding_format="float")
    assert [(row["scope"], row["cost"]) for row in ledger(both)] == [(OURS, Decimal("0.00000016"))]


@pytest.mark.parametrize("module", MODULES)
def test_a_peer_with_a_provider_of_its_own_is_not_our_parent(
    pristine: None, telemetry: Any, wire: Any, module: str
) -> None:
    ours, theirs = OpenAIInstrumentor(), pytest.importorskip(module).OpenAIInstrumentor()
    theirs.instrument(tracer_provider=TracerProvider())
    ours.instrument(tracer_provider=telemetry.provider)
    try:
        with telemetry.provider.get_tracer("program").start_as_current_span("work") as work:
            wire.json(wire.completion()).client().chat.completions.create(**ASK)
    finally:
        ours.uninstrument()
        theirs.uninstrument()
    (span,) = [span for span in telemetry.spans() if span.name != "work"]
    assert span.parent.span_id == work.get_span_context().span_id


# -- the switch --------------------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A made-up library that a made-up peer instruments too. The peer has yet to be imported."""
    module = types.ModuleType("a_library")

    class Client:
        def ask(self, value: Any) -> Any:
            return self.send(value)

        def send(self, value: Any) -> Any:
            if isinstance(value, Exception):
                raise value
            return value

    module.Client = Client  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "a_library", module)
    monkeypatch.setitem(peers.PEERS, "lib", peers.Library(("a_peer",), ("a_library:Client.send",)))
    return module


class Instrumentor(calls.CallInstrumentor):
    scope = "tests.lib"
    requires = ()
    points = (WrapPoint(target="a_library:Client.ask", request=lambda args, kwargs: calls.Opening("ask", {})),)


@pytest.fixture
def instrumented(library: Any, telemetry: Any) -> Iterator[Callable[[], None]]:
    instrumentor = Instrumentor()
    yield lambda: instrumentor.instrument(tracer_provider=telemetry.provider)
    instrumentor.uninstrument()


def come(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer is imported."""
    module = types.ModuleType("a_peer")
    module.__spec__ = importlib.machinery.ModuleSpec("a_peer", None)
    monkeypatch.setitem(sys.modules, "a_peer", module)
    wrapt.notify_module_loaded(module)


@pytest.mark.parametrize(("mode", "spans"), [("under", 1), ("beside", 1), ("yield", 0), ("nonsense", 1)])
def test_what_the_switch_says_holds_from_the_peers_import_on_and_is_said_once(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    library: Any,
    telemetry: Any,
    instrumented: Callable[[], None],
    mode: str,
    spans: int,
) -> None:
    monkeypatch.setenv("TOLLSPAN_PEERS", mode)
    with caplog.at_level(logging.WARNING):
        instrumented()
        client = library.Client()
        value = object()
        assert client.ask(value) is value
        assert len(telemetry.spans()) == 1
        come(monkeypatch)
        come(monkeypatch)
        assert client.ask(value) is value
    assert len(telemetry.spans()) == 1 + spans
    said = [record.message for record in caplog.records if "a_peer" in record.message]
    assert len(said) == 1
    assert "TOLLSPAN_PEERS" in said[0]


def test_a_span_that_starts_late_changes_nothing_for_the_program(
    monkeypatch: pytest.MonkeyPatch, library: Any, telemetry: Any, instrumented: Callable[[], None]
) -> None:
    instrumented()
    come(monkeypatch)
    before = context.get_current()
    error = ValueError("refused")
    with pytest.raises(ValueError) as caught:
        library.Client().ask(error)
    assert caught.value is error
    assert context.get_current() is before
    assert telemetry.only().name == "ask"


def test_a_late_span_is_suppressed_and_not_sampled_as_any_other(
    monkeypatch: pytest.MonkeyPatch, library: Any, telemetry: Any, instrumented: Callable[[], None]
) -> None:
    telemetry.provider.sampler = ALWAYS_OFF
    instrumented()
    come(monkeypatch)
    with suppress_instrumentation():
        assert library.Client().ask(1) == 1
    assert library.Client().ask(1) == 1
    assert telemetry.spans() == []


def test_a_tracer_that_fails_late_never_reaches_the_program(faulty_telemetry: Any) -> None:
    class Broken:
        def start_span(self, *args: Any, **kwargs: Any) -> Any:
            raise RuntimeError("ours")

    point = WrapPoint(target="l:f", request=lambda args, kwargs: calls.Opening("f", {}), late=lambda: True)
    patches = Patches()
    patches.active = True
    before, counted = context.get_current(), faults().get("calls.depart", 0)
    assert wrap(point, Broken(), patches, lambda value: value)(7) == 7  # type: ignore[arg-type]
    assert context.get_current() is before
    assert faults()["calls.depart"] == counted + 1


class Peer:
    """A made-up instrumentation that opens its spans without making them current.

    Args:
        when: ``before`` the call that it wraps, or ``after`` it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, provider: TracerProvider, when: str) -> None:
        self.patch, self.when, self.tracer = monkeypatch, when, provider.get_tracer("a_peer")

    def instrument(self, client: Any) -> None:
        ask = client.ask

        def wrapper(this: Any, value: Any) -> Any:
            if self.when == "before":
                span = self.tracer.start_span("theirs before")
                answer = ask(this, value)
            else:
                answer = ask(this, value)
                span = self.tracer.start_span("theirs after")
            span.end()
            return answer

        self.patch.setattr(client, "ask", wrapper)


@pytest.mark.parametrize("parent", [False, True])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_a_peers_span_that_is_not_current_is_found(
    monkeypatch: pytest.MonkeyPatch,
    library: Any,
    telemetry: Any,
    instrumented: Callable[[], None],
    first: str,
    when: str,
    parent: bool,
) -> None:
    row = peers.PEERS["lib"]._replace(afterwards=(("a_peer", "theirs after"),))
    monkeypatch.setitem(peers.PEERS, "lib", row)
    peer = Peer(monkeypatch, telemetry.provider, when)
    if first == "theirs":
        peer.instrument(library.Client)
    instrumented()
    come(monkeypatch)
    if first == "ours":
        peer.instrument(library.Client)
    tracer = telemetry.provider.get_tracer("program")
    for number in range(2):  # what the first call leaves behind is nothing to the second
        work = tracer.start_as_current_span("work") if parent else contextlib.nullcontext()
        with work:
            assert library.Client().ask(number) == number
    spans = telemetry.spans()
    ours = [span for span in spans if span.name == "ask"]
    theirs = [span for span in spans if span.name.startswith("theirs")]
    assert (len(ours), len(theirs)) == (2, 2)
    for mine, other in zip(ours, theirs, strict=True):
        if when == "before":
            assert mine.parent.span_id == other.context.span_id
            assert names.USAGE_ELSEWHERE not in other.attributes
        else:
            assert other.attributes[names.USAGE_ELSEWHERE] is True


def test_a_peer_that_suppresses_others_inside_its_span_tells_of_the_call_alone(
    monkeypatch: pytest.MonkeyPatch, library: Any, telemetry: Any, instrumented: Callable[[], None]
) -> None:
    send = library.Client.send

    def alone(this: Any, value: Any) -> Any:
        with telemetry.provider.get_tracer("a_peer").start_as_current_span("theirs"), suppress_instrumentation():
            return leave(this, value)

    instrumented()
    come(monkeypatch)
    leave = library.Client.send
    monkeypatch.setattr(library.Client, "send", alone)
    assert library.Client().ask(1) == 1
    assert [span.name for span in telemetry.spans()] == ["theirs"]
    assert send is not leave


def test_a_provider_that_has_no_hash_is_watched_once(
    monkeypatch: pytest.MonkeyPatch, library: Any, telemetry: Any, instrumented: Callable[[], None]
) -> None:
    class Odd(TracerProvider):
        __hash__ = None  # type: ignore[assignment]

        def __eq__(self, other: object) -> bool:
            return True

    odd = Odd()
    odd.add_span_processor(SimpleSpanProcessor(telemetry.exporter))
    added: list[Any] = []
    monkeypatch.setattr(odd, "add_span_processor", added.append)
    telemetry.provider = odd
    instrumented()
    come(monkeypatch)
    for number in range(3):
        assert library.Client().ask(number) == number
    assert len(added) == 1
    assert len(telemetry.spans()) == 3


def test_requests_are_watched_while_a_peer_is_there(library: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ask, send = library.Client.ask, library.Client.send
    instrumentor = Instrumentor()
    instrumentor.instrument(tracer_provider=TracerProvider())
    assert library.Client.send is send
    come(monkeypatch)
    assert library.Client.send is not send
    instrumentor.uninstrument()
    assert (library.Client.ask, library.Client.send) == (ask, send)

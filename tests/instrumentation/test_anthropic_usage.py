"""The truth table: what Anthropic says a call used, the meters that come of it, and a price worked out by hand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from tollspan.instrumentation.anthropic import AnthropicInstrumentor
from tollspan.pricing import PriceEngine, Selectors, shipped_book

from .anthropic_stub import MODEL, USAGE, Stub, batch_results, events, message, serve

decode = pytest.importorskip("tollspan.processor.decode").decode
normalize = pytest.importorskip("tollspan.processor.normalize").normalize

ASK: dict[str, Any] = {"model": MODEL, "max_tokens": 64, "messages": [{"role": "user", "content": "hello"}]}
AT = datetime(2026, 11, 1, 12, tzinfo=UTC)

IN, READ, WRITE_5M, WRITE_1H, OUT = (Decimal(rate) / 10**6 for rate in ("3", "0.3", "3.75", "6", "15"))
"""Dollars for a token of claude-sonnet-4-6, from Anthropic's price list."""
SEARCH = Decimal("0.01")
US = Decimal("1.1")
"""What processing in the United States alone costs more, on tokens."""


@pytest.fixture
def stub() -> Iterator[Stub]:
    with serve() as stub:
        yield stub


@pytest.fixture
def spans(telemetry: Any) -> Iterator[Any]:
    AnthropicInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    AnthropicInstrumentor().uninstrument()


class Billed(NamedTuple):
    """What the processor makes of a span."""

    row: dict[str, Any]
    meters: dict[str, int]
    cost: Decimal | None
    status: str


def billed(telemetry: Any) -> list[Billed]:
    """What is billed, of all the spans there are."""
    spans = telemetry.spans()
    made = normalize(decode([encode_spans(spans).SerializeToString()]), received_ns=max(s.end_time for s in spans))
    engine = PriceEngine(shipped_book())
    found = []
    for number, row in enumerate(made.table.to_pylist()):
        meters = {meter: column[number].as_py() for meter, column in made.quantities.items()}
        meters = {meter: steps for meter, steps in meters.items() if steps}
        if not row["billable"]:
            assert not meters
            continue
        assert row["invalid"] is None
        selectors = Selectors(**{name: row[name] for name in Selectors._fields if name in row})
        charges = engine.price(meters, at=AT, selectors=selectors)
        found.append(Billed(row, meters, charges.cost, charges.status))
    return found


METERS = {
    "tokens.input.uncached": 10,
    "tokens.input.cache_read": 100,
    "tokens.input.cache_write.5m": 3,
    "tokens.input.cache_write.1h": 4,
    "tokens.output": 15,
    "tokens.output.reasoning": 5,
    "web_searches": 2,
    "web_fetches": 1,
}
TOKENS = 10 * IN + 100 * READ + 3 * WRITE_5M + 4 * WRITE_1H + 20 * OUT


def whole(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.json(message(usage=usage))
    client.messages.create(**ASK)


def beta(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.json(message(usage=usage))
    client.beta.messages.create(**ASK)


def raw(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.json(message(usage=usage))
    client.messages.with_raw_response.create(**ASK)


def parsed(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.json(message(usage=usage))
    client.messages.parse(**ASK)


def streamed(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.stream(events(usage=usage, deltas=5))
    list(client.messages.create(**ASK, stream=True))


def helped(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.stream(events(usage=usage))
    with client.beta.messages.stream(**ASK) as stream:
        stream.until_done()


def raw_stream(client: Any, stub: Stub, usage: dict[str, Any]) -> None:
    stub.stream(events(usage=usage))
    list(client.messages.with_raw_response.create(**ASK, stream=True).parse())


KINDS = [whole, beta, raw, parsed, streamed, helped, raw_stream]
Kind = Callable[[Any, Stub, dict[str, Any]], None]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("place", ["us", "global", "not_available"])
def test_some_of_everything(spans: Any, stub: Stub, kind: Kind, place: str) -> None:
    kind(stub.client(), stub, {**USAGE, "inference_geo": place})
    (call,) = billed(spans)
    assert call.meters == METERS
    assert call.status == "priced"
    assert call.cost == (TOKENS * US if place == "us" else TOKENS) + 2 * SEARCH


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_input_and_output_alone(spans: Any, stub: Stub, kind: Kind) -> None:
    kind(stub.client(), stub, {"input_tokens": 1000, "output_tokens": 50})
    (call,) = billed(spans)
    assert call.meters == {"tokens.input.uncached": 1000, "tokens.output": 50}
    assert call.cost == 1000 * IN + 50 * OUT == Decimal("0.00375")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_cache_writes_of_a_lifetime_that_is_not_told(spans: Any, stub: Stub, kind: Kind) -> None:
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 1000, "cache_read_input_tokens": 0, "output_tokens": 1}
    kind(stub.client(), stub, usage)
    (call,) = billed(spans)
    assert call.meters == {"tokens.input.uncached": 1, "tokens.input.cache_write": 1000, "tokens.output": 1}
    assert call.cost == IN + 1000 * WRITE_5M + OUT


@pytest.mark.parametrize("kind", [beta, helped], ids=lambda kind: kind.__name__)
def test_a_compaction_is_billed_beside_the_totals_and_the_turns_are_in_them(spans: Any, stub: Stub, kind: Kind) -> None:
    turn = {"cache_read_input_tokens": 0, "cache_creation_input_tokens": 0, "cache_creation": None}
    usage = {
        "input_tokens": 1000,
        "output_tokens": 50,
        "iterations": [
            {"type": "compaction", "input_tokens": 9000, "output_tokens": 300, **turn},
            {"type": "message", "input_tokens": 400, "output_tokens": 20, "model": MODEL, **turn},
            {"type": "message", "input_tokens": 600, "output_tokens": 30, "model": MODEL, **turn},
        ],
    }
    kind(stub.client(), stub, usage)
    (call,) = billed(spans)
    assert (call.meters["tokens.input.uncached"], call.meters["tokens.output"]) == (10_000, 350)
    assert call.cost == 10_000 * IN + 350 * OUT


def test_fast_mode_is_a_service_tier(spans: Any, stub: Stub) -> None:
    stub.json(message(model="claude-opus-4-8", usage={**USAGE, "inference_geo": None, "speed": "fast"}))
    stub.client().beta.messages.create(**ASK)
    (call,) = billed(spans)
    assert call.row["service_tier"] == "fast"


@pytest.mark.parametrize("tier", ["standard", "priority"])
def test_the_tier_as_served(spans: Any, stub: Stub, tier: str) -> None:
    whole(stub.client(), stub, {**USAGE, "service_tier": tier})
    (call,) = billed(spans)
    assert (call.row["service_tier"], call.row["processing"]) == (tier, None)


@pytest.mark.parametrize("kind", [streamed, helped, raw_stream], ids=lambda kind: kind.__name__)
def test_a_stream_that_breaks_off_is_a_lower_bound(spans: Any, stub: Stub, kind: Kind) -> None:
    stub.stream(events()[:4], broken=True)
    with pytest.raises(Exception, match=r"incomplete chunked read|peer closed|disconnect|Connection"):
        kind(stub.client(), stub, USAGE)
    (call,) = billed(spans)
    assert call.meters == {name: METERS[name] for name in METERS if name.startswith("tokens.input")}
    assert call.row["incomplete"] is True
    assert call.cost == (TOKENS - 20 * OUT) * US


def test_results_of_a_batch_cost_half_and_their_searches_all(spans: Any, stub: Stub) -> None:
    list(stub.batch().lines(batch_results()).client().messages.batches.results("msgbatch_1"))
    first, second = billed(spans)  # the one that failed, and the fetch, are not billed
    for call in (first, second):
        assert call.meters == METERS
        assert call.row["processing"] == "batch"
        assert call.row["service_tier"] is None
        assert call.cost == TOKENS * US / 2 + 2 * SEARCH


def test_every_turn_of_the_tool_runner_is_billed_once(spans: Any, stub: Stub) -> None:
    from .anthropic_stub import tool_use

    def double(number: int) -> str:
        """Double it."""
        return str(2 * number)

    import anthropic

    call = {"type": "tool_use", "id": "toolu_1", "name": "double", "input": {"number": 1}}
    client = stub.json(tool_use(content=[call])).json(message()).client()
    client.beta.messages.tool_runner(**ASK, tools=[anthropic.beta_tool(double)]).until_done()
    assert [each.cost for each in billed(spans)] == [TOKENS * US + 2 * SEARCH] * 2


def test_counting_tokens_and_asking_after_batches_are_not_billed(spans: Any, stub: Stub) -> None:
    client = stub.json({"input_tokens": 5}).batch().client()
    client.messages.count_tokens(model=MODEL, messages=ASK["messages"])
    client.messages.batches.retrieve("msgbatch_1")
    assert spans.spans() == []

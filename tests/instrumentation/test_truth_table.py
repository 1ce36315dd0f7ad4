"""What every client's calls cost, end to end: usage on the wire, through the real client, our spans, the exporter and
the store, to the ledger's rows, which say what `truth_table` says by hand.

Every call is made once, one after the other, with all instrumentors on and one pipeline behind them; the tests then
look up what became of theirs.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import warnings
from collections.abc import AsyncIterator, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tollspan.instrumentation import faults

from .every_client import Ask, Client, Make
from .stub_server import StubServer
from .truth_table import BOOK, TABLE, Truth

pytest.importorskip("chdb")

from tollspan.processor.exporter import TollspanSpanExporter
from tollspan.processor.pipeline import Settings
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.store import open_store

MILLIONTH = Decimal(1) / 10**6


class Made(NamedTuple):
    """One way of making a call.

    Attributes:
        truth: what it is.
        way: name of the way.
        asynchronous: with the asynchronous client.
    """

    truth: Truth
    way: str
    asynchronous: bool

    def __str__(self) -> str:
        parts = (str(self.truth), self.way, "async" if self.asynchronous else "")
        return ", ".join(part for part in parts if part)

    @property
    def ask(self) -> Ask:
        return self.truth.calls[self.way]


CALLS = [Made(truth, way, asynchronous) for truth in TABLE for way in truth.calls for asynchronous in (False, True)]


def missing(call: Made) -> str | None:
    """Why the installed version of the client cannot make a call; None where it can."""
    try:
        importlib.import_module(call.truth.client.module)
    except ImportError:
        return f"no {call.truth.client.module}"
    return None if call.truth.needs() else "this version has no such call"


# -- making the calls --------------------------------------------------------------------------------------------------


async def used_up(value: Any, asynchronous: bool) -> None:
    """Use a result to its end: wait for it, parse it, read its stream, enter it. Some can be read in both ways."""
    if inspect.isawaitable(value):
        await used_up(await value, asynchronous)
    elif hasattr(value, "parse"):
        await used_up(value.parse(), asynchronous)
    elif hasattr(value, "__aiter__") and (asynchronous or not hasattr(value, "__iter__")):
        async for _ in value:
            pass
    elif hasattr(value, "__iter__"):
        for _ in value:
            pass
    elif hasattr(value, "__aenter__"):
        async with value as entered:
            await used_up(entered, asynchronous)
    elif hasattr(value, "__enter__"):
        with value as entered:
            await used_up(entered, asynchronous)


async def made_by(stub: StubServer, client: Client, asynchronous: bool) -> AsyncIterator[Any]:
    made = client.make(Make(stub.url), asynchronous)
    if asynchronous and hasattr(made, "__aenter__"):
        async with made as entered:
            yield entered
    else:
        yield made


async def make(stub: StubServer, call: Made) -> None:
    """Make a call; the stub has been told what to answer."""
    async for client in made_by(stub, call.truth.client, call.asynchronous):
        await used_up(call.ask.of(call.asynchronous)(client), call.asynchronous)


# -- what became of them -----------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """What became of a call: the spans it left, or why it could not be made."""

    spans: list[bytes]
    error: BaseException | None


class Ledger(NamedTuple):
    """All calls and all rows.

    Attributes:
        outcomes: by call.
        rows: by span id.
        faults: faults of ours that were swallowed.
    """

    outcomes: dict[Made, Outcome]
    rows: dict[bytes, dict[str, Any]]
    faults: dict[str, int]


ROWS = """
    SELECT span_id, cost, cost_status, charges.meter AS meters, charges.quantity AS quantities FROM ledger FINAL
"""


@pytest.fixture(scope="module")
def ledger(store_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    folder = tmp_path_factory.mktemp("truth")
    (folder / "prices.yaml").write_text(BOOK)
    url = f"chdb://{store_directory}?database=truth"
    config = RuntimeConfig(url, folder / "prices.yaml", folder / "journal", Settings(keep=1.0))
    provider, seen = TracerProvider(), InMemorySpanExporter()
    for exporter in (seen, TollspanSpanExporter(config)):
        provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = faults()
    instrumentors = [instrumentor() for instrumentor in sorted(instrumentor_classes(), key=lambda each: each.__name__)]
    for instrumentor in instrumentors:
        instrumentor.instrument(tracer_provider=provider)
    try:
        with StubServer() as stub, warnings.catch_warnings(), pytest.MonkeyPatch.context() as environment:
            environment.setenv("TOLLSPAN_PROVIDERS", "")  # clients of other providers set it
            warnings.simplefilter("ignore")
            outcomes = {call: outcome_of(stub, call, seen) for call in CALLS if missing(call) is None}
    finally:
        for instrumentor in instrumentors:
            instrumentor.uninstrument()
        provider.shutdown()
    with open_store(url, create=False) as store:
        rows = {row["span_id"]: row for row in store.query(ROWS).to_pylist()}
        swallowed = {site: count for site, count in faults().items() if count != before.get(site)}
        yield Ledger(outcomes, rows, swallowed)
        store.execute(f"DROP DATABASE IF EXISTS {store.database}")


def instrumentor_classes() -> set[Any]:
    """Instrumentors of the clients that are there."""
    found = set()
    for call in CALLS:
        if missing(call) is None:
            for name in call.truth.client.instrumentor.split():
                module, _, kind = name.partition(":")
                found.add(getattr(importlib.import_module(f"tollspan.instrumentation.{module}"), kind))
    return found


def outcome_of(stub: StubServer, call: Made, seen: InMemorySpanExporter) -> Outcome:
    stub.forget()
    seen.clear()
    call.truth.reply(stub)
    error = None
    try:
        asyncio.run(asyncio.wait_for(make(stub, call), 20))
    except Exception as raised:
        error = raised
    return Outcome([span.context.span_id.to_bytes(8, "big") for span in seen.get_finished_spans()], error)


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_a_call_costs_what_it_costs_by_hand(ledger: Ledger, call: Made) -> None:
    if reason := missing(call):
        pytest.skip(reason)
    outcome = ledger.outcomes[call]
    if outcome.error is not None:
        raise outcome.error
    assert outcome.spans, "no span"
    rows = [ledger.rows[span] for span in outcome.spans if span in ledger.rows]
    billed = [row for row in rows if row["cost_status"] not in ("rollup", "not_billed")]
    assert len(billed) == 1, [(row["cost_status"], row["meters"]) for row in rows]
    (row,) = billed
    quantities = dict(zip(row["meters"], row["quantities"], strict=True))
    told = {meter: Decimal(count) for meter, count in call.truth.meters.items()}
    assert {meter: count for meter, count in quantities.items() if count} == told
    cost = None if call.truth.cost is None else Decimal(call.truth.cost) * MILLIONTH
    assert (row["cost"], row["cost_status"]) == (cost, "unpriced" if cost is None else "priced")


def test_none_of_our_faults_was_swallowed(ledger: Ledger) -> None:
    assert ledger.faults == {}


def test_the_bill_of_all_calls_is_the_sum_of_those_by_hand(ledger: Ledger) -> None:
    total = sum((row["cost"] for row in ledger.rows.values() if row["cost"] is not None), Decimal(0))
    by_hand = sum((Decimal(call.truth.cost) for call in ledger.outcomes if call.truth.cost is not None), Decimal(0))
    assert total == by_hand * MILLIONTH

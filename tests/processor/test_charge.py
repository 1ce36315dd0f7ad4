"""A ledger row says what a span used, what that cost, and all that its price was chosen by."""

from __future__ import annotations

import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import BEGAN, chat, payload

from tollspan.pricing import PriceEngine, faster, load_book
from tollspan.processor.charge import SELECTORS, charge
from tollspan.processor.decode import decode, fused
from tollspan.processor.normalize import normalize
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

pytestmark = pytest.mark.timeout(600)  # where nothing is cached, the first test waits for the compiler

BOOK = """
price_book: {id: b, version: 1, currency: USD}
prices:
  - {id: in, provider: openai, sku: gpt-5-mini, meter: tokens.input.uncached, amount: '1', per: 1}
  - {id: out, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: '2', per: 1}
  - {id: gpu, provider: aws, sku: H100, meter: gpu.seconds, amount: '3', per: 1}
"""


@pytest.fixture(params=["numpy", "kernels"], autouse=True)
def twin(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this holds with the compiled kernels and without them."""
    if request.param == "kernels":
        fused.prepare(wait=True)
        faster.prepare()
    else:
        monkeypatch.setattr(faster, "_compiled", None)


@pytest.fixture
def engine(tmp_path: Path) -> PriceEngine:
    path = tmp_path / "book.yaml"
    path.write_text(BOOK)
    return PriceEngine(load_book(path, shipped=False))


def charged(engine: PriceEngine, *spans: Any, rollups: tuple[int, ...] = ()) -> pa.Table:
    rolled = np.zeros(len(spans), np.bool_)
    rolled[list(rollups)] = True
    return charge(normalize(decode([payload(spans)]), received_ns=BEGAN), rolled, engine).ledger


def write(store: Store, rows: pa.Table) -> None:
    Writer(store, threading.Event()).write("t", rows, None, None)


def test_every_selector_is_a_column_of_the_ledger(engine: PriceEngine, store: Store) -> None:
    facts = {
        "tollspan.processing": "batch",
        "cloud.provider": "aws",
        "host.type": "p5.48xlarge",
        "cloud.region": "eu-west-1",
        "tollspan.host.purchase": "spot",
        "tollspan.residency": "eu",
        "openai.response.service_tier": "flex",
        "gen_ai.response.model": "gpt-5-mini-2025-08-07",
    }
    write(store, charged(engine, chat(1, **facts)))
    (row,) = store.rows(f"SELECT {', '.join(SELECTORS)} FROM ledger FINAL")
    assert row == {
        "provider": "openai",
        "model": "gpt-5-mini-2025-08-07",
        "request_model": "gpt-5-mini",
        "service_tier": "flex",
        "processing": "batch",
        "region": "eu-west-1",
        "cloud_provider": "aws",
        "host_type": "p5.48xlarge",
        "device": "",
        "purchase": "spot",
        "residency": "eu",
    }


def test_the_providers_own_figure_stands_beside_ours_and_never_in_its_place(engine: PriceEngine, store: Store) -> None:
    unknown = {"gen_ai.request.model": "nobody-knows", "tollspan.cost.reported": "0.5"}
    write(store, charged(engine, chat(1, tokens=(1, 1), **{"tollspan.cost.reported": "0.7"}), chat(2, **unknown)))
    assert store.rows("SELECT cost, reported_cost, cost_status FROM ledger FINAL ORDER BY start_time") == [
        {"cost": 3, "reported_cost": Decimal("0.7"), "cost_status": "priced"},
        {"cost": None, "reported_cost": Decimal("0.5"), "cost_status": "unpriced"},
    ]


def test_without_a_contract_list_and_contracted_cost_are_the_cost(engine: PriceEngine, store: Store) -> None:
    write(store, charged(engine, chat(1, tokens=(1, 1)), chat(2, **{"gen_ai.request.model": "nobody-knows"})))
    rows = store.rows("SELECT cost, list_cost, contracted_cost FROM ledger FINAL ORDER BY start_time")
    assert rows[0] == {"cost": 3, "list_cost": 3, "contracted_cost": 3}
    assert rows[1] == {"cost": None, "list_cost": None, "contracted_cost": None}


def test_a_rollup_keeps_what_is_not_the_models_and_says_so(engine: PriceEngine) -> None:
    gpu = {"tollspan.usage.gpu.seconds": 1.0, "cloud.provider": "aws", "tollspan.device": "H100"}
    rows = charged(engine, chat(1, tokens=(1, 1), **gpu), chat(2, tokens=(1, 1)), rollups=(0, 1)).to_pylist()
    assert rows[0]["charges.meter"] == ["gpu.seconds"]
    assert "rollup" in rows[0]["cost_reasons"].split(",")
    assert (rows[1]["charges.meter"], rows[1]["cost_status"], rows[1]["cost"]) == ([], "rollup", None)


def test_why_a_row_has_no_price_is_not_lost_behind_what_else_is_known(engine: PriceEngine) -> None:
    half = chat(1, tokens=None, **{"gen_ai.usage.output_tokens": 5, "gen_ai.request.model": "nobody-knows"})
    priced = chat(2, tokens=None, **{"gen_ai.usage.output_tokens": 5})
    rows = charged(engine, half, priced).to_pylist()
    reasons = rows[0]["cost_reasons"].split(",")
    assert rows[0]["cost_status"] == "unpriced"
    assert reasons[-1] == "usage_incomplete"
    assert len(reasons) == 2, "and why it has no price"
    assert (rows[1]["cost_status"], rows[1]["cost_reasons"], rows[1]["cost"]) == ("partial", "usage_incomplete", 10)


def test_estimated_tokens_are_priced_and_the_row_says_that_they_are_an_estimate(engine: PriceEngine) -> None:
    estimated = {"tollspan.usage_estimated": True}
    half = chat(3, tokens=None, **{"gen_ai.usage.output_tokens": 5}, **estimated)
    spans = (chat(1), chat(2, **estimated), half, chat(4, tokens=None, **estimated), chat(5, **estimated))
    rows = charged(engine, *spans, rollups=(4,))
    assert rows["cost_reasons"].to_pylist() == [
        *("", "usage_estimated", "usage_incomplete,usage_estimated", "usage_missing", "rollup")
    ]
    first, second = rows["cost"].to_pylist()[:2]
    assert first == second != 0


def test_rows_of_later_batches_never_replace_earlier_ones(engine: PriceEngine) -> None:
    first, second = (charged(engine, chat(1))["revision"].to_pylist()[0] for _ in range(2))
    assert first > second
    rolled = charged(engine, chat(1), rollups=(0,))["revision"].to_pylist()[0]
    assert rolled > first


def test_a_call_that_only_asked_for_work_is_not_billed_and_not_missing(engine: PriceEngine) -> None:
    rows = charged(
        engine,
        chat(1, tokens=None, **{"tollspan.usage_deferred": True}),
        chat(2, tokens=None),
        chat(3, tokens=(1, 1), **{"tollspan.usage_deferred": True}),
    )
    assert rows["cost_status"].to_pylist() == ["not_billed", "unpriced", "priced"]
    assert rows["cost_reasons"].to_pylist()[0] == "usage_deferred"


def test_kernels_and_numpy_write_the_same_ledger(engine: PriceEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    facts: list[dict[str, Any]] = [
        {},
        {"tollspan.tenant": "a", "http.response.status_code": 429, "error.type": "rate", "error": True},
        {"tollspan.retries": 3, "tollspan.cold_start": True, "tollspan.batch.size": 7},
        {"gen_ai.request.model": "nobody-knows", "tollspan.usage.network.egress.bytes": 10**12},
        {"gen_ai.provider.name": "aws", "device": "x", "tollspan.usage.gpu.seconds": 2.5},
        {"tokens": (2**53, 2**53)},
        {"tokens": None, "tollspan.usage.network.egress.bytes": 5},
        {"tokens": None, "tollspan.usage_deferred": True},
        {"gen_ai.operation.name": "execute_tool", "tokens": None},
    ]
    spans = [chat(number + 1, **facts[number % 11 % len(facts)]) for number in range(500)]
    rollups = np.arange(len(spans)) % 7 == 0
    normalized = normalize(decode([payload(spans)]), received_ns=BEGAN)

    def rows() -> list[dict[str, Any]]:
        return charge(normalized, rollups, engine, 5).ledger.drop_columns("revision").to_pylist()

    ours = rows()
    monkeypatch.setattr(faster, "_compiled", None)
    assert ours == rows()
    assert len({row["cost_status"] for row in ours}) > 3


@pytest.mark.parametrize("words", [100, 200, 40_000])
def test_the_store_takes_numbers_of_words_of_any_width(engine: PriceEngine, store: Store, words: int) -> None:
    ledger = charged(engine, *(chat(number, **{"tollspan.tenant": f"t{number}"}) for number in range(1, words + 1)))
    wide = {100: pa.int8(), 200: pa.int16(), 40_000: pa.int32()}[words]
    assert ledger["tenant"].type.index_type == wide
    write(store, ledger)
    (row,) = store.rows("SELECT uniqExact(tenant) AS tenants, count() AS n, sum(cost) AS cost FROM ledger FINAL")
    assert row == {"tenants": words, "n": words, "cost": words * 1200}

"""Bytes on the network are priced beside what a model charges, and never in its place."""

from __future__ import annotations

import sys
import threading
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import BEGAN, chat, payload

from tollspan.pricing import PriceEngine, shipped_book
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.normalize import normalize
from tollspan.processor.recharge import recharge
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

ENGINE = PriceEngine(shipped_book())
AWS = {"cloud.provider": "aws", "cloud.region": "us-east-1", "cloud.availability_zone": "us-east-1a"}
EGRESS = "tollspan.usage.network.egress.internet.bytes"
INGRESS = "tollspan.usage.network.ingress.internet.bytes"
UNTOLD = "tollspan.usage.network.egress.bytes"
GB = 10**9


def rows(*spans: Any, rollups: tuple[int, ...] = ()) -> Any:
    rolled = np.zeros(len(spans), np.bool_)
    rolled[list(rollups)] = True
    return charge(normalize(decode([payload(spans)]), received_ns=BEGAN), rolled, ENGINE).ledger


def row(span: Any, rolled: bool = False) -> dict[str, Any]:
    (made,) = rows(span, rollups=(0,) if rolled else ()).drop(["start_time"]).to_pylist()
    return made


def charges(made: dict[str, Any]) -> dict[str, Decimal | None]:
    return dict(zip(made["charges.meter"], made["charges.cost"], strict=True))


def test_egress_is_priced_beside_the_tokens() -> None:
    alone, beside = row(chat(1, **AWS)), row(chat(1, **AWS, **{EGRESS: GB, INGRESS: 7 * GB}))
    assert beside["cost_status"] == "priced"
    assert beside["cost"] == alone["cost"] + Decimal("0.09")
    assert charges(beside)["network.egress.internet.bytes"] == Decimal("0.09")
    assert charges(beside)["network.ingress.internet.bytes"] == 0


@pytest.mark.parametrize(
    "more",
    [{**AWS, UNTOLD: GB}, {EGRESS: GB}, {**AWS, "cloud.region": "eu-central-1", EGRESS: GB}],
    ids=["scope not told", "no cloud", "no price there"],
)
def test_bytes_without_a_price_make_the_cost_a_lower_bound(more: Any) -> None:
    made = row(chat(1, **more))
    assert made["cost_status"] == "partial"
    assert made["cost"] == row(chat(1))["cost"]


@pytest.mark.parametrize(
    ("span", "status", "reason"),
    [
        (chat(1, tokens=None, **AWS, **{EGRESS: GB}), "unpriced", "usage_missing"),
        (
            chat(1, tokens=None, error=True, **AWS, **{EGRESS: GB, "http.response.status_code": 429}),
            "not_billed",
            "refused_by_provider",
        ),
        (chat(1, tokens=None, **AWS, **{EGRESS: GB, "tollspan.usage_deferred": True}), "not_billed", "usage_deferred"),
    ],
    ids=["usage lost", "refused", "deferred"],
)
def test_bytes_alone_are_not_what_a_call_cost(span: Any, status: str, reason: str) -> None:
    made = row(span)
    assert (made["cost_status"], made["cost_reasons"], made["cost"], made["charges.meter"]) == (
        status,
        reason,
        None,
        [],
    )


def test_other_spans_may_have_nothing_but_bytes() -> None:
    made = row(chat(1, tokens=None, **AWS, **{EGRESS: GB, "gen_ai.operation.name": "execute_tool"}))
    assert (made["cost_status"], made["cost"]) == ("priced", Decimal("0.09"))


def test_a_roll_up_keeps_its_own_bytes() -> None:
    made = row(chat(1, **AWS, **{EGRESS: GB}), rolled=True)
    assert charges(made) == {"network.egress.internet.bytes": Decimal("0.09")}
    assert made["cost"] == Decimal("0.09")


def test_one_span_does_not_change_its_neighbours() -> None:
    spans = [
        chat(1, **AWS, **{EGRESS: GB}),
        chat(2, tokens=None, **AWS, **{EGRESS: GB}),
        chat(3, **AWS),
        chat(4, tokens=None),
    ]
    together = rows(*spans)["cost"].to_pylist()
    assert together == [row(span)["cost"] for span in spans]
    assert [cost is None for cost in together] == [False, True, False, True]


def test_a_repricing_changes_nothing_while_the_prices_are_the_same(store: Store) -> None:
    made = rows(chat(1, **AWS, **{EGRESS: GB, INGRESS: 5}), chat(2, tokens=None, **AWS, **{EGRESS: GB}))
    Writer(store, threading.Event()).write("t", made, None, None)
    again = recharge(store.query("SELECT *, charges.cost FROM ledger FINAL"), ENGINE)
    assert not again.changed.any()
    (network,) = store.rows("SELECT sum(network_cost) AS cost FROM trace_costs")
    assert network["cost"] == Decimal("0.09")

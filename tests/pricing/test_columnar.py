"""A million rows are priced as one call is: the two faces agree to the last digit, on whatever a batch may hold."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.pricing import PriceBook, PriceEngine, PriceRow, Selectors, faster
from tollspan.pricing.book import TableLayer
from tollspan.pricing.cost_columns import SCHEMA
from tollspan.pricing.meters import METERS
from tollspan.pricing.money import PICO, decimal_of, digits_of
from tollspan.pricing.rows import Alias, Factor, Interval, Step
from tollspan.pricing.schedule import Schedule

from .books import INPUT, NOON, OUTPUT, book_of

pytestmark = pytest.mark.timeout(600)  # where nothing is cached, the first test waits for the compiler


@pytest.fixture(params=["numpy", "kernels"], autouse=True, scope="module")
def twin(request: pytest.FixtureRequest) -> Iterator[None]:
    """All of this holds with the compiled kernels and without them."""
    if request.param == "kernels":
        faster.prepare()
    before, faster._compiled = faster._compiled, faster._compiled if request.param == "kernels" else None
    yield
    faster._compiled = before


AT = int(NOON.timestamp()) * 10**9
DAY = 86_400 * 10**9

HOUR = 3600 * 10**9


def million(sku: str, meter: str, amount: str, **fields: Any) -> PriceRow:
    key = "|".join([sku, meter, amount, *map(str, fields.values())])
    unit = METERS[meter].unit
    return PriceRow(
        id=key, meter=meter, sku=sku, amount=Decimal(amount), per=1_000_000, unit=unit, provider="p", **fields
    )


CONTRACTS = TableLayer(
    "contracts",
    "1",
    [
        million("agreed", INPUT, "3"),
        million("agreed", INPUT, "2.1", kind="contract"),
        million("agreed", INPUT, "1.9", kind="amortised", effective=Interval(AT, None)),
        million("agreed", OUTPUT, "15"),
        million("agreed", OUTPUT, "0", kind="included", when={"service_tier": "flex"}),
        million("agreed-only", OUTPUT, "7", kind="contract"),
        million("steps", OUTPUT, "5", steps=(Step(100, Decimal(3)), Step(2000, Decimal(0))), graduated=True),
        million("steps", INPUT, "5", steps=(Step(100, Decimal(9)),)),
        million("steps", INPUT, "4", kind="contract", steps=(Step(1000, Decimal(2)),)),
        million("local", INPUT, "1"),
        million(
            "local",
            INPUT,
            "2",
            schedule=Schedule(
                ((9 * HOUR, 17 * HOUR), (5 * DAY, 7 * DAY)), "America/New_York", frozenset({NOON.date()})
            ),
        ),
        million("steps", "overhead.calls", "2500", kind="amortised"),
        million("withdrawn", OUTPUT, "1", status="cancelled"),
        million("soon", OUTPUT, "1", status="announced"),
    ],
    [Alias("slice", "aws", "h100", share=Fraction(1, 7))],
    factors=[
        Factor("in-eu", Fraction(11, 10), provider="p", when={"region": "eu"}),
        Factor("odd", Fraction(1, 3), meter="tokens.output", sku="agr*"),
    ],
    adjustments=[
        Factor("ten-off", Fraction(9, 10), provider="p", sku="?o*", effective=Interval(AT - DAY, AT + DAY)),
        Factor("more-off", Fraction(1, 2), provider="p", sku="steps", meter="tokens.output"),
    ],
)

BOOK = book_of(
    f"""\
    price_book: {{id: front, version: 1}}
    aliases:
      - {{ref: alias-of-tiered, sku: p/tiered, to: 2026-11-21}}
    prices:
      - {{provider: p, sku: dated, meter: {INPUT}, amount: 1.25, per: 1000000, effective: [null, 2026-11-20T12:00:00Z]}}
      - {{provider: p, sku: dated, meter: {INPUT}, amount: 1, per: 3, effective: [2026-11-20T12:00:00Z, null]}}
      - {{provider: p, sku: dated, meter: {OUTPUT}, amount: 10, per: 1000000}}
      - {{provider: p, sku: "pattern-*", meter: {OUTPUT}, amount: 0}}
      - {{provider: p, sku: dear, meter: {OUTPUT}, amount: 9999}}
      - {{provider: p, sku: dear, meter: {INPUT}, amount: 0.0000000000000001, per: 7}}
      - {{provider: p, sku: fee, meter: {OUTPUT}, amount: 1, per: 1000}}
      - {{provider: p, sku: fee, meter: requests, amount: 12, per: 1000}}
      - {{sku: "*", meter: audio.seconds, amount: 0.111, unit: hour, minimum: 10}}
      - {{provider: aws, sku: h100, meter: gpu.seconds, amount: 55.04, per: 8, unit: hour, when: {{region: eu}}}}
      - {{provider: aws, meter: network.egress.bytes, amount: 0.09, unit: GiB}}
    """,
    f"""\
    prices:
      - {{provider: p, sku: windowed, meter: {INPUT}, amount: 1, per: 1000}}
      - {{provider: p, sku: windowed, meter: {INPUT}, amount: 2, per: 1000,
         windows: [{{days: [mon-fri], hours: ["01:00-13:00"]}}]}}
      - {{provider: p, sku: tiered, meter: {INPUT}, amount: 1, per: 7,
         tiers: {{steps: [{{above: 100, amount: 2}}, {{above: 2000, amount: 0}}]}}}}
      - {{provider: p, sku: tiered, meter: {OUTPUT}, amount: 3, per: 7, when: {{service_tier: standard}},
         tiers: {{steps: [{{above: 100, amount: 4}}]}}}}
      - {{provider: p, sku: tiered, meter: {OUTPUT}, amount: 1, per: 7, when: {{service_tier: flex}}}}
    """,
)
ENGINE = PriceEngine(PriceBook([BOOK.layers[0], CONTRACTS, BOOK.layers[1]]))

MODELS = ["dated", "windowed", "tiered", "alias-of-tiered", "pattern-a", "dear", "fee", "nobody-knows", "", None]
MODELS += ["agreed", "agreed-only", "steps", "local", "withdrawn", "soon"]
QUANTITIES = st.sampled_from([0, 0, 1, 2, 99, 100, 101, 2001, 10**6, 10**9, 10**15, 2**53, 2**63 - 1, -1])
USED = [INPUT, "tokens.input.cache_read", OUTPUT, "tokens.output.reasoning", "requests", "audio.seconds", "gpu.seconds"]
USED += ["gpu.idle_seconds", "network.egress.bytes", "web_searches", "overhead.calls"]
INSTANTS = st.integers(AT - 10 * DAY, AT + 10 * DAY) | st.sampled_from([AT - 1, AT, AT + 1, -1, 0])

row = st.fixed_dictionaries(
    {
        "at": INSTANTS,
        "model": st.sampled_from(MODELS),
        "request_model": st.sampled_from([None, "dated", "tiered"]),
        "provider": st.sampled_from(["p", "P ", "q", None]),
        "service_tier": st.sampled_from([None, "default", "auto", "flex", "scale", "batch"]),
        "cloud_provider": st.sampled_from([None, "aws"]),
        "region": st.sampled_from([None, "eu", "us"]),
        "device": st.sampled_from([None, "H100", "slice"]),
        "invalid": st.sampled_from([None, None, None, "usage_inconsistent"]),
        "usage": st.dictionaries(st.sampled_from(USED), QUANTITIES, max_size=4),
    }
)
SELECTED = ("model", "request_model", "provider", "service_tier", "cloud_provider", "region", "device")


def columns_of(rows: list[dict[str, Any]], dictionary: bool = False) -> pa.Table:
    selectors = {name: pa.array([row[name] for row in rows], pa.string()) for name in SELECTED}
    if dictionary:
        selectors = {name: array.dictionary_encode() for name, array in selectors.items()}
    used = sorted({meter for row in rows for meter in row["usage"]})
    table = ENGINE.price_columns(
        np.array([row["at"] for row in rows], dtype=np.int64),
        selectors,
        {meter: pa.array([row["usage"].get(meter) for row in rows], pa.int64()) for meter in used},
        pa.array([row["invalid"] for row in rows], pa.string()),
    )
    table.validate(full=True)
    return table


DIFFERENCES = {
    "charges.negotiated": ("list_cost", "contracted_cost"),
    "charges.committed": ("contracted_cost", "cost"),
}


def difference(more: Decimal | None, less: Decimal | None) -> Decimal | None:
    if more is None or less is None:
        return None
    return decimal_of(digits_of(more, PICO) - digits_of(less, PICO), PICO)


def single(row: dict[str, Any]) -> dict[str, Any]:
    """What the scalar face says, in the form of a row of the columnar one."""
    selectors = Selectors(**{name: row[name] for name in SELECTED})
    charges = ENGINE.price(row["usage"], at=row["at"], selectors=selectors, invalid=row["invalid"])
    shown = {"cost": charges.cost, "cost_status": charges.status, "cost_reasons": ",".join(charges.reasons)}
    for name in SCHEMA.names:
        if name.startswith("charges.") and name not in DIFFERENCES:
            shown[name] = [getattr(charge, name.removeprefix("charges.")) for charge in charges.charges]
    for name, (more, less) in DIFFERENCES.items():
        shown[name] = [difference(getattr(charge, more), getattr(charge, less)) for charge in charges.charges]
    return {**shown, "book_version": charges.book_version}


@settings(max_examples=300, deadline=None)
@given(st.lists(row, min_size=1, max_size=25), st.booleans())
def test_columns_agree_with_single_calls_to_the_last_digit(rows: list[dict[str, Any]], dictionary: bool) -> None:
    assert columns_of(rows, dictionary).to_pylist() == [single(row) for row in rows]


@settings(max_examples=50, deadline=None)
@given(st.lists(row, min_size=2, max_size=15), st.randoms())
def test_a_rows_price_does_not_depend_on_its_neighbours(rows: list[dict[str, Any]], random: Any) -> None:
    order = list(range(len(rows)))
    random.shuffle(order)
    assert columns_of(rows).take(order).to_pylist() == columns_of([rows[i] for i in order]).to_pylist()


@settings(max_examples=50, deadline=None)
@given(st.lists(row, min_size=1, max_size=25))
def test_no_cost_is_said_exactly_where_nothing_is_priced(rows: list[dict[str, Any]]) -> None:
    for priced in columns_of(rows).to_pylist():
        assert (priced["cost"] is None) == (priced["cost_status"] in ("unpriced", "invalid"))
        costs = [cost for cost in priced["charges.cost"] if cost is not None]
        assert Fraction(priced["cost"] or 0) == sum(map(Fraction, costs))  # Decimals of this size would be rounded
        unpriced = [s in ("unpriced", "ambiguous", "invalid") for s in priced["charges.status"]]
        assert [cost is None for cost in priced["charges.cost"]] == unpriced


def test_a_price_change_splits_a_batch_exactly_at_its_instant() -> None:
    at = np.array([AT - 1, AT, AT + 1, AT - DAY], dtype=np.int64)
    out = ENGINE.price_columns(
        at, {"provider": pa.array(["p"] * 4), "model": pa.array(["dated"] * 4)}, {INPUT: pa.array([3] * 4)}
    )
    assert out["cost"].to_pylist() == [Decimal("0.000003750000"), 1, 1, Decimal("0.000003750000")]


def test_costs_beyond_64_bits_stay_exact() -> None:
    out = ENGINE.price_columns(
        np.full(3, AT),
        {"provider": pa.array(["p"] * 3), "model": pa.array(["dear", "dated", "dear"])},
        {OUTPUT: pa.array([2**63 - 1, 5, 1]), INPUT: pa.array([1, 1, 2**53])},
    )
    assert out["cost"][0].as_py() == Decimal(2**63 - 1) * 9999
    # 2⁵³ tokens at 10⁻¹⁶ USD for seven of them, rounded once.
    assert out["charges.cost"][2].as_py() == [Decimal("0.128674275068"), 9999]


def test_many_combinations_of_selectors_need_no_table_of_all_of_them() -> None:
    n = 5000
    names = pa.array([f"m-{i}" for i in range(n)])
    selectors = dict.fromkeys(("provider", "model", "request_model", "region", "device"), names)
    out = ENGINE.price_columns(np.full(n, AT), selectors, {OUTPUT: pa.array(np.ones(n, dtype=np.int64))})
    assert set(out["cost_reasons"].to_pylist()) == {"unknown_model"}


def test_calls_can_share_selectors_and_tell_quantities_as_numpy_arrays() -> None:
    of = np.array([1, 0, 1, 1], np.int64)
    models = pa.array(["agreed", None, "steps"]).dictionary_encode()
    values, given_ = np.array([5, -1, 0, 2000], np.int64), np.array([True, False, True, True])
    shared = ENGINE.price_columns(
        np.full(4, AT), {"provider": pa.array(["p"] * 3), "model": models}, {OUTPUT: (values, given_)}, of=2 * of
    )
    apart = ENGINE.price_columns(
        np.full(4, AT),
        {"provider": pa.array(["p"] * 4), "model": models.take(pa.array(2 * of))},
        {OUTPUT: pa.array(values, mask=~given_)},
    )
    assert shared.to_pylist() == apart.to_pylist()
    assert "priced" in shared["cost_status"].to_pylist()
    with pytest.raises(ValueError, match="rows of selectors"):
        ENGINE.price_columns(np.full(4, AT), {"model": models}, {}, of=of + 2)


def test_no_rows_give_no_rows() -> None:
    out = ENGINE.price_columns(np.zeros(0, dtype=np.int64), {"model": pa.array([], pa.string())}, {})
    assert (out.num_rows, out.schema.names) == (0, SCHEMA.names)
    for field, expected in zip(out.schema, SCHEMA, strict=True):
        assert field.type == expected.type or str(field.type).replace("int8", "int32") == str(expected.type)


def test_rows_without_any_selector_or_quantity_are_unpriced() -> None:
    out = ENGINE.price_columns(np.full(2, AT), {}, {})
    assert out["cost_status"].to_pylist() == ["unpriced"] * 2
    assert out["cost_reasons"].to_pylist() == ["usage_missing"] * 2


def test_chunked_and_null_arrays_are_taken() -> None:
    models = pa.chunked_array([pa.array(["dated"]).dictionary_encode(), pa.array(["fee"]).dictionary_encode()])
    out = ENGINE.price_columns(
        np.full(2, AT),
        {"provider": pa.array(["p", "p"]), "model": models, "device": pa.nulls(2)},
        {OUTPUT: pa.chunked_array([[1000], [1000]])},
    )
    assert out["cost"].to_pylist() == [Decimal("0.01"), Decimal("1.012")]


@pytest.mark.parametrize(
    ("selectors", "quantities", "reason"),
    [
        ({"modle": pa.array(["m"])}, {}, "'modle' is not a selector. Did you mean model"),
        ({}, {"tokens.outputs": pa.array([1])}, "'tokens.outputs' is not a meter"),
        ({"model": pa.array(["m", "m"])}, {}, "selector model has 2 rows, the instants are 1"),
    ],
)
def test_wrong_arguments_are_named(
    selectors: dict[str, pa.Array], quantities: dict[str, pa.Array], reason: str
) -> None:
    with pytest.raises(ValueError) as raised:
        ENGINE.price_columns(np.array([AT]), selectors, quantities)
    assert reason in str(raised.value)


def test_charges_stand_in_the_order_of_the_meters() -> None:
    quantities = {meter: pa.array([1]) for meter in reversed(list(METERS))}
    out = ENGINE.price_columns(np.array([AT]), {"model": pa.array(["m"])}, quantities)
    assert out["charges.meter"][0].as_py() == list(METERS)

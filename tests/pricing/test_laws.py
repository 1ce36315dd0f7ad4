"""Laws of pricing, on books and calls made at random: what must hold whatever the prices are."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.pricing import METERS, PriceBook, PriceEngine, PriceRow, Selectors
from tollspan.pricing.book import TableLayer
from tollspan.pricing.money import PICO, digits_of
from tollspan.pricing.patterns import ANY
from tollspan.pricing.rows import Interval

MODEL_METERS = [name for name, meter in METERS.items() if meter.axis == "model" and name not in ("requests",)]
MODEL_METERS.remove("overhead.calls")
AT = 1_795_000_000 * 10**9
HERE = Selectors(provider="p", model="m")

amounts = st.decimals(0, 1000, places=6)
usages = st.dictionaries(st.sampled_from(MODEL_METERS), st.integers(0, 10**12), max_size=6)
price_lists = st.dictionaries(st.sampled_from(MODEL_METERS), amounts, min_size=1, max_size=8)


def row(meter: str, amount: Decimal, per: int = 1, **fields: Any) -> PriceRow:
    key = "|".join([meter, str(amount), str(per), *map(str, fields.values())])
    about = {"sku": "m", "provider": "p", "unit": METERS[meter].unit, **fields}
    return PriceRow(id=key, meter=meter, amount=amount, per=per, **about)


def engine_of(*rows: PriceRow) -> PriceEngine:
    return PriceEngine(PriceBook([TableLayer("book", "1", rows)]))


def pico(cost: Decimal | None) -> int:
    return 0 if cost is None else digits_of(cost, PICO)


@given(price_lists, usages)
def test_the_charges_add_up_to_the_cost(prices: dict[str, Decimal], usage: dict[str, int]) -> None:
    charges = engine_of(*(row(meter, amount, 1000) for meter, amount in prices.items())).price(
        usage, at=AT, selectors=HERE
    )
    assert pico(charges.cost) == sum(pico(charge.cost) for charge in charges.charges)
    assert {charge.meter for charge in charges.charges} >= {meter for meter, steps in usage.items() if steps}


@given(price_lists, usages, usages)
def test_disjoint_usages_add_where_no_tier_is_crossed(
    prices: dict[str, Decimal], first: dict[str, int], second: dict[str, int]
) -> None:
    engine = engine_of(*(row(meter, amount, METERS[meter].scale) for meter, amount in prices.items()))
    both = {meter: first.get(meter, 0) + second.get(meter, 0) for meter in first.keys() | second.keys()}
    costs = [engine.price(usage, at=AT, selectors=HERE) for usage in (first, second, both)]
    one, other, together = (pico(charges.cost) for charges in costs)
    # A charge is rounded once, so two roundings may differ from one by a pico-dollar a meter at the most.
    assert abs(one + other - together) <= len(both)


@given(price_lists, usages, st.randoms())
def test_the_order_of_the_usage_does_not_matter(prices: dict[str, Decimal], usage: dict[str, int], random: Any) -> None:
    engine = engine_of(*(row(meter, amount) for meter, amount in prices.items()))
    order = list(usage.items())
    random.shuffle(order)
    assert engine.price(usage, at=AT, selectors=HERE) == engine.price(dict(order), at=AT, selectors=HERE)


@given(st.lists(st.integers(AT - 1000, AT + 1000), min_size=1, max_size=4, unique=True), st.integers(1, 1000))
def test_a_price_change_at_an_instant_splits_exactly_there(changes: list[int], steps: int) -> None:
    bounds = [None, *sorted(changes), None]
    rows = [
        row("tokens.output", Decimal(number + 1), effective=Interval(start, end))
        for number, (start, end) in enumerate(pairwise(bounds))
    ]
    engine = engine_of(*rows)
    for number, (start, end) in enumerate(pairwise(bounds)):
        inside = [instant for instant in (start, end - 1 if end is not None else None) if instant is not None]
        for instant in inside:
            charges = engine.price({"tokens.output": steps}, at=instant, selectors=HERE)
            assert charges.cost == steps * (number + 1)


@settings(max_examples=300)
@given(
    price_lists,
    usages,
    st.sampled_from(["p", "q", None]),
    st.sampled_from(["m", "n", None]),
    st.sampled_from([None, "flex", "misspelt"]),
    st.booleans(),
)
def test_unknown_is_never_zero(
    prices: dict[str, Decimal],
    usage: dict[str, int],
    provider: str | None,
    model: str | None,
    tier: str | None,
    other_tier: bool,
) -> None:
    when = {"service_tier": "standard"} if other_tier else {}
    engine = engine_of(*(row(meter, amount, when=when) for meter, amount in prices.items()))
    charges = engine.price(usage, at=AT, selectors=Selectors(provider=provider, model=model, service_tier=tier))
    known = provider == "p" and model == "m" and (tier is None or not other_tier)
    for charge in charges.charges:
        # Nothing has a cost unless a row of the book says which; zero only where that row says zero.
        assert (charge.cost is None) == (charge.status in ("unpriced", "ambiguous", "invalid"))
        assert charge.cost is None or (known and charge.price_id)
        if charge.status == "free":
            assert charge.unit_price == 0
    if charges.charges and not known:
        assert (charges.cost, charges.status) == (None, "unpriced")
        assert charges.reasons


@given(st.integers(0, 10**9), st.lists(st.integers(1, 10**9), min_size=1, max_size=4, unique=True), amounts)
def test_a_graduated_price_is_the_sum_of_its_parts(quantity: int, bounds: list[int], amount: Decimal) -> None:
    from tollspan.pricing.rows import Step

    bounds.sort()
    steps = tuple(Step(above, amount / (number + 2)) for number, above in enumerate(bounds))
    engine = engine_of(row("tokens.output", amount, 1000, steps=steps, graduated=True))
    expected = Fraction(0)
    for (start, price), (end, _) in pairwise([(0, amount), *((s.above, s.amount) for s in steps), (None, amount)]):
        part = max(0, quantity - start) if end is None else max(0, min(quantity, end) - start)
        expected += Fraction(price) * part / 1000
    charges = engine.price({"tokens.output": quantity}, at=AT, selectors=HERE)
    assert pico(charges.cost) == round(expected * 10**PICO)


def test_a_row_for_anything_is_no_knowledge_of_the_model() -> None:
    engine = engine_of(row("overhead.calls", Decimal("0.001"), sku=ANY, provider=None, kind="amortised"))
    charges = engine.price({"tokens.output": 5}, at=AT, selectors=Selectors(provider="q", model="nobody-knows"))
    assert (charges.status, charges.reasons) == ("partial", ("unknown_model",))
    assert charges.charges[-1].matched_by.endswith(", implied")

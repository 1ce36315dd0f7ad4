"""List, contracted and effective price: what each kind of row, factor and percentage does to the three of them."""

from __future__ import annotations

from decimal import Decimal

import pytest

from tollspan.pricing import PriceEngine, Selectors, shipped_book

from .books import INPUT, NOON, OUTPUT, at, book_of, price

LIST = f"""\
price_book: {{id: list, version: 1}}
prices:
  - {{id: in, provider: acme, sku: m, meter: {INPUT}, amount: 3, per: 1000000}}
  - {{id: out, provider: acme, sku: m, meter: {OUTPUT}, amount: 15, per: 1000000}}
  - {{id: gpu, provider: aws, sku: "NVIDIA H100", meter: gpu.seconds, amount: 36, unit: hour}}
"""
TEN_OFF = "adjustments:\n  - {id: ea-10, match: {provider: acme}, percent: -10}\n"
MILLION: dict[str, int | Decimal] = {INPUT: 1_000_000, OUTPUT: 1_000_000}


def levels(front: str, usage: dict[str, int | Decimal] = MILLION, when: str = "2026-11-20T12:00:00Z", **more: str):  # type: ignore[no-untyped-def]
    selectors = {"provider": "acme", "model": "m", **more}
    charges = price(book_of(front, LIST), usage, at=at(when), **selectors)
    return charges.list_cost, charges.contracted_cost, charges.cost


@pytest.mark.parametrize(
    ("front", "expected"),
    [
        # A percentage changes what is agreed, not the list.
        (TEN_OFF, (18, "16.2", "16.2")),
        # The more specific percentage wins; they are not multiplied.
        (
            TEN_OFF + f"  - {{id: m-20, match: {{provider: acme, sku: m, meter: {OUTPUT}}}, percent: -20}}\n",
            (18, "14.7", "14.7"),
        ),
        # An agreed amount is final: no percentage on top of it.
        (
            TEN_OFF
            + f"prices:\n  - {{provider: acme, sku: m, meter: {OUTPUT}, amount: 12, per: 1000000, kind: contract}}\n",
            (18, "14.7", "14.7"),
        ),
        # A commitment spread over its use: less than was agreed; what was agreed stays known.
        (
            f"prices:\n  - {{provider: acme, sku: m, meter: {OUTPUT}, amount: 9, per: 1000000, kind: amortised}}\n",
            (18, 18, 12),
        ),
        # Prepaid: nothing in effect, and what it would have cost is still told.
        (f"prices:\n  - {{provider: acme, sku: m, meter: {OUTPUT}, kind: included}}\n", (18, 18, 3)),
        # A factor is part of the list price.
        (
            'factors:\n  - {id: eu, match: {provider: acme, sku: m}, when: {residency: eu}, factor: "1.10"}\n'
            + TEN_OFF,
            (18, "16.2", "16.2"),
        ),
    ],
)
def test_three_levels(front: str, expected: tuple[object, ...]) -> None:
    assert levels(front) == tuple(Decimal(str(amount)) for amount in expected)


def test_residency_multiplies_the_list_price_and_the_percentage_applies_to_that() -> None:
    front = 'factors:\n  - {id: eu, match: {provider: acme, sku: m}, when: {residency: eu}, factor: "1.10"}\n' + TEN_OFF
    assert levels(front, residency="eu") == (Decimal("19.8"), Decimal("17.82"), Decimal("17.82"))
    charge = price(book_of(front, LIST), MILLION, provider="acme", model="m", residency="EU").charges[0]
    assert charge.matched_by == "exact model × eu × ea-10"
    assert (charge.list_unit_price, charge.contracted_unit_price, charge.unit_price) == (
        Decimal("3.3"),
        Decimal("2.97"),
        Decimal("2.97"),
    )


def test_a_percentage_ends_at_its_instant() -> None:
    front = (
        "adjustments:\n  - {id: ea, match: {provider: acme}, percent: -50, effective: [null, 2026-11-20T12:00:00Z]}\n"
    )
    assert levels(front, when="2026-11-20T11:59:59.999999Z")[1] == 9
    assert levels(front, when="2026-11-20T12:00:00Z")[1] == 18


def test_included_is_a_status_of_its_own() -> None:
    front = f"prices:\n  - {{provider: acme, sku: m, meter: {OUTPUT}, kind: included}}\n"
    charges = price(book_of(front, LIST), {OUTPUT: 5}, provider="acme", model="m")
    assert (charges.cost, charges.status, charges.charges[0].status) == (0, "included", "included")
    assert charges.charges[0].list_cost == Decimal("0.000075")


def test_a_contract_for_what_has_no_list_price_has_none() -> None:
    front = "prices:\n  - {provider: acme, sku: private, meter: tokens.output, amount: 1, per: 1000, kind: contract}\n"
    charges = price(book_of(front, LIST), {OUTPUT: 1000}, provider="acme", model="private")
    assert (charges.cost, charges.contracted_cost, charges.list_cost) == (1, 1, None)


def test_a_slice_of_a_device_costs_its_share() -> None:
    front = 'aliases:\n  - {ref: "NVIDIA H100 MIG 1g.10gb", provider: aws, sku: "aws/NVIDIA H100", share: 1/7}\n'
    slice_of = {"cloud_provider": "aws", "device": "NVIDIA H100 MIG 1g.10gb"}
    charges = price(book_of(front, LIST), {"gpu.seconds": Decimal(3600)}, **slice_of)
    # 36 / 7, rounded once.
    assert charges.cost == Decimal("5.142857142857")
    assert charges.charges[0].matched_by == "alias device × 1/7"
    assert charges.charges[0].unit_price == Decimal("5.142857142857142857")


def test_announced_prices_apply_and_say_so_cancelled_ones_do_not() -> None:
    rows = (
        f"prices:\n  - {{id: new, provider: acme, sku: m, meter: {OUTPUT}, amount: 1, status: announced, "
        "effective: [2026-12-01, null]}\n"
        f"  - {{id: old, provider: acme, sku: n, meter: {OUTPUT}, amount: 1, status: cancelled}}\n"
    )
    book = book_of(rows, LIST)
    before = price(book, {OUTPUT: 1_000_000}, provider="acme", model="m")
    after = price(book, {OUTPUT: 1_000_000}, at=at("2026-12-01T00:00:00Z"), provider="acme", model="m")
    assert (before.cost, before.reasons) == (15, ())
    assert (after.cost, after.reasons) == (1_000_000, ("price_announced",))
    cancelled = price(book, {OUTPUT: 1}, provider="acme", model="n")
    assert (cancelled.cost, cancelled.reasons) == (None, ("no_price_at_time",))


def test_overhead_is_a_share_for_each_call_and_is_marked_as_implied() -> None:
    front = "prices:\n  - {meter: overhead.calls, amount: 0.0004, kind: amortised}\n"
    charges = price(book_of(front, LIST), MILLION, provider="acme", model="m")
    assert charges.cost == Decimal("18.0004")
    last = charges.charges[-1]
    assert (last.meter, last.component, last.matched_by) == ("overhead.calls", "overhead", "pattern model, implied")
    assert price(book_of(front, LIST), {"gpu.seconds": 1}, cloud_provider="aws", device="nvidia h100").cost == Decimal(
        "0.000000000010"
    )


def test_a_span_that_names_no_provider_is_ambiguous_or_told_which_is_missing() -> None:
    two = LIST + f"  - {{provider: other, sku: m, meter: {OUTPUT}, amount: 1}}\n"
    charges = price(book_of(two), {OUTPUT: 1}, model="m")
    assert (charges.cost, charges.status, charges.reasons) == (None, "unpriced", ("provider_ambiguous",))
    assert charges.charges[0].status == "ambiguous"
    assert price(book_of(LIST), {OUTPUT: 1}, model="m").reasons == ("provider_missing",)
    assert price(book_of(LIST), {OUTPUT: 1}, model="nobody-knows").reasons == ("unknown_model",)
    # A price for whatever is called is no knowledge of the model.
    overhead = "prices:\n  - {meter: overhead.calls, amount: 0.0004, kind: amortised}\n"
    assert price(book_of(overhead, two), {OUTPUT: 1}, model="m").reasons == ("provider_ambiguous",)
    assert price(book_of(overhead, LIST), {OUTPUT: 1}, model="m").reasons == ("provider_missing",)


def test_spot_is_never_billed_as_on_demand() -> None:
    rows = (
        "prices:\n"
        "  - {provider: aws, sku: x, meter: gpu.seconds, amount: 4, unit: hour, when: {purchase: on_demand}}\n"
        "  - {provider: aws, sku: y, meter: gpu.seconds, amount: 4, unit: hour}\n"
    )
    second: dict[str, int | Decimal] = {"gpu.seconds": Decimal(3600)}
    book = book_of(rows)
    assert price(book, second, cloud_provider="aws", device="x").cost == 4
    assert price(book, second, cloud_provider="aws", device="x", purchase="On-Demand").cost == 4
    spot = price(book, second, cloud_provider="aws", device="x", purchase="spot")
    assert (spot.cost, spot.reasons) == (None, ("no_price_for_purchase",))
    assert price(book, second, cloud_provider="aws", device="y", purchase="spot").cost == 4


def test_shipped_prices_are_the_same_at_every_level() -> None:
    usage: dict[str, int | Decimal] = {INPUT: 10, OUTPUT: 10}
    charges = PriceEngine(shipped_book()).price(usage, at=NOON, selectors=Selectors(provider="openai", model="o3"))
    assert charges.list_cost == charges.contracted_cost == charges.cost is not None

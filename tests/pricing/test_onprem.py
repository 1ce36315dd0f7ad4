"""Owned GPUs: the rate of an hour, the price-book row, break-even and payback, a node's price divided."""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import tollspan.pricing.onprem as onprem
from tollspan.pricing import BookError, PriceBook
from tollspan.pricing.entries import amount_text, book_text
from tollspan.pricing.onprem import Tco, breakeven, parse_tco, read_tco, split_node
from tollspan.pricing.yamlbook import parse_layer

from .books import NOON, at, price

PUBLISHED = Tco(
    id="published",
    device="NVIDIA H100 80GB HBM3",
    gpus=8,
    capex=Fraction(8 * 35_000),
    infrastructure=Fraction("0.4"),
    residual=Fraction(0),
    months=48,
    kw_per_gpu=Fraction("0.7"),
    pue=Fraction("1.4"),
    tariff=Fraction("0.12"),
    staff=Fraction(0),
    space=Fraction(3000),
    maintenance=Fraction(0),
    utilisation=Fraction(400, 730),
)
"""The worked example of the on-premises calculator at randomcalculators.com, read on 2026-11-21: 8 GPUs of 35,000 USD,
400 busy hours a month, against 4.50 USD an hour in the cloud."""

LINES = """\
tco:
  id: hall-2-h100
  device: NVIDIA H100 80GB HBM3
  gpus: 8
  capex: 280000
  infrastructure: 0.4
  residual: 0
  months: 48
  kw_per_gpu: 0.7
  pue: 1.4
  tariff: 0.12
  staff: 0
  space: 3000
  maintenance: 0
  utilisation: 0.5
"""


def rounded(value: Fraction | None, decimals: int) -> Decimal:
    assert value is not None
    return Decimal(round(value * 10**decimals)).scaleb(-decimals)


def test_an_hour_costs_its_part_of_capex_power_and_upkeep() -> None:
    by_hand = Fraction(392_000, 48 * 730 * 8) + Fraction("0.1176") + Fraction(3000, 730 * 8)
    assert PUBLISHED.hour == by_hand
    assert rounded(PUBLISHED.hour, 6) == Decimal("2.029700")
    assert PUBLISHED.useful_hour == by_hand * Fraction(730, 400)


def test_what_the_machines_bring_at_the_end_lowers_the_hour() -> None:
    assert PUBLISHED.hour - replace(PUBLISHED, residual=Fraction(28_032)).hour == Fraction(28_032, 48 * 730 * 8)


def test_the_published_example_breaks_even_at_318_hours_and_is_paid_back_in_35_6_months() -> None:
    found = breakeven(PUBLISHED, Decimal("4.5"), hours=400)
    assert (found.cloud_month, found.cash_month) == (14_400, Fraction("3376.32"))
    assert rounded(found.hours, 1) == Decimal("318.5")
    assert rounded(found.utilisation, 3) == Decimal("0.436")
    assert rounded(found.payback_months, 1) == Decimal("35.6")


def test_payback_does_not_count_capex_twice() -> None:
    found = breakeven(PUBLISHED, Decimal("4.5"), hours=400)
    twice = PUBLISHED.invested / (found.cloud_month - found.owned_month)  # as the calculator's own formula has it
    assert rounded(twice, 0) == 137
    assert found.payback_months is not None
    assert found.payback_months < twice


def test_hours_default_to_the_utilisation() -> None:
    assert breakeven(PUBLISHED, Decimal("4.5")) == breakeven(PUBLISHED, Decimal("4.5"), hours=400)


def test_a_cloud_that_costs_less_than_the_power_is_never_beaten() -> None:
    found = breakeven(PUBLISHED, Decimal("0.1176"))
    assert (found.hours, found.utilisation, found.payback_months) == (None, None, None)


def test_a_break_even_past_the_months_hours_says_so() -> None:
    found = breakeven(PUBLISHED, Decimal("2"))
    assert found.utilisation is not None
    assert found.utilisation > 1


@pytest.mark.parametrize(("cloud", "hours"), [(-1, 400), (1, 731), (1, -1)])
def test_impossible_questions_are_refused(cloud: int, hours: int) -> None:
    with pytest.raises(ValueError, match="not"):
        breakeven(PUBLISHED, cloud, hours=hours)


@given(
    st.fractions(min_value=0, max_value=10**7),
    st.fractions(min_value=0, max_value=10**5),
    st.fractions(min_value=1, max_value=100),
)
def test_at_break_even_owning_and_renting_cost_the_same(capex: Fraction, upkeep: Fraction, cloud: Fraction) -> None:
    tco = replace(PUBLISHED, capex=capex, space=upkeep)
    even = breakeven(tco, cloud).hours
    assert even is not None
    if even <= 730:
        found = breakeven(tco, cloud, hours=even)
        assert found.owned_month == found.cloud_month


def test_the_documented_file_is_the_published_example() -> None:
    documented = (onprem.__doc__ or "").split("The file::\n")[1].split("What costs nothing")[0]
    tco = parse_tco("\n".join(line[4:] for line in documented.splitlines()).encode(), "doc.yaml")
    assert tco.hour == PUBLISHED.hour
    assert (tco.provider, tco.effective) == ("hall-2", ("2026-01-01", None))


def test_the_row_prices_a_span_to_twelve_decimals(tmp_path: Path) -> None:
    file = tmp_path / "tco.yaml"
    file.write_text(LINES + "  effective: [2026-01-01, null]\n  provider: hall-2\n")
    tco = read_tco(file)
    book = PriceBook([parse_layer(book_text("own", "1", tco.to_entries()).encode(), "own.yaml")])
    hall = {"cloud_provider": "hall-2", "device": "NVIDIA H100 80GB HBM3"}
    charges = price(book, {"gpu.seconds": Decimal(3600)}, **hall)
    assert charges.cost == Decimal(amount_text(tco.hour)) == Decimal("2.029700456621")
    assert charges.charges[0].price_id == "hall-2-h100"
    assert price(book, {"gpu.seconds": Decimal(3600)}, at=at("2025-12-31T23:59:59Z"), **hall).cost is None
    assert price(book, {"gpu.seconds": Decimal(3600)}, at=NOON, **hall | {"cloud_provider": "aws"}).cost is None
    assert book.layers[0].rows[0].kind == "amortised"  # type: ignore[attr-defined]


def test_a_useful_hour_has_paid_for_the_idle_ones() -> None:
    tco = parse_tco(LINES.encode(), "tco.yaml")
    busy, idle = tco.to_entries(useful=True)
    assert Decimal(busy["amount"]) == Decimal(amount_text(tco.hour * 2))
    assert (idle["meter"], idle["amount"]) == ("gpu.idle_seconds", "0")
    book = PriceBook([parse_layer(book_text("own", "1", [busy, idle]).encode(), "own.yaml")])
    month = {"gpu.seconds": 365 * 3600 * 10**9, "gpu.idle_seconds": 365 * 3600 * 10**9}
    useful = price(book, month, device="NVIDIA H100 80GB HBM3").cost
    assert useful is not None
    assert abs(Fraction(useful) - tco.hour * 730) <= Fraction(365, 10**12)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (("  staff: 0\n", ""), "tco.yaml:2: tco: 'staff' is missing. Write 0 where it costs nothing."),
        (("  device: NVIDIA H100 80GB HBM3\n", ""), "tco.yaml:2: tco: 'device' is missing."),
        (
            ("pue: 1.4", "pue: 0.9"),
            "tco.yaml:10: tco.pue: a facility draws at least what its machines draw. "
            "It is 1 or more: facility over machine power.",
        ),
        (
            ("residual: 0", "residual: 392001"),
            "tco.yaml:7: tco.residual: the machines bring more than they cost. Check residual and capex.",
        ),
        (("gpus: 8", "gpus: 0"), "tco.yaml:4: tco.gpus: '0' is not a whole number of at least 1."),
        (("capex: 280000", "capex: -1"), "tco.yaml:5: tco.capex: '-1' is not an amount of 0 or more."),
        (("utilisation: 0.5", "utilisation: 1.5"), "tco.yaml:15: tco.utilisation: '1.5' is not a share."),
        (("space", "spice"), "tco.yaml:13: tco.spice: unknown field. Did you mean space"),
        (("tco:", "book:"), "tco.yaml:1: book: unknown field."),
        (
            ("  months: 48", "  months: 48\n  effective: [2026-01-01]"),
            "tco.yaml:9: tco.effective: expected [from, to], either may be null.",
        ),
    ],
)
def test_a_wrong_file_names_line_field_and_reason(change: tuple[str, str], error: str) -> None:
    with pytest.raises(BookError) as raised:
        parse_tco(LINES.replace(*change).encode(), "tco.yaml")
    assert str(raised.value).startswith(error)


def test_a_file_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(BookError, match=r"none\.yaml: cannot read it: No such file or directory\. Check the path"):
        read_tco(tmp_path / "none.yaml")


def test_opencosts_node_of_35_usd_is_15_15_5() -> None:
    parts = split_node(Decimal(35), {"gpu": Decimal(30), "cpu": Decimal(30), "memory": Decimal(10)})
    assert parts == {"gpu": 15, "cpu": 15, "memory": 5}


@given(
    st.integers(min_value=0, max_value=10**16),
    st.lists(st.decimals(min_value=0, max_value=1000, places=6), min_size=1, max_size=6).filter(any),
)
def test_the_parts_of_a_node_sum_to_its_price_and_none_is_off_by_a_pico(pico: int, weights: list[Decimal]) -> None:
    node = Decimal(pico).scaleb(-12)
    base = {f"resource-{position}": weight for position, weight in enumerate(weights)}
    parts = split_node(node, base)
    assert sum(map(Fraction, parts.values())) == Fraction(node)
    for name, part in parts.items():
        share = Fraction(node) * Fraction(base[name]) / sum(map(Fraction, weights))
        assert abs(Fraction(part) - share) < Fraction(1, 10**12)


@pytest.mark.parametrize(
    ("node", "base"),
    [
        ("-1", {"gpu": "1"}),
        ("0.0000000000001", {"gpu": "1"}),
        ("1", {}),
        ("1", {"gpu": "0"}),
        ("1", {"a": "2", "b": "-1"}),
    ],
)
def test_a_node_that_cannot_be_divided_is_refused(node: str, base: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        split_node(Decimal(node), {name: Decimal(value) for name, value in base.items()})

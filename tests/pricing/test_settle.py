"""What a contract's terms come to over a period: exact, independent of order, and nothing unknown counted."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.pricing.rows import Interval, Term
from tollspan.pricing.settle import Line, Settlement, months_of, other_period, settle
from tollspan.pricing.yamlbook import parse_layer

INPUT, OUTPUT, EGRESS = "tokens.input.uncached", "tokens.output", "network.egress.internet.bytes"


def line(cost: str | None, quantity: str = "1", **more: Any) -> Line:
    """A line of provider p whose contracted cost is its list cost, unless told."""
    fields: dict[str, Any] = {"provider": "p", "sku": "m", "meter": OUTPUT, "list_cost": cost} | more
    listed = fields.pop("list_cost")
    return Line(
        quantity=Decimal(quantity),
        list_cost=None if listed is None else Decimal(listed),
        contracted_cost=None if cost is None else Decimal(cost),
        **fields,
    )


def term(kind: Any, amount: str = "0", steps: tuple[tuple[str, str], ...] = (), **more: Any) -> Term:
    exact = tuple((Decimal(above), Fraction(factor)) for above, factor in steps)
    return Term(more.pop("id", kind), kind, amount=Decimal(amount), steps=exact, **more)


def settle_one(settled: Term, *lines: Line) -> Settlement:
    (settlement,) = settle([settled], lines)
    return settlement


# -- commitments -------------------------------------------------------------------------------------------------------


def test_coverage_is_of_what_is_eligible() -> None:
    """FOCUS, commitment program eligibility: 200 uncovered, 150 covered, 50 ineligible: 150 / 350."""
    settlement = settle_one(term("commitment", "150", provider="p"), line("350"), line("50", provider="q"))
    assert settlement.coverage == Fraction(150, 350)
    assert (settlement.utilisation, settlement.worth, settlement.ineligible) == (1, 0, 50)
    assert settlement.reason == (
        "150 of 350 USD eligible cost are covered (42.9 %), 100.0 % of the commitment is used, 50 USD are not eligible"
    )


def test_what_a_commitment_does_not_use_is_owed() -> None:
    settlement = settle_one(term("commitment", "500"), line("120.000000000001"), line(None, sku="unknown"))
    assert settlement.worth == Decimal("379.999999999999")
    assert settlement.worth.as_tuple().exponent == -12
    assert settlement.coverage == 1
    assert settlement.utilisation == Fraction(120_000_000_000_001, 500 * 10**12)
    assert (settlement.shares, settlement.unpriced) == ((), 1)
    assert settlement.reason == (
        "120.000000000001 of 120.000000000001 USD eligible cost are covered (100.0 %), "
        "24.0 % of the commitment is used, 0 USD are not eligible; "
        "379.999999999999 USD are owed for what was not used; 1 total without a price could not be counted"
    )


def test_a_commitment_of_nothing_eligible_has_no_coverage_and_is_owed_whole() -> None:
    settlement = settle_one(term("commitment", "10", provider="q"), line("5"))
    assert (settlement.coverage, settlement.utilisation, settlement.worth) == (None, 0, 10)


def test_a_cost_counts_towards_every_commitment_that_covers_it() -> None:
    wide, narrow = settle([term("commitment", "10"), term("commitment", "8", id="n", sku="m")], [line("6")])
    assert (wide.worth, narrow.worth) == (4, 2)


def test_contracted_cost_counts_and_not_the_list_s() -> None:
    assert settle_one(term("commitment", "100"), line("90", list_cost="100")).worth == 10


# -- allotments --------------------------------------------------------------------------------------------------------


def test_the_first_units_are_free_at_the_average_price_of_the_period() -> None:
    cheap, dear = line("2", "1000000", meter=INPUT), line("10", "1000000")
    settlement = settle_one(term("allotment", "500000", meter="tokens.*"), cheap, dear)
    assert settlement.worth == -3  # a quarter of 12
    assert settlement.shares == (Decimal("-0.5"), Decimal("-2.5"))
    assert (settlement.cost, settlement.quantity) == (12, 2_000_000)
    assert settlement.reason == ("500000 of 2000000 token are free, at the period's average contracted price")


def test_no_more_is_free_than_was_used() -> None:
    settlement = settle_one(term("allotment", "500"), line("3", "20"))
    assert (settlement.worth, settlement.reason.split(",")[0]) == (-3, "20 of 20 token are free")


def test_an_allotment_of_something_else_is_worth_nothing() -> None:
    settlement = settle_one(term("allotment", "500", meter=EGRESS), line("3", "20"))
    assert (settlement.worth, settlement.shares, settlement.quantity) == (0, (0,), None)


def test_units_without_a_price_use_the_allotment_up_and_are_said_to_be_left_out() -> None:
    settlement = settle_one(term("allotment", "50"), line("10", "50"), line(None, "50", sku="unknown"))
    assert (settlement.worth, settlement.shares, settlement.unpriced) == (-5, (-5, 0), 1)
    assert settlement.reason.endswith("; 1 total without a price could not be counted")


def test_a_credit_is_divided_to_the_last_digit() -> None:
    settlement = settle_one(term("allotment", "1"), *(line("0.000000000001", "1") for _ in range(3)))
    assert settlement.worth == Decimal("-0.000000000001")
    assert sorted(settlement.shares) == [Decimal("-0.000000000001"), 0, 0]


def test_the_narrow_allotment_is_used_before_the_wide_one_and_no_unit_is_free_twice() -> None:
    wide, narrow = settle(
        [term("allotment", "30", id="wide"), term("allotment", "80", id="narrow", sku="m")],
        [line("100", "100"), line("100", "100", sku="n")],
    )
    assert (narrow.worth, narrow.quantity) == (-80, 100)
    assert (wide.quantity, wide.cost, wide.worth) == (120, 120, -30)


def test_egress_is_free_by_the_gigabyte_as_the_book_says() -> None:
    text = f"adjustments:\n  - {{id: free, match: {{provider: aws, meter: {EGRESS}}}, allotment: 100, unit: GB}}\n"
    (free,) = parse_layer(text.encode(), "book.yaml").terms
    settlement = settle_one(free, line("36", "400000000000", provider="aws", sku="*", meter=EGRESS))
    assert settlement.worth == -9


# -- volume discounts --------------------------------------------------------------------------------------------------

STEPS = (("100", "0.9"), ("300", "0.5"))


@pytest.mark.parametrize(
    ("cost", "graduated", "charged"),
    [
        ("0", True, "0"),
        ("100", True, "100"),
        ("101", True, "100.9"),
        ("300", True, "280"),
        ("400", True, "330"),
        ("100", False, "100"),
        ("101", False, "90.9"),
        ("300", False, "270"),
        ("400", False, "200"),
    ],
)
def test_steps_of_a_volume(cost: str, graduated: bool, charged: str) -> None:
    settlement = settle_one(term("volume", steps=STEPS, graduated=graduated), line(cost))
    assert settlement.worth == Decimal(charged) - Decimal(cost)


def test_list_cost_finds_the_step_and_contracted_cost_is_what_it_discounts() -> None:
    discounted = line("160", list_cost="200", sku="a")
    settlement = settle_one(term("volume", steps=STEPS, graduated=False), discounted)
    assert (settlement.worth, settlement.cost) == (-16, 160)
    assert (
        settlement.reason == "200 USD of list cost reach the step above 100: 90.0 % of the contracted cost is charged"
    )


def test_a_volume_of_units_counts_those_without_a_price_too() -> None:
    volume = term("volume", steps=(("150", "0.5"),), graduated=False, basis="quantity")
    settlement = settle_one(volume, line("10", "100"), line(None, "100"))
    assert (settlement.worth, settlement.unpriced) == (-5, 1)
    assert settlement.reason == (
        "200 token reach the step above 150: 50.0 % of the contracted cost is charged; "
        "1 total without a price could not be counted"
    )


def test_what_has_no_list_price_is_left_out_of_a_volume_of_cost() -> None:
    settlement = settle_one(term("volume", steps=STEPS), line("1000", list_cost=None), line("200"))
    assert (settlement.worth, settlement.shares, settlement.unpriced) == (-10, (0, -10), 1)


def test_the_most_specific_volume_has_a_line_for_itself() -> None:
    half = (("1", "0.5"),)
    wide, narrow = settle(
        [
            term("volume", steps=half, graduated=False, id="wide"),
            term("volume", steps=half, graduated=False, id="narrow", sku="m*"),
        ],
        [line("100", sku="mini"), line("40", sku="large")],
    )
    assert (wide.worth, wide.shares) == (-20, (0, -20))
    assert (narrow.worth, narrow.shares) == (-50, (-50, 0))


# -- together ----------------------------------------------------------------------------------------------------------


def test_allotments_come_before_volumes_and_both_before_commitments() -> None:
    terms = [
        term("commitment", "100"),
        term("volume", steps=(("50", "0.5"),), graduated=False),
        term("allotment", "100"),
    ]
    commitment, volume, allotment = settle(terms, [line("200", "200")])
    assert allotment.worth == -100
    assert (volume.cost, volume.worth) == (100, -50)  # of the list cost of 200, 100 are left
    assert (commitment.cost, commitment.worth) == (50, 50)
    beyond = term("volume", steps=(("150", "0.5"),), graduated=False)
    assert settle([beyond, terms[2]], [line("200", "200")])[0].worth == 0


def test_providers_are_one_in_any_spelling() -> None:
    azure = line("10", provider="azure")
    assert settle_one(term("commitment", "10", provider="azure.ai.openai"), azure).worth == 0
    assert settle_one(term("commitment", "10", provider="openai"), azure).worth == 10


def test_less_than_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="below 0"):
        settle([], [line("-1")])


money = st.decimals(0, 10**6, places=12)
lines = st.lists(
    st.builds(
        Line,
        provider=st.sampled_from(["p", "q"]),
        sku=st.sampled_from(["m", "n"]),
        meter=st.sampled_from([INPUT, OUTPUT]),
        quantity=st.integers(0, 10**9).map(Decimal),
        list_cost=st.none() | money,
        contracted_cost=st.none() | money,
    ),
    max_size=6,
)
scopes: dict[str, Any] = {
    "provider": st.sampled_from([None, "p"]),
    "sku": st.sampled_from(["*", "m", "m*"]),
    "meter": st.sampled_from(["tokens.*", OUTPUT]),
}
factor = st.fractions(0, 1, max_denominator=50)
steps = st.lists(
    st.tuples(st.integers(1, 10**6).map(Decimal), factor), min_size=1, max_size=3, unique_by=lambda s: s[0]
)
terms = st.lists(
    st.one_of(
        st.builds(Term, st.just("a"), st.just("allotment"), amount=st.integers(1, 10**9).map(Decimal), **scopes),
        st.builds(Term, st.just("c"), st.just("commitment"), amount=money, **scopes),
        st.builds(
            Term,
            st.just("v"),
            st.just("volume"),
            steps=steps.map(lambda found: tuple(sorted(found))),
            graduated=st.booleans(),
            basis=st.sampled_from(["cost", "quantity"]),
            **scopes,
        ),
    ),
    max_size=4,
)


@given(terms, lines)
def test_credits_add_up_to_the_last_digit_and_never_exceed_what_was_charged(
    settled: list[Term], used: list[Line]
) -> None:
    settlements = settle(settled, used)
    left = [item.contracted_cost or Decimal(0) for item in used]
    for settlement in settlements:
        if settlement.term.kind == "commitment":
            assert settlement.worth == max(Decimal(0), settlement.term.amount - settlement.cost)
        else:
            assert settlement.worth <= 0
            assert sum(settlement.shares) == settlement.worth
            left = [cost + share for cost, share in zip(left, settlement.shares, strict=True)]
    assert all(cost >= 0 for cost in left)
    for share, item in ((s, item) for one in settlements for s, item in zip(one.shares, used, strict=False)):
        assert item.contracted_cost is not None or share == 0


@given(terms, lines, st.randoms())
def test_the_order_of_lines_does_not_matter(settled: list[Term], used: list[Line], random: Any) -> None:
    shuffled = list(used)
    random.shuffle(shuffled)
    first = [(one.worth, one.reason) for one in settle(settled[:1], used)]
    assert first == [(one.worth, one.reason) for one in settle(settled[:1], shuffled)]


# -- periods -----------------------------------------------------------------------------------------------------------


def interval(since: str | None, until: str | None) -> Interval:
    ends = (
        None if day is None else int(datetime.fromisoformat(f"{day}T00:00+00:00").timestamp()) * 10**9
        for day in (since, until)
    )
    return Interval(*ends)


YEAR, OCTOBER, TEN_DAYS = ("2026-01-01", "2027-01-01"), ("2026-10-01", "2026-11-01"), ("2026-10-10", "2026-10-20")


@pytest.mark.parametrize(
    ("kind", "effective", "period", "why"),
    [
        ("commitment", YEAR, OCTOBER, "it is for 2026-01-01 until 2027-01-01, as a whole"),
        ("volume", YEAR, OCTOBER, "it is for 2026-01-01 until 2027-01-01, as a whole"),
        ("commitment", YEAR, ("2025-01-01", "2028-01-01"), "it is for 2026-01-01 until 2027-01-01, as a whole"),
        ("commitment", YEAR, YEAR, ""),
        ("commitment", OCTOBER, OCTOBER, ""),
        ("commitment", TEN_DAYS, TEN_DAYS, ""),
        ("commitment", TEN_DAYS, OCTOBER, "it is for 2026-10-10 until 2026-10-20, as a whole"),
        ("commitment", (None, None), OCTOBER, ""),
        ("commitment", ("2026-10-01", None), OCTOBER, ""),
        ("commitment", ("2026-10-10", None), OCTOBER, "it is for a calendar month, and holds in a part of this one"),
        ("volume", (None, "2026-10-10"), OCTOBER, "it is for a calendar month, and holds in a part of this one"),
        ("volume", (None, None), YEAR, "it is for a calendar month: settle it with --month"),
        ("allotment", YEAR, OCTOBER, ""),
        ("allotment", YEAR, YEAR, "it is for a calendar month: settle it with --month"),
        ("allotment", OCTOBER, OCTOBER, ""),
        ("allotment", TEN_DAYS, TEN_DAYS, "it is for a calendar month: settle it with --month"),
        ("allotment", (None, None), ("2026-10-02", "2026-11-02"), "it is for a calendar month"),
    ],
)
def test_a_term_is_for_one_period(kind: str, effective: Any, period: Any, why: str) -> None:
    found = other_period(term(kind, "1", effective=interval(*effective)), interval(*period))
    assert found.startswith(why)
    assert bool(found) == bool(why)


def test_a_period_is_made_of_whole_months_or_of_none() -> None:
    assert months_of(interval("2026-11-01", "2027-02-01")) == [
        interval("2026-11-01", "2026-12-01"),
        interval("2026-12-01", "2027-01-01"),
        interval("2027-01-01", "2027-02-01"),
    ]
    for since, until in (("2026-11-02", "2027-02-01"), ("2026-11-01", "2027-02-02"), TEN_DAYS):
        assert months_of(interval(since, until)) == []


def test_what_the_months_terms_leave_counts_towards_a_commitment_for_longer() -> None:
    free = term("allotment", "50", meter=OUTPUT)
    lines = [line("100", "100"), line("30", "30"), line("7", "7", sku="n")]
    (settlement,) = settle([term("commitment", "200")], lines, months=[([free], 1), ([free], 2)])
    # 50 of the first month's 100 are free, and all of the second's 37.
    assert (settlement.cost, settlement.worth) == (50, 150)

"""Which of several rows of one span counts: the rules of a revision, for any instants and numbers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.processor import revisions
from tollspan.processor.revisions import MAX_REPRICING, arrived, rolled_up

INSTANTS = st.integers(1_577_836_800_000, 32_503_680_000_000)  # 2020 to 3000
NUMBERS = st.integers(1, MAX_REPRICING)


def repriced(revision: int, number: int) -> int:
    return int(revisions.repriced(np.array([revision], np.uint64), number)[0])


@given(INSTANTS, INSTANTS)
def test_the_first_arrival_counts(one: int, other: int) -> None:
    assert (arrived(one) > arrived(other)) == (one < other)


@given(INSTANTS, INSTANTS, NUMBERS)
def test_no_arrival_outranks_a_repricing(first: int, resent: int, number: int) -> None:
    assert repriced(arrived(first), number) > arrived(resent)
    assert repriced(rolled_up(arrived(first)), number) > rolled_up(arrived(resent))


@given(INSTANTS, INSTANTS, NUMBERS)
def test_a_rollup_outranks_every_bill_whenever_it_is_found(billed: int, found: int, number: int) -> None:
    assert rolled_up(arrived(found)) > repriced(arrived(billed), number)


@given(INSTANTS, st.lists(NUMBERS, min_size=2, max_size=4, unique=True))
def test_the_last_repricing_counts_and_the_arrival_is_kept(at: int, numbers: list[int]) -> None:
    row = arrived(at)
    for number in numbers:
        row = repriced(row, number)
    assert row == repriced(arrived(at), numbers[-1])
    assert repriced(row, max(numbers)) >= row


@given(INSTANTS)
def test_rows_from_before_this_scheme_stay_below(at: int) -> None:
    assert arrived(at) > 2
    assert rolled_up(arrived(at)) < 2**63, "it fits a signed 64-bit number too"


def test_two_batches_never_have_the_same_revision() -> None:
    made = [arrived() for _ in range(1000)]
    assert made == sorted(set(made), reverse=True)


def test_a_clock_before_2020_or_far_ahead_stays_within_its_bits() -> None:
    for ms in (0, 2**60):
        assert 0 < arrived(ms) < 1 << revisions.ARRIVAL_BITS


@pytest.mark.parametrize("number", [0, -1, MAX_REPRICING + 1])
def test_a_number_that_has_no_room_is_refused(number: int) -> None:
    with pytest.raises(ValueError, match="number"):
        repriced(1, number)


def test_rollups_are_told_from_bills_in_old_rows_too() -> None:
    made = np.array([0, 1, 2, arrived(), rolled_up(arrived())], np.uint64)
    assert revisions.is_rolled_up(made).tolist() == [False, True, True, False, True]

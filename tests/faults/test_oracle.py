"""The oracle can fail: whatever is done to a right ledger, it says so."""

from __future__ import annotations

import sys
from decimal import Decimal
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from oracle import BOOK, DEARER, Account, Book, Generator
from world import Figures, table

Rows = dict[int, tuple[Decimal | None, str, str]]


def right(account: Account, spans: set[int]) -> Rows:
    """The ledger as it has to be when exactly these spans are there."""
    due = account.due(account.billable(spans))
    return {span: (account.cost(span, status, BOOK), status, "oracle@1+shipped@1") for span, status in due.items()}


@pytest.fixture
def account() -> Account:
    account = Account()
    for batch in Generator(3).batches(20):
        account.send(batch)
        account.ack(batch)
    return account


def test_a_right_ledger_has_no_problems(account: Account) -> None:
    rows = right(account, set(account.sent))
    assert account.problems(rows) == []
    assert {status for _, status, _ in rows.values()} == {"priced", "rollup", "unpriced", "invalid", "not_billed"}


def test_what_was_sent_and_not_acknowledged_may_be_there_or_not(account: Account) -> None:
    call = next(call for call in account.sent.values() if call.tells_usage and not call.operation.startswith("invoke"))
    account.acked.discard(call.span)
    assert account.problems(right(account, set(account.sent))) == []
    assert account.problems(right(account, set(account.sent) - {call.span})) == []


def test_every_kind_of_wrong_is_seen(account: Account) -> None:
    rows = right(account, set(account.sent))
    span, (cost, status, version) = next((span, row) for span, row in rows.items() if row[0])
    assert cost is not None
    lost = {other: row for other, row in rows.items() if other != span}
    assert "acknowledged and not stored: 1" in account.problems(lost)[0]
    assert "never sent: 1" in account.problems({**rows, 10**9: rows[span]})[0]
    for wrong in [
        (cost + Decimal("1e-12"), status, version),
        (None, status, version),
        (Decimal(0), status, version),
        (None, "unpriced", version),
        (DEARER.cost(account.sent[span].model, account.sent[span].tokens or (0, 0)), status, version),
    ]:
        assert "wrong: 1" in account.problems({**rows, span: wrong})[0], wrong


def test_a_plain_span_has_no_row(account: Account) -> None:
    plain = next(call.span for call in account.sent.values() if not call.status)
    assert "never sent: 1" in account.problems({**right(account, set(account.sent)), plain: (None, "unpriced", "")})[0]


def test_a_call_is_billed_once_whoever_repeats_it(account: Account) -> None:
    agent = next(call for call in account.sent.values() if call.operation == "invoke_agent")
    below = {call.span for call in account.sent.values() if call.trace == agent.trace and call.span > agent.span}
    assert account.due({agent.span} | account.billable(below))[agent.span] == "rollup"
    assert account.due({agent.span})[agent.span] == "priced"


def test_of_two_books_the_one_that_a_row_names_has_to_agree(account: Account) -> None:
    account.books = (BOOK, DEARER)
    rows = right(account, set(account.sent))
    assert account.problems(rows) == []
    span = next(span for span, row in rows.items() if row[0])
    cost, status, _ = rows[span]
    assert "wrong: 1" in account.problems({**rows, span: (cost, status, "oracle@2+shipped@1")})[0]


def test_each_charge_is_rounded_half_to_even() -> None:
    book = Book(1, {"m": (Decimal("0.0000005"), Decimal("0.0000015"))})
    assert book.cost("m", (1, 1)) == Decimal("2e-12")  # 0.5 → 0, 1.5 → 2, in 10⁻¹² USD
    assert book.cost("m", (3, 3)) == Decimal("6e-12")  # 1.5 → 2, 4.5 → 4


def test_the_table_says_what_did_not_hold() -> None:
    found = [
        Figures("fire", 3, "burns", problems=["lost | 1\nand more"]),
        Figures("water", scenario="w", recovery_s=1.25),
    ]
    text = table([*found, Figures("air", 0, "a", not_run="no air")], "2026-11-21")
    assert "**lost / 1 and more**" in text
    assert "| w | water | 1 | 0 | 0 | 0 | 0 | 0 | 0 | 1.2 | 0 | 0 | 2026-11-21 | held |" in text
    assert "| not run: no air |" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_a_fault_that_is_run_alone_replaces_its_row() -> None:
    before = table([Figures("fire", 3, "burns", problems=["lost"]), Figures("water", 1, "w")], "2026-11-21")
    after = table([Figures("fire", 9, "burns")], "2026-11-22", before)
    rows = [line.split(" | ")[0] for line in after.splitlines() if line.startswith("| ")]
    assert rows == ["| scenario", "| burns", "| w"]
    assert "lost" not in after
    assert table([], "2026-11-23", after) == after

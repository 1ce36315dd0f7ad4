"""Prices of the past stay as they were on arrival until somebody prices them again, and closed months for good."""

from __future__ import annotations

import itertools
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import BEGAN, chat, payload

from tollspan.pricing import PriceEngine, load_book
from tollspan.processor import reprice as module
from tollspan.processor.charge import charge
from tollspan.processor.decode import decode
from tollspan.processor.errors import ConfigError, StoreUnavailable, TollspanError
from tollspan.processor.normalize import normalize
from tollspan.processor.periods import Period, PeriodClosed, close, closed, month, overview, reopen
from tollspan.processor.reprice import reprice, survey
from tollspan.processor.repricings import Plan, Selection, Totals
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

ALL = Selection(Period(datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 1, tzinfo=UTC)))
MONTH = f"{datetime.fromtimestamp(BEGAN / 1e9, UTC):%Y-%m}"

Books = Callable[..., PriceEngine]
_numbers = itertools.count()


@pytest.fixture
def engine(tmp_path: Path) -> Books:
    """Makes an engine of ``model={meter: amount a unit}`` and nothing else."""

    def made(**models: dict[str, str]) -> PriceEngine:
        rows = [
            f"  - {{id: {model}/{meter}, provider: openai, sku: {model.replace('_', '-')}, meter: {meter},"
            f" amount: '{amount}', per: 1}}"
            for model, meters in models.items()
            for meter, amount in meters.items()
        ]
        path = tmp_path / f"book{next(_numbers)}.yaml"
        path.write_text("price_book: {id: b, version: 1, currency: USD}\nprices:\n" + "\n".join(rows) + "\n")
        return PriceEngine(load_book(path, shipped=False))

    return made


def arrive(store: Store, engine: PriceEngine, *spans: Any, rollups: tuple[int, ...] = ()) -> None:
    """Spans as the pipeline prices and writes them; ``rollups`` are positions of spans billed on others."""
    normalized = normalize(decode([payload(spans)]), received_ns=BEGAN)
    rolled = np.zeros(len(spans), np.bool_)
    rolled[list(rollups)] = True
    rows = charge(normalized, rolled, engine).ledger
    Writer(store, threading.Event()).write(f"arrival{next(_numbers)}", rows, None, None)


def tokens(amount: str, read: str = "0.25") -> dict[str, str]:
    return {"tokens.input.uncached": read, "tokens.output": amount}


def costs(store: Store) -> list[Decimal | None]:
    return [row["cost"] for row in store.rows("SELECT cost FROM ledger FINAL ORDER BY start_time")]


def copies(store: Store) -> int:
    return int(store.rows("SELECT count() AS n FROM ledger")[0]["n"])


class TestFirstPrice:
    def test_a_span_that_is_sent_again_under_another_book_keeps_its_first_price(
        self, store: Store, engine: Books
    ) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        arrive(store, engine(gpt_5_mini=tokens("9")), chat(1, tokens=(4, 10)))
        assert costs(store) == [21]
        store.execute("OPTIMIZE TABLE ledger FINAL")
        assert costs(store) == [21]

    def test_nor_does_sending_it_again_undo_a_repricing(self, store: Store, engine: Books) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        reprice(store, engine(gpt_5_mini=tokens("3")), ALL)
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        assert costs(store) == [31]

    def test_a_rollup_that_is_found_late_outranks_a_repricing(self, store: Store, engine: Books) -> None:
        old = engine(gpt_5_mini=tokens("2"))
        arrive(store, old, chat(1, tokens=(4, 10)))
        reprice(store, engine(gpt_5_mini=tokens("3")), ALL)
        arrive(store, old, chat(1, tokens=(4, 10)), rollups=(0,))
        (row,) = store.rows("SELECT cost_status, rolled_up, repriced FROM ledger FINAL")
        assert row == {"cost_status": "rollup", "rolled_up": True, "repriced": 0}


class TestReprice:
    def test_rows_that_change_are_written_and_others_are_not(self, store: Store, engine: Books) -> None:
        before = engine(gpt_5_mini=tokens("2"), other=tokens("1"))
        arrive(store, before, chat(1, tokens=(4, 10)), chat(2, tokens=(4, 10), **{"gen_ai.request.model": "other"}))
        outcome = reprice(store, engine(gpt_5_mini=tokens("3"), other=tokens("1")), ALL)
        assert outcome.number == 1
        assert outcome.plan.total == Totals(
            rows=2, changed=1, old_cost=Decimal(32), new_cost=Decimal(42), costed_before=2, costed_after=2
        )
        assert copies(store) == 3
        assert store.rows("SELECT cost, repriced FROM ledger FINAL ORDER BY start_time") == [
            {"cost": 31, "repriced": 1},
            {"cost": 11, "repriced": 0},
        ]
        (row,) = store.rows("SELECT * FROM repricings FINAL")
        assert (row["rows"], row["old_total"], row["new_total"]) == (1, 32, 42)
        assert row["finished_at"] > row["started_at"]

    def test_a_repriced_row_is_what_an_arrival_under_that_book_is(self, store: Store, engine: Books) -> None:
        spans = [
            chat(1, tokens=(1000, 100), **{"gen_ai.usage.cache_read.input_tokens": 300}),
            chat(2, tokens=(7, 0)),
            chat(3, tokens=None),
            chat(4, **{"gen_ai.request.model": "nobody-knows"}),
            chat(5, tokens=(5, 10), error=True),
            chat(6, tokens=(5, 10), **{"tollspan.usage.gpu.seconds": 1.5}),
        ]
        meters = tokens("2") | {"tokens.input.cache_read": "0.1"}
        first, second = engine(gpt_5_mini=meters), engine(gpt_5_mini=dict.fromkeys(meters, "7"))
        arrive(store, first, *spans, rollups=(4, 5))
        reprice(store, second, ALL)
        sql = "SELECT * EXCEPT (revision, revised, arrival_cost) FROM ledger FINAL ORDER BY start_time"
        again = store.query(sql)
        store.execute("TRUNCATE TABLE ledger")
        arrive(store, second, *spans, rollups=(4, 5))
        # The version of the book is only written where something changed.
        assert again.drop_columns(["book_version"]).equals(store.query(sql).drop_columns(["book_version"]))
        assert outcome_is_still(store, second)

    def test_what_no_price_can_change_stays(self, store: Store, engine: Books) -> None:
        spans = [
            chat(1, tokens=None),
            chat(2, tokens=None, error=True, **{"http.response.status_code": 429}),
            chat(3, tokens=(10, -5)),
            chat(4, tokens=(10, 5)),
        ]
        arrive(store, engine(gpt_5_mini=tokens("2")), *spans, rollups=(3,))
        outcome = reprice(store, engine(gpt_5_mini=tokens("3")), ALL)
        assert outcome.number is None
        assert copies(store) == 4

    def test_what_was_unpriced_gets_its_price(self, store: Store, engine: Books) -> None:
        arrive(store, engine(other=tokens("1")), chat(1, tokens=(4, 10)))
        assert costs(store) == [None]
        outcome = reprice(store, engine(gpt_5_mini=tokens("2")), ALL)
        total = outcome.plan.total
        assert (total.unpriced_before, total.unpriced_after) == (1, 0)
        assert total.row()["old_cost"] is None, "unknown is not 0"
        assert costs(store) == [21]

    def test_half_told_usage_stays_priced_in_part(self, store: Store, engine: Books) -> None:
        span = chat(1, tokens=None, **{"gen_ai.usage.output_tokens": 10})
        arrive(store, engine(other=tokens("1")), span)
        (before,) = store.rows("SELECT cost_status, cost_reasons FROM ledger FINAL")
        reprice(store, engine(gpt_5_mini=tokens("2")), ALL)
        (after,) = store.rows("SELECT cost_status, cost_reasons, cost FROM ledger FINAL")
        assert before["cost_status"] == "unpriced"
        assert after == {"cost_status": "partial", "cost_reasons": "usage_incomplete", "cost": 20}

    def test_a_fee_that_the_old_book_implied_goes_with_it(self, store: Store, engine: Books) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2") | {"requests": "5"}), chat(1, tokens=(4, 10)))
        assert costs(store) == [26]
        reprice(store, engine(gpt_5_mini=tokens("2")), ALL)
        (row,) = store.rows("SELECT cost, cost_status, charges.meter AS meters FROM ledger FINAL")
        assert (row["cost"], row["cost_status"]) == (21, "priced")
        assert "requests" not in row["meters"]

    def test_seconds_keep_their_nanoseconds(self, store: Store, engine: Books) -> None:
        span = chat(1, tokens=(1, 1), **{"tollspan.usage.audio.seconds": 1.234567891})
        arrive(store, engine(gpt_5_mini=tokens("2") | {"audio.seconds": "1"}), span)
        reprice(store, engine(gpt_5_mini=tokens("2") | {"audio.seconds": "10"}), ALL)
        (row,) = store.rows("SELECT charges.meter AS m, charges.quantity AS q, charges.cost AS c FROM ledger FINAL")
        at = row["m"].index("audio.seconds")
        assert (row["q"][at], row["c"][at]) == (Decimal("1.234567891"), Decimal("12.34567891"))

    def test_the_selectors_that_a_price_was_chosen_by_are_kept(self, store: Store, tmp_path: Path) -> None:
        def batch(amount: str) -> PriceEngine:
            path = tmp_path / f"batch{amount}.yaml"
            path.write_text(
                "price_book: {id: b, version: 1, currency: USD}\nprices:\n"
                "  - {id: on, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: '8', per: 1}\n"
                "  - {id: batch, provider: openai, sku: gpt-5-mini, meter: tokens.output, per: 1,"
                f" amount: '{amount}', when: {{processing: batch}}}}\n"
            )
            return PriceEngine(load_book(path, shipped=False))

        arrive(store, batch("4"), chat(1, tokens=(0, 10), **{"tollspan.processing": "batch"}))
        assert costs(store) == [40]
        reprice(store, batch("3"), ALL)
        assert costs(store) == [30]

    def test_only_what_was_asked_for(self, store: Store, engine: Books) -> None:
        old = engine(gpt_5_mini=tokens("2"), other=tokens("2"))
        arrive(
            store,
            old,
            chat(1, tokens=(4, 10), **{"tollspan.tenant": "acme"}),
            chat(2, tokens=(4, 10), **{"tollspan.tenant": "zoo"}),
            chat(3, tokens=(4, 10), **{"tollspan.tenant": "acme", "gen_ai.request.model": "other"}),
        )
        new = engine(gpt_5_mini=tokens("3"), other=tokens("3"))
        before = Period(ALL.period.since, datetime(2025, 1, 1, tzinfo=UTC))
        assert reprice(store, new, Selection(before)).plan.total.rows == 0
        reprice(store, new, Selection(ALL.period, tenant="acme", model="gpt-5-mini"))
        assert costs(store) == [31, 21, 21]
        reprice(store, new, Selection(ALL.period, model="other"))
        assert costs(store) == [31, 21, 31]

    def test_a_survey_writes_nothing(self, store: Store, engine: Books) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        reader = store.reader()
        plan = survey(reader, engine(gpt_5_mini=tokens("3")), ALL)
        reader.close()
        assert plan.total.changed == 1
        assert (copies(store), store.rows("SELECT count() AS n FROM repricings")) == (1, [{"n": 0}])

    def test_prices_are_not_lost_by_mistake(self, store: Store, engine: Books) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        poor = engine(other=tokens("2"))
        with pytest.raises(TollspanError, match="1 rows would lose a price"):
            reprice(store, poor, ALL)
        assert costs(store) == [21]
        reprice(store, poor, ALL, allow_unpriced=True)
        assert costs(store) == [None]

    def test_rows_from_before_the_selectors_were_kept_stay(self, store: Store, engine: Books, ledger_rows: Any) -> None:
        store.insert(
            "ledger", ledger_rows([{"charges": [("tokens.output", "model", "1", "priced")], "revision": 0}]), "o"
        )
        outcome = reprice(store, engine(gpt_5_mini=tokens("3")), ALL)
        assert (outcome.plan.unreadable, outcome.plan.total.rows, outcome.number) == (1, 0, None)

    def test_slices_of_a_few_rows_give_the_same(
        self, store: Store, engine: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(module, "SLICE_ROWS", 3)
        arrive(store, engine(gpt_5_mini=tokens("2")), *(spread(n) for n in range(1, 20)))
        seen: list[int] = []
        outcome = reprice(store, engine(gpt_5_mini=tokens("3")), ALL, progress=seen.append)
        assert outcome.plan.total.changed == 19
        assert sum(seen) == 2 * 19, "each row is read twice: to plan and to write"
        assert max(seen) <= 3
        assert costs(store) == [31] * 19


def spread(number: int) -> Any:
    """A call some minutes after the one before."""
    span = chat(number, tokens=(4, 10))
    span.start_time_unix_nano += number * 600 * 10**9
    span.end_time_unix_nano += number * 600 * 10**9
    return span


def outcome_is_still(store: Store, engine: PriceEngine) -> bool:
    """Whether pricing again under the same book would change nothing."""
    return survey(store, engine, ALL).total.changed == 0


class TestCrash:
    @pytest.mark.parametrize("inserts", [0, 1, 2])
    def test_the_same_command_completes_what_broke_off(
        self, store: Store, engine: Books, monkeypatch: pytest.MonkeyPatch, inserts: int
    ) -> None:
        monkeypatch.setattr(module, "SLICE_ROWS", 3)
        arrive(store, engine(gpt_5_mini=tokens("2")), *(spread(n) for n in range(1, 10)))
        new = engine(gpt_5_mini=tokens("3"))
        insert, left = store.insert, [inserts]

        def breaks(table: str, rows: pa.Table, token: str) -> None:
            if not left[0]:
                raise StoreUnavailable("away")
            left[0] -= 1
            insert(table, rows, token)

        monkeypatch.setattr(store, "insert", breaks)
        with pytest.raises(StoreUnavailable):
            reprice(store, new, ALL)
        monkeypatch.setattr(store, "insert", insert)
        outcome = reprice(store, new, ALL)
        assert (outcome.number, outcome.resumed) == (1, True)
        assert outcome.plan.total.old_cost == 9 * 21, "the totals are those from before the first try"
        assert outcome.plan.total.new_cost == 9 * 31
        assert costs(store) == [31] * 9
        (row,) = store.rows("SELECT * FROM repricings FINAL")
        assert row["finished_at"] > row["started_at"]
        assert reprice(store, new, ALL).number is None, "there is nothing left to do"

    def test_another_book_does_not_complete_it_but_outranks_it(
        self, store: Store, engine: Books, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        record = module.record
        monkeypatch.setattr(module, "record", lambda *_: (_ for _ in ()).throw(StoreUnavailable("away")))
        with pytest.raises(StoreUnavailable):
            reprice(store, engine(gpt_5_mini=tokens("3")), ALL)  # everything is written, only the end is not noted
        monkeypatch.setattr(module, "record", record)
        outcome = reprice(store, engine(gpt_5_mini=tokens("4")), ALL)
        assert (outcome.number, outcome.resumed) == (2, False)
        assert costs(store) == [41]


class TestClosedPeriods:
    def test_a_closed_month_refuses_before_anything_is_written(self, store: Store, engine: Books) -> None:
        arrive(store, engine(gpt_5_mini=tokens("2")), chat(1, tokens=(4, 10)))
        assert close(store, month(MONTH), "invoice 1042")
        with pytest.raises(PeriodClosed, match=MONTH):
            reprice(store, engine(gpt_5_mini=tokens("3")), ALL)
        assert copies(store) == 1
        reopen(store, month(MONTH))
        reprice(store, engine(gpt_5_mini=tokens("3")), ALL)
        assert costs(store) == [31]

    def test_the_instant_at_its_end_is_not_in_it(self, store: Store, engine: Books) -> None:
        close(store, month("2025-10"))
        after = Selection(Period(datetime(2025, 11, 1, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC)))
        before = Selection(Period(datetime(2025, 9, 1, tzinfo=UTC), datetime(2025, 10, 1, tzinfo=UTC)))
        for selection in (after, before):
            assert reprice(store, engine(gpt_5_mini=tokens("3")), selection).number is None
        last = Selection(Period(datetime(2025, 10, 31, 23, tzinfo=UTC), datetime(2025, 12, 1, tzinfo=UTC)))
        with pytest.raises(PeriodClosed):
            reprice(store, engine(gpt_5_mini=tokens("3")), last)

    def test_what_comes_late_is_written_and_listed(self, store: Store, engine: Books) -> None:
        book = engine(gpt_5_mini=tokens("2"))
        arrive(store, book, chat(1, tokens=(4, 10)))
        close(store, month(MONTH), "invoice 1042")
        threading.Event().wait(0.01)  # arrivals are told apart by the millisecond
        arrive(store, book, chat(2, tokens=(4, 10)))
        arrive(store, book, chat(1, tokens=(4, 10)))  # sent again: it came before the close
        assert costs(store) == [21, 21]
        (row,) = overview(store)
        assert (row["period"], row["note"], row["late_rows"], row["late_cost"]) == (MONTH, "invoice 1042", 1, 21)

    def test_closing_again_keeps_the_first_instant(self, store: Store) -> None:
        assert close(store, month("2025-10"))
        first = overview(store)
        assert not close(store, month("2025-10"), "again")
        assert overview(store) == first

    def test_a_month_that_is_not_over_is_not_closed(self, store: Store) -> None:
        with pytest.raises(ConfigError, match="2026-11 is not over"):
            close(store, month("2026-11"), now=datetime(2026, 11, 30, 23, 59, tzinfo=UTC))
        assert close(store, month("2026-11"), now=datetime(2026, 12, 1, tzinfo=UTC))

    def test_what_is_not_closed_is_not_reopened(self, store: Store) -> None:
        close(store, month("2025-09"))
        with pytest.raises(ConfigError, match=r"2025-10 is not closed.*2025-09"):
            reopen(store, month("2025-10"))

    @pytest.mark.parametrize("text", ["2026", "2026-13", "2026-00", "26-10", "2026-10-01", "0001-01", ""])
    def test_what_is_no_month_is_refused(self, text: str) -> None:
        with pytest.raises(ConfigError, match="no month"):
            month(text)

    def test_a_month_ends_where_the_next_begins(self) -> None:
        assert month("2025-12").until == month("2026-01").since
        assert str(month("2025-12")) == "2025-12"
        assert str(Period(month("2025-11").since, month("2025-12").until)) == "2025-11-01 00:00 to 2026-01-01 00:00"

    @pytest.mark.parametrize("text", ["٢٠٢٦-١٠", "2026-１0", "2026-1_"])
    def test_a_month_is_written_in_plain_digits(self, text: str) -> None:
        with pytest.raises(ConfigError, match="is no month"):
            month(text)

    def test_nothing_is_closed_to_begin_with(self, store: Store) -> None:
        assert closed(store) == []
        assert overview(store) == []


def test_a_plan_is_kept_to_the_last_digit(store: Store, engine: Books) -> None:
    from tollspan.processor.repricings import begin, unfinished

    plan = Plan({("", "p", "m'\"ü"): Totals(2, 1, Decimal("0.000000000001"), Decimal(10) ** 20, 2, 2, 0, 0, 0)}, 3)
    begin(store, "v1", ALL, plan)
    found = unfinished(store, "v1", ALL)
    assert found is not None
    assert found[1] == plan
    assert unfinished(store, "v2", ALL) is None


class TestNumbers:
    """Runs that begin in the same moment, on a server that several share."""

    @pytest.fixture
    def race(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
        """Two runs of which each looks for the last number before the other writes: the second begins and reads back
        while the first is between its look and its claim, or between its claim and its reading back."""
        from tollspan.processor import repricings

        def run(first: str, second: str, sql: str, behind: timedelta = timedelta(0)) -> dict[str, Any]:
            outcomes: dict[str, Any] = {}
            ids = {"first": iter([first, "c" * 32]), "second": iter([second])}
            active: list[str] = []
            rows, within, record = store.rows, [False], repricings.record

            def recorded(into: Store, entry: dict[str, Any]) -> None:
                late = {"started_at": entry["started_at"] - behind} if entry["run"] == first else {}
                record(into, {**entry, **late})

            def begin(name: str) -> None:
                active.append(name)
                try:
                    outcomes[name] = repricings.begin(store, "v", ALL, Plan())["number"]
                except TollspanError as error:
                    outcomes[name] = str(error)
                active.pop()

            def interleaved(query: str, parameters: dict[str, Any] | None = None) -> list[dict[str, Any]]:
                found = rows(query, parameters)
                if sql in query and not within[0]:
                    within[0] = True
                    begin("second")
                return found

            monkeypatch.setattr(repricings.uuid, "uuid4", lambda: type("Id", (), {"hex": next(ids[active[-1]])}))
            monkeypatch.setattr(repricings, "record", recorded)
            monkeypatch.setattr(store, "rows", interleaved)
            begin("first")
            monkeypatch.setattr(store, "rows", rows)
            return outcomes

        return run

    @pytest.mark.parametrize("ids", ["ab", "ba"])
    def test_two_runs_never_keep_one_number(self, race: Callable[..., dict[str, Any]], ids: str) -> None:
        outcomes = race(ids[0] * 32, ids[1] * 32, "max(number)")
        numbers = [outcome for outcome in outcomes.values() if isinstance(outcome, int)]
        assert 1 in numbers
        assert len(set(numbers)) == len(numbers)
        assert len(outcomes) == 2

    def test_nor_if_the_clock_of_the_one_that_claims_last_is_behind(self, race: Callable[..., dict[str, Any]]) -> None:
        assert race("a" * 32, "b" * 32, "max(number)", timedelta(hours=1)) == {"first": 2, "second": 1}

    def test_a_claim_that_was_given_up_is_no_run_to_complete(
        self, store: Store, race: Callable[..., dict[str, Any]]
    ) -> None:
        outcomes = race("a" * 32, "b" * 32, "max(number)")
        entries = store.rows("SELECT number, run, rows, finished_at FROM repricings FINAL ORDER BY number, run")
        kept = {entry["number"] for entry in entries if entry["finished_at"].year == 1970}
        assert kept == {outcome for outcome in outcomes.values() if isinstance(outcome, int)}
        given_up = [entry["rows"] for entry in entries if entry["finished_at"].year > 1970]
        assert given_up == [0]

    def test_a_run_that_comes_after_takes_the_next_number(self, race: Callable[..., dict[str, Any]]) -> None:
        assert race("b" * 32, "a" * 32, "WHERE number = {number:UInt16}") == {"first": 1, "second": 2}

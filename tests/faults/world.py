"""Everything that a scenario needs around it: a store, services, clients, an account, and the check at the end."""

from __future__ import annotations

import os
import platform
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
from database import Database
from line import PATIENCE_S, Clients, Line
from oracle import BOOK, Account, Book, Generator

from tollspan.processor.reconcile import reconcile
from tollspan.processor.store import Store, StoreInUse, connect_for_query, open_store

Row = tuple[Decimal | None, str, str]

_LEDGER: Final = (
    "SELECT reinterpretAsUInt64(reverse(span_id)) AS span, cost, cost_status, book_version FROM {db}.ledger FINAL"
)
_SUM: Final = "SELECT sum(cost) AS total, count() AS n FROM {db}.ledger FINAL"
_BODIES: Final = "SELECT reinterpretAsUInt64(reverse(unhex(SpanId))) AS span FROM {db}.spans FINAL"


@dataclass
class Figures:
    """What became of a fault.

    Attributes:
        fault: in words.
        times: how often it was made.
        scenario: its name, by which it can be run alone.
        sent, acked: spans that went out, and that were acknowledged.
        stored: rows of the ledger, one for each billable span.
        cost_acked, cost_stored: Σ in USD, by the account of what was acknowledged, by the store of what is there.
        refused: requests that were refused, every try counted.
        recovery_s: from the end of the fault until everything acknowledged stood in the ledger.
        peak_mib: resident memory of the service at the most.
        took_s: all of it, with starts, load and the check at the end.
        problems: what is wrong; empty when the promises held.
        not_run: why, where it could not be.
        note: what else is worth knowing.
    """

    fault: str
    times: int = 1
    scenario: str = ""
    sent: int = 0
    acked: int = 0
    stored: int = 0
    cost_acked: Decimal = Decimal(0)
    cost_stored: Decimal = Decimal(0)
    refused: int = 0
    recovery_s: float | None = None
    peak_mib: float = 0.0
    took_s: float = 0.0
    problems: list[str] = field(default_factory=list)
    not_run: str = ""
    note: str = ""


COLUMNS: Final = (
    *("scenario", "fault", "times", "spans sent", "acked", "ledger rows", "Σ acked, USD", "Σ stored, USD"),
    *("refusals", "recovery, s", "RSS peak, MiB", "took, s", "day", "result"),
)
HEAD: Final = f"| {' | '.join(COLUMNS)} |\n|--|--|{'--:|' * (len(COLUMNS) - 4)}--|--|\n"


def row(found: Figures, day: str) -> str:
    """A fault's line of the table."""
    held = f"**{'; '.join(found.problems)}**" if found.problems else "held"
    cells = (
        *(found.scenario, found.fault, f"{found.times:,}", f"{found.sent:,}", f"{found.acked:,}", f"{found.stored:,}"),
        *(f"{found.cost_acked}", f"{found.cost_stored}", f"{found.refused:,}"),
        *("" if found.recovery_s is None else f"{found.recovery_s:.1f}", f"{found.peak_mib:,.0f}"),
        *(f"{found.took_s:,.0f}", day),
        f"not run: {found.not_run}" if found.not_run else "; ".join(filter(None, (held, found.note))),
    )
    return f"| {' | '.join(' '.join(cell.replace('|', '/').split()) for cell in cells)} |\n"


def table(results: Sequence[Figures], day: str, before: str = "") -> str:
    """The fault table as Markdown, with date and machine in words.

    Args:
        before: a table of earlier: rows of other scenarios stay, in their place.
    """
    rows = {line.split(" | ")[0]: f"{line}\n" for line in before.splitlines() if line.startswith("| ")}
    rows.pop(f"| {COLUMNS[0]}", None)
    rows |= {line.split(" | ")[0]: line for line in (row(found, day) for found in results)}
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return (
        f"Made by `make soak`: {platform.system()} on {platform.machine()}, {os.cpu_count()} cores and "
        f"{pages * size / 2**30:.0f} GiB shared by service, clients and store; Python {platform.python_version()}.\n\n"
        + HEAD
        + "".join(rows.values())
    )


class World:
    """One scenario's.

    Args:
        folder: for everything on disk.
        engine: this process's embedded engine, which plays the ClickHouse server; None: the service runs its own.
        seed: of the load.
        books: see `Account`.
    """

    def __init__(self, folder: Path, engine: Store | None, seed: int = 7, books: Sequence[Book] = (BOOK,)) -> None:
        self.folder = folder
        self.generator = Generator(seed)
        self.account = Account(books)
        self.lines: list[Line] = []
        self.stats: Counter[str] = Counter()
        """Counters of all processes that ended as they should."""
        self.kills = 0
        self._clients: list[Clients] = []
        self._database = Database(engine) if engine is not None else None
        self.store = self._database.url if self._database is not None else f"chdb://{folder / 'store'}"

    @property
    def database(self) -> Database:
        """The server on the wire."""
        assert self._database is not None, "this scenario runs on an embedded store"
        return self._database

    def line(self, *options: str, book: Book = BOOK, keep: float = 1, wait_s: float = 0, **more: Any) -> Line:
        """A service, running; keeps every body and decides at once unless told otherwise."""
        folder = self.folder / f"line{len(self.lines)}"
        folder.mkdir()
        usual = ["--keep", f"{keep}", "--decision-wait", f"{wait_s}"]
        sql = "off" if self._database is not None else "127.0.0.1:0"
        line = Line(folder, self.store, [*usual, *options], sql=sql, **more)
        line.book.write_text(book.yaml())
        self.lines.append(line)
        return line.start()

    def clients(self, line: Line, lanes: int = 6, patience_s: float = PATIENCE_S) -> Clients:
        """Clients of a service, closed with this world."""
        made = Clients(line, self.account, lanes, patience_s)
        self._clients.append(made)
        return made

    def kill(self, line: Line) -> None:
        """kill -9."""
        line.kill()
        self.kills += 1

    def stop(self, line: Line) -> dict[str, int]:
        """SIGTERM; counters are added up."""
        stats = line.stop()
        self.stats.update(stats)
        return stats

    def query(self, sql: str) -> pa.Table:
        """Rows of a SELECT, past the wire; ``{db}`` is the database."""
        if self._database is not None:
            return self._database.store.query(sql.replace("{db}", self._database.name))
        began = time.monotonic()
        while True:
            try:
                with connect_for_query(self.store) as reader:
                    return reader.query(sql.replace("{db}", "tollspan"))
            except StoreInUse:
                # It takes spans before it says where its SQL port is.
                assert time.monotonic() - began < PATIENCE_S, "the service does not say where its SQL port is"
                time.sleep(0.05)

    def ledger(self) -> dict[int, Row]:
        """The ledger by span number.

        Raises:
            AssertionError: a span is there twice.
        """
        found = self.query(_LEDGER)
        spans = found["span"].to_pylist()
        columns = [found[name].to_pylist() for name in ("cost", "cost_status", "book_version")]
        rows = dict(zip(spans, zip(*columns, strict=True), strict=True))
        assert len(rows) == len(spans), f"{len(spans) - len(rows)} spans are there twice"
        return rows

    def bodies(self) -> set[int]:
        """Numbers of the spans whose bodies were kept."""
        return set(self.query(_BODIES)["span"].to_pylist())

    def landed(self, patience_s: float = PATIENCE_S) -> float:
        """Wait until everything acknowledged stands in the ledger; the seconds that it took.

        Raises:
            AssertionError: it does not.
        """
        began = time.monotonic()
        due = self.account.billable(self.account.acked)
        while True:
            if self.query(_SUM)["n"][0].as_py() >= len(due):
                missing = due - set(self.query(_LEDGER)["span"].to_pylist())
                if not missing:
                    return time.monotonic() - began
            assert time.monotonic() - began < patience_s, (
                f"{len(due)} rows are due, {self.query(_SUM)['n'][0].as_py()} are there: " + self.lines[-1].said()
            )
            time.sleep(0.1)

    def until(self, true: Callable[[], object], what: str, patience_s: float = PATIENCE_S) -> float:
        """Wait until something is the case; the seconds that it took.

        Raises:
            AssertionError: it does not come about.
        """
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < patience_s, f"no {what}: {self.lines[-1].said()}"
            time.sleep(0.02)
        return time.monotonic() - began

    def finish(
        self, fault: str, times: int = 1, recovery_s: float | None = None, note: str = "", bodies: bool = True
    ) -> Figures:
        """Stop the services as one should, and hold the store against the account.

        Args:
            fault, times, recovery_s, note: of `Figures`.
            bodies: every acknowledged span's body has to be there too.
        """
        for clients in self._clients:
            clients.close()
        for line in self.lines:
            if line.process is not None and line.process.poll() is None:
                self.stop(line)
        rows = self.ledger()
        account = self.account
        problems = account.problems(rows)
        stored = set(rows) & account.billable(account.sent)
        sums = self.query(_SUM)
        total = sums["total"][0].as_py() or Decimal(0)
        due = account.due(stored)
        costs = {span: row[0] for span, row in rows.items() if row[0] is not None}
        if len(account.books) == 1:
            expected = {
                span: account.cost(span, status, account.books[0]) or Decimal(0) for span, status in due.items()
            }
        else:  # which book priced a span is for the ledger to say, and `Account.problems` has looked whether it may
            expected = {span: costs.get(span, Decimal(0)) for span in due}
        acked = sum((expected[span] for span in account.acked if span in expected), Decimal(0))
        if total != sum(expected.values(), Decimal(0)):
            problems.append(f"Σ stored is {total}, and {sum(expected.values(), Decimal(0))} is due")
        if bodies:
            there = self.query(_BODIES)["span"].to_pylist()
            lost = {span for span in account.acked if not account.sent[span].rejected} - set(there)
            problems += [f"bodies lost: {len(lost)}, e.g. {sorted(lost)[:5]}"] if lost else []
            problems += [f"bodies twice: {len(there) - len(set(there))}"] if len(there) != len(set(there)) else []
        refused = {code: n for code, n in account.refusals.items() if code not in ("lost", "DEADLINE_EXCEEDED")}
        counted = sum(n for name, n in self.stats.items() if name.startswith("receive.refused."))
        if not self.kills and counted < sum(refused.values()):
            problems.append(f"refused {refused}, and counted {counted}")
        problems += self._reconciled(len(rows), total)
        return Figures(
            fault=fault,
            times=times,
            sent=len(account.sent),
            acked=len(account.acked),
            stored=len(rows),
            cost_acked=acked,
            cost_stored=total,
            refused=sum(refused.values()),
            recovery_s=recovery_s,
            peak_mib=max((line.peak_mib for line in self.lines), default=0.0),
            problems=problems,
            note=note,
        )

    def _reconciled(self, rows: int, total: Decimal) -> list[str]:
        """What `tollspan reconcile` finds wrong, or sums up otherwise."""
        store = self.database.opened() if self._database is not None else open_store(self.store, create=False)
        with store:
            report = reconcile(store, self.lines[0].journal_directory if len(self.lines) == 1 else None)
        found = (report.totals["ledger_rows"], report.totals["cost"] or Decimal(0))
        return ([] if report.agrees else [f"reconcile: {report}"]) + (
            [] if found == (rows, total) else [f"reconcile sums up {found}, not {(rows, total)}"]
        )

    def close(self) -> None:
        """Leave nothing behind."""
        for clients in self._clients:
            clients.close()
        for line in self.lines:
            line.end()
        if self._database is not None:
            self._database.close()


Scenario = Callable[[World, bool], Figures]
"""A fault that is made in a world, in its short form or, where the second argument is true, its long one."""


def named(scenario: Scenario) -> str:
    """In tests' names."""
    if isinstance(scenario, partial):
        what = scenario.args[0]
        return f"{scenario.func.__name__}: {getattr(what, '__name__', what)}"
    return scenario.__name__

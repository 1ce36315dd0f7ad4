"""Roll-ups: a token-bearing span with a token-bearing descendant is not billed again, in whatever order spans come."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.processor.assemble import Assembler, correct
from tollspan.processor.identity import ascending, distinct, repeated

ROOT = 0


@dataclass(frozen=True)
class Span:
    id: int
    parent: int
    tokens: bool


def expected_rollups(spans: list[Span]) -> set[int]:
    """The definition, written the slow way."""
    by_id = {s.id: s for s in spans}
    rollups = set()
    for span in spans:
        if not span.tokens:
            continue
        seen, at = {span.id}, span.parent
        while at in by_id and at not in seen:
            seen.add(at)
            if by_id[at].tokens:
                rollups.add(at)
            at = by_id[at].parent
    return rollups


LEDGER = pa.schema(
    [
        ("id", pa.int64()),
        ("cost", pa.decimal128(38, 12)),
        ("cost_status", pa.string()),
        ("cost_reasons", pa.string()),
        ("charges.meter", pa.list_(pa.string())),
        ("charges.cost", pa.list_(pa.decimal128(38, 12))),
        ("charges.status", pa.list_(pa.string())),
        ("revision", pa.uint64()),
    ]
)


def ledger(spans: list[Span]) -> pa.Table:
    return pa.table(
        [
            [s.id for s in spans],
            [Decimal(1)] * len(spans),
            ["priced"] * len(spans),
            [""] * len(spans),
            [["tokens.output"]] * len(spans),
            [[Decimal(1)]] * len(spans),
            [["priced"]] * len(spans),
            [0] * len(spans),
        ],
        schema=LEDGER,
    )


def feed(assembler: Assembler, batches: list[list[Span]]) -> dict[int, dict]:
    """Final ledger row by span id, as a ReplacingMergeTree(revision) would show it."""
    rows: dict[int, dict] = {}
    for now, batch in enumerate(batches):
        keys = np.array([s.id for s in batch], np.uint64)
        parents = np.array([s.parent for s in batch], np.uint64)
        tokens = np.array([s.tokens for s in batch], bool)
        rollups, announced = assembler.mark(keys, parents, parents == ROOT, tokens, float(now))
        late = assembler.corrections(announced, LEDGER)
        table = ledger(batch)
        written = table.to_pylist()
        for row, rolled in zip(written, rollups, strict=True):
            if rolled:
                row.update(cost=None, cost_status="rollup", revision=1)
        mine = tokens & ~rollups
        assembler.remember(keys, table, mine, float(now))
        written += late.to_pylist() if late is not None else []
        for row in written:
            if row["id"] not in rows or row["revision"] >= rows[row["id"]]["revision"]:
                rows[row["id"]] = row
    return rows


@st.composite
def trees_in_any_order(draw: st.DrawFn) -> list[list[Span]]:
    count = draw(st.integers(1, 25))
    spans = [Span(i, draw(st.integers(0, i - 1)), draw(st.booleans())) for i in range(1, count + 1)]
    order = draw(st.permutations(spans))
    cuts = sorted(draw(st.lists(st.integers(0, count), max_size=4)))
    edges = [0, *cuts, count]
    return [list(order[a:b]) for a, b in itertools.pairwise(edges) if b > a]


@given(trees_in_any_order())
@settings(max_examples=300, deadline=None)
def test_a_rollup_is_found_in_any_order_and_batching(batches: list[list[Span]]) -> None:
    rows = feed(Assembler(), batches)
    found = {i for i, row in rows.items() if row["cost_status"] == "rollup"}
    assert found == expected_rollups([s for batch in batches for s in batch])


@given(trees_in_any_order())
@settings(max_examples=100, deadline=None)
def test_law_an_assembler_that_is_put_down_and_revived_knows_what_it_knew(batches: list[list[Span]]) -> None:
    whole, parts = Assembler(), Assembler()
    rows, revived_rows = {}, {}
    for number, batch in enumerate(batches):
        rows |= feed(whole, [batch])
        revived_rows |= feed(parts, [batch])
        parts = Assembler.revived(*parts.dump(now=float(number)), now=float(number))
    assert revived_rows == rows


def test_a_cycle_of_parents_ends() -> None:
    rows = feed(Assembler(), [[Span(1, 2, True), Span(2, 1, True), Span(3, 3, True)]])
    assert set(rows) == {1, 2, 3}


def test_resending_the_parent_alone_does_not_bill_it_again() -> None:
    assembler = Assembler()
    rows = feed(assembler, [[Span(1, ROOT, True), Span(2, 1, True)]])
    assert rows[1]["revision"] > 0
    again = feed(Assembler(), [[Span(1, ROOT, True)]])
    assert again[1]["revision"] < rows[1]["revision"], "the store keeps the higher revision: the roll-up"


def test_memory_of_old_spans_is_bounded() -> None:
    assembler = Assembler(max_spans=1000)
    for now in range(100):
        keys = np.arange(100, dtype=np.uint64) + np.uint64(now * 1000 + 1)
        assembler.mark(keys, keys, np.ones(100, bool), np.ones(100, bool), float(now))
    assert sum(len(g.keys) for g in assembler._generations) <= 1100


def test_a_corrected_row_keeps_what_is_not_tokens() -> None:
    row = {
        "cost": Decimal("3"),
        "cost_status": "priced",
        "cost_reasons": "",
        "charges.meter": ["tokens.output", "requests", "cpu.seconds"],
        "charges.cost": [Decimal("2"), Decimal("5"), Decimal("1")],
        "charges.status": ["priced", "priced", "priced"],
        "revision": 0,
    }
    fixed = correct(row)
    assert fixed["cost"] == Decimal("1")
    assert fixed["charges.meter"] == ["cpu.seconds"]
    assert fixed["cost_status"] == "priced"
    assert fixed["cost_reasons"] == "rollup"
    estimated = row | {"cost_reasons": "unknown_device,usage_incomplete,usage_estimated"}
    assert correct(estimated)["cost_reasons"] == "unknown_device,rollup"
    unknown = row | {"charges.status": ["priced", "priced", "unpriced"], "charges.cost": [Decimal(2), Decimal(5), None]}
    assert (correct(unknown)["cost_status"], correct(unknown)["cost"]) == ("unpriced", None)


KEYS = st.lists(st.integers(0, 5) | st.integers(0, 2**64 - 1), max_size=40).map(lambda keys: np.array(keys, np.uint64))


@given(KEYS)
def test_keys_are_grouped_as_numpy_groups_them(keys: np.ndarray) -> None:
    for found, expected in zip(distinct(keys), np.unique(keys, return_index=True, return_inverse=True), strict=True):
        assert found.tolist() == expected.tolist()
    assert ascending(keys).tolist() == sorted(set(keys.tolist()))
    assert repeated(keys).tolist() == [key in keys[:row].tolist() for row, key in enumerate(keys.tolist())]


def test_remembered_ledger_rows_are_bounded_in_bytes_and_the_youngest_are_still_corrected() -> None:
    table = ledger([Span(1, 0, True)] * 1000)
    assembler = Assembler(max_bytes=10 * table.nbytes)
    every = np.ones(1000, bool)
    for batch in range(40):
        assembler.mark(*(np.zeros(0, kind) for kind in (np.uint64, np.uint64, bool, bool)), float(batch))
        assembler.remember(np.arange(1000, dtype=np.uint64) + np.uint64(1000 * batch + 1), table, every, float(batch))
        assert assembler._written_bytes <= 11 * table.nbytes
    corrected = assembler.corrections(np.array([1, 39_001, 40_000], np.uint64), LEDGER)
    assert corrected is not None
    assert corrected.num_rows == 2

"""Roll-ups: a token-bearing span with a token-bearing descendant is not billed again, in whatever order spans come."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from decimal import Decimal
from unittest.mock import patch

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.processor import assemble, revisions
from tollspan.processor.assemble import NO_PARENT, Assembler, correct
from tollspan.processor.decode import fused
from tollspan.processor.identity import ascending, distinct, repeated
from tollspan.processor.journal import Range
from tollspan.processor.recent import Index
from tollspan.processor.recent_log import Record

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


@dataclass
class Billed:
    """The bill as a ReplacingMergeTree(revision) would show it: who is a roll-up, by span id."""

    assembler: Assembler = field(default_factory=Assembler)
    rolled: dict[int, bool] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def feed(self, batches: list[list[Span]]) -> dict[int, bool]:
        for batch in batches:
            now = float(len(self.records) + 1)
            keys = np.array([s.id for s in batch], np.uint64)
            parents = np.array([s.parent for s in batch], np.uint64)
            tokens = np.array([s.tokens for s in batch], bool)
            rollups, announced = self.assembler.mark(keys, parents, parents == ROOT, tokens)
            for span, rolled in zip(batch, rollups.tolist(), strict=True):
                self.rolled[span.id] = self.rolled.get(span.id, False) or rolled
            for place in self.assembler.late(announced).tolist():
                self.rolled[place[3]] = True
            order = np.argsort(keys)
            billed = np.sort(keys[tokens & ~rollups])
            places = np.column_stack([np.zeros((len(billed), 3), np.uint64), billed])
            spans = np.column_stack([np.where(parents == keys, NO_PARENT, parents), keys])[order]
            self.assembler.learn(keys[order], spans, announced, billed, places, now)
            at = Range(1, len(self.records), len(self.records) + 1)
            self.records.append(
                Record(at, "", int(now * 1e9), 10**9, {}, keys[order], spans, announced, billed, places)
            )
        return self.rolled

    def revive(self) -> None:
        """Another process, that knows what was put down."""
        self.assembler = Assembler()
        self.assembler.recall(self.records)


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
    rolled = Billed().feed(batches)
    assert {i for i, r in rolled.items() if r} == expected_rollups([s for batch in batches for s in batch])


@given(trees_in_any_order())
@settings(max_examples=100, deadline=None)
def test_law_an_assembler_that_recalls_what_was_put_down_knows_what_it_knew(batches: list[list[Span]]) -> None:
    whole, parts = Billed(), Billed()
    for batch in batches:
        whole.feed([batch])
        parts.feed([batch])
        parts.revive()
    assert parts.rolled == whole.rolled


@given(trees_in_any_order())
@settings(max_examples=50, deadline=None)
def test_law_what_was_owed_when_a_process_died_is_named_by_the_next(batches: list[list[Span]]) -> None:
    billed = Billed()
    billed.feed(batches)
    owed = {place[3] for place in Assembler().recall(billed.records).tolist()}
    late = {i for i, rolled in billed.rolled.items() if rolled} & {
        key for record in billed.records for key in record.billed.tolist()
    }
    assert owed == late


def test_marking_takes_nothing_in() -> None:
    assembler = Assembler()
    keys, parents = np.array([1, 2], np.uint64), np.array([0, 1], np.uint64)
    for _ in range(2):
        rollups, announced = assembler.mark(keys, parents, parents == 0, np.ones(2, bool))
        assert (rollups.tolist(), announced.tolist()) == ([True, False], [1])


def test_a_cycle_of_parents_ends() -> None:
    assert set(Billed().feed([[Span(1, 2, True), Span(2, 1, True), Span(3, 3, True)]])) == {1, 2, 3}


def test_resending_the_parent_alone_does_not_bill_it_again() -> None:
    assert revisions.rolled_up(revisions.arrived()) > revisions.arrived(), "the store keeps the higher revision"


def test_memory_of_old_spans_is_bounded() -> None:
    assembler = Assembler(max_spans=1000)
    none = np.zeros(0, np.uint64)
    for now in range(100):
        keys = np.arange(100, dtype=np.uint64) + np.uint64(now * 1000 + 1)
        places = np.zeros((100, 4), np.uint64)
        assembler.learn(keys, np.zeros((100, 2), np.uint64), none, keys, places, float(now))
    assert len(assembler.spans) <= 1100
    assert len(assembler.billed) <= 1100
    assert 80 < assembler.since < 99, "what is forgotten is known"


def test_at_its_bound_memory_takes_no_more_room() -> None:
    fused.prepare(wait=True)
    assembler, rng = Assembler(max_spans=65_000), np.random.default_rng(1)
    for now in range(25):
        keys = np.unique(rng.integers(0, 2**64, 3000, dtype=np.uint64))
        places = np.zeros((len(keys), 4), np.uint64)
        assembler.learn(keys, np.zeros((len(keys), 2), np.uint64), keys, keys, places, float(now))
        assert assembler.spans.find(keys)[0].tolist() == list(range(len(keys)))
        for known in (assembler.spans, assembler.billed, assembler._ancestors):
            assert isinstance(known, Index)
            assert len(known) <= 65_000
            assert len(known._keys) <= 1 << 16, "entries that have room; it is a power of two"
    assert len(assembler.spans) > 60_000


def test_a_batch_above_the_bound_is_remembered_alone() -> None:
    assembler, none = Assembler(max_spans=10), np.zeros(0, np.uint64)
    for now, size in enumerate((8, 30, 4)):
        keys = np.arange(size, dtype=np.uint64) + np.uint64(100 * now)
        assembler.learn(keys, np.zeros((size, 2), np.uint64), none, none, np.zeros((0, 4), np.uint64), float(now))
        assert len(assembler.spans) == size
        assert assembler.since == max(now - 1, 0)


def test_what_is_older_than_the_window_is_forgotten() -> None:
    assembler = Assembler(window_s=10.0)
    none = np.zeros(0, np.uint64)
    for now in range(100):
        key = np.array([now + 1], np.uint64)
        assembler.learn(key, np.zeros((1, 2), np.uint64), none, key, np.zeros((1, 4), np.uint64), float(now))
    assert len(assembler.spans.find(np.array([1, 2, 3], np.uint64))[0]) == 0
    assert len(assembler.spans.find(np.array([95, 100], np.uint64))[0]) == 2


def test_a_corrected_row_keeps_what_is_not_tokens() -> None:
    row = {
        "cost": Decimal("3"),
        "cost_status": "priced",
        "cost_reasons": "",
        "charges.meter": ["tokens.output", "requests", "cpu.seconds"],
        "charges.cost": [Decimal("2"), Decimal("5"), Decimal("1")],
        "charges.status": ["priced", "priced", "priced"],
        "revision": 0,
        "revised": False,
        "arrival_cost": None,
    }
    fixed = correct(row)
    assert fixed["cost"] == Decimal("1")
    assert fixed["charges.meter"] == ["cpu.seconds"]
    assert fixed["cost_status"] == "priced"
    assert fixed["cost_reasons"] == "rollup"
    assert (fixed["revised"], fixed["arrival_cost"]) == (True, Decimal("3")), "what it cost on arrival is kept"
    assert correct(fixed)["arrival_cost"] == Decimal("3")
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


@st.composite
def batches_of_any_spans(draw: st.DrawFn) -> list[list[tuple[int, int, bool, bool, bool]]]:
    """Batches of (span, parent, bears tokens, tells usage, embeds): parents that never come, cycles, any order."""
    count = draw(st.integers(1, 16))
    flags = st.tuples(st.integers(0, count + 3), st.booleans(), st.booleans(), st.booleans())
    spans = [(number, *draw(flags)) for number in draw(st.permutations(range(1, count + 1)))]
    edges = [0, *sorted(draw(st.lists(st.integers(0, count), max_size=4))), count]
    return [spans[a:b] for a, b in itertools.pairwise(edges) if b > a]


@given(batches_of_any_spans())
@settings(max_examples=300, deadline=None)
def test_law_rollups_do_not_depend_on_who_finds_them(batches: list[list[tuple[int, int, bool, bool, bool]]]) -> None:
    fused.prepare(wait=True)
    by_kernels, by_search = Assembler(), Assembler()
    for number, batch in enumerate(batches):
        keys, parents = (np.array([span[place] << 32 for span in batch], np.uint64) for place in (0, 1))
        tokens, usage, embeddings = (np.array([span[place] for span in batch], bool) for place in (2, 3, 4))
        given_ = (keys, parents, parents == 0, tokens)
        masks = {"used": tokens & usage, "embeddings": embeddings}
        with patch.object(assemble, "kernels", lambda: None):
            rollups, announced = by_search.mark(*given_, **masks)
        found, told = by_kernels.mark(*given_, **masks)
        assert (found.tolist(), told.tolist()) == (rollups.tolist(), announced.tolist())
        order = np.argsort(keys)
        spans = np.column_stack([np.where(parents == keys, NO_PARENT, parents), keys])[order]
        nobody = np.zeros(0, np.uint64)
        for assembler in (by_kernels, by_search):
            assembler.learn(keys[order], spans, announced, nobody, np.zeros((0, 4), np.uint64), number + 1.0)

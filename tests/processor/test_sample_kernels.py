"""Kernels of sampling say what NumPy says; texts by a kernel are the reader's; answers on names are remembered."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tollspan.processor import judged
from tollspan.processor.decode import decode, fused
from tollspan.processor.decode.anyvalue import as_text
from tollspan.processor.judged import Judged
from tollspan.processor.sample import NEVER, Decision, Fates, Plain, TailSampler, faster
from tollspan.processor.sample.open_traces import KeyIndex, Pool
from tollspan.processor.sample.telemetry_cost import MINUTE_NS, Part, Rules, Shares, _coded, _grouped
from tollspan.processor.sample.waiting import traces_of
from tollspan.processor.summarize import Facts, _add

from .otlp_factory import request, span

pytestmark = pytest.mark.timeout(600)  # where nothing is cached, the first test waits for the compiler

relaxed = settings(deadline=None, max_examples=60)


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    fused.prepare(wait=True)
    assert faster.kernels() is not None


def by_numpy(work: Any) -> Any:
    """The same without kernels."""
    walk, fused._walk = fused._walk, None
    try:
        assert faster.kernels() is None
        return work()
    finally:
        fused._walk = walk


@relaxed
@given(st.data())
def test_an_index_finds_what_is_in_it_whoever_put_it_there(data: st.DataObject) -> None:
    slots = Pool({"key": np.uint64, "at": np.int32})
    index, known = KeyIndex(slots), dict[int, int]()
    # Few different ends, so that keys meet each other in the table.
    keys = st.builds(lambda high, low: high << 40 | low, st.integers(0, 2000), st.integers(0, 3))
    for _ in range(data.draw(st.integers(1, 6))):
        with_kernels = data.draw(st.booleans())
        new = data.draw(st.lists(keys.filter(lambda key: key not in known), unique=True, max_size=400))

        def put(new: list[int] = new) -> None:
            made = slots.take(len(new))
            slots["key"][made] = new
            index.add(made)
            known.update(zip(new, made.tolist(), strict=True))

        put() if with_kernels else by_numpy(put)
        gone = data.draw(st.lists(st.sampled_from(sorted(known)), unique=True, max_size=50)) if known else []
        if gone:
            index.remove(np.array([known.pop(key) for key in gone], np.int32))
        asked = np.array([*known, *gone, 7 << 50], np.uint64)
        expected = [*known.values(), *(-1 for _ in gone), -1]
        assert index.find(asked).tolist() == by_numpy(lambda asked=asked: index.find(asked)).tolist() == expected
        assert len(index.slots()) == len(known)


instants = st.one_of(
    st.integers(0, 2**64 - 1),
    st.builds(lambda minutes, ns: (10**8 + minutes) * MINUTE_NS // 4 + ns, st.integers(-400, 400), st.integers(0, 999)),
)
names = st.lists(st.sampled_from([None, "", "acme", "globex", "initech"]), min_size=30, max_size=30)


@relaxed
@given(st.lists(instants, min_size=1, max_size=30), names, names, st.integers(0, 2**20), st.booleans(), st.booleans())
def test_shares_are_those_of_numpy(
    starts: list[int], tenants: list[str | None], services: list[str | None], received: int, coded: bool, all_: bool
) -> None:
    count = len(starts)
    columns = [pa.array(each[:count], pa.string()) for each in (tenants, services)]
    if coded:
        columns = [column.dictionary_encode() for column in columns]
    sizes = np.arange(count) * 7 % 5 + 1
    whole = int(sizes.sum()) + (0 if all_ else 100)
    given_ = np.array(starts, np.uint64), 10**8 * MINUTE_NS // 4, *map(_coded, columns), sizes, received, whole
    ours, theirs = _grouped(*given_), by_numpy(lambda: _grouped(*given_))
    for one, other in zip(ours, theirs, strict=True):
        assert one.dtype == other.dtype
        assert one.tolist() == other.tolist()
    assert not all_ or ours.shares.sum() == received


def test_more_groups_than_a_kernel_finds() -> None:
    starts = np.arange(500, dtype=np.uint64) * np.uint64(1440 * MINUTE_NS)
    nobody = _coded(pa.array([None] * 500, pa.string()))
    found = _grouped(starts, 0, nobody, nobody, np.ones(500, np.int64), 1000, 500)
    assert found.sums.tolist() == [[1] * 500, [2] * 500]


@relaxed
@given(st.data())
def test_totals_of_traces_are_those_of_numpy(data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    count, traces = data.draw(st.integers(1, 60)), data.draw(st.integers(1, 9))
    rows = np.sort(rng.permutation(2 * count)[:count])
    group = np.sort(rng.integers(0, traces, count))
    root = np.where(rng.random(2 * count) < 0.2, np.arange(2 * count), -1).astype(np.int32)
    slim = rng.random(2 * count) < 0.5 if data.draw(st.booleans()) else None
    again = rng.random(count) < 0.3 if data.draw(st.booleans()) else None
    start = rng.integers(0, 2**62, 2 * count)
    facts = Facts(start, start + 5, rng.random(2 * count) < 0.1, root, pa.table({}), None, slim)
    sizes = rng.integers(0, 2**32, 2 * count).astype(np.uint32)
    decision = Decision(None, rows, group, Fates.alike(traces, 0, 0), again)

    def made() -> list[Any]:
        first, last = np.full(traces, 2**63 - 1), np.zeros(traces, np.int64)
        sums, failed = np.zeros((3, traces), np.int64), np.zeros(traces, np.uint8)
        some = _add(decision, facts, sizes, first, last, sums, failed)
        return [each.tolist() for each in (some, first, last, sums, failed)]

    assert made() == by_numpy(made)


@relaxed
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 2**32))
def test_what_is_decided_is_counted_as_by_numpy(count: int, traces: int, groups: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows, trace = rng.permutation(2 * count)[:count], np.sort(rng.integers(0, traces, count))
    group = rng.integers(0, groups, 2 * count).astype(np.int32)
    sizes = rng.integers(0, 2**32, 2 * count).astype(np.uint32)
    full = rng.integers(0, NEVER + 1, traces).astype(np.uint64)
    rules = Rules(rng.integers(0, 3, traces).astype(np.int16), rng.random(traces) < 0.5, full)

    def made() -> Any:
        none = np.zeros(groups, np.int64)
        part = Part("t", "", 1, 0, none, pa.array([""] * groups), pa.array([""] * groups), none, none)
        Shares(part, group, sizes).decided(rows, rules, trace)
        return {key: tally.tolist() for key, tally in part._tallies.items()}

    assert made() == by_numpy(made)


@relaxed
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 4)), min_size=1, max_size=20), st.integers(0, 2**32))
def test_traces_of_a_batch_are_those_of_numpy(runs: list[tuple[int, int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    trace = np.repeat(*np.array(runs).T).astype(np.uint64) * np.uint64(2**60 - 1)
    random, root = rng.integers(0, 2**63, len(trace)).astype(np.uint64) * np.uint64(2), rng.random(len(trace)) < 0.2
    ours, theirs = traces_of(trace, random, root), by_numpy(lambda: traces_of(trace, random, root))
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        assert one is None or (one.dtype, one.tolist()) == (other.dtype, other.tolist())


values = st.one_of(
    st.text(max_size=40),
    st.integers(-(2**63), 2**63 - 1),
    st.sampled_from([0, 9, 10, -1, 10**18, -(10**18), 2**63 - 1, -(2**63), 10**15, 99, 100]),
    st.booleans(),
    st.floats(),
    st.binary(max_size=9),
    st.lists(st.one_of(st.text(max_size=5), st.integers(0, 9)), max_size=3),
)


@relaxed
@given(st.lists(st.lists(values, max_size=6), min_size=1, max_size=4))
def test_texts_are_those_of_the_reader(said: list[list[Any]]) -> None:
    spans = [span({f"k{i}": v for i, v in enumerate(each)}, number=number) for number, each in enumerate(said)]
    attributes = decode([request(spans)]).attributes
    assert attributes.texts().to_pylist() == as_text(attributes.raw, attributes.kinds).to_pylist()


def test_an_answer_is_asked_for_once() -> None:
    asked: list[str] = []

    def ask(given_names: Any) -> Any:
        asked.extend(given_names.to_pylist())
        return np.array([name.startswith("a") for name in given_names.to_pylist()], np.bool_)

    question = Judged(ask)
    for _ in range(3):
        assert question(pa.array(["a", "b"])).tolist() == [True, False]
    assert asked == ["a", "b"]
    assert question(pa.array(["b", "c", "ab"])).tolist() == [False, False, True]
    long = "a" * (judged.LONGEST + 1)
    for _ in range(2):
        assert question(pa.array([long])).tolist() == [True]
    assert asked.count(long) == 2, "a name that long is not remembered"
    many = pa.array([f"b{n}" for n in range(judged.MOST + 1)])
    assert not question(many).any()
    assert question(pa.array([], pa.string())).tolist() == []
    for start in range(0, 3 * judged.REMEMBERED, 500):
        question(pa.array([f"c{n}" for n in range(start, start + 500)]))
    assert len(question._answers._known) <= judged.REMEMBERED + judged.MOST


@relaxed
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 30))
def test_what_arrives_is_put_down_as_by_numpy(seed: int, traces: int, most: int) -> None:
    def made() -> Any:
        rng = np.random.default_rng(seed)
        sampler = TailSampler(Plain(0.1), wait_s=2.0, timeout_s=9.0, max_trace_spans=most)
        columns = sampler.open.slots
        slots = columns.take(60)[:traces]
        columns["random"][:], columns["waiting"][:] = rng.integers(0, 2**64, columns.room, np.uint64), 5
        columns["flags"][:], columns["due"][:] = rng.integers(0, 8, columns.room), rng.integers(0, 200, columns.room)
        came = rng.random(traces) < 0.5, rng.integers(1, 30, traces), rng.integers(0, 2**64, traces, np.uint64)
        due = sampler._arrive(100, slots, *came, rng.random(traces) < 0.5)
        return due.tolist(), [columns[name].tolist() for name in ("last", "random", "waiting", "flags", "due")]

    assert made() == by_numpy(made)

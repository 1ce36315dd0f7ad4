"""The compiled decoder: it says what protobuf says or nothing, reads what the other one reads, and stays in bounds."""

from __future__ import annotations

import itertools
import os
import random
import struct
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.common.v1.common_pb2 import KeyValue

from tollspan.processor.bodies import bodies
from tollspan.processor.decode import Checked, Decoded, by_ptars, check, decode, fused
from tollspan.processor.decode.anyvalue import INT
from tollspan.processor.decode.otlp_slim import canonical, strict
from tollspan.processor.decode.tables import Attributes
from tollspan.processor.normalize import normalize
from tollspan.processor.recent import contents

from .otlp_factory import START, any_value, chat_payload, request, span

pytestmark = pytest.mark.timeout(600)  # where nothing is cached, the first test waits for the compiler

walker: Any = None


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    global walker
    fused.prepare(wait=True)
    assert fused.ready()
    walker = fused.kernels()


def by_the_other(payloads: list[bytes]) -> Decoded:
    """What `decode` says without the walker."""
    kept, fused._walk = fused._walk, None
    try:
        return decode(payloads)
    finally:
        fused._walk = kept


def table(attributes: Attributes) -> list[list[tuple[str, int, bytes]]]:
    """Attributes by owner: key, kind and value."""
    rows = list(
        zip(
            attributes.keys.take(pa.array(attributes.codes)).to_pylist(),
            attributes.kinds.tolist(),
            [canonical("AnyValue", raw) for raw in attributes.raw.to_pylist()],
            strict=True,
        )
    )
    return [rows[start:end] for start, end in itertools.pairwise(attributes.offsets.tolist())]


def everything(decoded: Decoded) -> tuple[Any, ...]:
    """All that a batch says, as Python values; which rows stand for resources and scopes is no matter."""
    resources = list(zip(table(decoded.resources), decoded.resource_facts.to_pylist(), strict=True))
    scopes = list(zip(table(decoded.scope_attributes), decoded.scopes.to_pylist(), strict=True))
    spans = [
        {
            **row,
            "resource": resources[row["resource"]],
            "scope": scopes[row["scope"]],
            "events": [canonical("Event", raw) for raw in row["events"]],
            "links": [canonical("Link", raw) for raw in row["links"]],
        }
        for row in decoded.spans.to_pylist()
    ]
    return spans, table(decoded.attributes), decoded.rejected, decoded.malformed


def protobuf(payload: bytes) -> Checked | None:
    """What protobuf's parser and a count of spans say; None: it refuses."""
    try:
        strict("Request").FromString(payload)
    except DecodeError:
        return None
    return Checked(None, *by_ptars.count_spans(payload))


def holds(payload: bytes) -> bool:
    """Compare every reading of some bytes; True when the walker took them itself."""
    said, mine = protobuf(payload), fused.check(payload)
    assert mine is None or mine == said
    assert (check(payload).error is None) == (said is not None)
    assert said is None or check(payload) == said
    ordinary = chat_payload(1)
    batch = [ordinary, payload, ordinary]
    decoded = decode(batch)
    if said is not None:
        # As protobuf writes it out again: the other reading takes the last of two parts of a value, and not both.
        assert everything(decoded) == everything(by_the_other([ordinary, canonical("Request", payload), ordinary]))
        assert len(decoded) == 2 + said.spans - sum(said.rejected.values())
        assert decoded.malformed == []
        assert decoded.wire is not None, "what protobuf wrote out again is for the walker too"
    else:
        assert len(decoded) >= 2
    return mine is not None


# -- the wire, field by field --------------------------------------------------------------------------------------


def varint(value: int, padding: int = 0) -> bytes:
    out = bytearray()
    while value > 0x7F or padding > 0:
        out.append(value & 0x7F | 0x80)
        padding -= value <= 0x7F
        value >>= 7
    return bytes(out) + bytes([value])


def framed(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


numbers = st.integers(0, 300) | st.integers(0, 2**64 - 1)
unusual_varints = st.builds(varint, numbers, st.just(0) | st.integers(0, 3))
some_bytes = st.binary(max_size=20) | st.binary(min_size=126, max_size=130) | st.text(max_size=5).map(str.encode)


def scalar(number: int, wire: int, draw: st.DrawFn) -> bytes:
    tag = varint(number << 3 | wire, draw(st.sampled_from((0, 0, 0, 1))))
    if wire == 0:
        return tag + draw(unusual_varints)
    if wire == 1:
        return tag + draw(st.binary(min_size=8, max_size=8))
    if wire == 5:
        return tag + draw(st.binary(min_size=4, max_size=4))
    content = draw(some_bytes)
    return tag + varint(len(content), draw(st.sampled_from((0, 0, 0, 1, 2)))) + content


FIELDS: dict[str, dict[int, Any]] = {
    "request": {1: "resource_spans"},
    "resource_spans": {1: "resource", 2: "scope_spans", 3: 2},
    "resource": {1: "pair", 2: 0},
    "scope_spans": {1: "scope", 2: "span", 3: 2},
    "scope": {1: 2, 2: 2, 3: "pair", 4: 0},
    "span": {
        1: "trace_id",
        2: "span_id",
        3: 2,
        4: "parent",
        5: 2,
        6: 0,
        7: 1,
        8: 1,
        9: "pair",
        10: 0,
        11: "event",
        12: 0,
        13: "link",
        14: 0,
        15: "status",
        16: 5,
    },
    "status": {2: 2, 3: 0},
    "event": {1: 1, 2: 2, 3: "pair", 4: 0},
    "link": {1: 2, 2: 2, 3: 2, 4: "pair", 5: 0, 6: 5},
    "pair": {1: 2, 2: "value"},
    "value": {1: 2, 2: 0, 3: 0, 4: 1, 5: 2, 6: 2, 7: 2},
}
"""Message → field → its wire type, or what stands in its frame."""

IDENTIFIERS = {"trace_id": 16, "span_id": 8, "parent": 8}


@st.composite
def messages(draw: st.DrawFn, name: str = "request", odd: bool = True) -> bytes:
    """Any fields in any order and any number, some of them unknown or (`odd`) of a wire type that is not theirs."""
    known = FIELDS[name]
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=2 if name == "value" else 6))
    if name == "span":
        chosen = [1, 2, *chosen]
    parts = []
    for number in chosen:
        kind = known[number]
        if odd and draw(st.integers(0, 60)) == 0:
            parts.append(scalar(number, draw(st.sampled_from((0, 1, 2, 5))), draw))
        elif kind in IDENTIFIERS:
            size = IDENTIFIERS[kind] if draw(st.integers(0, 8)) else draw(st.sampled_from((0, 7, 8, 16)))
            parts.append(framed(number, draw(st.binary(min_size=size, max_size=size))))
        elif isinstance(kind, str):
            parts.append(framed(number, draw(messages(kind, odd))))
        else:
            parts.append(scalar(number, kind, draw))
        if odd and draw(st.integers(0, 20)) == 0:
            parts.append(
                scalar(draw(st.sampled_from((17, 99, 1000, 2**29 - 1))), draw(st.sampled_from((0, 1, 2, 5))), draw)
            )
    return b"".join(parts)


@settings(max_examples=100, deadline=None)
@given(messages())
def test_any_fields_in_any_order_are_read_as_protobuf_reads_them(payload: bytes) -> None:
    holds(payload)


@settings(max_examples=60, deadline=None)
@given(messages(), st.data())
def test_bytes_that_changed_are_read_as_protobuf_reads_them(payload: bytes, data: st.DataObject) -> None:
    mutated = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 4))):
        if mutated:
            mutated[data.draw(st.integers(0, len(mutated) - 1))] = data.draw(st.integers(0, 255))
    holds(bytes(mutated))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_are_read_as_protobuf_reads_them(payload: bytes) -> None:
    holds(payload)


RICH = request(
    [
        span({"a": ["x", {"y": b"z"}], "n": -5, "b": True, "d": 0.5, "long": "y" * 150, "": None}, number=3),
        span({"a": 1}, number=4, trace_state="k=v", flags=257, dropped_events_count=2),
    ],
    {"service.name": "größe"},
)


def test_a_request_that_ends_at_any_byte_is_read_as_protobuf_reads_it() -> None:
    taken = [holds(RICH[:size]) for size in range(len(RICH) + 1)]
    assert taken[0]
    assert taken[-1]
    assert sum(taken) < 5  # where it ends between fields of the outermost messages


@pytest.mark.parametrize(
    "tag", [b"\xf8\xff\xff\xff\x0f", b"\xf8\xff\xff\xff\x8f\x00", b"\x88\x80\x80\x80\x80\x00", b"\x00"]
)
def test_tags_that_protobuf_refuses_are_not_taken(tag: bytes) -> None:
    assert holds(tag + b"\x00") == (len(tag) == 5)


def test_ordinary_requests_are_taken_by_the_walker() -> None:
    assert holds(RICH)
    assert holds(chat_payload(3) + chat_payload(2, seed=1))
    assert fused.check(b"") == Checked(None)


@pytest.mark.parametrize(
    "length",
    [varint(2**31 - 1), varint(2**31), varint(2**32 + 3), varint(2**63 - 1), varint(2**64 - 1), b"\xff" * 10],
    ids=str,
)
@pytest.mark.parametrize("before", [b"\x0a", b"\x0a\x20\x12", b"\x0a\x20\x12\x1e\x12", b"\x0a\x20\x12\x1e\x12\x1c\x4a"])
def test_lengths_beyond_the_end_reach_nothing(length: bytes, before: bytes) -> None:
    assert fused.check(before + length + bytes(40)) is None
    holds(before + length + bytes(40))


def test_keys_and_values_of_every_size_are_told_apart() -> None:
    sizes = [0, 1, 7, 8, 9, 15, 16, 17, 127, 128, 255, 256, 257, 300, 511, 513]
    values = {letter * size: letter * size for size in sizes for letter in "xy"}
    several = [span(values, number=number) for number in range(1, 4)]
    assert everything(decode([request(several)])) == everything(by_the_other([request(several)]))


few_values = st.sampled_from(["a", "b", "x" * 40, "x" * 39 + "y", "", 1, 2, -1, 300, 2**40, True, 0.5, None, ["a"]])
few_keys = st.sampled_from(["k", "k2", "some.longer.key", "some.longer.kez", "q" * 130])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(few_keys, few_values), max_size=6), max_size=12), st.data())
def test_attributes_that_come_again_are_the_same_as_the_first_time(made: list[Any], data: st.DataObject) -> None:
    spans = []
    for number, pairs in enumerate(made):
        # A span without a good id is taken back, with the attributes that others could be like.
        bad = {"span_id": b"short"} if data.draw(st.integers(0, 4)) == 0 else {}
        spans.append(span(dict(pairs), number=number + 1, **bad))
    whole = request(spans)
    broken = request(spans[:2]) + request(spans)[:-1]
    for payloads in ([whole], [whole, whole], [broken, whole], [whole, broken, whole]):
        assert everything(decode(payloads)) == everything(by_the_other(payloads))
        assert contents(decode(payloads)).tolist() == contents(by_the_other(payloads)).tolist()


# -- bounds --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "payload",
    [
        framed(1, framed(2, framed(2, framed(1, b"t" * 16) + framed(2, b"s" * 8) + b"\x4a\x00" * 500_000))),
        b"\x0a\x00" * 500_000,
        framed(1, b"\x12\x00" * 500_000),
        framed(1, framed(2, b"\x12\x00" * 500_000)),
        framed(1, framed(2, framed(2, framed(1, b"t" * 16) + framed(2, b"s" * 8) + b"\x5a\x00" * 500_000))),
    ],
    ids=["attributes", "resources", "scopes", "spans", "events"],
)
def test_memory_is_a_small_multiple_of_the_request(payload: bytes) -> None:
    found = fused.check(payload)
    assert found is not None
    decode([chat_payload(8)])
    tracemalloc.start()
    began = time.process_time()
    try:
        decoded = decode([payload])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(decoded) + sum(decoded.rejected.values()) == found.spans
    assert peak < 80 * len(payload)
    assert time.process_time() - began < 5.0


def test_there_is_room_for_what_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {f"k{number % 9}": number for number in range(5)} | {f"key.{number}": number for number in range(3_000)}
    rejected = request([span(many, span_id=b"short"), span({"a": 1}, number=2)])
    broken = request([span(many), span(many, number=2)]) + b"\x0a\x05\x12"
    for payloads in ([rejected], [broken, rejected], [rejected, chat_payload(1), broken]):
        monkeypatch.setattr(fused, "_dense", [0.0] * 8)
        decoded = decode(payloads)
        assert decoded.rejected == {"bad_span_id": 1}
        assert len(decoded.malformed) == len(payloads) // 2
        assert everything(decoded) == everything(by_the_other(payloads))


def test_many_distinct_keys_take_time_in_proportion() -> None:
    def seconds(count: int) -> float:
        payload = request([span({f"key.{number:06d}": 1 for number in range(count)})])
        best = 9.0
        for _ in range(3):
            began = time.process_time()
            assert len(decode([payload]).attributes.keys) == count
            best = min(best, time.process_time() - began)
        return best

    assert seconds(80_000) < 40 * max(seconds(8_000), 0.002)


def test_a_kernel_does_not_read_or_write_outside_of_its_arrays() -> None:
    data = np.frombuffer(bytes(16), np.uint8)
    for at in (-1, 9, 16, 2**62, -(2**62)):
        with pytest.raises(IndexError):
            walker.word(data, at)
        with pytest.raises(IndexError):
            walker.put(np.zeros(16, np.uint8), at, np.uint64(1))
    assert walker.word(data, 8) == 0
    for one, other, size in ((0, 0, 7), (-1, 0, 8), (0, -1, 8), (9, 0, 8), (0, 9, 8), (0, 0, 17), (0, 1, 2**62)):
        with pytest.raises(IndexError):
            walker._equal(data, one, other, size)
    for place, whole in ((-1, 8), (0, 7), (9, 8), (0, 17), (2**62, 2**62)):
        with pytest.raises(IndexError):
            walker._looks_like(data, place, whole, walker.MULTIPLIERS)
    assert walker._equal(data, 0, 8, 8)


@pytest.mark.parametrize("size", [*range(8, 20), 31, 32, 33, 63, 64, 65, 100])
def test_stretches_are_equal_when_every_byte_is(size: int) -> None:
    data = np.zeros(2 * size + 8, np.uint8)
    data[:size] = data[size : 2 * size] = np.frombuffer(random.Random(size).randbytes(size), np.uint8)
    assert walker._equal(data, 0, size, size)
    for at in range(size):
        data[at] ^= 1
        assert not walker._equal(data, 0, size, size)
        data[at] ^= 1


# -- what stands behind it -----------------------------------------------------------------------------------------


texts = st.sampled_from(["", "gpt-5", "openai", "auto", "default", "prod", "x" * 2000, "GPT"]) | st.text(max_size=3)
plain_values = texts | st.integers(-5, 2**60) | st.floats() | st.booleans() | st.binary(max_size=3) | st.just(["a"])
keys = st.sampled_from(
    [
        *("gen_ai.provider.name", "gen_ai.system", "gen_ai.request.model", "gen_ai.response.model", "tollspan.tenant"),
        *("openai.response.service_tier", "gen_ai.openai.request.service_tier", "gen_ai.operation.name", "error.type"),
        *("gen_ai.usage.input_tokens", "gen_ai.usage.output_tokens", "tollspan.usage.cpu.seconds", "tollspan.retries"),
        *("service.name", "cloud.region", "deployment.environment.name", "http.response.status_code", "other"),
    ]
)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.lists(st.dictionaries(keys, plain_values, max_size=8), max_size=4), st.dictionaries(keys, plain_values)
        ),
        max_size=3,
    )
)
def test_what_comes_after_does_not_know_which_decoder_was_at_work(made: list[Any]) -> None:
    payloads = [
        request([span(values, number=number + 1) for number, values in enumerate(spans)], resource)
        for spans, resource in made
    ]
    mine, other = decode(payloads), by_the_other(payloads)
    assert mine.wire is not None
    ours, theirs = (normalize(each, received_ns=START + 10**12) for each in (mine, other))
    assert ours.table.to_pylist() == theirs.table.to_pylist()
    assert {m: q.to_pylist() for m, q in ours.quantities.items()} == {
        m: q.to_pylist() for m, q in theirs.quantities.items()
    }
    assert contents(mine).tolist() == contents(other).tolist()


def test_numbers_are_found_by_key_and_span_and_the_last_of_a_key_counts() -> None:
    rng, given = random.Random(7), [0, 7, -1, 2.5, -0.0, True, False, "", "text", None, b"x", ["a"]]
    spans = [span(number=number + 1) for number in range(300)]
    for each in spans:
        each.attributes.extend(
            KeyValue(key=rng.choice(["a", "b", "c", "n", "said"]), value=any_value(rng.choice(given)))
            for _ in range(rng.randrange(9))
        )
        each.attributes.extend([KeyValue(key="whole", value=any_value(rng.randrange(4)))] * rng.randrange(3))
    found = decode([request(spans[:150]), request(spans[150:])])
    for attributes in (found.attributes, found.wire.select(np.arange(299, -1, -1)).attributes):  # type: ignore[union-attr]
        names = attributes.keys.to_pylist()
        wanted = np.array([names.index(key) for key in ("whole", "c", "a", "said")], np.int64)
        said = attributes.first_said([["said", "b"]], wanted)
        assert said is not None
        # A key that is a column's gives no numbers.
        assert said.kinds[3] == 0
        assert not said.given[3].any()
        assert said.kinds[0] == 1 << INT
        for place, rows in enumerate(attributes.by_key(wanted[:3])):
            owners = attributes.owners_of(rows)
            kinds, numbers = np.zeros(300, np.uint8), np.zeros(300, np.int64)
            for owner, row in zip(owners.tolist(), rows.tolist(), strict=True):
                kinds[owner], numbers[owner] = attributes.kinds[row], attributes.integers(np.array([row]))[0]
            assert said.given[place].tolist() == kinds.tolist()
            assert said.numbers[place].tolist() == numbers.tolist()
            assert said.kinds[place] == sum(1 << kind for kind in set(attributes.kinds[rows].tolist()))


# -- when it is at hand --------------------------------------------------------------------------------------------


def run(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_process_that_does_not_ask_for_it_does_not_pay_for_it() -> None:
    code = "import sys, tollspan.processor.decode as d; d.check(b''); d.decode([b'']); print('numba' in sys.modules)"
    assert run(code) == "False"


def test_it_is_paid_for_where_batches_are_large() -> None:
    code = (
        "import sys\n"
        "from tollspan.processor.decode import decode, fused\n"
        f"fused.prepare_from({2 * len(RICH)})\n"
        f"before = len(decode([{RICH!r}])), 'numba' in sys.modules\n"
        f"once = len(decode([{RICH!r}] * 2))\n"
        "fused.prepare(wait=True)\n"
        f"print(*before, once, fused.ready(), len(decode([{RICH!r}] * 2)))"
    )
    assert run(code) == "2 False 4 True 4"


def test_a_program_that_leaves_runs_its_exit_hooks_and_is_not_taken_apart() -> None:
    code = (
        "import atexit\n"
        "from tollspan.processor.decode import fused\n"
        "class Kept:\n"
        "    def __del__(self): print('taken apart')\n"
        "kept = Kept()\n"
        "fused.prepare(wait=True)\n"
        "atexit.register(print, 'hook')\n"
        "print('done', end=' ')\n"
        "fused.leave()"
    )
    assert run(code) == "done hook"


def test_without_numba_the_other_reading_does_the_work() -> None:
    code = (
        "import sys; sys.modules['numba'] = None\n"
        "from tollspan.processor.decode import check, decode, fused\n"
        "fused.prepare(wait=True)\n"
        f"print(fused.ready(), check({RICH!r}).spans, len(decode([{RICH!r}])))"
    )
    assert run(code) == "False 2 2"


def test_a_fault_of_the_walker_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise IndexError("a word outside of its array")

    expected = everything(by_the_other([RICH]))
    monkeypatch.setattr(fused, "_walk", Broken())
    assert everything(decode([RICH])) == expected
    assert check(RICH) == Checked(None, 2)


# -- for hours -----------------------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_mutated_requests_for_a_long_time(capsys: pytest.CaptureFixture[str]) -> None:
    """Seeds cut, joined, repeated and changed, thousands a second; `TOLLSPAN_FUZZ_S` seconds of it."""
    seconds, seed = float(os.environ.get("TOLLSPAN_FUZZ_S", "600")), int(os.environ.get("TOLLSPAN_FUZZ_SEED", "1"))
    rng = random.Random(seed)
    seeds = [RICH, chat_payload(1)]
    interesting = [0, 1, 2, 7, 8, 9, 0x0A, 0x12, 0x4A, 0x5A, 0x6A, 0x7A, 0x7F, 0x80, 0xFF]
    taken = tried = 0
    began = time.monotonic()
    while time.monotonic() - began < seconds:
        payload = bytearray(rng.choice(seeds))
        for _ in range(rng.choice((1, 1, 2, 3, 8))):
            at, change = rng.randrange(len(payload) + 1), rng.random()
            if change < 0.5 and at < len(payload):
                payload[at] = rng.choice(interesting) if rng.random() < 0.5 else rng.randrange(256)
            elif change < 0.65:
                del payload[at : at + rng.randrange(1, 20)]
            elif change < 0.8:
                payload[at:at] = rng.randbytes(rng.randrange(1, 12))
            elif change < 0.9:
                other = rng.choice(seeds)
                start = rng.randrange(len(other))
                payload[at:at] = other[start : start + rng.randrange(1, 200)]
            else:
                payload[at:at] = struct.pack("<Q", rng.getrandbits(64))
        tried += 1
        if holds(bytes(payload)):
            taken += 1
            if len(seeds) < 500 and len(payload) < 4_000:
                seeds.append(bytes(payload))
    with capsys.disabled():
        print(f"\nmutations: {tried:,} requests tried, {taken:,} taken by the walker, seed {seed}")
    assert 0 < taken < tried


@pytest.mark.soak
@pytest.mark.timeout(3600)
def test_requests_led_by_coverage_for_a_long_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`fuzz_decode` in a process of its own, which libFuzzer ends; also `TOLLSPAN_FUZZ_S` seconds of it."""
    pytest.importorskip("atheris", reason="atheris is not installed: pip install atheris, where it has a wheel")
    command = [sys.executable, "-m", "tests.processor.fuzz_decode", os.environ.get("TOLLSPAN_FUZZ_S", "600")]
    done = subprocess.run([*command, str(tmp_path)], cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-6000:]}"
    assert " tried, " in done.stdout
    with capsys.disabled():
        print(f"\natheris: {done.stdout.strip()}")


def test_spans_of_several_batches_are_read_together() -> None:
    batches = [
        decode(
            [
                request(
                    [span({"n": n, "text": "é" * n}, number=n) for n in range(base, base + 8)], {"from": f"r{base}"}
                )
                for base in (start, start + 8)
            ]
        )
        for start in (0, 16, 32)
    ]
    wanted = [np.array([3, 3, 0]), np.array([15]), np.array([9, 1])]
    found = fused.joined([(each.wire, rows) for each, rows in zip(batches, wanted, strict=True)])  # type: ignore[misc]
    alone = [each.select(rows) for each, rows in zip(batches, wanted, strict=True)]
    assert shown(found) == [row for each in alone for row in shown(each)]
    again = found.wire.select(np.arange(5, -1, -1))  # type: ignore[union-attr]
    assert shown(again) == shown(found)[::-1]


def shown(decoded: Decoded) -> list[dict[str, Any]]:
    """Spans as they are stored."""
    return bodies(decoded, {}).to_pylist()

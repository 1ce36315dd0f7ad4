"""Fuzz the decoder against protobuf's parser with atheris: ``python -m tests.processor.fuzz_decode SECONDS [CORPUS]``.

In: seconds, and a folder whose inputs are begun with and where new ones are kept; without one they are forgotten. Out:
a line with how many requests were tried. The first that is read otherwise ends the run with a traceback and a file
``crash-*`` in that folder.

What is compiled tells libFuzzer nothing about where it has been. So every input is also walked by the same functions
before their compilation, as Python that is instrumented: their branches are the coverage that leads the search, and
what is held against protobuf is the compiled walker. Bytes are changed within the frames of protobuf, and lengths
written anew around them, or nearly every change would break a length and end there.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
import time
from pathlib import Path
from types import FunctionType, SimpleNamespace
from typing import Any, Final

import atheris
import numpy as np
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from tollspan.processor.decode import decode, fused
from tollspan.processor.normalize import normalize

from .otlp_factory import START, attributes, chat_payload, request, span
from .test_decode_fused import FIELDS, RICH, by_the_other, holds, varint

FULL: Final = request(
    [
        span(
            {"a": "x"},
            trace_state="k=v",
            flags=257,
            dropped_links_count=1,
            status=Status(code=Status.STATUS_CODE_ERROR, message="no"),
            events=[
                Span.Event(time_unix_nano=START, name="e", attributes=attributes({"n": 5}), dropped_attributes_count=1)
            ],
            links=[
                Span.Link(trace_id=b"t" * 16, span_id=b"s" * 8, trace_state="k", attributes=attributes({"b": True}))
            ],
        )
    ]
)
"""A span with everything."""
SEEDS: Final = {"rich": RICH, "chat": chat_payload(1), "full": FULL}

MOST_BYTES: Final = 4096
NORMALIZED: Final = 16
"""Of so many requests that are taken, one goes through `normalize` too."""


class Word(int):
    """An unsigned integer of 64 bits."""


def _wrapped(operator: str) -> Any:
    plain = getattr(int, operator)
    return lambda *operands: Word(plain(*map(int, operands)) & (2**64 - 1))


for _name in ("add", "sub", "mul", "and", "or", "xor"):
    for _operator in (f"__{_name}__", f"__r{_name}__"):
        setattr(Word, _operator, _wrapped(_operator))
for _operator in ("__lshift__", "__rshift__", "__invert__"):
    setattr(Word, _operator, _wrapped(_operator))


def in_python(walk: Any) -> Any:
    """The walker's functions as instrumented Python."""
    own: dict[str, Any] = {
        name: Word(value) if isinstance(value, np.uint64) else value for name, value in vars(walk).items()
    }
    own["np"] = SimpleNamespace(
        uint64=lambda value: Word(int(value) & (2**64 - 1)),
        int64=lambda value: (int(value) + 2**63) % 2**64 - 2**63,
        int32=int,
        uint8=int,
    )
    own["_load"] = lambda data, at: Word.from_bytes(data[at : at + 8].tobytes(), "little")
    for name, kernel in vars(walk).items():
        if hasattr(kernel, "py_func"):
            code = kernel.py_func
            own[name] = atheris.instrument_func(FunctionType(code.__code__, own, name, code.__defaults__))
    return SimpleNamespace(**own)


def loudly() -> None:
    """In place of what hides a fault of the walker's from a service."""
    raise


def fields_of(data: bytes) -> list[tuple[int, int, int]] | None:
    """Where each field begins, its content begins, and it ends; None for what is no message."""
    found, at = [], 0
    while at < len(data):
        start = at
        tag, at = number_at(data, at)
        if at < 0 or tag < 8:
            return None
        content = at
        match tag & 7:
            case 0:
                at = number_at(data, at)[1]
            case 1:
                at += 8
            case 2:
                size, content = number_at(data, at)
                at = content + size if content >= 0 else -1
            case 5:
                at += 4
            case _:
                return None
        if not 0 <= at <= len(data):
            return None
        found.append((start, content, at))
    return found


def number_at(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            return 0, -1
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    return 0, -1


def field(rng: random.Random) -> bytes:
    """Any field that some message of the protocol knows, of its wire type or another."""
    number, kind = rng.choice([pair for known in FIELDS.values() for pair in known.items()])
    wire = kind if isinstance(kind, int) else 2
    if rng.random() < 0.05:
        number, wire = rng.choice((number, 17, 1000, 2**29 - 1)), rng.choice((0, 1, 2, 3, 5))
    tag = varint(number << 3 | wire, rng.random() < 0.02)
    if wire == 0:
        return tag + varint(rng.choice((0, 1, 300, 2**31, 2**63, 2**64 - 1)), rng.choice((0, 0, 0, 3)))
    if wire in (1, 5):
        return tag + rng.randbytes(8 if wire == 1 else 4)
    size = rng.choice((0, 1, 7, 8, 16, 40, 130))
    return tag + varint(size, rng.random() < 0.05) + rng.randbytes(size)


def mutated(data: bytes, most: int, rng: random.Random) -> bytes:
    """The bytes of a message with something changed somewhere in it."""
    fields = fields_of(data)
    if not fields or rng.random() < 0.01:
        return atheris.Mutate(data, max(most, 1)) if rng.random() < 0.9 else data + field(rng)
    start, content, end = rng.choice(fields)
    before, one, after = data[:start], data[start:end], data[end:]
    choice = rng.random()
    if choice < 0.7 and one[0] & 7 == 2:
        inner = mutated(data[content:end], most, rng)
        tag = number_at(data, start)[1]
        one = data[start:tag] + varint(len(inner), rng.random() < 0.01) + inner
    elif choice < 0.76:
        one = b""
    elif choice < 0.82:
        one += one
    elif choice < 0.88:
        one += field(rng)
    elif choice < 0.93:
        other = rng.choice(fields)
        one += data[other[0] : other[2]]
    elif choice < 0.96:
        before, after = after, before
    else:
        one = atheris.Mutate(one, max(most, 1))
    return before + one + after


def main(seconds: float, corpus: Path) -> None:
    corpus.mkdir(parents=True, exist_ok=True)
    fused.prepare(wait=True)
    walk = fused.kernels()
    assert walk is not None, "the walker cannot be compiled here"
    fused._fault = loudly
    slowly = in_python(walk)
    counted = {"tried": 0, "taken by the walker": 0, "normalized": 0}
    began = time.monotonic()

    def try_one(data: bytes) -> None:
        if time.monotonic() - began > seconds:
            print(", ".join(f"{n:,} {what}" for what, n in counted.items()), f"in {seconds:g} s", flush=True)
            os._exit(0)  # libFuzzer knows no other end that Python hears of
        assert (found := fused._check(slowly, data)) is None or found == fused._check(walk, data)
        counted["tried"] += 1
        if holds(data):
            counted["taken by the walker"] += 1
            if counted["taken by the walker"] % NORMALIZED == 0:
                same_after(data)
                counted["normalized"] += 1

    def change(data: bytes, most: int, seed: int) -> bytes:
        return mutated(bytes(data), most, random.Random(seed))[:most]

    for name, seed in SEEDS.items():
        try_one(seed)
        (corpus / name).write_bytes(seed)
    options = [f"-max_len={MOST_BYTES}", "-len_control=0", "-timeout=60", f"-artifact_prefix={corpus}/"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], try_one, custom_mutator=change)
    atheris.Fuzz()


def same_after(data: bytes) -> None:
    """What comes after does not know which decoder was at work."""
    ours, theirs = (normalize(each, received_ns=START + 10**12) for each in (decode([data]), by_the_other([data])))
    assert ours.table.to_pylist() == theirs.table.to_pylist()
    assert {m: q.to_pylist() for m, q in ours.quantities.items()} == {
        m: q.to_pylist() for m, q in theirs.quantities.items()
    }


if __name__ == "__main__":
    main(float(sys.argv[1]), Path(sys.argv[2] if len(sys.argv) > 2 else tempfile.mkdtemp()))

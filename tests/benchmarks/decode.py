"""Decode and normalize: spans per CPU-second of both decoders, beside protobuf's parser and a walk over its objects.

    python tests/benchmarks/decode.py

The same requests (512 spans of 14 attributes, 8 spans a trace) go through the check before the ack, decode and
normalize, by the compiled decoder and by ptars, and, in the same rounds, through upb alone and through upb with a
Python loop that reads every attribute: what the stage would cost with objects instead of columns. The best of the
rounds counts, because the machine is shared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from load import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.bodies import bodies
from tollspan.processor.decode import check, decode, fused
from tollspan.processor.decode.tables import Decoded
from tollspan.processor.normalize import normalize

DECODERS = ("compiled", "ptars")
REQUESTS, SPANS, ROUNDS = 32, 512, 15
KEEP = 10
"""One span in this many is kept and gets a body, as with ``--keep 0.1``."""
FLOOR = 5
"""Times that decode and normalize together have to be as fast as the walk."""


def walk(payloads: list[bytes]) -> int:
    """Read every attribute of every span as a Python object."""
    seen = 0
    for payload in payloads:
        for resource in ExportTraceServiceRequest.FromString(payload).resource_spans:
            for scope in resource.scope_spans:
                for span in scope.spans:
                    values = {}
                    for pair in span.attributes:
                        values[pair.key] = getattr(pair.value, pair.value.WhichOneof("value"))
                    seen += len(values)
    return seen


def by_ptars(run: Callable[[], object]) -> Callable[[], object]:
    """The same in a process that has no compiled decoder."""

    def other() -> object:
        kept, fused._walk = fused._walk, None
        try:
            return run()
        finally:
            fused._walk = kept

    return other


def main() -> None:
    began = time.process_time()
    fused.prepare(wait=True)
    if not fused.ready():
        sys.exit("the decoder is not compiled: is numba installed?")
    print(f"{time.process_time() - began:.1f} s of CPU time until the decoder was compiled, or read from its cache")
    payloads = requests(REQUESTS, SPANS)
    spans = REQUESTS * SPANS
    now = time.time_ns()
    decoded, other = decode(payloads), by_ptars(lambda: decode(payloads))()
    assert len(decoded) == spans
    assert isinstance(other, Decoded)
    kept = np.arange(0, spans, KEEP)
    work: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {}
    for name, ours, theirs in (
        ("check (before the ack)", *2 * (lambda: [check(payload) for payload in payloads],)),
        ("decode", *2 * (lambda: decode(payloads),)),
        ("normalize", lambda: normalize(decoded, received_ns=now), lambda: normalize(other, received_ns=now)),
        ("decode + normalize", *2 * (lambda: normalize(decode(payloads), received_ns=now),)),
        (
            f"bodies of 1 span in {KEEP}",
            lambda: bodies(decoded.waiting().select(kept), {}),
            lambda: bodies(other.select(kept), {}),
        ),
    ):
        work[name] = ours, by_ptars(theirs)
    parse, walk_all = "protobuf (upb), parse only", "protobuf (upb) and a Python walk"
    measured: dict[tuple[str, str], Callable[[], object]] = {
        (name, decoder): run for name, both in work.items() for decoder, run in zip(DECODERS, both, strict=True)
    }
    measured[parse, ""] = lambda: [ExportTraceServiceRequest.FromString(p) for p in payloads]
    measured[walk_all, ""] = lambda: walk(payloads)
    best = dict.fromkeys(measured, float("inf"))
    for round_number in range(ROUNDS):
        for what, run in measured.items():
            if what == (walk_all, "") and round_number % 5:
                continue
            started = time.process_time()
            run()
            best[what] = min(best[what], time.process_time() - started)
    print(f"{spans} spans in {REQUESTS} requests, {sum(map(len, payloads)) / spans:.0f} bytes a span; best of {ROUNDS}")
    print(f"{'spans per CPU-second (us a span)':34s} " + "".join(f"{name:>24s}" for name in DECODERS))
    for name in work:
        figures = [best[name, decoder] for decoder in DECODERS]
        print(f"{name:34s} " + "".join(f"{spans / s:14,.0f} ({s / spans * 1e6:6.2f})" for s in figures))
    for name in (parse, walk_all):
        print(f"{name:34s} {spans / best[name, '']:14,.0f} ({best[name, ''] / spans * 1e6:6.2f})")
    ours = best["decode + normalize", DECODERS[0]]
    ratio = best[walk_all, ""] / ours
    print(f"decode + normalize is {ratio:.1f} times as fast as the walk")
    if ratio < FLOOR:
        sys.exit(f"less than {FLOOR} times")


if __name__ == "__main__":
    main()

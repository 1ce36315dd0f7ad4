"""Decode and normalize: spans per CPU-second, beside protobuf's own parser and a walk over its objects.

    python tests/benchmarks/decode.py

The same requests (512 spans of 14 attributes, 8 spans a trace) go through the check before the ack, decode and
normalize, and, in the same rounds, through upb alone and through upb with a Python loop that reads every attribute:
what the stage would cost with objects instead of columns. The best of the rounds counts, because the machine is shared.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from load import requests
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tollspan.processor.bodies import bodies
from tollspan.processor.decode import decode, validate
from tollspan.processor.normalize import normalize

REQUESTS, SPANS, ROUNDS = 32, 512, 15
KEEP = 10
"""One span in this many is kept and gets a body, as with ``--keep 0.1``."""
FLOOR = 250_000
"""Spans per CPU-second that decode and normalize together may not fall below."""


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


def main() -> None:
    payloads = requests(REQUESTS, SPANS)
    spans = REQUESTS * SPANS
    now = time.time_ns()
    decoded = decode(payloads)
    assert len(decoded) == spans
    kept = np.arange(0, spans, KEEP)
    measured: dict[str, Callable[[], object]] = {
        "validate (before the ack)": lambda: [validate(payload) for payload in payloads],
        "decode": lambda: decode(payloads),
        "normalize": lambda: normalize(decoded, received_ns=now),
        "decode + normalize": lambda: normalize(decode(payloads), received_ns=now),
        f"bodies of 1 span in {KEEP}": lambda: bodies(decoded, kept, {}),
        "protobuf (upb), parse only": lambda: [ExportTraceServiceRequest.FromString(p) for p in payloads],
        "protobuf (upb) and a Python walk": lambda: walk(payloads),
    }
    best = dict.fromkeys(measured, float("inf"))
    for round_number in range(ROUNDS):
        for name, run in measured.items():
            if name.endswith("walk") and round_number % 5:
                continue
            started = time.process_time()
            run()
            best[name] = min(best[name], time.process_time() - started)
    print(f"{spans} spans in {REQUESTS} requests, {sum(map(len, payloads)) / spans:.0f} bytes a span")
    for name, seconds in best.items():
        print(f"{name:34s} {spans / seconds:12,.0f} spans per CPU-second {seconds / spans * 1e6:8.2f} us a span")
    ours = best["decode + normalize"]
    print(f"decode + normalize is {best['protobuf (upb) and a Python walk'] / ours:.1f} times as fast as the walk")
    if spans / ours < FLOOR:
        sys.exit(f"below {FLOOR:,} spans per CPU-second")


if __name__ == "__main__":
    main()

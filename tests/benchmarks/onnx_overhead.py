"""What instrumentation adds to a run of ONNX Runtime: ours beside the plain program and beside spans written by hand.

    python tests/benchmarks/onnx_overhead.py [--rounds 15] [--json]

All variants run in one process, one thread, and take turns round by round, so that the machine's moods fall on all of
them alike. Times are CPU time of the thread, in microseconds a run; what is added is the median over rounds of the
variant's round less the same round of the plain program. Beside ours stand, with the same attributes,

    SDK span      start_span ... set_attributes, end: no more than the SDK itself, the span not current
    by hand       start_as_current_span and the two CPU clocks read before and after: what our span says, said by hand

each sampled and not. "beyond the span" is ours less the one by hand.

Not a test: prints figures, and exits with 1 only when ours adds more than 30 µs with a span.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
from tollspan.pricing import attributes

PLAIN, OURS, SDK, HAND = "plain", "ours", "SDK span", "by hand"
OURS_OFF, SDK_OFF, HAND_OFF = "ours, not sampled", "SDK span, not sampled", "by hand, not sampled"
SUPPRESSED, NO_SDK = "ours, suppressed", "ours, no SDK"
LONGEST = 30.0
"""Microseconds that a recorded span may add."""

ABOUT = {
    attributes.OPERATION: attributes.OPERATION_INFERENCE,
    attributes.PROVIDER: "onnxruntime",
    attributes.MODEL: "model",
    attributes.MODEL_DTYPE: "float32",
    attributes.DEVICE_TYPE: "cpu",
    attributes.BATCH_SIZE: 8,
}
CPU_SECONDS = attributes.usage("cpu.seconds")
Run = Callable[[], object]


def session(layers: int, width: int) -> onnxruntime.InferenceSession:
    """A chain of matrix products, on one thread."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in "xy")
    names = ["x", *(f"h{n}" for n in range(layers - 1)), "y"]
    nodes = [helper.make_node("MatMul", [names[n], "w"], [names[n + 1]]) for n in range(layers)]
    weights = numpy_helper.from_array(np.eye(width, dtype=np.float32), "w")
    model = helper.make_model(
        helper.make_graph(nodes, "model", [x], [y], [weights]), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 10
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options)


@contextmanager
def instrumented(provider: TracerProvider | None) -> Iterator[None]:
    OnnxRuntimeInstrumentor().instrument(**({"tracer_provider": provider} if provider else {}))
    try:
        yield
    finally:
        OnnxRuntimeInstrumentor().uninstrument()


@contextmanager
def suppressed(provider: TracerProvider) -> Iterator[None]:
    with instrumented(provider), suppress_instrumentation():
        yield


def provider_of(sampler: Sampler) -> TracerProvider:
    provider = TracerProvider(sampler=sampler)
    provider.add_span_processor(SpanProcessor())
    return provider


def variants(run: Run) -> dict[str, tuple[Callable[[], Any], Run]]:
    """Name → what is switched on, what is called."""
    on, off = provider_of(ALWAYS_ON), provider_of(ALWAYS_OFF)

    def by_sdk(provider: TracerProvider) -> Run:
        tracer = provider.get_tracer("bare")

        def call() -> None:
            span = tracer.start_span("inference model", attributes=ABOUT)
            run()
            span.set_attributes({CPU_SECONDS: 0.001, attributes.CPU_TIME_SOURCE: "process"})
            span.end()

        return call

    def by_hand(provider: TracerProvider) -> Run:
        tracer = provider.get_tracer("hand")

        def call() -> None:
            with tracer.start_as_current_span("inference model", attributes=ABOUT) as span:
                process, thread = time.process_time_ns(), time.thread_time_ns()
                run()
                used = time.process_time_ns() - process
                alone = time.thread_time_ns() - thread <= used
                span.set_attributes(
                    {CPU_SECONDS: used / 1e9, attributes.CPU_TIME_SOURCE: "process" if alone else "thread"}
                )

        return call

    return {
        PLAIN: (nullcontext, run),
        OURS: (lambda: instrumented(on), run),
        SDK: (nullcontext, by_sdk(on)),
        HAND: (nullcontext, by_hand(on)),
        OURS_OFF: (lambda: instrumented(off), run),
        SDK_OFF: (nullcontext, by_sdk(off)),
        HAND_OFF: (nullcontext, by_hand(off)),
        SUPPRESSED: (lambda: suppressed(on), run),
        NO_SDK: (lambda: instrumented(None), run),
    }


def microseconds(run: Run, calls: int) -> float:
    """CPU time of one call, after as many unmeasured ones as let the interpreter settle on what it finds."""
    for _ in range(max(calls // 10, 5)):
        run()
    start = time.thread_time_ns()
    for _ in range(calls):
        run()
    return (time.thread_time_ns() - start) / calls / 1000


def measure(rounds: int) -> list[dict[str, Any]]:
    rows = []
    for name, layers, width, calls in (("1 product of 4", 1, 4, 500), ("12 products of 256", 12, 256, 50)):
        made, feed = session(layers, width), {"x": np.ones((8, width), np.float32)}
        chosen = variants(lambda made=made, feed=feed: made.run(None, feed))  # type: ignore[misc]
        times: dict[str, list[float]] = {variant: [] for variant in chosen}
        for _ in range(rounds):
            for variant, (switch, run) in chosen.items():
                with switch():
                    times[variant].append(microseconds(run, calls))
        added = {
            variant: statistics.median(a - b for a, b in zip(times[variant], times[PLAIN], strict=True))
            for variant in chosen
        }
        beyond = statistics.median(a - b for a, b in zip(times[OURS], times[HAND], strict=True))
        rows.append({"model": name, **added, PLAIN: statistics.median(times[PLAIN]), "beyond": beyond})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    rows = measure(options.rounds)
    if options.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['model']}: plain {row[PLAIN]:.1f} µs a run; added µs:")
            for variant, value in row.items():
                if variant not in ("model", PLAIN, "beyond"):
                    print(f"  {variant:24}{value:8.2f}  (x{1 + value / row[PLAIN]:.3f})")
            print(f"  {'ours beyond by hand':24}{row['beyond']:8.2f}")
    if rows[0][OURS] > LONGEST:
        sys.exit(f"a recorded span adds more than {LONGEST} µs")


if __name__ == "__main__":
    main()

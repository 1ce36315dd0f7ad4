"""What instrumentation adds to a run of ONNX Runtime: ours beside the plain program and beside spans written by hand.

    python tests/benchmarks/onnx_overhead.py [--rounds 40] [--json]

All variants run in one process, one thread, and take turns round by round, so that the machine's moods fall on all of
them alike. Times are CPU time of the calling thread, in microseconds a run, the best decile of the rounds; what is
added is that less the plain program's, and in brackets what is added to the whole process: with spans exported in
batches, ours are made after the run, by another thread. Beside ours stand, with the same attributes,

    ours, at once  with a span processor that we do not know: the span is made and ended within the run
    SDK span       start_span ... set_attributes, end: no more than the SDK itself, the span not current
    by hand        start_as_current_span and the two CPU clocks read before and after: what our span says, said by hand

the last two at once, each sampled and not.

Not a test: prints figures, and exits with 1 when ours adds more than 30 µs with a span, or at once more than 1 µs
beyond the one by hand.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler

from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
from tollspan.pricing import attributes

PLAIN, OURS, AT_ONCE, SDK, HAND = "plain", "ours", "ours, at once", "SDK span", "by hand"
OURS_OFF, SDK_OFF, HAND_OFF = "ours, not sampled", "SDK span, not sampled", "by hand, not sampled"
SUPPRESSED, NO_SDK = "ours, suppressed", "ours, no SDK"
LONGEST = 30.0
"""Microseconds that a recorded span may add."""
BEYOND = 1.0
"""Microseconds that ours may add beyond the one by hand."""
WARM = 60
"""Runs after a variant was switched on that are not measured."""

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
        if provider is not None:
            provider.force_flush()
    finally:
        OnnxRuntimeInstrumentor().uninstrument()


@contextmanager
def suppressed(provider: TracerProvider) -> Iterator[None]:
    with instrumented(provider), suppress_instrumentation():
        yield


class Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


def provider_of(sampler: Sampler, *, batches: bool = False) -> TracerProvider:
    provider = TracerProvider(sampler=sampler, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(Nowhere()) if batches else SpanProcessor())
    return provider


BATCHES, BATCHES_OFF = provider_of(ALWAYS_ON, batches=True), provider_of(ALWAYS_OFF, batches=True)


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
        OURS: (lambda: instrumented(BATCHES), run),
        AT_ONCE: (lambda: instrumented(on), run),
        SDK: (nullcontext, by_sdk(on)),
        HAND: (nullcontext, by_hand(on)),
        OURS_OFF: (lambda: instrumented(BATCHES_OFF), run),
        SDK_OFF: (nullcontext, by_sdk(off)),
        HAND_OFF: (nullcontext, by_hand(off)),
        SUPPRESSED: (lambda: suppressed(on), run),
        NO_SDK: (lambda: instrumented(None), run),
    }


def round_of(variant: str, run: Run, calls: int) -> tuple[float, float]:
    """CPU time of one run in microseconds: the thread's, and the process' with what comes after."""
    for _ in range(WARM):
        run()
    BATCHES.force_flush()
    whole, own = time.process_time_ns(), time.thread_time_ns()
    for _ in range(calls):
        run()
    own = time.thread_time_ns() - own
    if variant == OURS:
        BATCHES.force_flush()
    return own / calls / 1000, (time.process_time_ns() - whole) / calls / 1000


def measure(rounds: int) -> list[dict[str, Any]]:
    rows = []
    gc.collect()
    gc.freeze()
    for name, layers, width, calls in (("1 product of 4", 1, 4, 200), ("12 products of 256", 12, 256, 50)):
        made, feed = session(layers, width), {"x": np.ones((8, width), np.float32)}
        chosen = variants(lambda made=made, feed=feed: made.run(None, feed))  # type: ignore[misc]
        times: dict[str, list[tuple[float, float]]] = {variant: [] for variant in chosen}
        for _ in range(rounds):
            for variant, (switch, run) in chosen.items():
                with switch():
                    times[variant].append(round_of(variant, run, calls))
        best = {
            variant: [statistics.quantiles(column, n=10)[0] for column in zip(*times[variant], strict=True)]
            for variant in chosen
        }
        added = {
            variant: [a - b for a, b in zip(best[variant], best[PLAIN], strict=True)]
            for variant in chosen
            if variant != PLAIN
        }
        beyond = {variant: added[variant][0] - added[HAND][0] for variant in (OURS, AT_ONCE)}
        rows.append({"model": name, PLAIN: best[PLAIN][0], "added": added, "beyond": beyond})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    rows = measure(options.rounds)
    if options.json:
        print(json.dumps(rows))
    else:
        for row in rows:
            print(f"{row['model']}: plain {row[PLAIN]:.1f} µs a run; added µs:")
            for variant, (own, whole) in row["added"].items():
                print(f"  {variant:24}{own:8.2f}  (x{1 + own / row[PLAIN]:.3f}) [{whole:.1f}]")
            print("  beyond by hand: " + ", ".join(f"{name} {value:.2f}" for name, value in row["beyond"].items()))
    if max(rows[0]["added"][name][0] for name in (OURS, AT_ONCE)) > LONGEST:
        sys.exit(f"a recorded span adds more than {LONGEST} µs")
    if rows[0]["beyond"][AT_ONCE] > BEYOND:
        sys.exit(f"ours adds more than {BEYOND} µs beyond the span by hand")


if __name__ == "__main__":
    main()

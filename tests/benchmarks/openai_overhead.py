"""What instrumentation adds to an OpenAI call: ours beside its peers, in the same minute.

    python tests/benchmarks/openai_overhead.py [--rounds 60] [--calls 20] [--json]

Each variant runs in a process of its own and is asked in turn for a round, so that the machine's moods fall on all of
them alike. A round is the same calls twice, with the instrumentation on and with it off again: two processes that do
exactly the same differ by 5 µs a call and more, by where things happen to lie in memory. Peers stay on, since one of
them cannot be switched off again, and are held against our process without instrumentation. The transport is a mock,
the exporter does nothing, and content capture is off for everybody (it is off by default in ours and in none of the
peers). Times are CPU time of the calling thread, in microseconds; what is added is the best tenth of the rounds with
instrumentation less that of the rounds without: other work on the machine only ever adds.

Ours is measured as it is by default, unsampled, with its metrics read, and with everything switched on. The SDK's own
work for a span that is not sampled is in every figure of an unsampled call; it stands beside them.

Not a test: prints figures, and exits with 1 when ours is over its budget: 100 µs a call and at most half of the leanest
peer, 5 µs a chunk, 30 µs a call that is not sampled.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

OURS = "tollspan"
SDK = "SDK's span alone, not sampled"
VARIANTS = (
    OURS,
    "tollspan, not sampled",
    SDK,
    "tollspan, metrics read",
    "tollspan, everything on",
    "opentelemetry-instrumentation-openai",
    "openinference-instrumentation-openai",
)
PEERS = VARIANTS[-2:]
CHUNKS = 200
WARM = {"call": 60, "stream": 3}
"""Calls between a switch and what is timed. Patching a class undoes what the interpreter has specialized for it, which
it does again after some fifty passes."""

BUDGETS = {(OURS, "added"): 100.0, (OURS, "chunk"): 5.0, ("tollspan, not sampled", "added"): 30.0}
"""Variant and figure → at most so many µs."""

ANSWER = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-5-mini-2025-08-07",
    "service_tier": "default",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Your order is on its way. " * 20},
            "finish_reason": "stop",
        }
    ],
    "usage": {
        "prompt_tokens": 1200,
        "completion_tokens": 140,
        "total_tokens": 1340,
        "prompt_tokens_details": {"cached_tokens": 1024, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 64, "audio_tokens": 0},
    },
}


def chunk(**fields: Any) -> str:
    whole = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "gpt-5-mini-2025-08-07",
        "service_tier": "default",
    }
    return f"data: {json.dumps({**whole, **fields})}\n\n"


STREAM = (
    "".join(
        chunk(choices=[{"index": 0, "delta": {"content": " word"}, "finish_reason": None}], usage=None)
        for _ in range(CHUNKS - 2)
    )
    + chunk(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}], usage=None)
    + chunk(choices=[], usage=ANSWER["usage"])
    + "data: [DONE]\n\n"
).encode()


Switch = Callable[[], object]


def instrumentation(variant: str) -> tuple[Switch, Switch | None]:
    """What switches a variant on, and off again; None: it cannot be."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON

    class Nowhere(SpanExporter):
        def export(self, spans: Any) -> SpanExportResult:
            return SpanExportResult.SUCCESS

    provider = TracerProvider(sampler=ALWAYS_OFF if variant.endswith("not sampled") else ALWAYS_ON)
    provider.add_span_processor(SimpleSpanProcessor(Nowhere()))
    trace.set_tracer_provider(provider)
    if variant.endswith(("metrics read", "everything on")):
        from opentelemetry import metrics
        from opentelemetry.sdk.metrics import MeterProvider
        from opentelemetry.sdk.metrics.export import InMemoryMetricReader

        metrics.set_meter_provider(MeterProvider([InMemoryMetricReader()]))
    if variant.endswith("everything on"):
        os.environ.update(
            TOLLSPAN_CLIENT_COST="true",
            TOLLSPAN_FINGERPRINT_KEY="key",
            OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT="span_only",
        )
    if variant.startswith(OURS):
        from tollspan.instrumentation.openai import OpenAIInstrumentor

        ours = OpenAIInstrumentor()
        return ours.instrument, ours.uninstrument
    if variant.startswith("opentelemetry"):
        from opentelemetry.instrumentation.openai import OpenAIInstrumentor as Peer

        return Peer().instrument, None
    if variant.startswith("openinference"):
        from openinference.instrumentation.openai import OpenAIInstrumentor as OtherPeer

        return OtherPeer().instrument, None
    return span_alone()


def span_alone() -> tuple[Switch, Switch]:
    """A span round each call, current while it lasts, with as many attributes as ours begins with; nothing is read."""
    from openai.resources.chat.completions.completions import Completions
    from opentelemetry import context, trace

    tracer, create = trace.get_tracer("benchmark"), Completions.create
    words = {f"gen_ai.attribute.{number}": "value" for number in range(4)}
    numbers = {f"gen_ai.number.{number}": number for number in range(4)}

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        span = tracer.start_span("chat gpt-5-mini", kind=trace.SpanKind.CLIENT, attributes={**words, **numbers})
        token = context.attach(trace.set_span_in_context(span))
        try:
            return create(*args, **kwargs)
        finally:
            context.detach(token)
            span.end()

    return lambda: setattr(Completions, "create", wrapped), lambda: setattr(Completions, "create", create)


def _nothing() -> None: ...


def work(variant: str, pipe: Connection) -> None:
    """One variant's process: for each ``(kind, calls)`` that comes in, the µs of a call go out, switched on and off."""
    os.environ.update(
        TRACELOOP_TRACE_CONTENT="false",
        TRACELOOP_TELEMETRY="false",
        OPENINFERENCE_HIDE_INPUTS="true",
        OPENINFERENCE_HIDE_OUTPUTS="true",
        OTEL_METRICS_EXPORTER="none",
    )
    on, off = instrumentation(variant)
    if off is None:
        on()
        on = _nothing
    import httpx2
    import openai

    def answer(request: httpx2.Request) -> httpx2.Response:
        if b'"stream":true' in request.content.replace(b" ", b""):
            return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=STREAM)
        return httpx2.Response(200, json=ANSWER)

    client = openai.OpenAI(api_key="none", http_client=httpx2.Client(transport=httpx2.MockTransport(answer)))
    messages: Any = [{"role": "user", "content": "Where is my order? " * 20}]

    def call() -> None:
        client.chat.completions.create(model="gpt-5-mini", messages=messages, temperature=0.2, max_tokens=400)

    def stream() -> None:
        for _ in client.chat.completions.create(
            model="gpt-5-mini", messages=messages, stream=True, stream_options={"include_usage": True}
        ):
            pass

    kinds = {"call": call, "stream": stream}
    # A collection scans everything that was ever imported, the more the larger a variant is, and falls where it will.
    gc.collect()
    gc.freeze()
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        kind, calls = order
        run = kinds[kind]
        times = []
        for switch in (on, off):
            if switch is None:
                continue
            switch()
            for _ in range(WARM[kind]):
                run()
            began = time.thread_time_ns()
            for _ in range(calls):
                run()
            times.append((time.thread_time_ns() - began) / calls / 1000)
        pipe.send(times)


def measure(rounds: int, calls: int) -> dict[str, dict[str, float]]:
    """Figures by variant, µs: ``off`` a call, ``call`` with it, ``added`` the difference, ``chunk`` added a chunk."""
    spawn = multiprocessing.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers = []
    for variant in VARIANTS:
        ours, theirs = spawn.Pipe()
        worker = spawn.Process(target=work, args=(variant, theirs), daemon=True)
        worker.start()
        workers.append(worker)
        pipes[variant] = ours
    for variant, pipe in pipes.items():
        if not pipe.poll(60) or pipe.recv() != "ready":
            raise SystemExit(f"{variant}: did not start")

    def one_round(kind: str, count: int) -> dict[str, list[float]]:
        times = {}
        for variant, pipe in pipes.items():
            pipe.send((kind, count))
            times[variant] = pipe.recv()
        return times

    one_round("call", calls)
    one_round("stream", 2)
    plain = [one_round("call", calls) for _ in range(rounds)]
    streamed = [one_round("stream", max(2, calls // 5)) for _ in range(rounds)]
    for pipe in pipes.values():
        pipe.send(None)
    for worker in workers:
        worker.join(10)

    def best(times: list[dict[str, list[float]]], variant: str, off: bool = False) -> float:
        return statistics.quantiles([each[variant][off] for each in times], n=10)[0]

    def added(times: list[dict[str, list[float]]], variant: str) -> float:
        return best(times, variant) - best(times, OURS if variant in PEERS else variant, off=True)

    return {
        variant: {
            "off": best(plain, OURS if variant in PEERS else variant, off=True),
            "call": best(plain, variant),
            "added": added(plain, variant),
            # What a streamed call adds over its chunks is what it adds in all, less what any call adds.
            "chunk": (added(streamed, variant) - added(plain, variant)) / CHUNKS,
        }
        for variant in VARIANTS
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=20)
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    options = parser.parse_args()
    figures = measure(options.rounds, options.calls)
    if options.json:
        print(json.dumps(figures))
    else:
        print(f"{'':38}{'off':>8}{'µs/call':>9}{'added':>9}{'× ours':>9}{'added/chunk':>13}{'× ours':>9}")
        ours = figures[OURS]
        for variant, each in figures.items():
            ratios = [f"{each[key] / ours[key]:.1f}" if variant in PEERS else "" for key in ("added", "chunk")]
            print(
                f"{variant:38}{each['off']:8.0f}{each['call']:9.0f}{each['added']:9.1f}{ratios[0]:>9}"
                f"{each['chunk']:13.2f}{ratios[1]:>9}"
            )
    over = [
        f"{variant}: {figures[variant][key]:.1f} µs {key}, at most {most:g}"
        for (variant, key), most in BUDGETS.items()
        if figures[variant][key] > most
    ]
    leanest = min(figures[peer]["added"] for peer in PEERS)
    if 2 * figures[OURS]["added"] > leanest:
        over.append(f"{OURS}: more than half of the leanest peer, which adds {leanest:.1f} µs")
    print(*over, sep="\n", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

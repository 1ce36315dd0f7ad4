"""What a request costs in telemetry that is sampled, and one that is not but still tells what it used.

    python tests/benchmarks/head_sampling.py [--rounds 40] [--requests 30] [--content] [--json]

A request is spans of a program's own (a server span of 12 attributes, two of functions, one of an HTTP client round the
call, the rest of a database; 6 in all, and 20) and one of a model, made by OpenAI's client on a mocked transport. Spans
go through the SDK's batch processor into OTLP requests that are written out and thrown away, so that what leaves the
process is paid for and counted. The variants take turns in one process; times are CPU time of the whole process, the
best tenth of the rounds, less that of the same requests without any telemetry.

Not a test: prints figures, and exits with 1 when a request that is not sampled costs or leaves more than its share of
what one that is does (`BUDGETS`). `traceidratio` at 0 is the SDK's own sampler, which loses what such a request used:
the floor, most of which is the SDK's work for spans that nobody sees.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import httpx2
import openai
from openai_overhead import ANSWER
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, ALWAYS_ON, Sampler
from opentelemetry.trace import SpanKind

from tollspan.instrumentation import TollspanSampler
from tollspan.instrumentation.openai import OpenAIInstrumentor

WARM = 60
BUDGETS = {6: (0.65, 0.34), 20: (0.5, 0.15)}
"""Spans of the program's own → at most so much of the CPU time and of the bytes of a request that is sampled."""
SAMPLED, SLIM, LOST = "sampled (always_on)", "not sampled, tollspan 0", "not sampled, traceidratio 0"
SAMPLERS: dict[str, Callable[[], Sampler]] = {
    SAMPLED: lambda: ALWAYS_ON,
    SLIM: lambda: TollspanSampler(0.0),
    LOST: lambda: ALWAYS_OFF,
}

SERVER = {f"http.request.header.{number}": f"some value {number}" for number in range(8)}
SERVER |= {"http.request.method": "POST", "url.path": "/answers", "http.route": "/answers", "server.address": "shop"}
QUERY = {"db.system.name": "postgresql", "db.query.text": "SELECT * FROM orders WHERE customer = $1", "db.rows": 3}
HTTP = {"http.request.method": "POST", "url.full": "https://api.openai.com/v1/chat/completions", "server.port": 443}


class Written(SpanExporter):
    """Makes OTLP requests and counts their bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.bytes += len(encode_spans(spans).SerializeToString())
        return SpanExportResult.SUCCESS


class Variant:
    """A tracer provider with its sampler, and requests under it."""

    def __init__(self, sampler: Sampler | None, spans: int) -> None:
        self.queries = spans - 4
        self.written = Written()
        self.provider = TracerProvider(sampler=sampler or ALWAYS_OFF, shutdown_on_exit=False)
        self.provider.add_span_processor(
            BatchSpanProcessor(self.written, max_queue_size=100_000, schedule_delay_millis=3_600_000)
        )
        self.tracer = self.provider.get_tracer("program") if sampler else None
        self.client = openai.OpenAI(
            api_key="none",
            http_client=httpx2.Client(transport=httpx2.MockTransport(lambda _: httpx2.Response(200, json=ANSWER))),
        )

    def request(self) -> None:
        asked: Any = [{"role": "user", "content": "Where is my order? " * 20}]
        start = None if self.tracer is None else self.tracer.start_as_current_span
        if start is None:
            self.client.chat.completions.create(model="gpt-5-mini", messages=asked, temperature=0.2)
            return
        with start("POST /answers", kind=SpanKind.SERVER, attributes=SERVER), start("answer"):
            for _ in range(self.queries):
                with start("SELECT", kind=SpanKind.CLIENT, attributes=QUERY):
                    pass
            with start("ask"), start("POST", kind=SpanKind.CLIENT, attributes=HTTP):
                self.client.chat.completions.create(model="gpt-5-mini", messages=asked, temperature=0.2)

    def round(self, requests: int) -> float:
        """µs of CPU time a request."""
        if self.tracer is not None:
            OpenAIInstrumentor().instrument(tracer_provider=self.provider)
        for _ in range(WARM):
            self.request()
        self.provider.force_flush()
        self.written.bytes = 0
        began = time.process_time_ns()
        for _ in range(requests):
            self.request()
        self.provider.force_flush()
        took = time.process_time_ns() - began
        if self.tracer is not None:
            OpenAIInstrumentor().uninstrument()
        return took / requests / 1000


def measure(spans: int, rounds: int, requests: int) -> dict[str, dict[str, float]]:
    """Added µs of CPU time and bytes of a request of so many spans, by variant."""
    variants = {"none": Variant(None, spans)}
    variants |= {name: Variant(sampler(), spans) for name, sampler in SAMPLERS.items()}
    for variant in variants.values():
        variant.round(requests)
    gc.collect()
    gc.freeze()
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, variant in variants.items():
            times[name].append(variant.round(requests))
    best = {name: statistics.quantiles(each, n=10)[0] for name, each in times.items()}
    return {
        name: {"added": best[name] - best["none"], "bytes": variants[name].written.bytes / requests}
        for name in SAMPLERS
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--content", action="store_true", help="with what was said on the spans")
    parser.add_argument("--json", action="store_true", help="one JSON object, nothing else")
    options = parser.parse_args()
    if options.content:
        os.environ["OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"] = "span_only"
    trace.set_tracer_provider(TracerProvider(shutdown_on_exit=False))
    measured = {spans: measure(spans, options.rounds, options.requests) for spans in BUDGETS}
    if options.json:
        print(json.dumps(measured))
    over = []
    for spans, figures in measured.items():
        whole, slim = figures[SAMPLED], figures[SLIM]
        if not options.json:
            print(f"{f'{spans} spans and a call':32}{'added µs':>10}{'ratio':>8}{'bytes':>10}{'ratio':>8}")
            for name, each in figures.items():
                shares = [each[key] / whole[key] for key in ("added", "bytes")]
                print(f"{name:32}{each['added']:10.0f}{shares[0]:8.2f}{each['bytes']:10.0f}{shares[1]:8.2f}")
        for key, most in zip(("added", "bytes"), BUDGETS[spans], strict=True):
            if slim[key] > most * whole[key]:
                over.append(f"{spans} spans: {key} more than {most:g} of a request that is sampled")
    print(*over, sep="\n", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())

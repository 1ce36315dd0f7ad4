"""A realistic OTLP load for benchmarks: traces of 8 spans with 14 attributes each, encoded once, fresh ids."""

from __future__ import annotations

import secrets
import time

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

SPANS_PER_TRACE = 8
ATTRIBUTES = 14


def attributes(position: int) -> dict[str, str | int | float | bool]:
    """14 attributes: three LLM calls, two model executions, a feature read and two plain spans in each trace."""
    tags = {"tollspan.tenant": f"tenant-{position % 3}", "tollspan.feature": "answers", "tollspan.variant": "a"}
    if position in (1, 2, 3):
        own: dict[str, str | int | float | bool] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-5-mini",
            "gen_ai.response.model": "gpt-5-mini",
            "gen_ai.response.id": f"chatcmpl-{position:032d}",
            "gen_ai.usage.input_tokens": 1200 + position,
            "gen_ai.usage.output_tokens": 100 + position,
            "gen_ai.usage.cache_read.input_tokens": 800,
            "gen_ai.usage.reasoning.output_tokens": 40,
            "openai.response.service_tier": "default",
            "server.address": "api.openai.com",
        }
    elif position in (4, 5):
        own = {
            "tollspan.operation": "inference",
            "tollspan.provider": "pytorch",
            "tollspan.model": "Ranker",
            "tollspan.device.type": "cpu",
            "tollspan.batch.size": 16,
            "tollspan.usage.cpu.seconds": 0.012345678,
            "tollspan.cpu.time.source": "process",
            "thread.id": 17,
            "thread.name": "worker-1",
            "code.function.name": "rank",
            "app.candidates": 40,
        }
    elif position == 6:
        own = {
            "tollspan.operation": "feature_read",
            "tollspan.provider": "feast",
            "tollspan.model": "support",
            "tollspan.feature.rows": 1,
            "tollspan.feature.count": 4,
            "tollspan.usage.feature.reads": 4,
            "tollspan.usage.storage.read.bytes": 812,
            "thread.id": 17,
            "thread.name": "worker-1",
            "code.function.name": "features",
            "app.cached": False,
        }
    else:
        own = {f"app.attribute.{i}": f"value-{i}" for i in range(ATTRIBUTES - len(tags))}
    return {**tags, **own}


def template(traces: int, now: int) -> bytes:
    """An encoded request of ``traces`` traces with recognisable ids that begin at ``now``, ns since the epoch."""
    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    entry = resource.resource.attributes.add(key="service.name")
    entry.value.string_value = "bench"
    scope = resource.scope_spans.add()
    scope.scope.name = "bench"
    for trace in range(traces):
        for position in range(SPANS_PER_TRACE):
            span = scope.spans.add(
                trace_id=trace.to_bytes(9, "big") + b"TRACE" + trace.to_bytes(2, "big"),
                span_id=b"S" + trace.to_bytes(6, "big") + bytes([position]),
                parent_span_id=b"" if position == 0 else b"S" + trace.to_bytes(6, "big") + bytes([0]),
                name=f"operation {position}",
                kind=Span.SPAN_KIND_SERVER if position == 0 else Span.SPAN_KIND_CLIENT,
                start_time_unix_nano=now + trace * 1000 + position,
                end_time_unix_nano=now + trace * 1000 + position + 1_000_000,
            )
            for key, value in attributes(position).items():
                target = span.attributes.add(key=key).value
                if isinstance(value, bool):
                    target.bool_value = value
                elif isinstance(value, int):
                    target.int_value = value
                elif isinstance(value, float):
                    target.double_value = value
                else:
                    target.string_value = value
            assert len(span.attributes) == ATTRIBUTES
    return request.SerializeToString()


def requests(count: int, spans: int = 512) -> list[bytes]:
    """``count`` encoded requests of ``spans`` spans of just now; every trace id in them is new."""
    traces = spans // SPANS_PER_TRACE
    parts = template(traces, time.time_ns()).split(b"TRACE")
    # The marker in every trace id gives way to 5 fresh bytes, where a sampler looks for randomness.
    return [secrets.token_bytes(5).join(parts) for _ in range(count)]

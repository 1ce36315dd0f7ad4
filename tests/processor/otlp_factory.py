"""OTLP requests for tests, made with protobuf's own classes: what real exporters put on the wire."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, Span

START = 1_790_000_000_000_000_000
"""September 2026, ns since the epoch."""


def any_value(value: object) -> AnyValue:
    """A Python value as ``AnyValue``; None = none of its fields set."""
    if value is None:
        return AnyValue()
    if isinstance(value, bool):
        return AnyValue(bool_value=value)
    if isinstance(value, int):
        return AnyValue(int_value=value)
    if isinstance(value, float):
        return AnyValue(double_value=value)
    if isinstance(value, str):
        return AnyValue(string_value=value)
    if isinstance(value, bytes):
        return AnyValue(bytes_value=value)
    made = AnyValue()
    if isinstance(value, Mapping):
        made.kvlist_value.values.extend(attributes(value))
        made.kvlist_value.SetInParent()
    elif isinstance(value, Sequence):
        made.array_value.values.extend(any_value(item) for item in value)
        made.array_value.SetInParent()
    else:
        raise TypeError(type(value))
    return made


def attributes(values: Mapping[str, object]) -> list[KeyValue]:
    return [KeyValue(key=key, value=any_value(value)) for key, value in values.items()]


def span(values: Mapping[str, object] | None = None, *, number: int = 1, **fields: Any) -> Span:
    """One span with the given attributes; its identifiers follow from ``number``."""
    given = {
        "trace_id": (number // 8 + 1).to_bytes(16, "big"),
        "span_id": (number + 1).to_bytes(8, "big"),
        "name": f"span {number}",
        "kind": Span.SPAN_KIND_CLIENT,
        "start_time_unix_nano": START + number,
        "end_time_unix_nano": START + number + 1_000_000,
        **fields,
    }
    return Span(attributes=attributes(values or {}), **given)


def resource_spans(
    spans: Sequence[Span], resource: Mapping[str, object] | None = None, scope: tuple[str, str] = ("test", "1")
) -> ResourceSpans:
    made = ResourceSpans()
    made.resource.attributes.extend(attributes(resource or {}))
    scope_spans = made.scope_spans.add()
    scope_spans.scope.name, scope_spans.scope.version = scope
    scope_spans.spans.extend(spans)
    return made


def request(spans: Sequence[Span], resource: Mapping[str, object] | None = None) -> bytes:
    """A request of one resource and one scope, encoded."""
    return ExportTraceServiceRequest(resource_spans=[resource_spans(spans, resource)]).SerializeToString()


def chat_payload(count: int, seed: int = 0) -> bytes:
    """``count`` chat spans of 14 attributes, 8 to a trace, as an instrumented OpenAI client sends them."""
    rng = random.Random(seed)
    spans = []
    trace, root = b"", b""
    for number in range(count):
        identifier = rng.randbytes(8)
        if number % 8 == 0:
            trace, root = rng.randbytes(16), b""
        start = START + rng.randrange(10**15)
        spans.append(
            span(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.request.model": "gpt-5-mini",
                    "gen_ai.response.model": "gpt-5-mini-2025-08-07",
                    "gen_ai.response.id": f"chatcmpl-{rng.getrandbits(64):016x}",
                    "gen_ai.usage.input_tokens": 1000 + rng.randrange(20_000),
                    "gen_ai.usage.output_tokens": rng.randrange(2_000),
                    "gen_ai.usage.cache_read.input_tokens": rng.randrange(1_000),
                    "gen_ai.request.temperature": 0.7,
                    "openai.response.service_tier": "default",
                    "server.address": "api.openai.com",
                    "server.port": 443,
                    "tollspan.tenant": rng.choice(("acme", "globex", "initech")),
                    "tollspan.feature": "search",
                },
                trace_id=trace,
                span_id=identifier,
                parent_span_id=root,
                name="chat gpt-5-mini",
                start_time_unix_nano=start,
                end_time_unix_nano=start + rng.randrange(10**10),
            )
        )
        root = root or identifier
    resource = {
        "service.name": "support",
        "deployment.environment.name": "production",
        "cloud.provider": "aws",
        "cloud.region": "us-east-1",
        "host.type": "m5.large",
    }
    return request(spans, resource)

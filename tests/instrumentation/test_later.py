"""Attributes that are put together when somebody looks at them."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF, Decision, Sampler, SamplingResult

from tollspan.instrumentation.later import LaterAttributes, plain


class Counted:
    def __init__(self) -> None:
        self.reads = 0

    def __call__(self, **more: Any) -> dict[str, Any]:
        self.reads += 1
        return {"a": 1, "b": "two", **more}


def test_read_once_and_only_when_looked_at() -> None:
    read = Counted()
    attributes = LaterAttributes(read)
    assert read.reads == 0
    assert attributes == {"a": 1, "b": "two"}
    assert (attributes["a"], attributes.get("c"), "b" in attributes, len(attributes)) == (1, None, True, 2)
    assert repr(attributes) == "{'a': 1, 'b': 'two'}"
    assert read.reads == 1


def test_handed_on_as_a_dict_is() -> None:
    attributes = LaterAttributes(Counted())
    view = MappingProxyType(attributes)  # as the SDK's samplers do
    assert view.copy() == dict(view) == {**view} == {"a": 1, "b": "two"}
    assert attributes | {"c": 3} == {"c": 3} | attributes == {"a": 1, "b": "two", "c": 3}


def test_what_is_added_stays() -> None:
    attributes = LaterAttributes(Counted())
    attributes.update({"tenant": "acme"})
    del attributes["a"]
    assert plain(attributes) == {"b": "two", "tenant": "acme"}
    assert plain(attributes) is plain(attributes)


def test_plain_leaves_a_dict_as_it_is() -> None:
    given = {"a": 1}
    assert plain(given) is given
    assert plain(MappingProxyType(given)) == given


def test_a_reader_that_raises_raises_where_it_is_read() -> None:
    def broken() -> dict[str, Any]:
        raise ValueError("unreadable")

    attributes = LaterAttributes(broken)
    with pytest.raises(ValueError, match="unreadable"):
        len(attributes)


class ByModel(Sampler):
    """Decides by an attribute, and adds one."""

    def should_sample(self, *args: Any, attributes: Any = None, **kwargs: Any) -> SamplingResult:
        found = attributes or (args[4] if len(args) > 4 else None) or {}
        keep = found.get("b") == "two"
        return SamplingResult(Decision.RECORD_AND_SAMPLE if keep else Decision.DROP, {**found, "by": "model"})

    def get_description(self) -> str:
        return "by model"


def test_a_sampler_sees_them_all() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(sampler=ByModel())
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    provider.get_tracer("t").start_span("kept", attributes=LaterAttributes(Counted())).end()
    provider.get_tracer("t").start_span("dropped", attributes={"b": "other"}).end()
    (span,) = exporter.get_finished_spans()
    assert dict(span.attributes or {}) == {"a": 1, "b": "two", "by": "model"}


def test_a_span_that_is_dropped_reads_nothing() -> None:
    read = Counted()
    TracerProvider(sampler=ALWAYS_OFF).get_tracer("t").start_span("dropped", attributes=LaterAttributes(read)).end()
    assert read.reads == 0

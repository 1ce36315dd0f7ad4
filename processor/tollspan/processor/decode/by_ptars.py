"""The reading by ptars (protobuf to Arrow, in Rust) over the slim messages of `otlp_slim`.

In: payloads. Out: the levels of the message, unnested, and `Decoded` from them. For processes in which the walker is
not compiled (`fused`), and for what it leaves. Attribute values stay in wire form until somebody asks for a column of
them (`anyvalue`); what holds values in an unusual encoding is named by `Batch.odd_payloads`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.decode.anyvalue import ODD, classify
from tollspan.processor.decode.arrow_bytes import Mask, Rows, fixed, fixed_bytes, text
from tollspan.processor.decode.otlp_slim import canonical, columns, identifiers, rewritten
from tollspan.processor.decode.tables import (
    BAD_PARENT_SPAN_ID,
    BAD_SPAN_ID,
    BAD_TRACE_ID,
    COLUMNS,
    RESOURCE_COLUMNS,
    SCOPE_COLUMNS,
    Attributes,
    Decoded,
)


def flatten(lists: Any) -> Attributes:
    """Attributes from a ``list<struct<key: binary, value: binary>>`` column; values may still be `ODD`."""
    pairs = lists.values
    encoded = pairs.field("key").dictionary_encode()
    raw = pairs.field("value")
    return Attributes(
        np.asarray(lists.offsets).astype(np.int64),
        text(encoded.dictionary),
        np.asarray(encoded.indices),
        raw,
        classify(raw),
    )


def read_messages(message: str, raw: Any) -> tuple[Any, Attributes]:
    """Events or links in wire form to columns.

    Args:
        message: ``Event`` or ``Link``.
        raw: binary array of k messages. One that is malformed (`check` lets none in) is read as an empty message.

    Returns:
        A record batch of k rows, columns as in `otlp_slim`; and their attributes.
    """
    batch = to_batch(columns(message), raw)
    attributes = None if batch is None else flatten(batch["attributes"])
    if attributes is None or (attributes.kinds == ODD).any():
        batch = to_batch(columns(message), [rewritten(message, value) or b"" for value in raw.to_pylist()])
        attributes = flatten(batch["attributes"])
    return batch, attributes


def to_batch(handler: Any, raw: Any) -> Any:
    """A record batch from messages in wire form (a list of bytes or a binary array); None when ptars refuses one."""
    try:
        return handler.list_to_record_batch(raw) if isinstance(raw, list) else handler.array_to_record_batch(raw)
    except ValueError:
        return None
    except BaseException as error:
        # A panic in Rust comes as a BaseException of a class that cannot be imported. None is known, but the worker
        # must outlive one.
        if type(error).__name__ != "PanicException":
            raise
        return None


def count_spans(payload: bytes) -> tuple[int, dict[str, int]]:
    """How many spans a payload that protobuf takes has, and how many of them have impossible identifiers, by reason."""
    batch = to_batch(identifiers(), [payload])
    if batch is None:
        batch = to_batch(identifiers(), [canonical("Request", payload)])
    if batch is None:  # bytes that protobuf itself wrote and ptars still refuses: none is known
        return 0, {}
    spans = batch["resource_spans"].values.field("scope_spans").values.field("spans").values
    _, rejected = _judged(
        fixed(spans.field("trace_id"), 16), fixed(spans.field("span_id"), 8), _parents(spans.field("parent_span_id"))
    )
    return len(spans), rejected


def _parents(given: Any) -> tuple[Any, Mask]:
    """Parents as `fixed` gives identifiers; an absent one fits too."""
    parents, fits = fixed(given, 8)
    return parents, fits | np.asarray(pc.equal(pc.binary_length(given), 0))


def _judged(trace: tuple[Any, Mask], span: tuple[Any, Mask], parent: tuple[Any, Mask]) -> tuple[Mask, dict[str, int]]:
    """Which spans have identifiers that can be, and how many have not, by reason.

    Args:
        trace, span, parent: identifiers of n spans and which of them had the right length, as `fixed` gives them.
    """
    good: Mask = np.ones(len(trace[0]), np.bool_)
    rejected = {}
    for reason, fits in (
        (BAD_TRACE_ID, trace[1] & fixed_bytes(trace[0]).any(axis=1)),
        (BAD_SPAN_ID, span[1] & fixed_bytes(span[0]).any(axis=1)),
        (BAD_PARENT_SPAN_ID, parent[1]),
    ):
        bad = int(np.count_nonzero(good & ~fits))
        if bad:
            rejected[reason] = bad
        good &= fits
    return good, rejected


def _owners(lists: Any) -> Rows:
    """For each child of a list column its parent's row."""
    return np.repeat(np.arange(len(lists), dtype=np.int64), np.diff(np.asarray(lists.offsets)))


@dataclass(frozen=True, slots=True)
class Batch:
    """What ptars made of a batch: the levels of the message, unnested."""

    resource_of_payload: Any
    resource_spans: Any
    scope_spans: Any
    spans: Any
    attributes: Attributes
    resources: Attributes
    scopes: Attributes

    @classmethod
    def read(cls, payloads: list[bytes]) -> Batch | None:
        """None when ptars refuses one of the payloads."""
        batch = to_batch(columns("Request"), payloads)
        if batch is None:
            return None
        resource_lists = batch["resource_spans"]
        resource_spans = resource_lists.values
        scope_spans = resource_spans.field("scope_spans").values
        spans = scope_spans.field("spans").values
        return cls(
            resource_lists,
            resource_spans,
            scope_spans,
            spans,
            flatten(spans.field("attributes")),
            flatten(resource_spans.field("resource").field("attributes")),
            flatten(scope_spans.field("scope").field("attributes")),
        )

    def odd_payloads(self) -> list[int]:
        """Payloads with attribute values that have to be written out again."""
        resource = self.resources.owners[self.resources.kinds == ODD]
        scope = self.scopes.owners[self.scopes.kinds == ODD]
        if (self.attributes.kinds == ODD).any():
            span = self.attributes.owners[self.attributes.kinds == ODD]
            scope = np.concatenate((scope, _owners(self.scope_spans.field("spans"))[span]))
        resource = np.concatenate((resource, _owners(self.resource_spans.field("scope_spans"))[scope]))
        return [int(index) for index in np.unique(_owners(self.resource_of_payload)[resource])]

    def decoded(self, malformed: list[int]) -> Decoded:
        """The spans, without those that are rejected."""
        spans = self.spans
        trace_id, trace_fits = fixed(spans.field("trace_id"), 16)
        span_id, span_fits = fixed(spans.field("span_id"), 8)
        parent_id, parent_fits = _parents(spans.field("parent_span_id"))
        status = spans.field("status")
        scope = _owners(self.scope_spans.field("spans"))
        resource = _owners(self.resource_spans.field("scope_spans"))[scope]
        scopes = self.scope_spans.field("scope")
        batch = pa.RecordBatch.from_arrays(
            [
                trace_id,
                span_id,
                parent_id,
                text(spans.field("trace_state")),
                text(spans.field("name")),
                spans.field("kind"),
                spans.field("start_time_unix_nano"),
                spans.field("end_time_unix_nano"),
                status.field("code"),
                text(status.field("message")),
                pa.array(resource.astype(np.int32)),
                pa.array(scope.astype(np.int32)),
                spans.field("events"),
                spans.field("links"),
                spans.field("flags"),
                spans.field("dropped_attributes_count"),
                spans.field("dropped_events_count"),
                spans.field("dropped_links_count"),
            ],
            names=COLUMNS,
        )
        decoded = Decoded(
            batch,
            self.attributes,
            self.resources,
            pa.RecordBatch.from_arrays(
                [
                    text(scopes.field("name")),
                    text(scopes.field("version")),
                    text(self.scope_spans.field("schema_url")),
                    scopes.field("dropped_attributes_count"),
                ],
                names=SCOPE_COLUMNS,
            ),
            self.scopes,
            pa.RecordBatch.from_arrays(
                [
                    text(self.resource_spans.field("schema_url")),
                    self.resource_spans.field("resource").field("dropped_attributes_count"),
                ],
                names=RESOURCE_COLUMNS,
            ),
            {},
            malformed,
        )
        good, rejected = _judged((trace_id, trace_fits), (span_id, span_fits), (parent_id, parent_fits))
        if good.all():
            return decoded
        kept = decoded.select(np.flatnonzero(good))
        return replace(kept, rejected=rejected, malformed=malformed)

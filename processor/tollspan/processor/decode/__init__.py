"""Decode: OTLP request bytes to Arrow columns, a whole batch at a time.

In: the payloads of a batch, each an ``ExportTraceServiceRequest`` in protobuf form. Out: `Decoded`, one row a span, and
their attributes as one flat table with a row for each attribute. Between `receive`/`journal` and `normalize`.

The work is done by ptars (protobuf to Arrow, in Rust) over the slim messages of `otlp_slim`; attribute values stay in
wire form until somebody asks for a column of them (`anyvalue`). A payload that ptars will not take, or that holds
values in an unusual encoding, is written out again by protobuf's own parser and decoded then; what that refuses too is
malformed and leaves the rest of its batch alone. Everything stands behind `decode` and `validate`, so that a fused
decoder can take their place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError

from tollspan.processor.decode import anyvalue
from tollspan.processor.decode.anyvalue import ODD, Kinds, classify
from tollspan.processor.decode.arrow_bytes import Mask, Rows, fixed, fixed_bytes, row_indices, text
from tollspan.processor.decode.otlp_slim import canonical, columns, identifiers, strict

__all__ = ["Attributes", "Checked", "Decoded", "check", "decode", "validate"]

MAX_BATCH_BYTES: Final = 256 << 20
"""Arrow's offsets are 32 bits wide, and values can grow sixfold when they are written as JSON."""

BAD_TRACE_ID: Final = "bad_trace_id"
BAD_SPAN_ID: Final = "bad_span_id"
BAD_PARENT_SPAN_ID: Final = "bad_parent_span_id"
"""Why a span is rejected: an identifier of the wrong length, or a trace or span id of zero bytes only."""


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of n owners (spans, resources or events), one row each, an owner's rows next to each other.

    Attributes:
        offsets: int64, length n + 1; owner i has the rows ``offsets[i]`` to ``offsets[i + 1]``.
        keys: string array, the distinct keys.
        codes: int32, length m, index of each row's key in ``keys``.
        raw: binary array, length m, values as canonical ``AnyValue`` messages (see `anyvalue`).
        kinds: uint8, length m, kind of each value.
    """

    offsets: npt.NDArray[np.int64]
    keys: Any
    codes: npt.NDArray[np.int32]
    raw: Any
    kinds: Kinds

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def owners(self) -> Rows:
        """Owner of each row, int64 of length m."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int64), np.diff(self.offsets))

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        return int(self.offsets.nbytes + self.keys.nbytes + self.codes.nbytes + self.raw.nbytes + self.kinds.nbytes)

    def select(self, owners: Rows) -> Attributes:
        """A copy for the given owners (int64, in that order; repeats allowed), with no key that none of them has."""
        rows, offsets = row_indices(self.offsets, owners)
        codes = self.codes[rows]
        keys = self.keys
        used = np.zeros(len(keys), np.bool_)
        used[codes] = True
        if not used.all():
            codes = (np.cumsum(used, dtype=np.int32) - 1)[codes]
            keys = keys.filter(pa.array(used))
        return Attributes(offsets, keys, codes, self.raw.take(pa.array(rows)), self.kinds[rows])

    def maps(self) -> Any:
        """``map<string, string>`` of length n, values as `anyvalue.as_text` writes them."""
        return pa.MapArray.from_arrays(
            pa.array(self.offsets.astype(np.int32)),
            self.keys.take(pa.array(self.codes)),
            anyvalue.as_text(self.raw, self.kinds),
        )


@dataclass(frozen=True, slots=True)
class Decoded:
    """Spans of a batch.

    Attributes:
        spans: n rows: ``trace_id`` fixed_size_binary(16); ``span_id``, ``parent_span_id`` fixed_size_binary(8) (parent:
            zero bytes when there is none); ``trace_state``, ``name``, ``status_message`` string; ``kind``,
            ``status_code`` int32; ``start_ns``, ``end_ns`` uint64, ns since the epoch as sent; ``resource``, ``scope``
            int32, row in the tables below; ``events``, ``links`` list<binary>, each an undecoded message; ``flags``,
            ``dropped_attributes``, ``dropped_events``, ``dropped_links`` uint32. No nulls.
        attributes: of the spans.
        resources: attributes of the resources.
        scopes: ``name``, ``version``, ``schema_url`` (string) and ``dropped_attributes`` (uint32) of the
            instrumentation scopes.
        scope_attributes: attributes of the scopes.
        resource_facts: ``schema_url`` (string) and ``dropped_attributes`` (uint32) of the resources.
        rejected: spans left out, by reason; absent = none.
        malformed: indices of the payloads that are not OTLP, ascending; nothing of these is here.
    """

    spans: Any
    attributes: Attributes
    resources: Attributes
    scopes: Any
    scope_attributes: Attributes
    resource_facts: Any
    rejected: dict[str, int] = field(default_factory=dict)
    malformed: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return int(self.spans.num_rows)

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes of what is held here."""
        tables = (self.spans, self.scopes, self.resource_facts)
        return sum(map(_nbytes, (*tables, self.attributes, self.resources, self.scope_attributes)))

    def select(self, rows: Rows) -> Decoded:
        """The given spans (int64, in that order) with their own memory, so that the batch's can be freed."""
        spans = self.spans.take(pa.array(rows))
        resources, resource = np.unique(np.asarray(spans["resource"]), return_inverse=True)
        scopes, scope = np.unique(np.asarray(spans["scope"]), return_inverse=True)
        spans = _with(spans, resource=pa.array(resource.astype(np.int32)), scope=pa.array(scope.astype(np.int32)))
        return Decoded(
            spans,
            self.attributes.select(rows),
            self.resources.select(resources.astype(np.int64)),
            self.scopes.take(pa.array(scopes)),
            self.scope_attributes.select(scopes.astype(np.int64)),
            self.resource_facts.take(pa.array(resources)),
        )


def _nbytes(part: Any) -> int:
    return int(part.nbytes)


class Checked(NamedTuple):
    """What a receiver has to know of a request before it acknowledges it.

    Attributes:
        error: why it is no OTLP request and cannot be acknowledged; None when it can.
        spans: how many spans it has, rejected ones among them; 0 where ``error`` is given.
        rejected: spans that `decode` will leave out, by reason as in ``Decoded.rejected``; absent = none. A receiver
            tells their number as partial success.
    """

    error: str | None
    spans: int = 0
    rejected: dict[str, int] = {}  # noqa: RUF012  (nobody writes into it)


def check(payload: bytes) -> Checked:
    """Whether a payload can be journaled and acknowledged; runs in the receiver, before the ack.

    A strict parse by protobuf, down to attribute values, events and links, with two freedoms: text need not be UTF-8
    (it is repaired later, for one bad string must not refuse a batch), and the inside of nested values is not looked
    at (so that depth cannot hurt).

    Args:
        payload: bytes of an ``ExportTraceServiceRequest``.

    Returns:
        See `Checked`. No input raises.
    """
    try:
        strict("Request").FromString(payload)
    except DecodeError as error:
        return Checked(f"not an OTLP ExportTraceServiceRequest: {error}")
    batch = _to_batch(identifiers(), [payload])
    if batch is None:
        batch = _to_batch(identifiers(), [canonical("Request", payload)])
    if batch is None:  # bytes that protobuf itself wrote and ptars still refuses: none is known
        return Checked(None)
    spans = batch["resource_spans"].values.field("scope_spans").values.field("spans").values
    _, rejected = _judged(
        *(fixed(spans.field(name), width) for name, width in (("trace_id", 16), ("span_id", 8))),
        _parents(spans.field("parent_span_id")),
    )
    return Checked(None, len(spans), rejected)


def validate(payload: bytes) -> str | None:
    """Why a payload cannot be acknowledged, None when it can: the first part of what `check` says."""
    return check(payload).error


def decode(payloads: Sequence[bytes]) -> Decoded:
    """Decode a batch.

    Args:
        payloads: protobuf-encoded ``ExportTraceServiceRequest`` messages, at most `MAX_BATCH_BYTES` together. Need not
            have been validated.

    Returns:
        The spans of all payloads, in order. Spans with impossible identifiers and malformed payloads are left out and
        counted; no input raises.

    Raises:
        ValueError: more than `MAX_BATCH_BYTES`.
    """
    if sum(map(len, payloads)) > MAX_BATCH_BYTES:
        raise ValueError(f"a batch of more than {MAX_BATCH_BYTES} bytes cannot be decoded at once")
    wire = list(payloads)
    malformed: list[int] = []
    batch = _Batch.read(wire)
    again: Iterable[int] = range(len(wire)) if batch is None else batch.odd_payloads()
    for index in again:
        try:
            wire[index] = canonical("Request", wire[index])
        except DecodeError:
            wire[index] = b""
            malformed.append(index)
        batch = None
    if batch is None:
        batch = _Batch.read(wire)
    if batch is None:
        # Bytes that protobuf itself wrote and ptars still refuses: none is known.
        for index, payload in enumerate(wire):
            if _Batch.read([payload]) is None:
                wire[index] = b""
                malformed.append(index)
        batch = _Batch.read(wire)
        assert batch is not None
    return batch.decoded(sorted(malformed))


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
        raw: binary array of k messages. One that is malformed (`validate` lets none in) is read as an empty message.

    Returns:
        A record batch of k rows, columns as in `otlp_slim`; and their attributes.
    """
    batch = _to_batch(columns(message), raw)
    attributes = None if batch is None else flatten(batch["attributes"])
    if attributes is None or (attributes.kinds == ODD).any():
        batch = _to_batch(columns(message), [_canonical_or_empty(message, value) for value in raw.to_pylist()])
        attributes = flatten(batch["attributes"])
    return batch, attributes


def _canonical_or_empty(message: str, raw: bytes) -> bytes:
    try:
        return canonical(message, raw)
    except DecodeError:
        return b""


def _to_batch(handler: Any, raw: Any) -> Any:
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


def _with(batch: Any, **replaced: Any) -> Any:
    """A record batch with some of its columns replaced."""
    return pa.RecordBatch.from_arrays(
        [replaced.get(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)],
        names=batch.schema.names,
    )


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
class _Batch:
    """What ptars made of a batch: the levels of the message, unnested."""

    resource_of_payload: Any
    resource_spans: Any
    scope_spans: Any
    spans: Any
    attributes: Attributes
    resources: Attributes
    scopes: Attributes

    @classmethod
    def read(cls, payloads: list[bytes]) -> _Batch | None:
        """None when ptars refuses one of the payloads."""
        batch = _to_batch(columns("Request"), payloads)
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
            names=_COLUMNS,
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
                names=["name", "version", "schema_url", "dropped_attributes"],
            ),
            self.scopes,
            pa.RecordBatch.from_arrays(
                [
                    text(self.resource_spans.field("schema_url")),
                    self.resource_spans.field("resource").field("dropped_attributes_count"),
                ],
                names=["schema_url", "dropped_attributes"],
            ),
            {},
            malformed,
        )
        good, rejected = _judged((trace_id, trace_fits), (span_id, span_fits), (parent_id, parent_fits))
        if good.all():
            return decoded
        kept = decoded.select(np.flatnonzero(good))
        return replace(kept, rejected=rejected, malformed=malformed)


_COLUMNS: Final = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "trace_state",
    "name",
    "kind",
    "start_ns",
    "end_ns",
    "status_code",
    "status_message",
    "resource",
    "scope",
    "events",
    "links",
    "flags",
    "dropped_attributes",
    "dropped_events",
    "dropped_links",
]

"""Decode: OTLP request bytes to Arrow columns, a whole batch at a time.

In: the payloads of a batch, each an ``ExportTraceServiceRequest`` in protobuf form. Out: `Decoded`, one row a span, and
their attributes as one flat table with a row for each attribute. Between `receive`/`journal` and `normalize`.

Two readings stand behind `check` and `decode`, and give the same: `fused`, a walker over the wire compiled by numba,
in processes that asked for it (`fused.prepare`) once it is compiled, and `by_ptars` everywhere else. What a reading
does not take (broken bytes, and what is said in an unusual way) is written out again by protobuf's own parser and read
then; what that refuses too is malformed, and leaves the rest of its batch alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from google.protobuf.message import DecodeError

from tollspan.processor.decode import fused
from tollspan.processor.decode.by_ptars import Batch, count_spans, read_messages
from tollspan.processor.decode.otlp_slim import rewritten, strict
from tollspan.processor.decode.tables import Attributes, Checked, Decoded, Waiting

__all__ = ["Attributes", "Checked", "Decoded", "Waiting", "check", "decode", "read_messages", "validate"]

MAX_BATCH_BYTES: Final = 256 << 20
"""Arrow's offsets are 32 bits wide, and values can grow sixfold when they are written as JSON."""


def check(payload: bytes) -> Checked:
    """Whether a payload can be journaled and acknowledged; runs in the receiver, before the ack.

    A strict parse as protobuf's, down to attribute values, events and links, with two freedoms: text need not be UTF-8
    (it is repaired later, for one bad string must not refuse a batch), and the inside of nested values is not looked
    at (so that depth cannot hurt).

    Args:
        payload: bytes of an ``ExportTraceServiceRequest``.

    Returns:
        See `Checked`. No input raises.
    """
    found = fused.check(payload)
    if found is not None:
        return found
    try:
        strict("Request").FromString(payload)
    except DecodeError as error:
        return Checked(f"not an OTLP ExportTraceServiceRequest: {error}")
    return Checked(None, *count_spans(payload))


def validate(payload: bytes) -> str | None:
    """Why a payload cannot be acknowledged, None when it can: the first part of what `check` says."""
    return check(payload).error


def decode(payloads: Sequence[bytes]) -> Decoded:
    """Decode a batch.

    Args:
        payloads: protobuf-encoded ``ExportTraceServiceRequest`` messages, at most `MAX_BATCH_BYTES` together. Need not
            have been checked.

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
    decoded = fused.decode(wire, malformed)
    return _by_ptars(wire, malformed) if decoded is None else decoded


def _by_ptars(wire: list[bytes], malformed: list[int]) -> Decoded:
    batch = Batch.read(wire)
    again: Iterable[int] = range(len(wire)) if batch is None else batch.odd_payloads()
    for index in again:
        again_written = rewritten("Request", wire[index])
        if again_written is None:
            malformed.append(index)
        wire[index] = again_written or b""
        batch = None
    if batch is None:
        batch = Batch.read(wire)
    if batch is None:
        # Bytes that protobuf itself wrote and ptars still refuses: none is known.
        for index, payload in enumerate(wire):
            if Batch.read([payload]) is None:
                wire[index] = b""
                malformed.append(index)
        batch = Batch.read(wire)
        assert batch is not None
    return batch.decoded(sorted(malformed))

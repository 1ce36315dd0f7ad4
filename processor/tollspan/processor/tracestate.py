"""W3C tracestate, OpenTelemetry's member: reading ``rv`` and ``th`` in columns, and stamping ``th`` on kept spans.

Format: ``ot=th:c;rv:0123456789abcd`` among other vendors' members (OpenTelemetry specification, "TraceState handling"
and "TraceState: probability sampling"). ``rv`` is 14 hexadecimal digits; ``th`` 1 to 14, trailing zeros left out.
"""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.decode.arrow_bytes import layout
from tollspan.processor.identity import U64
from tollspan.processor.sample.thresholds import NEVER, RANDOM_BITS, encode_threshold

_MEMBER: Final = r"(?:^|,)[ \t]*ot=(?:[^,;]*;)*"
_RV: Final = _MEMBER + r"rv:(?P<value>[0-9a-f]{14})[ \t]*(?:[,;]|$)"
_TH: Final = _MEMBER + r"th:(?P<value>[0-9a-f]{1,14})[ \t]*(?:[,;]|$)"
_OT: Final = re.compile(r"(?:^|,)[ \t]*ot=([^,]*)")
_MASK: Final = np.uint64(2**RANDOM_BITS - 1)


def _hex(values: Any) -> U64:
    """Strings of exactly 14 hexadecimal digits as integers."""
    raw = np.frombuffer(b"".join(v.encode() for v in values.to_pylist()), np.uint8).reshape(-1, 14)
    digits = np.where(raw >= ord("a"), raw - ord("a") + 10, raw - ord("0")).astype(np.uint64)
    shifts = np.arange(13, -1, -1, dtype=np.uint64) * np.uint64(4)
    return np.asarray((digits << shifts).sum(axis=1), dtype=np.uint64)


def _extract(states: Any, pattern: str) -> tuple[Any, U64]:
    """(positions, values) of the states that match."""
    found = pc.struct_field(pc.extract_regex(states, pattern), "value")
    at = np.flatnonzero(np.asarray(pc.is_valid(found)))
    if not len(at):
        return at, np.zeros(0, np.uint64)
    text = pc.utf8_rpad(found.take(pa.array(at)), width=14, padding="0")
    return at, _hex(text)


def randomness(states: Any, trace: U64) -> tuple[U64, U64]:
    """What consistent sampling needs of each span.

    Args:
        states: string array of tracestate headers, length n; nulls and empty strings are common.
        trace: (n, 2) words of the trace ids.

    Returns:
        (56-bit randomness: ``rv`` where given, else the low 56 bits of the trace id; incoming threshold, 0 if none).
    """
    values = trace[:, 1] & _MASK
    incoming = np.zeros(len(values), np.uint64)
    states = states.combine_chunks() if isinstance(states, pa.ChunkedArray) else states
    if silent(states):
        return values, incoming
    marked = np.flatnonzero(np.asarray(pc.fill_null(pc.match_substring(states, "ot="), False)))
    if len(marked):
        some = states.take(pa.array(marked))
        at, found = _extract(some, _RV)
        values[marked[at]] = found
        at, found = _extract(some, _TH)
        incoming[marked[at]] = found
    return values, incoming


def silent(states: Any) -> bool:
    """Whether a string array has no byte of text."""
    offsets, _ = layout(states)
    return bool(offsets[-1] == offsets[0])


def stamp(state: str, threshold: int) -> str:
    """``state`` with ``ot=th`` set to ``threshold``; other members and ``rv`` stay, the changed member comes first.

    With `NEVER` it has no ``th``: nothing is said of a probability.
    """
    match = _OT.search(state)
    fields = [f.strip() for f in match.group(1).split(";")] if match else []
    fields = [f for f in fields if f and not f.startswith("th:")]
    if threshold < NEVER:
        fields.insert(0, f"th:{encode_threshold(threshold)}")
    rest = [m.strip() for m in state.split(",") if m.strip() and not m.strip().startswith("ot=")]
    return ",".join(["ot=" + ";".join(fields), *rest] if fields else rest)


def stamp_column(states: Any, thresholds: U64) -> pa.Array:
    """`stamp` over columns; the loop runs over distinct (state, threshold) pairs of kept spans."""
    codes = pc.fill_null(states, "").dictionary_encode()
    codes = codes.combine_chunks() if isinstance(codes, pa.ChunkedArray) else codes
    levels, level = np.unique(thresholds, return_inverse=True)
    pair = np.asarray(codes.indices).astype(np.int64) * max(len(levels), 1) + level
    distinct, where = np.unique(pair, return_inverse=True)
    names = codes.dictionary.to_pylist()
    stamped = [stamp(names[p // len(levels)], int(levels[p % len(levels)])) for p in distinct.tolist()]
    return pa.array(stamped, pa.string()).take(pa.array(where))

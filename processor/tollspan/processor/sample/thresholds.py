"""Thresholds of consistent probability sampling, as OpenTelemetry's ``ot=th`` writes them.

A trace has 56 bits of randomness R (`tollspan.processor.tracestate`), a sampler a rejection threshold T on the same
scale: it keeps the trace when R ≥ T, which has the probability (2⁵⁶ - T) / 2⁵⁶.
"""

from __future__ import annotations

from typing import Final

RANDOM_BITS: Final = 56
"""Bits of trace randomness, and the scale of thresholds (OpenTelemetry probability sampling)."""

ALWAYS: Final = 0
"""Threshold that rejects nothing."""

NEVER: Final = 2**RANDOM_BITS
"""Threshold that rejects everything."""


def threshold(keep: float) -> int:
    """Rejection threshold for a share of traces to keep, 0 ≤ keep ≤ 1, on the scale of 2^56."""
    return int(min(max(round((1.0 - keep) * NEVER), 0), NEVER))


def encode_threshold(value: int) -> str:
    """``th`` as in tracestate: hexadecimal without trailing zeros, ``0`` when everything is kept, '' for `NEVER`."""
    if value >= NEVER:
        return ""
    return f"{value:014x}".rstrip("0") or "0"


def adjusted_count(value: int) -> float:
    """How many spans a kept one stands for: the inverse of its probability; none where that is 0.

    A span that came although a sampler had rejected its trace (`NEVER`) is beside the estimate: others stand for it.
    """
    if value >= NEVER:
        return 0.0
    return float(NEVER / (NEVER - value))

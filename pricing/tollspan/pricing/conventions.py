"""Counting conventions: from the counts a provider reports to disjoint meters, in one table.

Providers count the same call differently: cached tokens inside the input or beside it, reasoning inside the output or
beside it. A convention is data: each meter is a signed sum of the reported counts. The same rows drive plain integers
(`disjoint`) and whole columns (`disjoint_columns`), so that a single call and a million spans cannot disagree.

In: the counts as reported, by name (the last part of the ``gen_ai.usage`` attributes, see `COUNTS`). Out: quantities by
meter in base steps, or the reason why the counts cannot be right. Nothing is ever clamped: cached tokens that exceed
the input make the usage invalid, not zero. Pricing sees only what comes out of here.

A meter is given when the count it is named after is given (the first term of its sum); a count that is only subtracted
and was not reported counts as no breakdown, that is 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Column: TypeAlias = tuple[NDArray[np.int64], NDArray[np.bool_]]
    """Values (int64, length n) and validity (bool, length n; False = the count was not given)."""

Sum: TypeAlias = tuple[tuple[int, str], ...]
"""Signed counts, e.g. ``((+1, "input_tokens"), (-1, "cache_read"))``."""

COUNTS: Final = (
    "input_tokens",
    "output_tokens",
    "cache_read",
    "cache_write",
    "reasoning",
    "audio_input",
    "audio_output",
    "image_input",
    "audio_cache_read",
)
"""Names of the counts that conventions are written in."""

OTEL_INCLUSIVE: Final = "otel_inclusive"
"""OpenTelemetry GenAI conventions, also OpenAI's own objects: the input includes cache reads, cache writes, audio and
image tokens; cache reads and audio input both include cached audio; the output includes reasoning and audio."""

CONVENTIONS: Final[dict[str, dict[str, Sum]]] = {
    OTEL_INCLUSIVE: {
        "tokens.input.uncached": (
            (+1, "input_tokens"),
            (-1, "cache_read"),
            (-1, "cache_write"),
            (-1, "audio_input"),
            (-1, "image_input"),
            (+1, "audio_cache_read"),  # subtracted twice above: as cached and as audio
        ),
        "tokens.input.cache_read": ((+1, "cache_read"), (-1, "audio_cache_read")),
        "tokens.input.cache_write": ((+1, "cache_write"),),
        "tokens.input.audio": ((+1, "audio_input"), (-1, "audio_cache_read")),
        "tokens.input.audio.cache_read": ((+1, "audio_cache_read"),),
        "tokens.input.image": ((+1, "image_input"),),
        "tokens.output": ((+1, "output_tokens"), (-1, "reasoning"), (-1, "audio_output")),
        "tokens.output.reasoning": ((+1, "reasoning"),),
        "tokens.output.audio": ((+1, "audio_output"),),
    },
}
"""Convention → meter → signed sum of counts."""

LARGEST_COUNT: Final = 2**53
"""Counts above this are invalid: JSON and double attributes cannot hold them exactly, and no call has so many."""

INVALID_REASONS: Final[tuple[str | None, ...]] = (None, "usage_negative", "usage_too_large", "usage_inconsistent")
"""What the codes of `disjoint_columns` mean; the lowest code that applies is given. ``usage_inconsistent``: parts
exceed the whole that includes them."""

_NEGATIVE, _TOO_LARGE, _INCONSISTENT = 1, 2, 3


def disjoint(convention: str, counts: Mapping[str, int | None]) -> tuple[dict[str, int], str | None]:
    """Disjoint quantities of one call.

    Args:
        convention: a key of `CONVENTIONS`.
        counts: reported counts by name (`COUNTS`); None or absent = not given. Other names are ignored.

    Returns:
        Quantities by meter, and None; or no quantities, and the reason from `INVALID_REASONS`.

    Raises:
        KeyError: unknown convention.
    """
    given = {name: value for name in COUNTS if (value := counts.get(name)) is not None}
    if any(value < 0 for value in given.values()):
        return {}, INVALID_REASONS[_NEGATIVE]
    if any(value > LARGEST_COUNT for value in given.values()):
        return {}, INVALID_REASONS[_TOO_LARGE]
    quantities = {
        meter: sum(sign * given.get(name, 0) for sign, name in terms)
        for meter, terms in CONVENTIONS[convention].items()
        if terms[0][1] in given
    }
    if any(value < 0 for value in quantities.values()):
        return {}, INVALID_REASONS[_INCONSISTENT]
    return quantities, None


def disjoint_columns(convention: str, counts: Mapping[str, Column]) -> tuple[dict[str, Column], NDArray[np.uint8]]:
    """Disjoint quantities of n calls at once; row by row equal to `disjoint`.

    Args:
        convention: a key of `CONVENTIONS`.
        counts: by name (`COUNTS`), int64 values of length n with their validity. At least one; what stands under an
            invalid value is ignored. A name that is absent was given by no row. Other names are ignored.

    Returns:
        Quantities by meter, only meters that some row may have, each as values and validity; and a code for each row:
        0, or the index in `INVALID_REASONS` of why the row's counts cannot be right. Such a row has no quantities.

    Raises:
        KeyError: unknown convention.
        ValueError: none of the counts is known to the convention, so there is no length.
    """
    import numpy as np

    known = {name: counts[name] for name in COUNTS if name in counts}
    if not known:
        raise ValueError(f"no counts given; known are {', '.join(COUNTS)}")
    length = len(next(iter(known.values()))[0])
    codes = np.zeros(length, dtype=np.uint8)

    def mark(where: NDArray[Any], code: int) -> None:
        codes[where & (codes == 0)] = code

    filled = {name: np.where(valid, values, 0) for name, (values, valid) in known.items()}
    for values in filled.values():
        mark(values < 0, _NEGATIVE)
    for values in filled.values():
        mark(values > LARGEST_COUNT, _TOO_LARGE)

    # Rows marked above may wrap around here; they keep their earlier code and are masked below.
    sums: dict[str, Column] = {}
    for meter, terms in CONVENTIONS[convention].items():
        first = terms[0][1]
        if first not in known:
            continue
        total = np.zeros(length, dtype=np.int64)
        for sign, name in terms:
            if name in filled:
                total += sign * filled[name]
        valid = known[first][1]
        mark(valid & (total < 0), _INCONSISTENT)
        sums[meter] = (total, valid)
    fine = codes == 0
    return {meter: (values, valid & fine) for meter, (values, valid) in sums.items()}, codes

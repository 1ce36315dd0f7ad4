"""Counting conventions: from the counts a provider reports to disjoint meters, in one table.

Providers count the same call differently: cached tokens inside the input or beside it, reasoning inside the output or
beside it. A convention is data: the counts that stand beside (`BESIDE`), and from them each meter as a signed sum of
the reported counts (`CONVENTIONS`). The same rows drive plain integers (`disjoint`) and whole columns
(`disjoint_columns`), so that a single call and a million spans cannot disagree.

In: the counts as reported, by name (the last part of the ``gen_ai.usage`` attributes, see `COUNTS`). Out: quantities by
meter in base steps, or the reason why the counts cannot be right. Nothing is ever clamped: cached tokens that exceed
the input make the usage invalid, not zero. Pricing sees only what comes out of here.

A meter is given when the count it is named after is given (the first term of its sum). A whole that was not reported
but whose parts were is their sum (`WHOLES`); any other count that is only subtracted and was not reported counts as no
breakdown, that is 0.
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
    "cache_write_5m",
    "cache_write_30m",
    "cache_write_1h",
    "cache_write_12h",
    "reasoning",
    "citation",
    "tool_input",
    "audio_input",
    "audio_output",
    "audio_cache_read",
    "image_input",
    "image_output",
    "image_cache_read",
    "video_input",
    "video_output",
    "video_cache_read",
)
"""Names of the counts that conventions are written in. The lifetimes are parts of ``cache_write``; what was read of a
cache in one modality is part of ``cache_read`` and of that modality's input; ``tool_input`` are the results of tools
that the provider ran and gave back to the model."""

_LIFETIMES: Final = ("5m", "30m", "1h", "12h")
_MODALITIES: Final = ("audio", "image", "video")

WHOLES: Final[dict[str, tuple[str, ...]]] = {
    "cache_write": tuple(f"cache_write_{lifetime}" for lifetime in _LIFETIMES),
    "cache_read": tuple(f"{modality}_cache_read" for modality in _MODALITIES),
    **{f"{modality}_input": (f"{modality}_cache_read",) for modality in _MODALITIES},
}
"""Count → its parts. A whole that was not given, of which parts were, is the sum of those, so that a part told alone is
still taken out of the input, and only once."""


def _convention(*beside: str) -> dict[str, Sum]:
    """Meters of a convention, from the counts that it reports beside the input or the output instead of inside."""

    def rest(whole: str, *parts: str) -> Sum:
        return ((+1, whole), *((-1, part) for part in parts if part not in beside))

    cached = tuple(f"{modality}_cache_read" for modality in _MODALITIES)
    return {
        "tokens.input.uncached": (
            *rest("input_tokens", "cache_read", "cache_write", *(f"{modality}_input" for modality in _MODALITIES)),
            *((+1, name) for name in cached),  # subtracted twice: as cached and as audio, image or video
            *(((+1, "tool_input"),) if "tool_input" in beside else ()),
        ),
        "tokens.input.cache_read": rest("cache_read", "audio_cache_read", "image_cache_read"),
        "tokens.input.cache_write": rest("cache_write", *WHOLES["cache_write"]),
        **{f"tokens.input.cache_write.{lifetime}": rest(f"cache_write_{lifetime}") for lifetime in _LIFETIMES},
        **{f"tokens.input.{modality}": rest(f"{modality}_input", f"{modality}_cache_read") for modality in _MODALITIES},
        **{f"tokens.input.{name}.cache_read": rest(f"{name}_cache_read") for name in ("audio", "image")},
        "tokens.output": rest(
            "output_tokens", "reasoning", "citation", *(f"{modality}_output" for modality in _MODALITIES)
        ),
        "tokens.output.reasoning": rest("reasoning"),
        "tokens.output.citation": rest("citation"),
        **{f"tokens.output.{modality}": rest(f"{modality}_output") for modality in _MODALITIES},
    }


OTEL_INCLUSIVE: Final = "otel_inclusive"
"""OpenTelemetry GenAI conventions, also OpenAI's own objects and those of the many who copy them: the input includes
cache reads, cache writes, audio, image and video tokens; the output includes reasoning and every modality."""
CACHE_EXCLUSIVE: Final = "cache_exclusive"
"""Anthropic's own objects, and Amazon Bedrock's Converse: the input counts only what was neither read from a cache nor
written to one; thinking is inside the output."""
REASONING_EXCLUSIVE: Final = "reasoning_exclusive"
"""xAI's chat completions and Perplexity: as OpenAI's, but reasoning (and Perplexity's citations) beside the output."""
GEMINI: Final = "gemini"
"""Gemini and Vertex AI: the prompt includes what was cached; thoughts stand beside the candidates, the results of tools
beside the prompt. The documented total is the sum of the four."""
GEMINI_THOUGHTS_INSIDE: Final = "gemini_thoughts_inside"
"""The same where the total says that the candidates already include the thoughts."""
TOOLS_EXCLUSIVE: Final = "tools_exclusive"
"""Mistral's conversations: as OpenAI's, but what its connectors gave back to the model beside the prompt."""
COHERE_BILLED: Final = "cohere_billed"
"""Cohere's ``billed_units``: image tokens beside text tokens, nothing cached."""
DISJOINT: Final = "disjoint"
"""Langfuse's own usage types: nothing includes anything else, but for the lifetimes of cache writes. What was cached of
a modality has no type of its own."""

BESIDE: Final[dict[str, tuple[str, ...]]] = {
    OTEL_INCLUSIVE: (),
    CACHE_EXCLUSIVE: ("cache_read", "cache_write"),
    REASONING_EXCLUSIVE: ("reasoning", "citation"),
    GEMINI: ("reasoning", "tool_input"),
    GEMINI_THOUGHTS_INSIDE: ("tool_input",),
    TOOLS_EXCLUSIVE: ("tool_input",),
    COHERE_BILLED: ("image_input",),
    DISJOINT: (
        *("cache_read", "cache_write", "reasoning", "citation", "tool_input"),
        *(f"{modality}_{side}" for modality in _MODALITIES for side in ("input", "output")),
    ),
}
"""Convention → the counts that it reports beside the input or the output; every other count is part of one of them."""

CONVENTIONS: Final[dict[str, dict[str, Sum]]] = {name: _convention(*beside) for name, beside in BESIDE.items()}
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
    for whole, parts in WHOLES.items():
        if whole not in given and (told := [given[part] for part in parts if part in given]):
            given[whole] = sum(told)
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
    # As unsigned numbers the negative ones are the largest: mostly one look at each column is enough.
    odd = [values for values in filled.values() if length and values.view(np.uint64).max() > LARGEST_COUNT]
    for values in odd:
        mark(values < 0, _NEGATIVE)
    for values in odd:
        mark(values > LARGEST_COUNT, _TOO_LARGE)

    # Rows marked above may wrap around from here on; they keep their earlier code and are masked below.
    told = {name: valid for name, (_, valid) in known.items()}
    for whole, parts in WHOLES.items():
        some = [part for part in parts if part in known]
        if some:
            total, given = np.add.reduce([filled[part] for part in some]), np.logical_or.reduce([told[p] for p in some])
            if whole in known:
                total, given = np.where(told[whole], filled[whole], total), given | told[whole]
            filled[whole], told[whole] = total, given
    sums: dict[str, Column] = {}
    for meter, terms in CONVENTIONS[convention].items():
        if (first := terms[0][1]) not in told:
            continue
        total = filled[first] if terms[0][0] > 0 else -filled[first]
        for sign, name in terms[1:]:
            if name in filled:
                total = total + filled[name] if sign > 0 else total - filled[name]
        if length and total.min() < 0:
            mark(told[first] & (total < 0), _INCONSISTENT)
        sums[meter] = (total, told[first])
    if codes.any():
        fine = codes == 0
        sums = {meter: (values, valid & fine) for meter, (values, valid) in sums.items()}
    return sums, codes

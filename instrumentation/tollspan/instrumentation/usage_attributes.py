"""What a usage reading says, as the attributes of a span: the conventions' inclusive counts, and our own.

In: a `UsageReading`. Out: attributes. A module of its own because it, and all that it stands on, is needed by a program
that makes calls and not by one that only imports a client (`tollspan.instrumentation.usage`).
"""

from __future__ import annotations

import functools
from typing import Any, Final

from tollspan.pricing import attributes as names
from tollspan.pricing.meters import METERS
from tollspan.pricing.usage_objects import UsageReading, read_usage

__all__ = ["COUNTS", "INCLUSIVE", "OWN", "TIER_KEYS", "read_usage", "usage_attributes"]

_UNCACHED: Final = "tokens.input.uncached"
_OUTPUT: Final = "tokens.output"

INCLUSIVE: Final[tuple[tuple[str, str, tuple[str, ...]], ...]] = (
    # The whole input and output are told by their main meters: the parts alone would make the rest look like 0.
    (names.USAGE_INPUT_TOKENS, _UNCACHED, tuple(meter for meter in METERS if meter.startswith("tokens.input."))),
    (names.USAGE_OUTPUT_TOKENS, _OUTPUT, tuple(meter for meter in METERS if meter.startswith(_OUTPUT))),
    *(
        (attribute, "", meters)
        for attribute, meters in (
            (
                names.USAGE_CACHE_READ_TOKENS,
                ("tokens.input.cache_read", "tokens.input.audio.cache_read", "tokens.input.image.cache_read"),
            ),
            (
                names.USAGE_CACHE_WRITE_TOKENS,
                tuple(meter for meter in METERS if meter.startswith("tokens.input.cache_write")),
            ),
            (names.USAGE_REASONING_TOKENS, ("tokens.output.reasoning",)),
            (names.USAGE_AUDIO_INPUT_TOKENS, ("tokens.input.audio", "tokens.input.audio.cache_read")),
            (names.USAGE_AUDIO_CACHE_READ_TOKENS, ("tokens.input.audio.cache_read",)),
            (names.USAGE_AUDIO_OUTPUT_TOKENS, ("tokens.output.audio",)),
            (names.USAGE_IMAGE_INPUT_TOKENS, ("tokens.input.image", "tokens.input.image.cache_read")),
            (names.USAGE_IMAGE_CACHE_READ_TOKENS, ("tokens.input.image.cache_read",)),
            (names.USAGE_IMAGE_OUTPUT_TOKENS, ("tokens.output.image",)),
            (names.USAGE_VIDEO_INPUT_TOKENS, ("tokens.input.video",)),
            (names.USAGE_VIDEO_OUTPUT_TOKENS, ("tokens.output.video",)),
        )
    ),
)
"""Attribute; the meter without which it is not told ("": any of them); the meters whose sum it is."""

_LIFETIMES: Final = "tokens.input.cache_write."
_CITATION: Final = "tokens.output.citation"

OWN: Final[dict[str, str]] = {
    meter: names.usage(meter)
    for meter in METERS
    if not meter.startswith("tokens.") or meter.startswith(_LIFETIMES) or meter == _CITATION
}
"""Meter without a name in the conventions → its attribute. Those of tokens are parts of a count that has one."""

COUNTS: Final = frozenset((*(attribute for attribute, _, _ in INCLUSIVE), *OWN.values()))
"""Every attribute that tells of a quantity."""

TIER_KEYS: Final[dict[str, str]] = {"anthropic": names.ANTHROPIC_RESPONSE_SERVICE_TIER}
"""Provider → attribute of the service tier; every other one has OpenAI's, the only one that is a convention."""


def usage_attributes(reading: UsageReading, provider: str) -> dict[str, Any]:
    """Attributes that say what ``reading`` says."""
    quantities = reading.quantities
    inclusive, own = _told_by(tuple(quantities))
    attributes: dict[str, Any] = {
        attribute: sum([quantities[meter] for meter in meters]) for attribute, meters in inclusive
    }
    for attribute, meter, scale in own:
        steps = quantities[meter]
        attributes[attribute] = steps if scale == 1 else steps / scale
    if reading.invalid is not None:
        attributes[names.USAGE_INVALID] = reading.invalid
    if reading.service_tier is not None:
        attributes[TIER_KEYS.get(provider, names.OPENAI_RESPONSE_SERVICE_TIER)] = reading.service_tier
    if reading.residency is not None:
        attributes[names.RESIDENCY] = reading.residency
    if reading.reported_cost is not None:
        attributes[names.COST_REPORTED] = format(reading.reported_cost, "f")
    return attributes


@functools.lru_cache(maxsize=512)
def _told_by(given: tuple[str, ...]) -> tuple[list[tuple[str, list[str]]], list[tuple[str, str, int]]]:
    """What is told where these meters are given: attributes and the meters whose sums they are; attributes of our own,
    their meters and scales."""
    sums = ((row, [meter for meter in row[2] if meter in given]) for row in INCLUSIVE)
    inclusive = [(row[0], told) for row, told in sums if told and (not row[1] or row[1] in given)]
    return inclusive, [(OWN[meter], meter, METERS[meter].scale) for meter in given if meter in OWN]

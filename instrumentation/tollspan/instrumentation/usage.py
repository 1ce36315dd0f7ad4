"""From a provider's usage object to the attributes of a span: the one place where instrumentations say what was used.

In: the usage object of a response, as the client or the wire gives it. Out: attributes in `Call.attributes`. What the
object says is read by `tollspan.pricing.usage_objects`; here its disjoint meters become the inclusive counts of the
GenAI conventions, and what has no name there becomes ``tollspan.usage.<meter>``. The processor takes the same meters
apart again: what it finds on the span is what was read here, meter by meter.

Assigned, never added: a later object of the same call takes the place of what an earlier one said. Unknown is absent: a
whole whose main part was not told is not put together from the parts that were.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any, Final

from tollspan.instrumentation.calls import Call
from tollspan.pricing import attributes as names
from tollspan.pricing.meters import METERS
from tollspan.pricing.usage_objects import UsageReading, read_usage

__all__ = ["put_usage", "usage_attributes"]

_log: Final = logging.getLogger(__name__)

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

_COUNTS: Final = frozenset((*(attribute for attribute, _, _ in INCLUSIVE), *OWN.values()))

TIER_KEYS: Final[dict[str, str]] = {"anthropic": names.ANTHROPIC_RESPONSE_SERVICE_TIER}
"""Provider → attribute of the service tier; every other one has OpenAI's, the only one that is a convention."""

_named: Final[set[str]] = set()
"""Unknown counts that the log has named."""
_MOST_NAMED: Final = 200


def put_usage(call: Call, provider: str, usage: Any, *, model: str | None = None, response: Any = None) -> None:
    """Put what a call used on its span.

    Args:
        call: the open call; its attributes are assigned to.
        provider: who served and bills it, ``gen_ai.provider.name``.
        usage: usage object, as `tollspan.pricing.usage_objects.read_usage` takes it; None where there is none, and then
            only what ``response`` tells is put.
        model: model as served, where it is known.
        response: the response around the usage.

    May raise only what a hostile object raises; called within a guard.
    """
    reading = read_usage(provider, usage, model=model, response=response)
    attributes = call.attributes
    if reading.invalid is not None:
        for key in _COUNTS.intersection(attributes):
            del attributes[key]
    else:
        attributes.pop(names.USAGE_INVALID, None)
    attributes.update(usage_attributes(reading, provider))
    if reading.unknown:
        _tell_unknown(provider, reading.unknown)


def usage_attributes(reading: UsageReading, provider: str) -> dict[str, Any]:
    """Attributes that say what ``reading`` says."""
    attributes: dict[str, Any] = {}
    quantities = reading.quantities
    for attribute, main, meters in INCLUSIVE:
        told = [quantities[meter] for meter in meters if meter in quantities]
        if told and (not main or main in quantities):
            attributes[attribute] = sum(told)
    for meter, steps in quantities.items():
        key = OWN.get(meter)
        if key is not None:
            scale = METERS[meter].scale
            attributes[key] = steps if scale == 1 else steps / scale
    if reading.invalid is not None:
        attributes[names.USAGE_INVALID] = reading.invalid
    if reading.service_tier is not None:
        attributes[TIER_KEYS.get(provider, names.OPENAI_RESPONSE_SERVICE_TIER)] = reading.service_tier
    if reading.residency is not None:
        attributes[names.RESIDENCY] = reading.residency
    if reading.reported_cost is not None:
        attributes[names.COST_REPORTED] = format(reading.reported_cost, "f")
    return attributes


def _tell_unknown(provider: str, unknown: Iterable[str]) -> None:
    new = [name for name in unknown if name not in _named]
    if new and len(_named) < _MOST_NAMED:
        _named.update(new)
        _log.warning(
            "tollspan: %s reports usage that no meter counts, and that its bill may contain: %s",
            provider,
            ", ".join(new),
        )

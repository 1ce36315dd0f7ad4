"""Selectors: what a price is chosen by, one value or none for each span.

In: the strings of a span. Out: `Selectors` in the one spelling that books are matched in: lower case, no empty
strings, the last path segment of a host type (cloud metadata gives some as a resource path). Which selectors name the
SKU of a meter is the meter's axis (`SKU_SELECTORS`).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Final

from tollspan.pricing.meters import Axis

STANDARD: Final = "standard"
ONLINE: Final = "online"
BATCH: Final = "batch"

_STANDARD_TIERS: Final = frozenset({"standard", "default", "auto", "on_demand"})
"""Spellings of the standard tier: OpenAI's ``default``, Groq's ``on_demand``, Anthropic's ``standard``. ``auto`` is a
request setting that names no tier; it is priced as standard and said to be assumed."""

WHEN_KEYS: Final = ("service_tier", "processing", "region", "cloud_provider", "host_type", "device")
"""Selectors that a price row may ask for under ``when``."""

SKU_SELECTORS: Final[dict[Axis, tuple[str, tuple[str, ...]]]] = {
    "model": ("provider", ("model", "request_model")),
    "device": ("cloud_provider", ("device",)),
    "host": ("cloud_provider", ("host_type",)),
    "platform": ("cloud_provider", ()),
}
"""Axis of a meter → the selector that a row's ``provider`` is compared with, and those its ``sku`` is, in order."""


@dataclass(frozen=True, slots=True)
class Selectors:
    """What a span says about which price applies; None = it does not say.

    Attributes:
        provider: GenAI provider, as in ``gen_ai.provider.name``, or the runtime that executed the model.
        model: model as served.
        request_model: model as asked for; looked at when the served one is not given or has no price.
        service_tier: as served: ``default``, ``flex``, ``priority`` ...; None or ``auto`` is priced as standard.
        processing: ``online`` or ``batch``; None is online.
        region: cloud region.
        cloud_provider: ``aws``, ``gcp``, ``azure`` ...
        host_type: instance type.
        device: device name as the driver gives it.
    """

    provider: str | None = None
    model: str | None = None
    request_model: str | None = None
    service_tier: str | None = None
    processing: str | None = None
    region: str | None = None
    cloud_provider: str | None = None
    host_type: str | None = None
    device: str | None = None

    def normalized(self) -> Selectors:
        """The same in the spelling that books are matched in; equal situations have equal normalized selectors.

        ``service_tier`` stays None where no tier was named (not given or ``auto``), so that a price which depends on
        it can say so; `tier_of` gives the tier it is priced as.
        """
        tier, processing = _clean(self.service_tier), _clean(self.processing)
        if tier == BATCH:  # Anthropic reports batch in the place of the tier
            tier, processing = STANDARD, BATCH
        if tier == "auto":
            tier = None
        elif tier in _STANDARD_TIERS:
            tier = STANDARD
        host = _clean(self.host_type)
        return Selectors(
            provider=_clean(self.provider),
            model=_clean(self.model),
            request_model=_clean(self.request_model),
            service_tier=tier,
            processing=processing or ONLINE,
            region=_clean(self.region),
            cloud_provider=_clean(self.cloud_provider),
            host_type=host.rsplit("/", 1)[-1] if host else None,
            device=_clean(self.device),
        )


SELECTOR_NAMES: Final = tuple(field.name for field in fields(Selectors))


def tier_of(selectors: Selectors) -> str:
    """Service tier that normalized selectors are priced as."""
    return selectors.service_tier or STANDARD


def normalize_when(key: str, value: str) -> str:
    """A row's ``when`` value in the spelling of normalized selectors."""
    cleaned = value.strip().lower()
    return STANDARD if key == "service_tier" and cleaned in _STANDARD_TIERS else cleaned


def _clean(value: str | None) -> str | None:
    return (value.strip().lower() or None) if value else None

"""Selectors: what a price is chosen by, one value or none for each span.

In: the strings of a span. Out: `Selectors` in the one spelling that books are matched in: lower case, no empty
strings, one name for each model provider (`PROVIDERS`), the last path segment of a host type (cloud metadata gives some
as a resource path). Which selectors name the SKU of a meter is the meter's axis (`SKU_SELECTORS`).
"""

from __future__ import annotations

from typing import Final, NamedTuple

from tollspan.pricing.meters import Axis

STANDARD: Final = "standard"
ONLINE: Final = "online"
BATCH: Final = "batch"

_STANDARD_TIERS: Final = frozenset({"standard", "default", "auto", "on_demand", "standard_only"})
"""Spellings of the standard tier: OpenAI's ``default``, Groq's ``on_demand``, Mistral's ``standard_only``. ``auto`` is
a request setting that names no tier; it is priced as standard and said to be assumed."""

_PURCHASES: Final = {"on-demand": "on_demand", "ondemand": "on_demand", "preemptible": "spot", "low_priority": "spot"}
_ANYWHERE: Final = frozenset({"global", "not_available"})
"""Residencies that name no place: what Anthropic's ``inference_geo`` says where none was asked for."""

_SPELLINGS: Final[dict[str, tuple[str, ...]]] = {
    "aws": (
        *("aws.bedrock", "aws_bedrock", "aws-bedrock", "amazon.bedrock", "amazon_bedrock", "amazon-bedrock"),
        *("amazon", "bedrock"),
    ),
    "azure": (
        *("azure.ai.openai", "azure.ai.inference", "az.ai.openai", "az.ai.inference", "azure_ai", "azure-ai"),
        *("azure.openai", "azure_openai", "azure-openai", "azureopenai", "microsoft.azure"),
    ),
    "google": (
        *("gcp.gemini", "gcp.gen_ai", "gcp.vertex_ai", "gemini", "vertex", "vertexai", "vertex_ai", "vertex-ai"),
        *("google_genai", "google-genai", "google_gemini", "google_vertexai", "google_vertex_ai", "google-vertex"),
    ),
    "mistral": ("mistral_ai", "mistral-ai", "mistralai"),
    "x-ai": ("x_ai", "x.ai", "xai"),
    "moonshotai": ("moonshot_ai", "moonshot-ai", "moonshot"),
    "together": ("together_ai", "together-ai", "togetherai"),
    "fireworks": ("fireworks_ai", "fireworks-ai", "fireworksai"),
}

PROVIDERS: Final[dict[str, str]] = {spelling: name for name, others in _SPELLINGS.items() for spelling in others}
"""Model providers as the GenAI conventions and common SDKs spell them → the one name that prices stand under, which is
genai-prices' id. A book may use any of the spellings, and so may a span. Every offering of a provider is that provider:
``gcp.vertex_ai`` and ``gcp.gemini`` are both ``google``. Cloud providers (``aws``, ``gcp``, ``azure``) are names of
another kind and never looked up here."""

ON_DEMAND: Final = "on_demand"

WHEN_KEYS: Final = (
    *("service_tier", "processing", "region", "cloud_provider", "host_type", "device", "purchase", "residency"),
)
"""Selectors that a price row may ask for under ``when``."""

SKU_SELECTORS: Final[dict[Axis, tuple[str, tuple[str, ...]]]] = {
    "model": ("provider", ("model", "request_model")),
    "device": ("cloud_provider", ("device",)),
    "host": ("cloud_provider", ("host_type",)),
    "platform": ("cloud_provider", ()),
}
"""Axis of a meter → the selector that a row's ``provider`` is compared with, and those its ``sku`` is, in order."""


class Selectors(NamedTuple):
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
        purchase: how the machine is paid for: ``on_demand``, ``spot``, ``reserved_1y`` ...; None is ``on_demand``.
        residency: where the provider was told to process (``us``, ``eu`` ...); None is wherever it likes.
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
    purchase: str | None = None
    residency: str | None = None

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
        host, purchase, residency = _clean(self.host_type), _clean(self.purchase), _clean(self.residency)
        return Selectors(
            provider=provider_of(_clean(self.provider)),
            model=_clean(self.model),
            request_model=_clean(self.request_model),
            service_tier=tier,
            processing=processing or ONLINE,
            region=_clean(self.region),
            cloud_provider=_clean(self.cloud_provider),
            host_type=host.rsplit("/", 1)[-1] if host else None,
            device=_clean(self.device),
            purchase=_PURCHASES.get(purchase, purchase) if purchase else ON_DEMAND,
            residency=None if residency in _ANYWHERE else residency,
        )


SELECTOR_NAMES: Final = Selectors._fields


def provider_of(name: str | None) -> str | None:
    """Model provider, in lower case and any spelling, under the one name that prices stand under."""
    return None if name is None else PROVIDERS.get(name, name)


def owner_of(axis: Axis, name: str | None) -> str | None:
    """What a row or alias calls ``provider``, as normalized selectors spell it on that axis: a model provider under its
    one name, a cloud provider as it is."""
    return provider_of(name) if SKU_SELECTORS[axis][0] == "provider" else name


def tier_of(selectors: Selectors) -> str:
    """Service tier that normalized selectors are priced as."""
    return selectors.service_tier or STANDARD


def normalize_when(key: str, value: str) -> str:
    """A row's ``when`` value in the spelling of normalized selectors."""
    cleaned = value.strip().lower()
    if key == "purchase":
        return _PURCHASES.get(cleaned, cleaned)
    return STANDARD if key == "service_tier" and cleaned in _STANDARD_TIERS else cleaned


def _clean(value: str | None) -> str | None:
    return (value.strip().lower() or None) if value else None

"""Meters: the closed list of disjoint quantities that an inference can use.

A meter is a physical or contractual quantity with one unit. Meters never overlap: the tokens of one call are each
counted on exactly one of them. Quantities are held as integers of the meter's base step (``scale`` steps make one
unit), so that no float takes part in an amount of money.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Component = Literal["model", "compute", "network", "storage", "telemetry"]
Axis = Literal["model", "device", "host", "platform"]


@dataclass(frozen=True, slots=True)
class Meter:
    """One metered quantity.

    Attributes:
        name: as written in price books, in the ledger and behind ``tollspan.usage.``.
        unit: what one of it is called (``token``, ``second``, ``byte``, ``request`` ...).
        component: part of the bill it belongs to.
        axis: which selectors name its price. ``model``: provider and model; ``device``: cloud provider and device
            name; ``host``: cloud provider and host type; ``platform``: cloud provider alone.
        scale: base steps in one unit; 1 for countable things, 10**9 for seconds (nanoseconds).
    """

    name: str
    unit: str
    component: Component
    axis: Axis
    scale: int = 1


NANO: Final = 1_000_000_000

_TOKEN_METERS: Final = (
    "tokens.input.uncached",
    "tokens.input.cache_read",
    "tokens.input.cache_write",
    "tokens.input.cache_write.5m",
    "tokens.input.cache_write.30m",
    "tokens.input.cache_write.1h",
    "tokens.input.cache_write.12h",
    "tokens.input.audio",
    "tokens.input.audio.cache_read",
    "tokens.input.image",
    "tokens.input.video",
    "tokens.output",
    "tokens.output.reasoning",
    "tokens.output.audio",
    "tokens.output.image",
)

_METERS: Final = (
    *(Meter(name, "token", "model", "model") for name in _TOKEN_METERS),
    Meter("requests", "request", "model", "model"),
    Meter("web_searches", "search", "model", "model"),
    Meter("images", "image", "model", "model"),
    Meter("audio.seconds", "second", "model", "model", NANO),
    Meter("pages", "page", "model", "model"),
    Meter("gpu.seconds", "second", "compute", "device", NANO),
    Meter("gpu.idle_seconds", "second", "compute", "device", NANO),
    Meter("cpu.seconds", "second", "compute", "host", NANO),
    Meter("network.egress.bytes", "byte", "network", "platform"),
    Meter("storage.read.bytes", "byte", "storage", "platform"),
    Meter("feature.reads", "read", "storage", "model"),
    Meter("vector.queries", "query", "storage", "model"),
    Meter("telemetry.bytes", "byte", "telemetry", "platform"),
)

METERS: Final[dict[str, Meter]] = {meter.name: meter for meter in _METERS}
"""Every meter by name, in the order in which charges are listed."""

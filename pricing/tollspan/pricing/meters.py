"""Meters: the closed list of disjoint quantities that an inference can use.

A meter is a physical or contractual quantity with one unit. Meters never overlap: the tokens of one call are each
counted on exactly one of them. Quantities are held as integers of the meter's base step (``scale`` steps make one
unit), so that no float takes part in an amount of money.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Component = Literal["model", "compute", "network", "storage", "telemetry", "overhead"]
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
        about: what is counted, in one line.
    """

    name: str
    unit: str
    component: Component
    axis: Axis
    scale: int = 1
    about: str = ""


NANO: Final = 1_000_000_000

_TOKENS: Final = (
    ("tokens.input.uncached", "text and whatever has no meter of its own, not from a cache"),
    ("tokens.input.cache_read", "read from a prompt cache"),
    ("tokens.input.cache_write", "written to a prompt cache for the provider's default lifetime, or one not told"),
    ("tokens.input.cache_write.5m", "written to a prompt cache for five minutes"),
    ("tokens.input.cache_write.30m", "written to a prompt cache for thirty minutes"),
    ("tokens.input.cache_write.1h", "written to a prompt cache for an hour"),
    ("tokens.input.cache_write.12h", "written to a prompt cache for twelve hours"),
    ("tokens.input.audio", "audio, not from a cache"),
    ("tokens.input.audio.cache_read", "audio read from a prompt cache"),
    ("tokens.input.image", "images, not from a cache"),
    ("tokens.input.image.cache_read", "images read from a prompt cache"),
    ("tokens.input.video", "video, not from a cache"),
    ("tokens.output", "text and whatever has no meter of its own"),
    ("tokens.output.reasoning", "reasoning (thoughts)"),
    ("tokens.output.audio", "audio"),
    ("tokens.output.image", "images"),
    ("tokens.output.video", "video"),
    ("tokens.output.citation", "citations that a search model bills beside its text"),
)

_SCOPES: Final = (
    ("same_zone", "inside one zone"),
    ("cross_zone", "between zones of a region"),
    ("cross_region", "between regions of a cloud"),
    ("internet", "to or from the internet"),
    ("cross_cloud", "over a link to another cloud"),
)

_METERS: Final = (
    *(Meter(name, "token", "model", "model", about=about) for name, about in _TOKENS),
    Meter("cache.token_seconds", "token-second", "model", "model", about="tokens kept in an explicit cache × seconds"),
    Meter("requests", "request", "model", "model", about="calls, where the provider asks a fee for each"),
    Meter("characters", "character", "model", "model", about="characters of speech synthesis or translation"),
    Meter("images", "image", "model", "model", about="images made, where they are not billed by tokens"),
    Meter("pages", "page", "model", "model", about="document pages read"),
    Meter("pages.annotated", "page", "model", "model", about="document pages read and annotated"),
    Meter("audio.seconds", "second", "model", "model", NANO, "audio heard or made, where it is not billed by tokens"),
    Meter("video.seconds", "second", "model", "model", NANO, "video made or seen, where it is not billed by tokens"),
    Meter("rerank.search_units", "search unit", "model", "model", about="one query with up to a hundred documents"),
    Meter("web_searches", "search", "model", "model", about="searches of the web by the provider's own tool"),
    Meter("web_fetches", "fetch", "model", "model", about="pages fetched by the provider's own tool"),
    Meter("x_searches", "search", "model", "model", about="searches of X by xAI's own tool"),
    Meter("maps_searches", "search", "model", "model", about="searches of maps by the provider's own tool"),
    Meter("file_searches", "search", "model", "model", about="searches of stored files by the provider's own tool"),
    Meter("code_interpreter.sessions", "session", "model", "model", about="sandboxes opened for code, billed each"),
    Meter("code_interpreter.seconds", "second", "model", "model", NANO, "sandboxes for code, billed by time"),
    Meter("server_tools.calls", "call", "model", "model", about="calls of a provider's own tools not named above"),
    Meter("provisioned.unit_seconds", "unit-second", "model", "model", NANO, "provisioned throughput units × seconds"),
    Meter("gpu.seconds", "second", "compute", "device", NANO, "a whole device at work; an alias' share is a part"),
    Meter("gpu.idle_seconds", "second", "compute", "device", NANO, "a device held and not at work"),
    Meter("cpu.seconds", "second", "compute", "host", NANO, "one virtual CPU at work"),
    Meter("cpu.idle_seconds", "second", "compute", "host", NANO, "one virtual CPU held and not at work"),
    Meter("memory.byte_seconds", "byte-second", "compute", "host", about="memory held × seconds"),
    Meter("network.egress.bytes", "byte", "network", "platform", about="sent, scope not told"),
    *(Meter(f"network.egress.{s}.bytes", "byte", "network", "platform", about=f"sent {a}") for s, a in _SCOPES),
    Meter("network.ingress.bytes", "byte", "network", "platform", about="received, scope not told"),
    *(Meter(f"network.ingress.{s}.bytes", "byte", "network", "platform", about=f"received {a}") for s, a in _SCOPES),
    Meter("storage.read.bytes", "byte", "storage", "platform", about="read from object storage"),
    Meter("storage.read.requests", "request", "storage", "platform", about="reads of object storage (GET)"),
    Meter("storage.write.requests", "request", "storage", "platform", about="writes to object storage (PUT)"),
    Meter("feature.reads", "read", "storage", "model", about="values read from a feature store: rows × features"),
    Meter("feature.writes", "write", "storage", "model", about="values written to a feature store: rows × features"),
    Meter("vector.queries", "query", "storage", "model", about="queries of a vector database"),
    Meter("telemetry.bytes", "byte", "telemetry", "platform", about="telemetry taken in"),
    Meter("telemetry.stored.byte_seconds", "byte-second", "telemetry", "platform", about="telemetry stored × seconds"),
    Meter("overhead.calls", "call", "overhead", "model", about="calls that carry a share of fixed costs"),
)

METERS: Final[dict[str, Meter]] = {meter.name: meter for meter in _METERS}
"""Every meter by name, in the order in which charges are listed."""

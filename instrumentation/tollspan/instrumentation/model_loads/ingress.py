"""Bytes that came for a load, as usage: by the meter of the way they came.

In: bytes by host, and the span, whose resource says where the process is. Out: ``tollspan.usage.network.ingress...``.
It is counted where `network` counts the bytes of calls, by the same switch and the same places; a hub that everybody
fetches from is on the internet.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import network_zones
from tollspan.instrumentation.network import PRICED, PRICED_SCOPES
from tollspan.instrumentation.switches import NETWORK, PLACES, is_off, is_on, text
from tollspan.pricing import attributes

PUBLIC: Final = ("huggingface.co", "hf.co", "pytorch.org", "github.com", "githubusercontent.com")
"""Domains that models are fetched from, on the internet for everybody."""


def ingress(came: Mapping[str, int], resource: Any) -> dict[str, int]:
    """Usage attributes of bytes by host.

    Args:
        resource: of the span.
    """
    if not came or is_off(NETWORK):
        return {}
    local = network_zones.place_of(getattr(resource, "attributes", {}))
    priced = local is not None and local.region in PRICED.get(local.cloud, ())
    said = network_zones.rows(text(PLACES))
    usage: dict[str, int] = {}
    for host, count in came.items():
        peer = network_zones.peer_of(host, said)
        if peer is None and any(host == domain or host.endswith("." + domain) for domain in PUBLIC):
            peer = network_zones.OUTSIDE
        scope = network_zones.scope(local, peer)
        if peer is network_zones.ITSELF or not count or not (is_on(NETWORK) or (priced and scope in PRICED_SCOPES)):
            continue
        name = attributes.usage(f"network.ingress.{scope}.bytes" if scope else "network.ingress.bytes")
        usage[name] = usage.get(name, 0) + count
    return usage

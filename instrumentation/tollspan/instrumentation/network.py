"""Bytes that calls send and receive, by how far they go, on the calls' own spans.

In: the requests of an open call over HTTP (`network_http`) or gRPC (`network_grpc`), or what its WebSocket took
(`network_sockets`); the place of the process and of its peer (`network_zones`). Out:
``tollspan.usage.network.egress.<scope>.bytes`` and ``.ingress.``, all attempts of a call summed, streams as far as they
were read; without a scope where that is not known. Of what cannot be told in full nothing is said: an attempt that
broke off in the middle takes the direction's sum with it. Only requests to the address that the span names are the
call's; what a tool that it runs sends elsewhere is not. What stays on the machine is on no network.

Whether it is done says `NETWORK`:

* ``auto``: for processes whose resource names a cloud and region of `PRICED`, and for calls whose scope is known. A
  quantity without a price makes a call's cost a lower bound, and a handful of bytes is not worth that to somebody who
  has not asked: so bytes are counted by default only where the shipped prices have a price for them.
* ``on``: for every call that is recorded.
* ``off``: for none.

The place is that of the span's resource, which is what the processor chooses prices by.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from tollspan.instrumentation import network_grpc, network_http, network_zones
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.network_zones import ITSELF, Place
from tollspan.instrumentation.switches import NETWORK, PLACES, is_on, text
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

_log: Final = logging.getLogger(__name__)

AUTO: Final = "auto"

PRICED: Final[dict[str, frozenset[str]]] = {
    "aws": frozenset({"us-east-1", "us-east-2", "us-west-2"}),
    "gcp": frozenset({"us-central1"}),
    "azure": frozenset({"eastus", "eastus2", "westus2"}),
}
"""Cloud → regions in which the shipped prices have one for each of `PRICED_SCOPES`."""
PRICED_SCOPES: Final = frozenset(
    {network_zones.SAME_ZONE, network_zones.CROSS_ZONE, network_zones.CROSS_REGION, network_zones.INTERNET}
)

_DIRECTIONS: Final = ("egress", "ingress")
_MOST_HOSTS: Final = 1024

Keys = tuple[str, str]
"""Attributes of what is sent and what is received."""
Peer = tuple[str | None, Any]
"""A host, and what the span names as its region: prices are chosen by that one, where there is one."""


class Network:
    """The count of one instrumentation's calls.

    Args:
        patches: of the instrumentation; when they are removed, nothing is counted any more.
    """

    def __init__(self, patches: Patches) -> None:
        self._patches = patches
        self._always = is_on(NETWORK)
        self._said = network_zones.rows(text(PLACES))
        self._resource: Any = None
        self._place: Place | None = None
        self._counts = False
        self._keys: dict[Peer, Keys | None] = {}

    def began(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Have the requests of a call noted, if they are to be counted."""
        resource = getattr(call.span, "resource", None)
        if resource is None and call._late is not None:  # its span starts later, by a tracer of the same resource
            tracer = call._late.tracer
            resource = getattr(getattr(tracer, "_real_tracer", None) or tracer, "resource", None)
        if resource is None:
            return  # nobody records it
        if resource is not self._resource:
            self._settle(resource)
        if self._counts:
            call.network = []

    def _settle(self, resource: Any) -> None:
        """Find out where the process is, and whether its calls are counted."""
        place = network_zones.place_of(resource.attributes)
        self._place = place
        self._keys = {}
        self._counts = self._always or (place is not None and place.region in PRICED.get(place.cloud, ()))
        self._resource = resource
        if self._counts:
            network_http.HOOKS.use(self._patches)
            network_grpc.HOOKS.use(self._patches)

    def finish(self, call: Call) -> None:
        """Put a call's bytes among its attributes."""
        exchanges, call.network = call.network, None
        if not exchanges or not call.span.is_recording():
            return
        attributes, opened = call.attributes, call.opened
        address = attributes.get(names.SERVER_ADDRESS) or opened.get(names.SERVER_ADDRESS)
        if address is None and call.point.layer != "gen_ai":
            return  # whose requests these are cannot be told
        region = attributes.get(names.CLOUD_REGION) or opened.get(names.CLOUD_REGION)
        sums: dict[str, int | None] = {}
        local, found = self._place, self._keys
        for host, sent, received in network_http.hops(exchanges, address):
            peer = host or address, region
            keys = found.get(peer, ())
            if keys == ():
                keys = self._found(local, found, peer)
            if keys:
                for key, length in ((keys[0], sent), (keys[1], received)):
                    before = sums.get(key, 0)
                    sums[key] = None if before is None or length is None else before + length
        for key, total in sums.items():
            if total:
                attributes[key] = total

    def _found(self, local: Place | None, found: dict[Peer, Keys | None], asked: Peer) -> Keys | None:
        """The attributes of bytes between here and a host, kept in ``found``; None where they are not counted."""
        host, region = asked
        peer = network_zones.peer_of(host, self._said) if host else None
        scope = network_zones.scope(local, peer)
        counted = peer is not ITSELF
        if not self._always:
            priced = PRICED.get(local.cloud, frozenset()) if local is not None else frozenset()
            counted = counted and scope in PRICED_SCOPES and (region is None or region in priced)
        keys = None
        if counted:
            middle = f".{scope}" if scope else ""
            sent, received = (names.usage(f"network.{direction}{middle}.bytes") for direction in _DIRECTIONS)
            keys = sent, received
        if len(found) >= _MOST_HOSTS:
            found.clear()
        found[asked] = keys
        return keys


def watch(patches: Patches) -> Network:
    """The count of an instrumentation's calls, where it is not switched off."""
    said = text(NETWORK).lower()
    if said not in ("", AUTO) and not is_on(NETWORK):
        _log.warning("%s=%s is not one of auto, on, off: taken as auto", NETWORK, said)
    return Network(patches)

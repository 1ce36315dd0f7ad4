"""Where a peer is: by its host's name to a scope, which is what the price of a byte depends on.

In: the place of the process (``cloud.provider``, ``cloud.region`` and ``cloud.availability_zone`` of its resource) and
the host that it talks to. Out: one of `tollspan.pricing.meters`' scopes, or None where that cannot be told. Nothing is
looked up: a name says where it is, or the user does (`rows`), or nobody knows.

A cloud's own service with a regional address (Bedrock, Vertex AI, a VPC endpoint) counts as in the caller's zone when
it is in its region: it is in every zone of it, and the way there is not charged (AWS, "Overview of Data Transfer Costs
for Common Architectures", and Google Cloud, VPC pricing, both by pages that cite them; Azure by the shipped prices).
What a NAT gateway, a VPC endpoint or a proxy on the way charges is not in it: no name tells of them.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, Final, NamedTuple

from tollspan.instrumentation.providers import owner_of
from tollspan.instrumentation.switches import PLACES
from tollspan.pricing import attributes as names

_log: Final = logging.getLogger(__name__)

SAME_ZONE: Final = "same_zone"
CROSS_ZONE: Final = "cross_zone"
CROSS_REGION: Final = "cross_region"
CROSS_CLOUD: Final = "cross_cloud"
INTERNET: Final = "internet"

EVERY_ZONE: Final = "*"


class Place(NamedTuple):
    """A place; what is not known is None.

    Attributes:
        cloud: value of ``cloud.provider``.
        region: of that cloud.
        zone: of that region; `EVERY_ZONE` for what is in all.
        told: by the user.
    """

    cloud: str
    region: str | None = None
    zone: str | None = None
    told: bool = False


OUTSIDE: Final = Place(INTERNET)
"""Somewhere on the internet."""
ITSELF: Final = Place("")
"""The machine itself: what stays on it is on no network."""

_AWS: Final = r"(?P<region>[a-z]{2}(?:-[a-z]+)+-\d+)"
_GCP: Final = r"(?P<region>[a-z]+-[a-z]+\d+)"
_AZURE: Final = r"(?P<region>[a-z]+\d?)"

_HOSTS: Final[tuple[tuple[re.Pattern[str], str, str | None], ...]] = tuple(
    (re.compile(pattern), cloud, zone)
    for pattern, cloud, zone in (
        # The way to an interface endpoint costs nothing between zones either.
        (rf".*\.{_AWS}\.vpce\.amazonaws\.com(?:\.cn)?", "aws", EVERY_ZONE),
        (rf"(?:.*\.)?(?:bedrock[a-z-]*|runtime(?:-fips)?\.sagemaker)\.{_AWS}\.amazonaws\.com(?:\.cn)?", "aws", "*"),
        (rf".*\.{_AWS}\.api\.aws", "aws", EVERY_ZONE),
        # Load balancers, caches, machines: in zones of their own.
        (rf"(?:.*\.)?{_AWS}\.(?:.*\.)?amazonaws\.com(?:\.cn)?", "aws", None),
        (r".*\.amazonaws\.com(?:\.cn)?|cloud\.databricks\.com|.*\.cloud\.databricks\.com", "aws", None),
        (rf"{_GCP}-aiplatform\.googleapis\.com", "gcp", EVERY_ZONE),
        (rf"aiplatform\.{_GCP}\.rep\.googleapis\.com", "gcp", EVERY_ZONE),
        (rf".*\.{_GCP}\.run\.app", "gcp", EVERY_ZONE),
        (r".*\.(?:googleapis\.com|run\.app|gcp\.databricks\.com)", "gcp", None),
        (rf"{_AZURE}\.api\.cognitive\.microsoft\.com", "azure", EVERY_ZONE),
        (rf".*\.{_AZURE}\.(?:models|inference)\.ai\.azure\.com", "azure", EVERY_ZONE),
        (rf".*\.{_AZURE}\.inference\.ml\.azure\.com", "azure", EVERY_ZONE),
        (r".*\.(?:azure\.com|azure-api\.net|azuredatabricks\.net|azurewebsites\.net|microsoft\.com)", "azure", None),
        (rf".*\.{_AWS}\.aws\.endpoints\.huggingface\.cloud", "aws", None),
        (rf".*\.{_GCP}\.gcp\.endpoints\.huggingface\.cloud", "gcp", None),
        (rf".*\.{_AZURE}\.azure\.endpoints\.huggingface\.cloud", "azure", None),
    )
)
"""A host's name, with the region in it → its cloud, and its zone. The first that fits is taken."""

_ROW: Final = re.compile(r"\s*(\*\.)?([a-z0-9_.:\[\]-]+)\s*=\s*([a-z0-9_-]+)(?:/([a-z0-9-]+)(?:/([a-z0-9-]+|\*))?)?\s*")


class Rows(NamedTuple):
    """The user's rows: by whole hosts, and by their ends, the longest first."""

    hosts: dict[str, Place]
    ends: tuple[tuple[str, Place], ...]


def rows(text: str) -> Rows:
    """The rows of `PLACES`, ``host=place``, separated by commas. Says what is wrong with them.

    ``*.name`` stands for all hosts that end so. A place is ``provider``, ``provider/region`` or
    ``provider/region/zone``; ``*`` as a zone is a service that is in every one, and ``internet`` is a place too.
    Another provider than the process' own is a link between clouds.
    """
    hosts: dict[str, Place] = {}
    ends: dict[str, Place] = {}
    wrong: list[str] = []
    for row in text.lower().split(","):
        match = _ROW.fullmatch(row)
        if match is not None:
            start, host, cloud, region, zone = match.groups()
            place = OUTSIDE if cloud == INTERNET else Place(cloud, region, zone, True)
            if start:
                ends["." + host] = place
            else:
                hosts[host.strip("[]")] = place
        elif row.strip():
            wrong.append(row.strip())
    if wrong:
        _log.warning("tollspan: %s has rows that are not host=provider/region/zone, left out: %r", PLACES, wrong)
    return Rows(hosts, tuple(sorted(ends.items(), key=lambda end: -len(end[0]))))


def place_of(resource: Mapping[str, Any]) -> Place | None:
    """The place that a resource's attributes tell; None where they name no cloud."""
    told = [
        value.strip().lower() if isinstance(value := resource.get(name), str) else None
        for name in (names.CLOUD_PROVIDER, names.CLOUD_REGION, names.CLOUD_ZONE)
    ]
    return Place(told[0], told[1] or None, told[2] or None) if told[0] else None


def peer_of(host: str, said: Rows) -> Place | None:
    """Where a host is, by its name in lower case; None where that cannot be told."""
    place = said.hosts.get(host) or next((place for end, place in said.ends if host.endswith(end)), None)
    return place or _by_name(host)


@functools.lru_cache(maxsize=1024)
def _by_name(host: str) -> Place | None:
    if host == "localhost" or host.endswith(".localhost"):
        return ITSELF
    try:
        # A private address may be in any zone, of any region that is peered; a public one is anybody's.
        return ITSELF if ip_address(host).is_loopback else None
    except ValueError:
        pass
    for pattern, cloud, zone in _HOSTS:
        match = pattern.fullmatch(host)
        if match is not None:
            region = match.groupdict().get("region")
            return Place(cloud, region, zone if region else None)
    # A public name that nobody knows may well lead to a private address.
    return None if owner_of(host) is None else OUTSIDE


def scope(local: Place | None, peer: Place | None) -> str | None:
    """How far it is from one place to another; None where that cannot be told."""
    if local is None or peer is None:
        return None
    if peer is OUTSIDE:
        return INTERNET
    if peer.cloud != local.cloud:
        return CROSS_CLOUD if peer.told else INTERNET
    if peer.region is None or local.region is None:
        return None
    if peer.region != local.region:
        return CROSS_REGION
    if peer.zone == EVERY_ZONE:
        return SAME_ZONE
    if peer.zone is None or local.zone is None:
        return None
    return SAME_ZONE if peer.zone == local.zone else CROSS_ZONE

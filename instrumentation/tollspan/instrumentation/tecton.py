"""Tecton: reads of online features through its client, `tecton_client`.

In: calls of ``get_features`` of `TectonClient` and `AsyncTectonClient`. Out: spans ``feature_read {feature service}``,
in the words that Feast's have. A call reads one row. Which values were null and which missing is told where the call
asks Tecton for their status, their age where it asks for effective times, and the bytes of the store's answer where it
asks for service levels (``MetadataOptions``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import urlsplit

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.instrumentation.data_reads import LAYER, FeatureRead
from tollspan.pricing import attributes as names

PROVIDER: Final = "tecton"

_PRESENT: Final = "PRESENT"
_MISSING: Final = "MISSING_DATA"


def _request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``get_features(self, *, feature_service_name, join_key_map=None, ...)``"""
    about: dict[str, Any] = {
        names.OPERATION: names.OPERATION_FEATURE_READ,
        names.PROVIDER: PROVIDER,
        names.FEATURE_STORE: PROVIDER,
        names.FEATURE_ACCESS: "online",
    }
    read = FeatureRead()
    keys = kwargs.get("join_key_map")
    if isinstance(keys, Mapping) and keys:
        about[names.FEATURE_ENTITIES] = sorted(map(str, keys))
        read.keys = (keys,)
    host = urlsplit(str(getattr(args[0], "url", ""))).hostname
    if host:
        about[names.SERVER_ADDRESS] = host
    service = kwargs.get("feature_service_name")
    if not isinstance(service, str) or not service:
        return Opening(names.OPERATION_FEATURE_READ, about, read)
    about[names.MODEL] = service
    return Opening(f"{names.OPERATION_FEATURE_READ} {service}", about, read)


def _response(call: Call, response: Any) -> None:
    """A `GetFeaturesResponse`."""
    read: FeatureRead = call.state
    values = response.result.features
    features = (response.metadata or {}).get("features") or ()
    read.rows, read.features = 1, len(values)
    read.hits = sum(value is not None for value in values)
    statuses = [feature.get("status") for feature in features]
    if len(statuses) == len(values) and all(statuses):
        read.nulls = sum(value is None and status == _PRESENT for value, status in zip(values, statuses, strict=True))
        read.misses = statuses.count(_MISSING)
    if response.slo_info is not None:
        read.bytes = response.slo_info.store_response_size_bytes
    read.times = _times(features)
    if views := sorted({name.partition(".")[0] for feature in features if (name := feature.get("name"))}):
        call.attributes[names.FEATURE_VIEWS] = views
    read.put(call.attributes)


def _times(features: Any) -> Iterator[float]:
    for feature in features:
        if told := feature.get("effectiveTime"):
            when = datetime.fromisoformat(told)
            yield (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _point(target: str, asynchronous: bool) -> WrapPoint:
    return WrapPoint(
        target=f"tecton_client._internal.{target}.get_features",
        request=_request,
        response=_response,
        asynchronous=asynchronous,
        layer=LAYER,
    )


class TectonInstrumentor(CallInstrumentor):
    """Spans for Tecton's client. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("tecton-client >= 0.4",)
    points = (
        _point("tecton_client:TectonClient", False),
        _point("async_tecton_client:AsyncTectonClient", True),
    )

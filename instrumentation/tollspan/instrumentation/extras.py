"""What an instrumentation does beside its spans: metrics, costs, bytes, fingerprints, content, other vendors' spans.

In: the wrap points of a library and the switches that are on. Out: the same points with hooks added to them, so that
the engine knows nothing of any of it and what is off is not there at all. Every hook has a guard of its own: a fault in
one takes nothing from the others, and nothing from the span.

Only calls of the ``gen_ai`` layer have any of this, but for the bytes, which calls of the ``data`` layer have too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation import peers
from tollspan.instrumentation.calls import Call, WrapPoint
from tollspan.instrumentation.guard import report
from tollspan.instrumentation.metrics import ClientMetrics
from tollspan.instrumentation.switches import (
    COST,
    ESTIMATE,
    FINGERPRINT_KEY,
    METRICS,
    NETWORK,
    PLACES,
    content_modes,
    is_off,
    is_on,
    text,
)
from tollspan.instrumentation.wrapping import Patches

Began = Callable[[Call, tuple[Any, ...], dict[str, Any]], None]
Finish = Callable[[Call], None]

_LIBRARY: Final = "calls.finish"
_GEN_AI: Final = "gen_ai"
_DATA: Final = "data"
_NETWORK: Final = "extras.network"


class Extras(NamedTuple):
    """What is switched on beside the spans of one instrumentation; None what is off.

    Attributes:
        metrics: its `ClientMetrics`.
        cost: its `tollspan.instrumentation.cost.LocalCost`.
        capture: its `tollspan.instrumentation.content.Capture`.
        network: counts its bytes, as `tollspan.instrumentation.network.Network` does.
    """

    metrics: ClientMetrics | None = None
    cost: Any = None
    capture: Any = None
    network: Any = None


_OFF: Final = Extras()
_of: Final[dict[str, Extras]] = {}
"""Instrumentation scope → what it was last instrumented with."""


def of(scope: str) -> Extras:
    """What is switched on for an instrumentation, for its spans that come from no wrap point."""
    return _of.get(scope, _OFF)


def extended(
    points: Iterable[WrapPoint], scope: str, version: str | None, patches: Patches, options: Mapping[str, Any]
) -> list[WrapPoint]:
    """The points of one library with everything beside the spans that is switched on.

    Args:
        points: the library's table.
        scope, version: instrumentation scope.
        patches: where patches are added that belong to it.
        options: what the instrumentor was given: ``meter_provider``, ``logger_provider``.
    """
    points = list(points)
    reads = not is_off(NETWORK) and any(point.layer in (_GEN_AI, _DATA) for point in points)
    count = _Bytes(patches) if reads else None
    if not any(point.layer == _GEN_AI for point in points):
        return [_counting(point, count) for point in points]
    metrics = (
        None
        if is_off(METRICS)
        else ClientMetrics(scope, version, options.get("meter_provider"), chunks=text(METRICS).lower() == "chunks")
    )
    beside = peers.watch(scope, patches, options.get("tracer_provider"))
    began: list[tuple[str, Began]] = []
    finish: list[tuple[str, Finish]] = []
    cost = None
    if key := text(FINGERPRINT_KEY):
        from tollspan.instrumentation.fingerprint import Fingerprints

        began.append(("extras.fingerprint", Fingerprints(key).began))
    if count is not None:
        began.append((_NETWORK, count.began))
        finish.append((_NETWORK, count.finish))
    if is_on(COST):
        from tollspan.instrumentation.cost import LocalCost

        cost = LocalCost()
        began.append(("extras.cost", cost.began))
        finish.append(("extras.cost", cost.finish))
    if metrics is not None:
        began.append(("extras.metrics", metrics.began))
        finish.append(("extras.metrics", metrics.finish))
    capture = None
    modes, estimate = content_modes(), text(ESTIMATE)
    if is_off(ESTIMATE):
        estimate = ""
    if modes or estimate:
        from tollspan.instrumentation.content import Capture

        capture = Capture(scope, version, options.get("logger_provider"), modes)
        finish.append(("content.finish", capture.finish))
    _of[scope] = Extras(metrics, cost, capture if modes else None, count)
    if estimate:
        from tollspan.instrumentation.estimate import Estimates

        # First: metrics and costs take estimates for counts, as the user has asked.
        finish.insert(0, ("extras.estimate", Estimates(estimate).finish))
    extended = []
    for point in points:
        if point.layer != _GEN_AI:
            extended.append(_counting(point, count))
            continue
        changed: dict[str, Any] = {}
        mine = began
        if capture is not None and (reader := capture.reader(point)) is not None:
            mine = [*began, ("content.request", capture.opening(reader))]
            changed["response"] = capture.reading(point.response)
        if mine:
            changed["began"] = _all_began(mine)
        if finish:
            changed["finish"] = _all_finish(point.finish, finish)
        if metrics is not None:
            changed["wanted"] = metrics.active
        if beside is not None:
            changed.update(beside.changes(point))
        extended.append(dataclasses.replace(point, **changed))
    return extended


class _Bytes:
    """The count of bytes, which is imported by the first call that somebody sees, or where the user says something of
    it: what is said wrongly is to be heard of at once."""

    def __init__(self, patches: Patches) -> None:
        self._patches = patches
        self._network: Any = None
        if text(NETWORK) or text(PLACES):
            self._load()

    def _load(self) -> Any:
        from tollspan.instrumentation.network import watch

        self._network = watch(self._patches)
        return self._network

    def began(self, call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        (self._network or self._load()).began(call, args, kwargs)

    def finish(self, call: Call) -> None:
        if call.network is not None:
            self._network.finish(call)


def _counting(point: WrapPoint, count: _Bytes | None) -> WrapPoint:
    """A point of another layer, with its bytes counted where they are."""
    if count is None or point.layer != _DATA:
        return point
    return dataclasses.replace(
        point, began=_all_began([(_NETWORK, count.began)]), finish=_all_finish(point.finish, [(_NETWORK, count.finish)])
    )


def _all_began(hooks: list[tuple[str, Began]]) -> Began:
    hooks = list(hooks)

    def began(call: Call, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        for site, hook in hooks:
            try:
                hook(call, args, kwargs)
            except Exception as error:  # noqa: BLE001
                report(site, error)

    return began


def _all_finish(own: Finish | None, hooks: list[tuple[str, Finish]]) -> Finish:
    hooks = list(hooks)

    def finish(call: Call) -> None:
        if own is not None:
            try:
                own(call)
            except Exception as error:  # noqa: BLE001
                report(_LIBRARY, error)
        for site, hook in hooks:
            try:
                hook(call)
            except Exception as error:  # noqa: BLE001
                report(site, error)

    return finish

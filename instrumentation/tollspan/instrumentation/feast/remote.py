"""A feature server and its client: what one read used is counted once.

In: requests of Feast's client to a feature server. Out: a word in the baggage of the request, by which the server knows
that the client counts; its own span of the same read then tells all but the usage.

The client counts because it stands in the trace of whoever caused the read. Baggage travels where HTTP
instrumentations of both programs carry it (``opentelemetry-instrument`` with those of requests and of FastAPI). Where
they do not, set `REMOTE` to ``server`` in the clients' environment: they then count nothing that a server reads for
them, and every server counts its own. Only the usage moves: the client's spans stay. A client without instrumentation
needs nothing: its server counts.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from opentelemetry import baggage

from tollspan.instrumentation.calls import attach, get_current, open_call
from tollspan.instrumentation.data_reads import LAYER
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import text
from tollspan.instrumentation.wrapping import Patches

REMOTE: Final = "TOLLSPAN_FEAST_REMOTE"
"""Who counts what a client reads of a feature server: ``client`` (default) or ``server``."""

COUNTED: Final = "tollspan.feature.counted"
"""Baggage: who asks for this has counted it."""

_MARK: Final = guard("feast.remote")

_REQUESTS: Final = (
    "feast.infra.online_stores.remote:get_remote_online_features",
    "feast.infra.online_stores.remote:get_remote_online_documents",
    "feast.infra.online_stores.remote:post_remote_online_write",
)
"""Functions through which Feast's client asks a feature server for what the client can count. A materialization that it
hands on is not among them: only the server knows what that wrote."""


def is_counted() -> bool:
    """Whether another process counts what is read now."""
    return baggage.get_baggage(COUNTED) is not None


def left_to_server(kind: str | None) -> bool:
    """Whether a read of this kind of store is counted by its server alone."""
    return kind == "remote" and text(REMOTE).lower() == "server"


def patch(patches: Patches) -> None:
    """Mark the requests of Feast's client."""
    for target in _REQUESTS:
        patches.add(target, functools.partial(_marked, patches))


def _marked(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def asked(*args: Any, **kwargs: Any) -> Any:
        before = None
        if patches.active:
            with _MARK:
                if open_call(LAYER) is not None and text(REMOTE).lower() != "server":
                    before = get_current()
                    attach(baggage.set_baggage(COUNTED, "client", before))
        try:
            return original(*args, **kwargs)
        finally:
            if before is not None:
                attach(before)

    return asked

"""Attempts that the Anthropic client makes inside one call: what `tollspan.instrumentation.stainless_retries` is told.

In: the functions that build its requests, before they are sent. Out: `Call.retries`, and `CALL_SENT` False on a call
that failed before a request could be built.
"""

from __future__ import annotations

import inspect
from typing import Any, Final

from tollspan.instrumentation.anthropic.readers import State
from tollspan.instrumentation.stainless_retries import Retries


def _builds_as_ever(client: Any, asynchronous: bool) -> bool:
    """Whether whatever ``client`` sends is built by the hooked method."""
    from anthropic._base_client import AsyncAPIClient, SyncAPIClient

    library: type = AsyncAPIClient if asynchronous else SyncAPIClient
    build = inspect.getattr_static(type(client), "_build_request", None)
    return build is inspect.getattr_static(library, "_build_request", None)


RETRIES: Final = Retries(
    "anthropic",
    ("anthropic._base_client:SyncAPIClient._build_request", "anthropic._base_client:AsyncAPIClient._build_request"),
    sends=False,
    passes=_builds_as_ever,
    state=State,
)

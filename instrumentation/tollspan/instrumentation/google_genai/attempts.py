"""Attempts that the ``google-genai`` client makes inside one call: whether there was one, and how many more.

In: two hooks that are private to the client, through which each attempt passes. Out: `Call.retries`, and `CALL_SENT`
False on a call that failed before anything was sent. In a version without a hook, or where the client tries again
beneath it, what it tells is not known, and no span says anything about it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing.attributes import CALL_SENT, ERROR_TYPE, HTTP_STATUS

_ATTEMPT: Final = guard("google_genai.attempt")

_SYNC: Final = "google.genai._api_client:BaseApiClient._request_once"
_ASYNC: Final = "google.genai._api_client:BaseApiClient._async_request_once"

_hooked: Final[set[str]] = set()
"""Targets that the installed version has."""

_WAY: Final = frozenset({"request", "request_streamed", "_request", "_request_once"})
_ASYNC_WAY: Final = frozenset({"async_request", "async_request_streamed", "_async_request", "_async_request_once"})
"""Methods of the API client that a call passes on its way out. One that replaces any of them may send as it likes."""


def patch(patches: Patches) -> None:
    """Hook the sending of one attempt."""
    patches.add(_SYNC, _count)
    patches.add(_ASYNC, _count_async)


def known(call: Call) -> None:
    """Say of an ending call that there were no further attempts, or none at all, where there would be word of them."""
    asynchronous = call.point.asynchronous
    if (_ASYNC if asynchronous else _SYNC) not in _hooked or not _takes_the_way(call.state.client, asynchronous):
        return
    if call.retries is None and not (asynchronous and _tries_unseen(call.state.client)):
        call.retries = 0
    attributes = call.attributes
    if not call.sent and ERROR_TYPE in attributes and HTTP_STATUS not in attributes:
        attributes[CALL_SENT] = False


def _takes_the_way(client: Any, asynchronous: bool) -> bool:
    """Whether whatever ``client`` sends passes our hook: it is the library's own in all that leads there."""
    from google.genai._api_client import BaseApiClient

    way = _ASYNC_WAY if asynchronous else _WAY
    if not way.isdisjoint(vars(client)):
        return False
    for kind in type(client).__mro__:
        if kind is BaseApiClient:
            return True
        if not way.isdisjoint(vars(kind)):
            return False
    return False


def _tries_unseen(client: Any) -> bool:
    """Over aiohttp, and unless told how to try again, the client repeats a request whose connection broke by itself."""
    return bool(client._use_aiohttp()) and not client._http_options.retry_options


def _count(original: Callable[..., Any]) -> Callable[..., Any]:
    _hooked.add(_SYNC)

    @functools.wraps(original)
    def once(*args: Any, **kwargs: Any) -> Any:
        _another()
        return original(*args, **kwargs)

    return once


def _count_async(original: Callable[..., Any]) -> Callable[..., Any]:
    _hooked.add(_ASYNC)

    @functools.wraps(original)
    async def once(*args: Any, **kwargs: Any) -> Any:
        _another()
        return await original(*args, **kwargs)

    return once


def _another() -> None:
    # Before it is sent: from here on nobody can be sure that nothing reached the provider.
    with _ATTEMPT:
        call = open_call()
        if call is not None:
            if call.sent:
                call.retries = (call.retries or 0) + 1
            call.sent = True

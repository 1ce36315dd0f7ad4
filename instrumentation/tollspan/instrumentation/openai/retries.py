"""Attempts that the OpenAI client makes again by itself, inside one call.

In: the client's wait before a further attempt, the one place that all of them pass, after a 429, a 5xx, a timeout or a
broken connection. Out: `Call.retries`. The hook is private to the client; in a version without it the retries are not
known, and no span says anything about them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches

_RETRY: Final = guard("openai.retry")

_hooked: Final[set[str]] = set()
"""Targets that the installed version has."""

_SYNC: Final = "openai._base_client:SyncAPIClient._sleep_for_retry"
_ASYNC: Final = "openai._base_client:AsyncAPIClient._sleep_for_retry"


def patch(patches: Patches) -> None:
    """Hook the client's wait."""
    patches.add(_SYNC, _count)
    patches.add(_ASYNC, _count_async)


def known(call: Call) -> None:
    """Say of an ending call that there were no retries, where there would have been word of them."""
    if call.retries is None and (_ASYNC if call.point.asynchronous else _SYNC) in _hooked:
        call.retries = 0


def _count(original: Callable[..., Any]) -> Callable[..., Any]:
    _hooked.add(_SYNC)

    @functools.wraps(original)
    def sleep(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        _another()
        return result

    return sleep


def _count_async(original: Callable[..., Any]) -> Callable[..., Any]:
    _hooked.add(_ASYNC)

    @functools.wraps(original)
    async def sleep(*args: Any, **kwargs: Any) -> Any:
        result = await original(*args, **kwargs)
        _another()
        return result

    return sleep


def _another() -> None:
    # The wait is over, so the attempt will be made; a call cancelled during the wait made none.
    with _RETRY:
        call = open_call()
        if call is not None:
            call.retries = (call.retries or 0) + 1

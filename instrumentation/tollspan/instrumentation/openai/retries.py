"""Attempts that the OpenAI client makes inside one call: whether there was one, and how often it tried again.

In: two hooks that are private to the client. All further attempts, after a 429, a 5xx, a timeout or a broken
connection, pass through its wait before them; all attempts pass through its sending of a request. Out: `Call.retries`,
and `CALL_SENT` False on a call that failed before anything was sent. In a version without a hook what it tells is not
known, and no span says anything about it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing.attributes import CALL_SENT, ERROR_TYPE, HTTP_STATUS

_RETRY: Final = guard("openai.retry")
_SENDING: Final = guard("openai.send")

_hooked: Final[set[str]] = set()
"""Targets that the installed version has."""

_SYNC: Final = "openai._base_client:SyncAPIClient._sleep_for_retry"
_ASYNC: Final = "openai._base_client:AsyncAPIClient._sleep_for_retry"

_SEND: Final = "openai._client:OpenAI._send_request"
_SEND_ASYNC: Final = "openai._client:AsyncOpenAI._send_request"

_WAY: Final = ("post", "request", "_send_request")
"""Methods of the client that a call passes on its way out. One that replaces any of them may send as it likes."""


def patch(patches: Patches) -> None:
    """Hook the client's wait and its sending."""
    patches.add(_SYNC, _count)
    patches.add(_ASYNC, _count_async)
    patches.add(_SEND, functools.partial(_note, _SEND))
    patches.add(_SEND_ASYNC, functools.partial(_note, _SEND_ASYNC))


def known(call: Call) -> None:
    """Say of an ending call that there were no retries, or no request at all, where there would have been word of them.

    That nothing was sent is said only of a call that raised: one that returned something got it from somewhere.
    """
    asynchronous = call.point.asynchronous
    if call.retries is None and (_ASYNC if asynchronous else _SYNC) in _hooked:
        call.retries = 0
    attributes = call.attributes
    if (
        not call.sent
        and ERROR_TYPE in attributes
        and HTTP_STATUS not in attributes
        and (_SEND_ASYNC if asynchronous else _SEND) in _hooked
        and _takes_the_way(call.state.client, asynchronous)
    ):
        attributes[CALL_SENT] = False


def _takes_the_way(client: Any, asynchronous: bool) -> bool:
    """Whether whatever ``client`` sends passes our hook: it is the library's own in all that leads there."""
    import openai

    library: type = openai.AsyncOpenAI if asynchronous else openai.OpenAI
    # Looked up statically: where a peer has wrapped one, each ordinary look-up makes another object of it.
    return isinstance(client, library) and all(
        inspect.getattr_static(client, name, None) is inspect.getattr_static(library, name, None) for name in _WAY
    )


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


def _note(target: str, original: Callable[..., Any]) -> Callable[..., Any]:
    _hooked.add(target)

    # One for both clients: what it returns, an awaitable or not, is the caller's.
    @functools.wraps(original)
    def send(*args: Any, **kwargs: Any) -> Any:
        # Before it is sent: from here on nobody can be sure that nothing reached the provider.
        with _SENDING:
            call = open_call()
            if call is not None:
                call.sent = True
        return original(*args, **kwargs)

    return send

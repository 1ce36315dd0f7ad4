"""Attempts that a client made by Stainless makes inside one call: whether there was one, and how often it tried again.

In: two hooks that are private to the client. All further attempts, after a 429, a 5xx, a timeout or a broken
connection, pass through its wait before them; all requests pass through a function that builds or sends them. Out:
`Call.retries`, and `CALL_SENT` False on a call that failed before there was a request. In a version without a hook what
it tells is not known, and no span says anything about it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing.attributes import CALL_SENT, ERROR_TYPE, HTTP_STATUS

__all__ = ["Retries"]


class Retries:
    """The attempts of one client's calls.

    Args:
        package: the client's package; what faults are counted by, too.
        requests: functions that every request of the synchronous and of the asynchronous client passes.
        sends: those send it, and there is word of it before they do; else they build it, and there is when they have.
        passes: ``(client, asynchronous)``: whether whatever the client sends passes them.
        state: class of `Call.state` of the calls whose further attempts are counted. By default any: the open call may
            be that of somebody who makes the client's.

    Attributes:
        hooked: targets that the installed version has.
    """

    def __init__(
        self,
        package: str,
        requests: tuple[str, str],
        *,
        sends: bool,
        passes: Callable[[Any, bool], bool],
        state: type = object,
    ) -> None:
        base = f"{package}._base_client:"
        self.hooked: set[str] = set()
        self._wait: Final = f"{base}SyncAPIClient._sleep_for_retry"
        self._wait_async: Final = f"{base}AsyncAPIClient._sleep_for_retry"
        self._request, self._request_async = requests
        self._hook: Final = self._sending if sends else self._building
        self._passes: Final = passes
        self._state: Final = state
        self._retrying: Final = guard(f"{package}.retry")
        self._noting: Final = guard(f"{package}.{'send' if sends else 'built'}")

    def patch(self, patches: Patches) -> None:
        """Hook the client's wait and what its requests pass."""
        patches.add(self._wait, self._count)
        patches.add(self._wait_async, self._count_async)
        patches.add(self._request, functools.partial(self._hook, self._request))
        patches.add(self._request_async, functools.partial(self._hook, self._request_async))

    def known(self, call: Call) -> None:
        """Say of an ending call that there were no retries, or no request at all, where there would have been word.

        That nothing was sent is said only of a call that raised: one that returned something got it from somewhere.
        """
        asynchronous = call.point.asynchronous
        if call.retries is None and (self._wait_async if asynchronous else self._wait) in self.hooked:
            call.retries = 0
        attributes = call.attributes
        if (
            not call.sent
            and ERROR_TYPE in attributes
            and HTTP_STATUS not in attributes
            and (self._request_async if asynchronous else self._request) in self.hooked
            and self._passes(call.state.client, asynchronous)
        ):
            attributes[CALL_SENT] = False

    def _count(self, original: Callable[..., Any]) -> Callable[..., Any]:
        self.hooked.add(self._wait)
        another = self._another

        @functools.wraps(original)
        def sleep(*args: Any, **kwargs: Any) -> Any:
            result = original(*args, **kwargs)
            another()
            return result

        return sleep

    def _count_async(self, original: Callable[..., Any]) -> Callable[..., Any]:
        self.hooked.add(self._wait_async)
        another = self._another

        @functools.wraps(original)
        async def sleep(*args: Any, **kwargs: Any) -> Any:
            result = await original(*args, **kwargs)
            another()
            return result

        return sleep

    def _another(self) -> None:
        # The wait is over, so the attempt will be made; a call cancelled during the wait made none.
        with self._retrying:
            call = open_call()
            if call is not None and isinstance(call.state, self._state):
                call.retries = (call.retries or 0) + 1

    def _sending(self, target: str, original: Callable[..., Any]) -> Callable[..., Any]:
        self.hooked.add(target)
        noting = self._noting.site

        # One for both clients: what it returns, an awaitable or not, is the caller's.
        @functools.wraps(original)
        def send(*args: Any, **kwargs: Any) -> Any:
            # Before it is sent: from here on nobody can be sure that nothing reached the provider.
            # A guard by hand: every request passes here.
            try:
                call = open_call()
                if call is not None:
                    call.sent = True
            except Exception as error:  # noqa: BLE001
                report(noting, error)
            return original(*args, **kwargs)

        return send

    def _building(self, target: str, original: Callable[..., Any]) -> Callable[..., Any]:
        self.hooked.add(target)
        noting = self._noting.site

        @functools.wraps(original)
        def build(*args: Any, **kwargs: Any) -> Any:
            request = original(*args, **kwargs)
            # From here on nobody can be sure that nothing reached the provider.
            try:
                call = open_call()
                if call is not None:
                    call.sent = True
            except Exception as error:  # noqa: BLE001
                report(noting, error)
            return request

        return build

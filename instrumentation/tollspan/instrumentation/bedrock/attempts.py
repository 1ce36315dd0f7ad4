"""Attempts that botocore makes inside one call, and what its errors tell.

In: the sending of a request by a client's endpoint, which every attempt passes, and ``ResponseMetadata`` of responses
and errors. Out: `Call.retries`, the HTTP status of a refused call, and `CALL_SENT` False on one that failed before
anything was sent (wrong parameters, no credentials). What is sent on the way by other clients, for credentials, is not
counted.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.bedrock.requests import State, fields
from tollspan.instrumentation.calls import Call, open_call
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing.attributes import CALL_SENT, ERROR_TYPE, HTTP_STATUS

_SENDING: Final = guard("bedrock.send")

_SEND: Final = {"botocore.endpoint": "Endpoint._send", "aiobotocore.endpoint": "AioEndpoint._send"}
"""Module of an endpoint's class → what in it sends. An endpoint from elsewhere may send as it likes."""

_hooked: Final[set[str]] = set()
"""Modules whose installed version has it."""


def patch(patches: Patches) -> None:
    """Hook the sending of requests."""
    for module, function in _SEND.items():
        patches.add(f"{module}:{function}", functools.partial(_note, module))


def told(call: Call, response: Any) -> None:
    """Note how often a call was tried again, where its response or error says so."""
    retries = fields(fields(response).get("ResponseMetadata")).get("RetryAttempts")
    if type(retries) is int:
        call.retries = retries


def failed(call: Call, error: BaseException) -> None:
    """Read a ``ClientError``, for `WrapPoint.error`. One that came inside a stream has no status of its own."""
    response = getattr(error, "response", None)
    status = fields(fields(response).get("ResponseMetadata")).get("HTTPStatusCode")
    if type(status) is int:
        call.attributes[HTTP_STATUS] = status
    told(call, response)


def known(call: Call) -> None:
    """Say of an ending call how often it was tried again, or that nothing was sent, for `WrapPoint.finish`."""
    state: State = call.state
    if type(state.client._endpoint).__module__ not in _hooked:
        return
    if state.attempts:
        if call.retries is None:
            call.retries = state.attempts - 1
    elif not state.answered and ERROR_TYPE in call.attributes and HTTP_STATUS not in call.attributes:
        call.attributes[CALL_SENT] = False


def _note(module: str, original: Callable[..., Any]) -> Callable[..., Any]:
    _hooked.add(module)

    # One for both clients: what it returns, an awaitable or not, is the caller's.
    @functools.wraps(original)
    def send(self: Any, *args: Any, **kwargs: Any) -> Any:
        # Before it is sent: from here on nobody can be sure that nothing reached the service.
        with _SENDING:
            call = open_call()
            if call is not None and isinstance(call.state, State) and call.state.client._endpoint is self:
                call.state.attempts += 1
                call.sent = True
        return original(self, *args, **kwargs)

    return send

"""gRPC as the clients of data stores use it: how large the messages of an open call are.

In: `TARGETS`, through which grpc, synchronous and asyncio, passes every message that it sends and receives. Out: on
`Call.network` of the open call of a data store one entry for all its requests. The bytes are the messages' before
compression, without framing and headers, which grpc does not tell. An answer that comes on a thread of grpc's, as those
of ``future()`` do, or that does not come at all, leaves what was received unknown.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, Final

from tollspan.instrumentation.calls import DATA_KEY, get_current
from tollspan.instrumentation.guard import report
from tollspan.instrumentation.wrapping import Shared

_COUNT: Final = "network.grpc"


class Messages:
    """Requests of a call and their answers, as an entry of `Call.network`; see `network_http.Exchange`.

    Attributes:
        sent, received: bytes.
        asked, answered: messages.
    """

    __slots__ = ("answered", "asked", "carried", "outer", "received", "sent")

    def __init__(self) -> None:
        self.asked = self.answered = self.sent = self.received = 0
        self.carried = False
        self.outer = None

    def host(self) -> str | None:
        """Whom the call names."""
        return None

    def hops(self) -> Iterator[tuple[str | None, int | None, int | None]]:
        """Host, bytes sent and received; None where they are not known."""
        yield None, self.sent, self.received if self.answered >= self.asked else None


def _of_call(new: bool) -> Messages | None:
    """The messages of the data store's call that is open here and counts; None where there is none."""
    call: Any = get_current().get(DATA_KEY)
    if call is None or call.network is None:
        return None
    for entry in call.network:
        if type(entry) is Messages:
            return entry
    if not new:
        return None
    entry = Messages()
    call.network.append(entry)
    return entry


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def serialize(*args: Any, **kwargs: Any) -> Any:
        message = original(*args, **kwargs)
        try:
            if message is not None and (messages := _of_call(new=True)) is not None:
                messages.asked += 1
                messages.sent += len(message)
        except Exception as error:  # noqa: BLE001
            report(_COUNT, error)
        return message

    return serialize


def _receiving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def deserialize(message: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if message is not None and (messages := _of_call(new=False)) is not None:
                messages.answered += 1
                messages.received += len(message)
        except Exception as error:  # noqa: BLE001
            report(_COUNT, error)
        return original(message, *args, **kwargs)

    return deserialize


TARGETS: Final[dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "grpc._common:serialize": _sending,
    "grpc._common:deserialize": _receiving,
}
"""Function that every message passes → what makes its stand-in."""

HOOKS: Final = Shared(TARGETS)
"""In place while an instrumentation's requests are counted."""

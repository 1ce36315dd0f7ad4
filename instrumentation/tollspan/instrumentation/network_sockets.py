"""WebSockets as the clients use them: what went over one since somebody last asked.

In: `TARGETS`, through which the websockets library passes all that a connection of either kind sends and receives. Out:
an entry of `Call.network` that tells the bytes since the entry before it. They are those of the wire below TLS: with
framing, handshake and compression, and with what was sent for no call in particular, as audio is that nobody answers.
What comes after a connection's last call is told by none.

A connection that was open before it was watched tells from its second entry on.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from typing import Any, Final

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.guard import report
from tollspan.instrumentation.switches import NETWORK, is_off
from tollspan.instrumentation.wrapping import Patches, Shared

_COUNT: Final = "network.socket"
_CONNECTING: Final = 0


class _Meter:
    """Bytes of a connection since they were last asked for.

    Attributes:
        sent, received: bytes.
        whole: nothing before these was missed.
    """

    __slots__ = ("received", "sent", "whole")

    def __init__(self, protocol: Any) -> None:
        self.sent = self.received = 0
        self.whole: bool = protocol.state == _CONNECTING


_meters: Final[weakref.WeakKeyDictionary[Any, _Meter]] = weakref.WeakKeyDictionary()
"""Protocol of a connection of a client's → its meter."""


class Socket:
    """What a connection has taken since its last entry, as an entry of `Call.network`; see `network_http.Exchange`."""

    __slots__ = ("_connection", "carried", "outer")

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self.carried = False
        self.outer = None

    def host(self) -> str | None:
        """Whom the call names."""
        return None

    def hops(self) -> Iterator[tuple[str | None, int | None, int | None]]:
        """Host, bytes sent and received; nothing where they are not known."""
        protocol = getattr(self._connection, "protocol", None)
        meter = None if protocol is None else _meter(protocol)
        if meter is None:
            return
        sent, received = meter.sent, meter.received
        # Less what is told now, not set to zero: a thread of the connection may count meanwhile.
        meter.sent -= sent
        meter.received -= received
        if meter.whole:
            yield None, sent, received
        meter.whole = True


def tell(call: Call, connection: Any) -> None:
    """Have a call tell what its connection has taken, if its bytes are counted.

    Args:
        connection: of the websockets library; any other tells nothing.
    """
    if call.network is not None:
        call.network.append(Socket(connection))


def watch(patches: Patches) -> None:
    """Count what goes over WebSockets until ``patches`` are removed, unless the user wants no bytes."""
    if not is_off(NETWORK):
        _HOOKS.use(patches)


def _meter(protocol: Any) -> _Meter | None:
    """None for a connection that a server accepted."""
    meter = _meters.get(protocol)
    if meter is None and protocol.side.name == "CLIENT":
        meter = _meters[protocol] = _Meter(protocol)
    return meter


def _receiving(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def receive_data(self: Any, data: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            if (meter := _meter(self)) is not None:
                meter.received += len(data)
        except Exception as error:  # noqa: BLE001
            report(_COUNT, error)
        return original(self, data, *args, **kwargs)

    return receive_data


def _sending(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def data_to_send(self: Any, *args: Any, **kwargs: Any) -> Any:
        chunks = original(self, *args, **kwargs)
        try:
            if chunks and (meter := _meter(self)) is not None:
                meter.sent += sum(map(len, chunks))
        except Exception as error:  # noqa: BLE001
            report(_COUNT, error)
        return chunks

    return data_to_send


TARGETS: Final[dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]] = {
    "websockets.protocol:Protocol.receive_data": _receiving,
    "websockets.protocol:Protocol.data_to_send": _sending,
}
"""Function that all bytes of a connection pass → what makes its stand-in."""

_HOOKS: Final = Shared(TARGETS)

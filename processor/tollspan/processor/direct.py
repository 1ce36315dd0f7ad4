"""Calls of grpcio's server that no thread waits for.

In: calls whose head has come, on the server's one polling thread. Out: `Call`: its body is asked for and handed over on
that thread, and it is answered from any. grpcio itself keeps a thread for each call, which is woken for the head, for
the body and for the answer; at a few hundred requests a second that is a quarter of what receiving costs.

This stands on names of ``grpc._server`` that are nobody's promise (the same in all of its versions from 1.75 to 1.85),
and nothing else does. `trouble` looks whether they are as they were; where they are not, grpcio's own way serves.
"""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeAlias

import grpc
from grpc import _server

log = logging.getLogger(__name__)

Metadata: TypeAlias = tuple[tuple[str, bytes], ...]

_cygrpc: Final = _server.cygrpc
_MESSAGE: Final = "receive_message"
_STATUS: Final = "send_status_from_server"
_FUNCTIONS: Final = {
    "_unary_response_in_pool": (
        "rpc_event",
        "state",
        "behavior",
        "argument_thunk",
        "request_deserializer",
        "response_serializer",
    ),
    "_receive_message": ("state", "call", "request_deserializer"),
    "_send_status_from_server": ("state", "token"),
    "_application_code": ("code",),
    "_is_rpc_state_active": ("state",),
    "_select_thread_pool_for_behavior": ("behavior", "default_thread_pool"),
}
_STATE: Final = ("client", "condition", "context", "due", "request", "statused")


def trouble() -> str:
    """Why calls cannot be served this way with the grpcio that is installed; '' where they can."""
    try:
        for name, expected in _FUNCTIONS.items():
            found = tuple(inspect.signature(getattr(_server, name)).parameters)
            if found != expected:
                return f"{name} takes {', '.join(found)}"
        state = _server._RPCState()
        missing = [name for name in _STATE if not hasattr(state, name)]
        if missing:
            return f"a call's state has no {', '.join(missing)}"
        if (_server._RECEIVE_MESSAGE_TOKEN, _server._SEND_STATUS_FROM_SERVER_TOKEN) != (_MESSAGE, _STATUS):
            return "messages and answers are waited for by other names"
        pool = Direct(lambda call: None)
        if _server._select_thread_pool_for_behavior(pool.behaviour, None) is not pool:
            return "a behaviour cannot choose its threads"
        _cygrpc.ReceiveMessageOperation(0)
        _cygrpc.SendInitialMetadataOperation(None, 0)
        _cygrpc.SendStatusFromServerOperation((("key", b""),), _cygrpc.StatusCode.ok, b"", 0)
        _cygrpc.SendMessageOperation(b"", 0)
    except Exception as error:  # noqa: BLE001  (whatever it is, the other way serves)
        return f"{type(error).__name__}: {error}"
    return ""


class Call:
    """A call to a method that takes one message and gives one.

    Attributes:
        metadata: that came with its head.
    """

    __slots__ = ("_event", "_state", "metadata")

    def __init__(self, event: Any, state: Any) -> None:
        self._event, self._state = event, state
        self.metadata = event.invocation_metadata

    def time_remaining(self) -> float:
        """Seconds until its sender gives up."""
        return max(0.0, float(self._event.call_details.deadline) - time.time())

    def receive(self, came: Callable[[bytes | None], object]) -> bool:
        """Ask for the message.

        Args:
            came: called with it, or with None where none comes, by the polling thread.

        Returns:
            False where the call is over: ``came`` is not called then.
        """
        state, call = self._state, self._event.call
        with state.condition:
            if not _server._is_rpc_state_active(state):
                return False
            taken = _server._receive_message(state, call, None)

            def tag(event: Any) -> Any:
                done = taken(event)
                message, state.request = state.request, None
                _guarded(came, message)
                return done

            call.start_server_batch((_cygrpc.ReceiveMessageOperation(0),), tag)
            state.due.add(_MESSAGE)
            return True

    def answer(self, message: bytes) -> None:
        """End the call with a message; nothing where it is over."""
        self._end(None, None, b"", message)

    def refuse(self, code: grpc.StatusCode, details: str, metadata: Metadata | None = None) -> None:
        """End the call without a message; nothing where it is over.

        Args:
            code: of the status.
            details: for people.
            metadata: goes behind the status.
        """
        self._end(metadata, code, details.encode(), None)

    def _end(
        self, metadata: Metadata | None, code: grpc.StatusCode | None, details: bytes, message: bytes | None
    ) -> None:
        state, sent = self._state, _cygrpc.StatusCode.ok if code is None else _server._application_code(code)
        operations = [
            _cygrpc.SendInitialMetadataOperation(None, 0),
            _cygrpc.SendStatusFromServerOperation(metadata, sent, details, 0),
        ]
        if message is not None:
            operations.append(_cygrpc.SendMessageOperation(message, 0))
        with state.condition:
            if not _server._is_rpc_state_active(state):
                return
            state.statused = True
            state.due.add(_STATUS)
        # Sent without the lock, which the polling thread wants as soon as the answer is on its way: it would wait.
        self._event.call.start_server_batch(operations, _server._send_status_from_server(state, _STATUS))

    def cancel(self) -> None:
        """End it; who waits for its message is told that none comes."""
        self._event.call.cancel()


class Direct(ThreadPoolExecutor):
    """Begins calls; it looks like threads, because grpcio hands a call to no-one else.

    Args:
        begin: called with each call when its head is there, by the polling thread, which it must not keep long.

    Attributes:
        behaviour: what a ``stream_unary_rpc_method_handler`` is made of.
    """

    def __init__(self, begin: Callable[[Call], object]) -> None:
        super().__init__(1)
        self._begin = begin

        def behaviour(requests: Any, context: Any) -> Any:
            raise AssertionError("no thread serves this call")

        vars(behaviour)["experimental_thread_pool"] = self
        self.behaviour: Callable[[Any, Any], Any] = behaviour

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Begin the call that grpcio would have a thread serve; there is nothing to wait for."""
        _, event, state = args[:3]
        _guarded(self._begin, Call(event, state))


def _guarded(work: Callable[[Any], object], given: Any) -> None:
    """Do it; an exception would end the polling thread, and the server with it."""
    try:
        work(given)
    except Exception:
        log.exception("a call met a fault of ours")

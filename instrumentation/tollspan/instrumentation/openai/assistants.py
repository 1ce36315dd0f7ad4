"""Runs of assistants: asked for by one call, told by whoever polls or listens, billed once, when they have ended.

In: ``Run`` objects, from whichever call or stream gave them. Out: the usage of a run that has ended, on a span of
derived identity (`once`): polling makes it once, in every process. A call that starts a run, or hands it what its tools
found, says that its usage comes later. What is only polled has no span, and neither has a run that was started by a
helper that streams (``create_and_stream``): its result is linked to whoever was about to listen.

A run's tokens are all that is told of it: what its tools cost besides (sandboxes, searches of files) is not.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.openai import videos
from tollspan.instrumentation.openai.background import reason
from tollspan.instrumentation.openai.media import Api
from tollspan.instrumentation.openai.providers import client_attributes
from tollspan.instrumentation.openai.readers import State, _fields
from tollspan.instrumentation.openai.results import outliving
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("openai")

_RUNS: Final = "openai.resources.beta.threads.runs.runs:%sRuns."
_THREADS: Final = "openai.resources.beta.threads.threads:%sThreads."
_HANDLER: Final = "openai.lib.streaming._assistants:%sAssistantEventHandler._emit_sse_event"

_ENDED: Final = frozenset({"completed", "incomplete", "failed", "cancelled", "expired"})
_BEGINS: Final = "thread.run.created"
_LAST_EVENTS: Final = frozenset(f"thread.run.{status}" for status in _ENDED)


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of the requests that start a run or go on with it."""
    client = args[0]._client
    attributes = client_attributes(client).copy()
    attributes[names.OPERATION_NAME] = "chat"
    model = kwargs.get("model")
    name = "chat"
    if isinstance(model, str) and model:
        attributes[names.REQUEST_MODEL] = model
        name = f"chat {model}"
    streamed = kwargs.get("stream") is True
    if streamed:
        attributes[names.REQUEST_STREAM] = True
    thread = kwargs.get("thread_id", args[1] if len(args) > 1 else None)
    if isinstance(thread, str):
        attributes[names.CONVERSATION_ID] = thread
    return Opening(name, attributes, State(client, streamed))


def read(call: Call, run: Any) -> None:
    """Read the ``Run`` that a call asked for."""
    fields = _fields(run)
    identity = fields.get("id")
    if not isinstance(identity, str) or fields.get("object") != "thread.run":
        return
    for field, attribute in (("model", names.RESPONSE_MODEL), ("thread_id", names.CONVERSATION_ID)):
        if isinstance(fields.get(field), str):
            call.attributes[attribute] = fields[field]
    call.attributes[names.RESPONSE_ID] = identity
    call.attributes[names.USAGE_DEFERRED] = True
    ONCE.asked.add(identity, once.here(span=call.span))
    bill(call.state.client, fields)


def read_event(call: Call, event: Any) -> bool:
    """Read an event of a stream. True when it is the last one that matters."""
    fields = _fields(event)
    kind = fields.get("event")
    if kind == _BEGINS or kind in _LAST_EVENTS:
        read(call, fields.get("data"))
    return kind in _LAST_EVENTS


def bill(client: Any, run: Mapping[str, Any]) -> None:
    """Make the span of a run, if it has ended."""
    identity, usage = run.get("id"), run.get("usage")
    if run.get("status") not in _ENDED or usage is None or not isinstance(identity, str):
        return
    attributes = client_attributes(client).copy()
    provider = attributes[names.PROVIDER_NAME]
    attributes |= {
        names.OPERATION_NAME: "chat",
        names.RESPONSE_ID: identity,
        names.RESPONSE_FINISH_REASONS: [reason(run)],
    }
    model, thread = run.get("model"), run.get("thread_id")
    if isinstance(model, str):
        attributes[names.RESPONSE_MODEL] = model
    if isinstance(thread, str):
        attributes[names.CONVERSATION_ID] = thread
    ended = next((run[field] for status in _ENDED if run.get(field := f"{status}_at") is not None), None)
    ONCE.emit(
        identity,
        f"chat {model}" if isinstance(model, str) else "chat",
        attributes,
        lambda call: put_usage(call, provider, _usage(usage), model=model, form="openai"),
        start_ns=once.instant(run.get("created_at")),
        end_ns=once.instant(ended),
        origin=ONCE.asked.get(identity),
    )


def _usage(usage: Any) -> Mapping[str, Any]:
    # The service writes this API's details with "token" where all others have "tokens"; the client's types have none.
    fields = dict(_fields(usage))
    details = fields.pop("prompt_token_details", None)
    return fields if details is None else {"prompt_tokens_details": details, **fields}


def _looked(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    bill(instance._client, _fields(videos.parsed(result)))


def _heard(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    event = _fields(args[0] if args else kwargs.get("event"))
    kind, run = event.get("event"), _fields(event.get("data"))
    if kind == _BEGINS and isinstance(identity := run.get("id"), str):
        ONCE.asked.add(identity, once.here())
    elif kind in _LAST_EVENTS:
        bill(_stream_of(instance)._client, run)


def _stream_of(handler: Any) -> Any:
    """The stream that a handler listens to, which is private to it."""
    return next(value for name, value in vars(handler).items() if name.endswith("EventHandler__stream"))


APIS: Final[tuple[Api, ...]] = tuple(
    Api(target, request, read, outliving(read_event))
    for target in (f"{_RUNS}create", f"{_RUNS}submit_tool_outputs", f"{_THREADS}create_and_run")
)
"""Calls that start a run, or go on with one."""


def patch(patches: Patches) -> None:
    """Look at the runs that the program asks after, and at those that it listens to."""
    for prefix in ("", "Async"):
        for method in ("retrieve", "cancel"):
            ONCE.after(patches, _RUNS % prefix + method, _looked, bool(prefix))
        ONCE.after(patches, _HANDLER % prefix, _heard, bool(prefix))

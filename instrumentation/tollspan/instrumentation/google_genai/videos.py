"""Videos of the ``google-genai`` client: asked for in one request, made later, billed by the second when they are made.

In: the request that asks, and the polls of its operation. Out: a span of the request that says that its usage comes
later, spans of the polls, and on the one poll that finds the videos made ``tollspan.usage.video.seconds``: those asked
for, times the videos that came. The service tells no length. Where the request left it open, it is not known and the
call is unpriced.

Only operations that this process started are known here, each until its end was seen once: who polls again, or from
another process, gets no span.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.google_genai import attempts
from tollspan.instrumentation.google_genai.pending import Pending
from tollspan.instrumentation.google_genai.providers import client_attributes
from tollspan.instrumentation.google_genai.readers import State, fields, request_reader
from tollspan.pricing import attributes as names

SUBMIT: Final = "video_generation"
POLL: Final = "fetch_response"

_SECONDS: Final = names.usage("video.seconds")
_submit: Final = request_reader(SUBMIT)


class Asked(NamedTuple):
    """What was asked for: the model, and seconds of each video where the request said it."""

    model: str | None
    seconds: int | float | None


_pending: Final[Pending[Asked]] = Pending()


class _Ask(State):
    """State of the request; ``seconds`` is the length that was asked for, where it was."""

    __slots__ = ("seconds",)

    seconds: int | float | None


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """Reader of the request for videos."""
    opening = _submit(args, kwargs)
    seconds = fields(kwargs.get("config")).get("duration_seconds")
    state = _Ask(opening.state.client, opening.state.provider, opening.state.model, wanted=0)
    state.seconds = seconds if isinstance(seconds, (int, float)) and not isinstance(seconds, bool) else None
    return opening._replace(state=state)


def submitted(call: Call, operation: Any) -> None:
    """Remember the operation that was started."""
    name = fields(operation).get("name")
    if not isinstance(name, str) or not name:
        return
    call.attributes[names.RESPONSE_ID] = name
    call.attributes[names.USAGE_DEFERRED] = True
    _pending.add(name, Asked(call.state.model, call.state.seconds))


def poll_request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """Reader of a poll; None where the operation is none of ours, or has been seen to end."""
    operation = args[1] if len(args) > 1 else kwargs.get("operation")
    asked = _pending.get(fields(operation).get("name"))
    if asked is None:
        return None
    client = args[0]._api_client
    attributes = client_attributes(client)
    attributes[names.OPERATION_NAME] = POLL
    name = POLL
    if asked.model is not None:
        attributes[names.REQUEST_MODEL] = asked.model
        name = f"{POLL} {asked.model}"
    return Opening(name, attributes, State(client, attributes[names.PROVIDER_NAME], asked.model, wanted=0))


def polled(call: Call, operation: Any) -> None:
    """Read the operation as it stands now."""
    operation = fields(operation)
    if operation.get("done") is not True:
        return
    asked = _pending.end(operation.get("name"))
    if asked is None:
        return  # another thread saw the end first
    attributes = call.attributes
    attributes[names.RESPONSE_ID] = operation["name"]
    error = fields(operation.get("error"))
    if error:
        call.note_failure(str(error.get("code") or "failed"), error.get("message"))
        return
    answer = fields(operation.get("response") or operation.get("result"))
    made = sum(1 for item in answer.get("generated_videos") or () if fields(item).get("video"))
    if made and asked.seconds is None:
        attributes[names.OPERATION_NAME] = names.OPERATION_INFERENCE
    else:
        attributes[_SECONDS] = float(made * (asked.seconds or 0))


def finish(call: Call) -> None:
    """Say how often it was tried."""
    attempts.known(call)

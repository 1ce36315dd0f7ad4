"""Results of message batches: every result is one billed call, whoever fetches it and however often.

In: the results of a batch as the program reads them, line by line. Out: one span for each that succeeded, with its
usage and ``tollspan.processing`` = ``batch``; what errored, expired or was cancelled is not billed and has none. The
reading itself is a span of its own (``fetch_response``), without usage.

A result may be read twice, by another process and on another day. So its span is one of derived identity (`once`), made
of the ids of batch and request, and starts and ends when the batch ended. It links to whoever reads it, and to the
submission where that was made in this process; it has the submission's tags where those are known, else the reader's.

A batch of many results makes as many spans as fast as the program reads, which are exported meanwhile by `sending`'s
thread. What a span processor's queue drops all the same is not lost for good: reading again sends it again.
"""

from __future__ import annotations

from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.anthropic.providers import ANTHROPIC, client_attributes
from tollspan.instrumentation.anthropic.readers import State, fields, options_of
from tollspan.instrumentation.calls import Call, Opening
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.sending import FEW, Sender
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("anthropic")
SENDER: Final = Sender(ONCE.flush, "messages.batches.results(%s)")

_RESULT: Final = guard("anthropic.batch.result")

BATCH_ID: Final = "anthropic.message.batch.id"
"""Attribute that names the batch, as the client's own spans do."""

_FETCH: Final = "fetch_response"
_PATH: Final = "/v1/messages/batches/"
_RESULTS: Final = "/results"

_CLASSES: Final = tuple(
    f"anthropic.resources.{beta}messages.batches:{asynchronous}Batches"
    for beta in ("", "beta.")
    for asynchronous in ("", "Async")
)

ended: Final = once.Remembered()
"""Batch → when its processing ended, ns since the epoch."""


class Fetching(State):
    """State of a call that fetches the results of a batch.

    Attributes:
        batch: id of the batch.
        made: spans that were made of its results.
    """

    __slots__ = ("batch", "made")

    def __init__(self, client: Any, provider: str, batch: str) -> None:
        super().__init__(client, provider, streamed=True)
        self.batch = batch
        self.made = 0


def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """Read the request for a batch's results; None for every other."""
    options = options_of(args, kwargs)
    batch = batch_of(options.url)
    if batch is None or options.method.lower() != "get":
        return None
    attributes = client_attributes(args[0]).copy()
    attributes |= {names.OPERATION_NAME: _FETCH, BATCH_ID: batch}
    return Opening(_FETCH, attributes, Fetching(args[0], attributes[names.PROVIDER_NAME], batch))


def patch(patches: Patches) -> None:
    """Look at the submission of batches, and at their state, which is asked for before their results."""
    for owner in _CLASSES:
        for method, look in (("create", _submitted), ("retrieve", _asked_after)):
            ONCE.after(patches, f"{owner}.{method}", look, "Async" in owner)


def _submitted(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    batch = fields(result).get("id")
    if isinstance(batch, str):  # not a raw response
        ONCE.asked.add(batch, once.here())


def _asked_after(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    batch = fields(result)
    identity, when = batch.get("id"), once.instant(batch.get("ended_at"))
    if isinstance(identity, str) and when is not None:
        ended.add(identity, when)


def line(call: Call, line: Any) -> None:
    """One result came: make its span, if it is billed."""
    with _RESULT:
        _line(call, fields(line))


def _line(call: Call, line: Any) -> None:
    result = fields(line.get("result"))
    message = fields(result.get("message"))
    if result.get("type") != "succeeded" or not message:
        return
    state: Fetching = call.state
    batch, provider = state.batch, state.provider
    model, reason = message.get("model"), message.get("stop_reason")
    told = (
        (names.RESPONSE_ID, message.get("id")),
        (names.RESPONSE_MODEL, model),
        (names.RESPONSE_FINISH_REASONS, [reason] if isinstance(reason, str) else None),
    )
    when = ended.get(batch)
    ONCE.emit(
        f"{batch}\0{line.get('custom_id')}",
        f"chat {model}" if isinstance(model, str) else "chat",
        {
            **client_attributes(state.client),
            names.OPERATION_NAME: "chat",
            names.PROCESSING: "batch",
            BATCH_ID: batch,
            **{key: value for key, value in told if value is not None},
        },
        lambda span: put_usage(span, provider, message.get("usage"), model=model, form=ANTHROPIC),
        start_ns=when,
        end_ns=when,
        origin=ONCE.asked.get(batch),
        reader=call.span.get_span_context(),
        repeat=True,
        namespace=provider,
    )
    state.made += 1
    if state.made % FEW == 0:
        SENDER.made(FEW)


def batch_of(url: str) -> str | None:
    """Id of the batch whose results an URL gives; None for every other URL."""
    path = url.partition("?")[0]
    _, found, rest = path.partition(_PATH)
    batch = rest.removesuffix(_RESULTS)
    return batch if found and batch and rest.endswith(_RESULTS) and "/" not in batch else None

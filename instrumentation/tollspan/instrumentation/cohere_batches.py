"""Cohere's batches and embed jobs: each tells what it used as a whole, when it is done, and is billed once.

In: batches and jobs as the program asks after them. Out: one span for each that has ended and says what it used, of
derived identity (`once`), whoever finds it so and however often, with the tokens of all its requests. A batch is
processed as one; an embed job costs what embedding does, as no other price of it is published. Where this process
submitted it, the span is linked to the submission and bears its tags.

What comes of each request lies in a dataset, whose parts the program fetches from addresses of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation import once
from tollspan.instrumentation.providers import address_attributes
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("cohere")
PROVIDER: Final = "cohere"

_ENDED: Final = frozenset(
    {
        *("BATCH_STATUS_COMPLETED", "BATCH_STATUS_FAILED", "BATCH_STATUS_CANCELED"),
        *("complete", "cancelled", "failed"),
    }
)

Fields = Mapping[str, Any]


class Kind(NamedTuple):
    """A kind of work that goes on after it was asked for.

    Attributes:
        owner: its raw client, below the package, with a place for ``Async``.
        find: method that asks after one.
        one: field of an answer that has it; None: the answer is it.
        many: field of a list's answer that has several.
        name: field of its id.
        usage: what it used, as a usage object; None where it does not say.
        attributes: what else is known of it.
    """

    owner: str
    find: str
    one: str | None
    many: str
    name: str
    usage: Callable[[Fields], Any]
    attributes: Callable[[Fields], dict[str, Any]]


def _tokens(batch: Fields) -> Any:
    counts = {field: str(batch.get(field)) for field in ("input_tokens", "output_tokens")}  # text, where JSON says so
    told = {field: int(count) for field, count in counts.items() if count.isdigit()}
    return {"billed_units": told} if told else None


def _of_batch(batch: Fields) -> dict[str, Any]:
    made, answered = _tokens(batch), batch.get("num_successful_records")
    output = made["billed_units"].get("output_tokens") if made else None
    attributes: dict[str, Any] = {names.PROCESSING: "batch", names.OPERATION_NAME: "chat" if output else "embeddings"}
    if type(answered) is int:
        attributes[names.BATCH_SIZE] = answered
    return attributes


KINDS: Final = (
    Kind("batches.raw_client:%sRawBatchesClient", "retrieve", "batch", "batches", "id", _tokens, _of_batch),
    Kind(
        "embed_jobs.raw_client:%sRawEmbedJobsClient",
        "get",
        None,
        "embed_jobs",
        "job_id",
        lambda job: job.get("meta"),
        lambda job: {names.OPERATION_NAME: "embeddings"},
    ),
)


def patch(patches: Patches) -> None:
    """Look at what is submitted, asked after and listed."""
    for kind in KINDS:
        for prefix in ("", "Async"):
            owner = f"cohere.{kind.owner % prefix}."
            ONCE.after(patches, f"{owner}create", _submitting(kind), bool(prefix))
            for method in (kind.find, "list"):
                ONCE.after(patches, owner + method, _finding(kind), bool(prefix))


def _submitting(kind: Kind) -> once.Look:
    def look(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
        for work in _works(kind, result):
            if isinstance(name := work.get(kind.name), str):
                ONCE.asked.add(name, once.here())

    return look


def _finding(kind: Kind) -> once.Look:
    def look(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
        for work in _works(kind, result):
            _bill(kind, instance._client_wrapper, work)

    return look


def _works(kind: Kind, result: Any) -> Iterator[Fields]:
    answer = _fields(getattr(result, "_data", None))
    several: Iterable[Any] = answer.get(kind.many) or ()
    one = answer.get(kind.one) if kind.one else answer
    for work in (one, *several):
        if fields := _fields(work):
            yield fields


def _bill(kind: Kind, client: Any, work: Fields) -> None:
    name, usage, model = work.get(kind.name), kind.usage(work), work.get("model")
    if work.get("status") not in _ENDED or usage is None or not isinstance(name, str):
        return
    attributes = {
        **address_attributes(client.get_base_url(), PROVIDER),
        **kind.attributes(work),
        names.RESPONSE_ID: name,
    }
    provider = attributes[names.PROVIDER_NAME]
    operation = attributes[names.OPERATION_NAME]
    if isinstance(model, str):
        attributes[names.REQUEST_MODEL] = model
    ONCE.emit(
        name,
        f"{operation} {model}" if isinstance(model, str) else operation,
        attributes,
        lambda call: put_usage(call, provider, usage, model=model, form=PROVIDER),
        start_ns=once.instant(work.get("created_at")),
        origin=ONCE.asked.get(name),
        namespace=provider,
    )


def _fields(model: Any) -> Fields:
    return model if isinstance(model, dict) else getattr(model, "__dict__", {})

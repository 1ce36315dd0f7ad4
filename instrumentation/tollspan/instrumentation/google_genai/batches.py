"""Batches of the ``google-genai`` client: each answer is billed once, when somebody has it.

In: a job of the Gemini API as it is asked after, whose answers may stand in it, and the file of answers that the
program downloads. Out: one span for each answer, processed as a batch, of derived identity (`once`), by the job or file
and its place in it, made as `batch_files` says. Where this process submitted the job, the spans are linked to the
submission and bear its tags.

A file says neither its job's time nor, for embeddings, its model: whoever downloads it has mostly asked after the job,
which tells both. What it has written to a file that it opened itself is not seen. Vertex AI writes its answers to Cloud
Storage or BigQuery, where no client of ours looks.
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from tollspan.instrumentation import once
from tollspan.instrumentation.batch_files import BatchFiles, Fetch, Line
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.google_genai import readers
from tollspan.instrumentation.google_genai.providers import client_attributes
from tollspan.instrumentation.google_genai.readers import EMBED, GENERATE, State, fields, short_model
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("google_genai")

_BATCHES: Final = "google.genai.batches:%sBatches."
_FILES: Final = "google.genai.files:%sFiles.download"
_FILE: Final = re.compile(r"(?:^|/)files/([^/:?]+)")


class Job(NamedTuple):
    """What is known of a job: when it was created, ns since the epoch, and its model."""

    created: int | None
    model: str | None


def patch(patches: Patches) -> None:
    """Look at jobs as they are submitted, asked after and listed, and at the files that are downloaded."""
    for prefix in ("", "Async"):
        for method, look in (
            ("create", _submitted),
            ("create_embeddings", _submitted),
            ("get", _asked_after),
            ("_list", _listed),
        ):
            ONCE.after(patches, _BATCHES % prefix + method, look, bool(prefix))
        ONCE.after(patches, _FILES % prefix, _downloaded, bool(prefix))


def _submitted(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    job = fields(result)
    if isinstance(name := job.get("name"), str):
        ONCE.asked.add(name, once.here(_job(job)))


def _asked_after(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    _look_at(instance._api_client, fields(result), repeat=True)


def _listed(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    for job in fields(result).get("batch_jobs") or ():
        _look_at(instance._api_client, fields(job), repeat=False)


def _downloaded(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    name = _file_of(kwargs.get("file"))
    if name is None:
        return
    fetch = Fetch(instance._api_client, name, ONCE.asked.get(name))
    destination = kwargs.get("destination")
    if isinstance(result, bytes):
        FILES.whole(fetch, result)
    elif isinstance(destination, io.BytesIO):
        FILES.whole(fetch, destination.getvalue())
    elif isinstance(destination, (str, os.PathLike)):
        FILES.stored(fetch, destination)


def _look_at(client: Any, job: Mapping[str, Any], repeat: bool) -> None:
    """Learn where a job's answers are, and read those that stand in it."""
    name, answers = job.get("name"), fields(job.get("dest"))
    if not isinstance(name, str):
        return
    asked: once.Origin | None = ONCE.asked.get(name)
    origin = once.Origin(None, {}, _job(job)) if asked is None else asked._replace(told=_job(job))
    if isinstance(file := _file_of(answers.get("file_name")), str):
        ONCE.asked.add(file, origin)
    items = answers.get("inlined_responses") or answers.get("inlined_embed_content_responses")
    if items:
        FILES.items(Fetch(client, name, origin, repeat), [fields(item) for item in items])


def _job(job: Mapping[str, Any]) -> Job:
    return Job(once.instant(job.get("create_time")), short_model(job.get("model")))


def _file_of(file: Any) -> str | None:
    """Name of a file, of whatever names it; None for videos, which can be downloaded too."""
    said = file if isinstance(file, str) else fields(file).get("name")
    if not isinstance(said, str) or not said:
        return None
    found = _FILE.search(said)
    return f"files/{found[1] if found else said}"


def _is_result(line: Line) -> bool:
    return _answer(line) is not None or ("key" in line and isinstance(line.get("error"), dict))


def _answer(line: Line) -> Mapping[str, Any] | None:
    """The answer in a line, by the client's names for its fields; None where it is none."""
    said = line.get("response") or line
    answer = fields(said)
    if isinstance(said, dict) and said.keys() & {"usageMetadata", "candidates"}:
        answer = {**said, **readers._snaked(said)}
    if answer.get("embedding") or answer.get("candidates") or answer.get("usage_metadata") is not None:
        return answer
    return None


def _read_line(fetch: Fetch, number: int, line: Line) -> None:
    answer = _answer(line)
    if answer is None:
        return
    job = fetch.origin.told if fetch.origin is not None else Job(None, None)
    operation = EMBED if answer.get("embedding") else GENERATE
    attributes = {
        **client_attributes(fetch.client),
        names.OPERATION_NAME: operation,
        names.PROCESSING: "batch",
    }
    if job.model is not None:
        attributes[names.REQUEST_MODEL] = job.model
    model = job.model or short_model(answer.get("model_version"))
    provider = attributes[names.PROVIDER_NAME]

    def fill(call: Call) -> None:
        if operation == EMBED:
            put_usage(call, provider, _embedding_usage(answer), model=model)
            return
        call.state = State(fetch.client, provider, model)
        readers.read_content(call, dict(answer))
        readers.told(call)

    ONCE.emit(
        f"{fetch.name}:{number}",
        operation if model is None else f"{operation} {model}",
        attributes,
        fill,
        start_ns=job.created,
        origin=fetch.origin,
        tags=fetch.tags,
        repeat=fetch.repeat,
        namespace=provider,
    )


def _embedding_usage(answer: Mapping[str, Any]) -> Any:
    usage = answer.get("usage_metadata")
    if usage is not None:
        return readers.whole_usage(usage, made=False)
    tokens = answer.get("token_count") or answer.get("tokenCount")
    if isinstance(tokens, str) and tokens.isdigit():  # as JSON writes what may be large
        tokens = int(tokens)
    return None if tokens is None else {"prompt_token_count": tokens}


FILES: Final = BatchFiles(
    "google_genai",
    ONCE,
    again="batches.get or files.download of %s",
    mark=b"{",  # whatever the client can download is a video, or this
    is_result=_is_result,
    read=_read_line,
)
"""Who reads the answers."""

"""Mistral's batches: results that arrive as a file or inside the job, each billed once.

In: jobs as the program asks after them, whose results may stand in them (``inline=True``), and the files that it
downloads. Out: one span for each result, processed as a batch, of derived identity (`once`), made as `batch_files`
says; a result has an id of its own, so that it is the same in a file and inside a job. Where this process submitted the
job, the spans are linked to the submission and bear its tags.

Moderations and classifications tell no usage, and have no spans here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tollspan.instrumentation import once
from tollspan.instrumentation.batch_files import BatchFiles, Fetch, Line
from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.providers import address_attributes
from tollspan.instrumentation.usage import put_usage
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

ONCE: Final = once.of("mistral")
PROVIDER: Final = "mistral_ai"

JOBS: Final = ("mistralai.client.jobs:Jobs", "mistralai.client.jobs:MistralJobs", "mistralai.mistral_jobs:MistralJobs")
"""Classes of jobs, by version."""
FILES_OF: Final = ("mistralai.client.files:Files", "mistralai.files:Files")

OPERATIONS: Final[dict[str, str]] = {
    "/v1/chat/completions": "chat",
    "/v1/agents/completions": "chat",
    "/v1/conversations": "chat",
    "/v1/fim/completions": "text_completion",
    "/v1/embeddings": "embeddings",
    "/v1/ocr": "generate_content",
    "/v1/audio/transcriptions": "transcription",
}
"""Endpoint of a job → operation."""
_BY_FIELD: Final = (("pages", "generate_content"), ("choices", "chat"), ("outputs", "chat"), ("data", "embeddings"))
"""Field of an answer → operation, where the endpoint is not known."""

_PAGES: Final = names.usage("pages")
_ANNOTATED: Final = names.usage("pages.annotated")


def patch(patches: Patches) -> None:
    """Look at jobs as they are submitted and asked after, and at the files that are downloaded."""
    for suffix in ("", "_async"):
        for owner in JOBS:
            ONCE.after(patches, f"{owner}.create{suffix}", _submitted, bool(suffix))
            ONCE.after(patches, f"{owner}.get{suffix}", _asked_after, bool(suffix))
        for owner in FILES_OF:
            ONCE.after(patches, f"{owner}.download{suffix}", _downloaded, bool(suffix))


def _submitted(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    job = vars(result)
    if isinstance(name := job.get("id"), str):
        ONCE.asked.add(name, once.here())
    _look_at(instance, job)  # a small one may be done


def _asked_after(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    _look_at(instance, vars(result))


def _downloaded(instance: Any, kwargs: dict[str, Any], args: tuple[Any, ...], result: Any) -> None:
    name = kwargs.get("file_id")
    if isinstance(name, str):
        FILES.tap(Fetch(_client(instance, kwargs), name, ONCE.asked.get(name)), result)


def _look_at(instance: Any, job: Mapping[str, Any]) -> None:
    name, file, items = job.get("id"), job.get("output_file"), job.get("outputs")
    if not isinstance(name, str):
        return
    asked: once.Origin | None = ONCE.asked.get(name)
    told = {field: job.get(field) for field in ("created_at", "endpoint", "model")}
    origin = once.Origin(None, {}, told) if asked is None else asked._replace(told=told)
    if isinstance(file, str):
        ONCE.asked.add(file, origin)
    if isinstance(items, list) and items:
        FILES.items(Fetch(_client(instance, {}), name, origin), items)


def _client(instance: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Attributes of a client's spans."""
    url = kwargs.get("server_url")
    configured = instance.sdk_configuration.get_server_details()[0]
    return address_attributes(url if isinstance(url, str) else configured, PROVIDER)


def _is_result(line: Line) -> bool:
    return "custom_id" in line and isinstance(line.get("response"), dict)


def _read_line(fetch: Fetch, number: int, line: Line) -> None:
    response = line.get("response")
    answer = response.get("body") if isinstance(response, dict) else None
    if not isinstance(answer, dict):
        return
    usage = answer.get("usage") or answer.get("usage_info")  # OCR
    if not isinstance(usage, dict):
        return
    job: Mapping[str, Any] = fetch.origin.told if fetch.origin is not None else {}
    operation = OPERATIONS.get(str(job.get("endpoint"))) or next(
        (operation for field, operation in _BY_FIELD if field in answer), "chat"
    )
    said = {
        names.REQUEST_MODEL: job.get("model"),
        names.RESPONSE_MODEL: answer.get("model"),
        names.RESPONSE_ID: answer.get("id"),
        names.CONVERSATION_ID: answer.get("conversation_id"),
    }
    attributes = {
        **fetch.client,
        names.PROCESSING: "batch",
        names.OPERATION_NAME: operation,
        **{attribute: value for attribute, value in said.items() if isinstance(value, str) and value},
    }
    reasons = [choice.get("finish_reason") for choice in answer.get("choices") or () if isinstance(choice, dict)]
    if reasons and all(isinstance(reason, str) for reason in reasons):
        attributes[names.RESPONSE_FINISH_REASONS] = reasons
    provider = attributes[names.PROVIDER_NAME]
    model = attributes.get(names.RESPONSE_MODEL) or attributes.get(names.REQUEST_MODEL)

    def fill(call: Call) -> None:
        put_usage(call, provider, usage, model=model, form=PROVIDER)
        if _PAGES in call.attributes and _is_annotated(answer):
            call.attributes[_ANNOTATED] = call.attributes.pop(_PAGES)

    told, which = line.get("id") or answer.get("id"), line.get("custom_id")
    ONCE.emit(
        # The program need not have named its requests, and not every answer has an id.
        f"{told}:{which}" if told else f"{fetch.name}:{number if which is None else which}",
        f"{operation} {model}" if model else operation,
        attributes,
        fill,
        start_ns=once.instant(answer.get("created")) or once.instant(job.get("created_at")),
        origin=fetch.origin,
        tags=fetch.tags,
        repeat=fetch.repeat,
        namespace=provider,
    )


def _is_annotated(answer: Mapping[str, Any]) -> bool:
    """Whether pages were read with annotations, which is another meter."""
    if answer.get("document_annotation"):
        return True
    pages = [page for page in answer.get("pages") or () if isinstance(page, dict)]
    images = (image for page in pages for image in page.get("images") or ())
    return any(isinstance(image, dict) and image.get("image_annotation") for image in images)


FILES: Final = BatchFiles(
    "mistral",
    ONCE,
    again="batch.jobs.get or files.download of %s",
    mark=b'"response"',
    is_result=_is_result,
    read=_read_line,
)
"""Who reads the results."""

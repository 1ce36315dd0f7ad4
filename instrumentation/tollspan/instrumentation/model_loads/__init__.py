"""Loads of models in the world of PyTorch: a span for each, from the call of the program to the model that it gets.

In: calls of the functions that load models (`LOADS`). Out: spans ``model_load {model}`` with CPU time, source, format
and bytes of the model, and the bytes that came over the network. The parts:

    __init__   which functions are replaced, and what is said of what was loaded
    asked      what a call was asked for
    files      what is read of files and buffers
    transfers  what comes over the network
    load       what is known of a load in flight

The outermost of these functions is the load, and those inside it add what they read and fetch to it: the checkpoint of
a ``from_pretrained`` is part of it. A session of ONNX Runtime that is made inside has a span of its own, and what it
used is taken off this one's.

What is not a load: tokenizers, processors and configurations (files of a hub whose name is no model's); what
``torch.load`` returns that is no model, such as one tensor of a data set. And what cannot be seen: ``safe_open`` of
safetensors. It is a class of the library's own, which can be neither patched nor subclassed, and it reads when the
program asks for a tensor, hours later if it likes: no one stretch of time is its load. Inside transformers its files
are known.

Files that are mapped into memory (safetensors, ``torch.load(mmap=True)``) are read as they are touched, mostly by the
first inference: their bytes are ``tollspan.model.mapped`` and not a usage, unless the model went to another device,
for which all of them had to be read.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Final

from opentelemetry import trace
from opentelemetry.trace import SpanKind

from tollspan.instrumentation.calls import Call, CallInstrumentor, WrapPoint, open_call, wrap
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.model_loads import asked, files
from tollspan.instrumentation.model_loads.load import LAYER, File, Load, began, finished
from tollspan.instrumentation.model_loads.transfers import Transfers
from tollspan.instrumentation.torch_models import model_name
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

_FILES: Final = guard("model_loads.files")
_KEPT: Final = guard("model_loads.kept")
_HUB: Final = "huggingface_hub.file_download:"
_DOWNLOAD: Final = _HUB + "hf_hub_download"
_MOST_LOOKED_AT: Final = 64
"""Entries of a mapping that are looked at for tensors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One function that loads models.

    Attributes:
        function: ``"package.module:Class.method"``.
        asked: what it was asked for; None: it is a part of a load and never one by itself.
        reads: what it reads.
        models_only: it loads other things as well, and only a model is a load.
        after: see `Patches.add`.
    """

    function: str
    asked: asked.Asked | None = None
    reads: files.Read | None = None
    models_only: bool = False
    after: str | None = None


LOADS: Final = (
    *(
        Target(function=name, asked=asked.read, reads=files.pickled, models_only=True, after="torch")
        for name in ("torch.serialization:load", "torch:load")
    ),
    *(
        Target(function=name, asked=asked.read, reads=files.scripted, after="torch")
        for name in ("torch.jit._serialization:load", "torch.jit:load")
    ),
    Target(function="torch.export:load", asked=asked.read, reads=files.exported),
    Target(function="torch.hub:load", asked=asked.entry_point, after="torch"),
    Target(function="torch.hub:load_state_dict_from_url", asked=asked.fetched, after="torch"),
    Target(function="safetensors.torch:load_file", asked=asked.read, reads=files.safetensors_file),
    Target(function="safetensors.torch:load", asked=asked.read, reads=files.safetensors_bytes),
    Target(function="safetensors.torch:load_model", asked=asked.read_into, reads=files.safetensors_module),
    Target(function=_DOWNLOAD, asked=asked.downloaded),
    Target(function="huggingface_hub._snapshot_download:snapshot_download", asked=asked.snapshot),
    Target(function="transformers.modeling_utils:PreTrainedModel.from_pretrained", asked=asked.pretrained),
    Target(function="transformers.modeling_utils:PreTrainedModel._load_pretrained_model", reads=files.checkpoints),
    Target(function="diffusers.models.modeling_utils:ModelMixin.from_pretrained", asked=asked.pretrained),
    Target(function="diffusers.pipelines.pipeline_utils:DiffusionPipeline.from_pretrained", asked=asked.pretrained),
    Target(function="diffusers.loaders.single_file:FromSingleFileMixin.from_single_file", asked=asked.pretrained),
    Target(
        function="diffusers.loaders.single_file_model:FromOriginalModelMixin.from_single_file", asked=asked.pretrained
    ),
    Target(function="sentence_transformers.base.model:BaseModel.__init__", asked=asked.constructed),
    Target(function="sentence_transformers.SentenceTransformer:SentenceTransformer.__init__", asked=asked.constructed),
    Target(function="sentence_transformers.cross_encoder.CrossEncoder:CrossEncoder.__init__", asked=asked.constructed),
    Target(function="accelerate.utils.modeling:load_checkpoint_in_model", asked=asked.read_into),
    Target(function="accelerate.utils.modeling:load_state_dict", reads=files.checkpoint),
)

TRANSFERS: Final[tuple[tuple[str, Callable[[Transfers], Callable[[Any], Any]], str | None], ...]] = (
    (_HUB + "http_stream_backoff", lambda transfers: transfers.streamed, None),
    (_HUB + "http_get", lambda transfers: transfers.written, None),
    (_HUB + "_request_wrapper", lambda transfers: transfers.asked, None),
    (_HUB + "xet_get", lambda transfers: transfers.xet, None),
    (
        "huggingface_hub.utils._xet_progress_reporting:XetDownloadProgressReporter.__exit__",
        lambda transfers: transfers.reported,
        None,
    ),
    ("huggingface_hub._snapshot_download:hf_thread_map", lambda transfers: transfers.mapped, None),
    ("huggingface_hub._snapshot_download:thread_map", lambda transfers: transfers.mapped, None),
    ("torch.hub:download_url_to_file", lambda transfers: transfers.fetched, "torch"),
)
"""Function that transfers bytes, what is made of it, and `Patches.add`'s ``after``."""


class ModelLoadInstrumentor(CallInstrumentor):
    """Spans for loads of models. Imports none of the libraries: it waits until the program does."""

    scope = __name__
    requires = ("safetensors >= 0.4",)
    points = ()

    def _check_dependency_conflicts(self) -> Any:
        # Any of the libraries is enough: one that is not installed is none.
        conflict = super()._check_dependency_conflicts()
        return conflict if conflict is not None and conflict.found is not None else None

    def _instrument(self, **kwargs: Any) -> None:
        self._options = kwargs
        super()._instrument(**kwargs)

    def patch(self, patches: Patches) -> None:
        tracer = trace.get_tracer(self.scope, tracer_provider=self._options.get("tracer_provider"))
        transfers = Transfers(patches)
        for function, choose, after in TRANSFERS:
            patches.add(function, choose(transfers), after=after)
        patches.add("huggingface_hub._snapshot_download:hf_hub_download", transfers.downloaded)
        make = Make(tracer, patches, transfers)
        for target in LOADS:
            patches.add(target.function, make.of(target), after=target.after)


class Make:
    """Makes what stands in the place of functions that load models.

    Args:
        tracer: makes the spans.
        patches: those that the replacements are part of.
        transfers: counts what comes over the network.
    """

    def __init__(self, tracer: trace.Tracer, patches: Patches, transfers: Transfers) -> None:
        self._tracer = tracer
        self._patches = patches
        self._transfers = transfers
        self._made: dict[int, tuple[Any, Any]] = {}

    def of(self, target: Target) -> Callable[[Any], Any]:
        """Makes the replacement of a target. A function that has several names in its library keeps being one."""

        def make(original: Any) -> Any:
            made = self._made.get(id(original))
            if made is None or made[0] is not original:
                made = self._made[id(original)] = (original, self._replacement(target, original))
            return made[1]

        return make

    def _replacement(self, target: Target, original: Any) -> Any:
        method = inspect.ismethod(original)
        function = self._within(target, original.__func__ if method else original)
        if target.asked is not None:
            function = wrap(self._point(target), self._tracer, self._patches, function)
        if method:
            return classmethod(function)
        *classes, name = target.function.partition(":")[2].split(".")
        return staticmethod(function) if classes and name != "__init__" else function

    def _point(self, target: Target) -> WrapPoint:
        assert target.asked is not None
        return WrapPoint(
            target=target.function,
            request=target.asked,
            prepare=began,
            response=_loaded,
            error=_refused,
            finish=finished,
            late=_always if target.models_only else None,
            layer=LAYER,
            kind=SpanKind.INTERNAL,
        )

    def _within(self, target: Target, original: Callable[..., Any]) -> Callable[..., Any]:
        """The function, which tells the load that it is inside of what it reads."""
        if target.function == _DOWNLOAD:
            return self._transfers.downloaded(original)
        reads, patches, models_only = target.reads, self._patches, target.models_only
        if reads is None:
            return original

        @functools.wraps(original)
        def load(*args: Any, **kwargs: Any) -> Any:
            call = open_call(LAYER) if patches.active else None
            if call is None or not call.recording:
                return original(*args, **kwargs)
            state: Load = call.state
            those: Iterable[File] = ()
            with _FILES:
                those = tuple(reads(args, kwargs))
            inside = state.reading(1) > 0
            try:
                result = original(*args, **kwargs)
            finally:
                state.reading(-1)
            with _KEPT:
                for file in those:
                    # A buffer inside another reader is a part of the file that this one reads.
                    if not inside or isinstance(file.key, str):
                        state.read(file)
                if models_only and not call.departed and not is_model(result):
                    call.forget()
            return result

        return load


def _always() -> bool:
    return True


def _refused(call: Call, error: BaseException) -> None:
    """`WrapPoint.error`: what a hub answered."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(status) is int:
        call.attributes[attributes.HTTP_STATUS] = status


def _loaded(call: Call, result: Any) -> None:
    """`WrapPoint.response`: what was loaded."""
    if not call.span.is_recording():
        return  # it was no model, or nobody sees it
    load: Load = call.state
    model = result[0] if isinstance(result, tuple) and result else result
    if load.subject is not None:
        model = load.subject
    if _is_module(model) and not load.named:
        # By the name that its inferences will have.
        call.attributes[attributes.MODEL] = name = model_name(model)
        call.span.update_name(asked.named(name))
    tensor = first_float(model)
    on = None
    if tensor is not None:
        on = call.attributes[attributes.DEVICE_TYPE] = str(tensor.device.type)
        call.attributes[attributes.MODEL_DTYPE] = str(tensor.dtype).removeprefix("torch.")
    call.attributes.update(load.told(on))
    version = getattr(getattr(model, "config", None), "_commit_hash", None)
    if isinstance(version, str):
        call.attributes[attributes.MODEL_VERSION] = version


def _torch(name: str) -> Any:
    """A class of torch; None where the program has not imported it."""
    torch: Any = sys.modules.get("torch")
    if name == "Module":
        torch = getattr(torch, "nn", None)
    return getattr(torch, name, None)


def _is_module(value: Any) -> bool:
    kind = _torch("Module")
    return kind is not None and isinstance(value, kind)


def first_float(model: Any) -> Any:
    """The first tensor of floating point numbers of a module, of a mapping, or of a mapping in one; None: none."""
    kind = _torch("Tensor")
    if kind is None:
        return None
    values: Iterable[Any]
    if _is_module(model):
        values = chain(model.parameters(), model.buffers())
    else:
        values = _leaves(model if isinstance(model, Mapping) else getattr(model, "state_dict", None))
    return next((value for value in values if isinstance(value, kind) and value.is_floating_point()), None)


def _leaves(value: Any) -> Iterable[Any]:
    if not isinstance(value, Mapping):
        return
    for each in islice(value.values(), _MOST_LOOKED_AT):
        if _is_module(each):
            yield from each.parameters()
        elif isinstance(each, Mapping):
            yield from islice(each.values(), _MOST_LOOKED_AT)
        else:
            yield each


def is_model(value: Any, inside: bool = False) -> bool:
    """Whether what a file held is a model, or a checkpoint with one: a module; the state of one, which is an ordered
    mapping or has dots in its names; a mapping that has such a thing in it. One that only maps names to tensors may be
    a row of data."""
    if _is_module(value):
        return True
    kind = _torch("Tensor")
    if not isinstance(value, Mapping) or kind is None:
        return False
    some = list(islice(value.items(), _MOST_LOOKED_AT))
    tensors = [name for name, each in some if isinstance(each, kind)]
    if tensors and (isinstance(value, OrderedDict) or any("." in name for name in tensors if isinstance(name, str))):
        return True
    return not inside and any(is_model(each, inside=True) for _, each in some)

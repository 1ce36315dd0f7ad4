"""What a PyTorch module is: its name, the devices it lives on, whether it was called before; and what a call gave it.

In: module instances and the arguments of their calls. Out: what `torch.py` puts on a span. Where it stands: beside
`torch.py`, and like it without importing torch.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from itertools import count
from typing import Any, Final

from tollspan.instrumentation.instances import PerInstance
from tollspan.instrumentation.torch_execution import PROVIDER, Place
from tollspan.pricing import attributes


class Part:
    """One tensor that stands for all of a model's on its device. Where it hangs is remembered, not the tensor."""

    __slots__ = ("device", "dtype", "key", "owner", "table")

    def __init__(self, owner: Any, table: str, key: str, tensor: Any) -> None:
        self.owner = weakref.ref(owner)
        self.table = table
        self.key = key
        self.device = tensor.device
        self.dtype = tensor.dtype


class Model:
    """What is known of one module instance between its calls.

    Attributes:
        name: its identity.
        span_name: of its executions.
        calls: counts them.
        about: attributes of its spans, with those of its place. Copy before you add to it.
        place: where it was when `about` was made.
    """

    __slots__ = ("_devices", "_module", "_parts", "_placed", "about", "calls", "name", "place", "span_name")

    def __init__(self, module: Any) -> None:
        self._module = weakref.ref(module)
        self.name = model_name(module)
        self.span_name = f"{attributes.OPERATION_INFERENCE} {self.name}"
        self.calls = count()
        self._parts: tuple[Part, ...] | None = None
        self._devices: tuple[Any, ...] = ()
        self._placed: tuple[Any, ...] | None = None
        self.about: dict[str, Any] = self._base()
        self.place: Place | None = None

    def devices(self) -> tuple[Any, ...]:
        """Devices of its parameters and buffers, as torch gives them, in the order in which they come; the same tuple
        until they change. Empty for a model without either: that one works where its input is.

        ``module.to(...)`` changes them, so one tensor of each device is looked at again at every call; a part that
        moves by itself is seen when it is such a one.
        """
        parts = self._parts
        if parts is not None:
            for part in parts:
                owner = part.owner()
                tensor = None if owner is None else owner.__dict__.get(part.table, _NOTHING).get(part.key)
                if tensor is None or tensor.device != part.device or tensor.dtype is not part.dtype:
                    break
            else:
                return self._devices
        self._look()
        return self._devices

    def placed(self, place: Place, devices: tuple[Any, ...]) -> None:
        """Makes `about` anew: the model is at ``place`` now."""
        about = self._base()
        if self._parts:
            about[attributes.MODEL_DTYPE] = str(self._parts[0].dtype).removeprefix("torch.")
        about.update(place.attributes)
        self.about, self.place, self._placed = about, place, devices

    def is_placed(self, devices: tuple[Any, ...]) -> bool:
        """Whether `about` is of these devices."""
        return self._placed is devices

    def _base(self) -> dict[str, Any]:
        return {
            attributes.OPERATION: attributes.OPERATION_INFERENCE,
            attributes.PROVIDER: PROVIDER,
            attributes.MODEL: self.name,
        }

    def _look(self) -> None:
        found: dict[Any, Part] = {}
        module = self._module()
        for part in module.modules() if module is not None else ():
            for table in ("_parameters", "_buffers"):
                for key, tensor in getattr(part, table).items():
                    if tensor is not None and tensor.device not in found:
                        found[tensor.device] = Part(part, table, key, tensor)
        self._parts = tuple(found.values())
        self._devices = tuple(found)


_NOTHING: Final[Mapping[str, Any]] = {}


class Models:
    """`Model` by module instance."""

    def __init__(self) -> None:
        self._models = PerInstance(Model)

    def __len__(self) -> int:
        return len(self._models)

    def of(self, module: Any) -> Model:
        """The model that ``module`` is, or wraps (``torch.compile``, data parallelism)."""
        return self._models.of(unwrap(module))


_WRAPPERS: Final = {
    "OptimizedModule": ("torch._dynamo.eval_frame", "_orig_mod"),
    "DistributedDataParallel": ("torch.nn.parallel.distributed", "module"),
    "DataParallel": ("torch.nn.parallel.data_parallel", "module"),
}
"""Name of a class that is not the model but holds it → its module, the name it holds the model under."""


def unwrap(module: Any) -> Any:
    """The model itself, out of what torch wraps around one."""
    while True:
        kind = type(module)
        wrapper = _WRAPPERS.get(kind.__name__)
        if wrapper is None or wrapper[0] != kind.__module__:
            return module
        inner = module.__dict__["_modules"].get(wrapper[1])
        if inner is None:
            return module
        module = inner


def model_name(module: Any) -> str:
    """Identity of a model: what transformers loaded it as, else the name of its class; of a TorchScript module that of
    the class it was made from."""
    kind = type(module)
    if kind.__module__.startswith("torch.jit."):
        return str(getattr(module, "original_name", kind.__name__))
    loaded = getattr(module.__dict__.get("config"), "_name_or_path", None)
    return shown(loaded) if isinstance(loaded, str) and loaded else kind.__name__


def shown(loaded: str) -> str:
    """Identity of a model that was loaded by this name or path."""
    # A path says where on this machine it lies, which is nobody else's business.
    return os.path.basename(loaded.rstrip("/\\")) if os.path.isabs(loaded) or loaded.startswith(".") else loaded


def first_tensor(tensor_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any | None:
    """The first tensor among positional, then keyword arguments; within a mapping given as one argument (as tokenizers
    return it) its first. None where there is none: a list of tensors has no one batch dimension."""
    for values in (args, kwargs.values()) if kwargs else (args,):
        for value in values:
            if isinstance(value, tensor_class):
                return value
            if isinstance(value, Mapping):
                for inner in value.values():
                    if isinstance(inner, tensor_class):
                        return inner
    return None


def sequence_length(tensor_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int | None:
    """Positions in each row of ``input_ids``, given by that name or in a mapping; None where there is none: the second
    dimension of another tensor may be anything."""
    ids = kwargs.get("input_ids")
    if ids is None and args and isinstance(args[0], Mapping):
        ids = args[0].get("input_ids")
    if isinstance(ids, tensor_class) and ids.dim() == 2 and type(length := ids.shape[1]) is int:  # type: ignore[attr-defined]
        return length
    return None

"""What a PyTorch module is: its name, the device it lives on, whether it was called before; and what a call gave it.

In: module instances and the arguments of their calls. Out: what `torch.py` puts on a span. Where it stands: beside
`torch.py`, and like it without importing torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any, Final

from tollspan.instrumentation.instances import PerInstance
from tollspan.pricing import attributes


class Model:
    """What is known of one module instance between its calls."""

    __slots__ = ("_bare", "_key", "_module", "_owner", "_table", "calls", "name", "span_name")

    def __init__(self, module: Any) -> None:
        self._module = weakref.ref(module)
        self.name = model_name(module)
        self.span_name = f"{attributes.OPERATION_INFERENCE} {self.name}"
        self.calls = count()
        self._bare = False
        self._owner: weakref.ref[Any] | None = None
        self._table = self._key = ""

    def device(self) -> Any | None:
        """Device of the first parameter, else of the first buffer, as torch gives it; None where there is neither.

        Where that tensor hangs is remembered, not the tensor nor its device: ``module.to(...)`` changes both.
        """
        owner = self._owner() if self._owner is not None else None
        if owner is not None:
            with suppress(KeyError, AttributeError):  # the program has changed its model since
                return getattr(owner, self._table)[self._key].device
        module = self._module()
        if module is None or self._bare:
            return None
        for table in ("_parameters", "_buffers"):
            for part in module.modules():
                for key, tensor in getattr(part, table).items():
                    if tensor is not None:
                        self._owner, self._table, self._key = weakref.ref(part), table, key
                        return tensor.device
        self._bare = True  # and is not searched again at every call
        return None


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
    ("torch._dynamo.eval_frame", "OptimizedModule"): "_orig_mod",
    ("torch.nn.parallel.distributed", "DistributedDataParallel"): "module",
    ("torch.nn.parallel.data_parallel", "DataParallel"): "module",
}
"""(module, name) of a class that is not the model but holds it → the name it holds it under."""


def unwrap(module: Any) -> Any:
    """The model itself, out of what torch wraps around one."""
    while True:
        kind = type(module)
        held = _WRAPPERS.get((kind.__module__, kind.__name__))
        inner = module.__dict__["_modules"].get(held) if held is not None else None
        if inner is None:
            return module
        module = inner


def model_name(module: Any) -> str:
    """Class name of the model; of a TorchScript module that of the class it was made from."""
    kind = type(module)
    if kind.__module__.startswith("torch.jit."):
        return str(getattr(module, "original_name", kind.__name__))
    return kind.__name__


def first_tensor(tensor_class: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any | None:
    """The first tensor among positional, then keyword arguments; within a mapping given as one argument (as tokenizers
    return it) its first. None where there is none: a list of tensors has no one batch dimension."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, tensor_class):
            return value
        if isinstance(value, Mapping):
            for inner in value.values():
                if isinstance(inner, tensor_class):
                    return inner
    return None

"""``generate`` of transformers: one span for all the steps of a generation, with the token positions in and out.

In: calls of ``GenerationMixin.generate``. Out: the span of an outermost module call, which the steps inside are part of
(a generation of twenty tokens calls its model twenty times). Where it stands: beside `torch.py`, whose flag it sets.

Positions are counted from shapes. What a row's padding is only the tensor's values tell, and to read those is to wait
for the device.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import get_current
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.process_start import mark_cold
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.torch_execution import INSIDE, Execution, suppressed
from tollspan.instrumentation.torch_hardware import Hardware
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

_BEGIN: Final = "torch.generate.begin"
_POSITIONS: Final = guard("torch.generate.positions")
_END: Final = guard("torch.generate.end")


class Generate:
    """Makes what stands in the place of ``GenerationMixin.generate``.

    Args:
        hardware: makes the spans and knows the devices.
        patches: those that the replacement is part of.
    """

    def __init__(self, hardware: Hardware, patches: Patches) -> None:
        self._hardware = hardware
        self._patches = patches

    def make(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """The replacement of ``original``."""
        import torch

        is_compiling = torch.compiler.is_compiling
        module_class = torch.nn.Module
        patches = self._patches

        def within(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            tally = INSIDE.tally
            if tally is None:
                return original(module, *args, **kwargs)
            # A generation may use another one, whose positions are not the caller's.
            INSIDE.tally = None
            try:
                result = original(module, *args, **kwargs)
            finally:
                INSIDE.tally = tally
            with _POSITIONS:
                tally.add(positions(module, args, kwargs, result))
            return result

        @functools.wraps(original)
        def generate(self_: Any, *args: Any, **kwargs: Any) -> Any:
            if is_compiling() or not patches.active or not isinstance(self_, module_class):
                return original(self_, *args, **kwargs)  # what is no module runs elsewhere, and is seen there
            if INSIDE.active:
                return within(self_, args, kwargs)
            if suppressed(get_current()):
                return original(self_, *args, **kwargs)
            call = None
            try:
                call = self._begin(self_, args, kwargs)
            except Exception as fault:  # noqa: BLE001
                report(_BEGIN, fault)
            if call is None:
                return original(self_, *args, **kwargs)
            INSIDE.active = True
            try:
                result = original(self_, *args, **kwargs)
            except BaseException as error:
                with _END:
                    call.close(error)
                raise
            finally:
                INSIDE.active = False
            with _END:
                about: dict[str, Any] = {}
                with _POSITIONS:
                    about = positions(self_, args, kwargs, result)
                call.close(None, about)
            return result

        return generate

    def _begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Execution:
        hardware, context = self._hardware, get_current()
        model = hardware.models.of(module)
        devices = model.devices()
        if not model.is_placed(devices):
            model.placed(hardware.places.of(devices), devices)
        assert model.place is not None
        about = model.about.copy()
        if next(model.calls) == 0:
            mark_cold(about)
        about.update(current_tags(context))
        prompt = _prompt(args, kwargs)
        if prompt is not None:
            about[attributes.BATCH_SIZE], about[attributes.SEQUENCE_LENGTH] = prompt
        return Execution(hardware.tracer, model.span_name, about, context, model.place.clock)


def _prompt(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int] | None:
    """Rows and columns of the prompt's token ids; None where there are none."""
    ids = kwargs.get("input_ids")
    if ids is None:
        ids = args[0] if args else kwargs.get("inputs")
    shape = getattr(ids, "shape", None)
    return (int(shape[0]), int(shape[1])) if shape is not None and len(shape) == 2 else None


def positions(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> dict[str, Any]:
    """Token positions of a generation, in and out, as attributes; what the shapes do not tell is absent."""
    about: dict[str, Any] = {}
    prompt = _prompt(args, kwargs)
    if prompt is not None:
        about[attributes.POSITIONS_IN] = prompt[0] * prompt[1]
    sequences = getattr(result, "sequences", result)
    shape = getattr(sequences, "shape", None)
    if shape is None or len(shape) != 2:
        return about
    if getattr(getattr(module, "config", None), "is_encoder_decoder", False):
        repeated = 1  # the token that the decoder starts with
    elif prompt is not None:
        repeated = prompt[1]
    elif "inputs_embeds" in kwargs:
        repeated = 0
    else:
        return about  # started from nothing, or from what only the model knows
    about[attributes.POSITIONS_OUT] = int(shape[0]) * (int(shape[1]) - repeated)
    return about

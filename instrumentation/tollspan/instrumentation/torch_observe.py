"""``observe``: an execution that nothing else sees, named by the program.

In: ``with observe("reranker"):`` round a piece of the program. Out: the same span that an outermost module call has;
what runs inside on the same thread is part of it. For a compiled function that calls models, ``module.forward(...)``
called directly, kernels of one's own, and a batch that serves many requests::

    with observe(model, requests=[Request(context, tokens) for ...], rule="tokens") as run:
        scores = score(batch)
        run.batch_size = len(batch)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Final, TypeVar, cast

from tollspan.instrumentation.calls import get_current
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.process_start import mark_cold
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.torch_execution import INSIDE, PROVIDER, Execution, suppressed
from tollspan.instrumentation.torch_hardware import Hardware, hardware
from tollspan.instrumentation.torch_shares import Request, Shared
from tollspan.pricing import attributes

_F = TypeVar("_F", bound=Callable[..., Any])
_BEGIN: Final = guard("torch.observe.begin")
_END: Final = guard("torch.observe.end")


class Run:
    """What the program may tell of an execution while it runs.

    Attributes:
        batch_size: items in the batch.
        input_positions, output_positions: token positions, all rows, padding included.
    """

    __slots__ = ("_execution", "batch_size", "input_positions", "output_positions")

    def __init__(self) -> None:
        self._execution: Execution | None = None
        self.batch_size: int | None = None
        self.input_positions: int | None = None
        self.output_positions: int | None = None

    def _told(self) -> dict[str, Any]:
        told = {
            attributes.BATCH_SIZE: self.batch_size,
            attributes.POSITIONS_IN: self.input_positions,
            attributes.POSITIONS_OUT: self.output_positions,
        }
        return {key: value for key, value in told.items() if value is not None}


class observe:
    """Puts a span, with CPU and device time, round a piece of the program: as a context manager, which gives a `Run`,
    or as a decorator of a function.

    For code that runs on one thread from its begin to its end: not across an ``await`` or a ``yield``, where the thread
    goes on with something else. Inside another execution it does nothing: that one bears the time.

    Args:
        what: the model's name, or the model.
        device: where it runs: as torch names it (``"cuda:1"``), or a ``torch.device``, or several of them. None: where
            the model is; for a name the current CUDA device if CUDA is in use, else the host.
        batch_size: items in the batch, if known before.
        requests: those that the batch serves: each gets a span in its own trace with its share. None: no shares.
        rule: what the requests' weights are, e.g. ``items``, ``tokens``.

    Raises:
        TypeError: as a decorator of a coroutine function or a generator.
    """

    def __init__(
        self,
        what: Any,
        *,
        device: Any | Sequence[Any] | None = None,
        batch_size: int | None = None,
        requests: Sequence[Request] | None = None,
        rule: str = "items",
    ) -> None:
        self._what = what
        self._device = device
        self._batch_size = batch_size
        self._requests = requests
        self._rule = rule
        self._run: Run | None = None

    def __enter__(self) -> Run:
        run = self._run = Run()
        run.batch_size = self._batch_size
        if not INSIDE.active and not suppressed(get_current()):
            with _BEGIN:
                run._execution = self._begin()
            INSIDE.active = run._execution is not None
        return run

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        run, self._run = self._run, None
        if run is None or run._execution is None:
            return
        INSIDE.active = False
        with _END:
            run._execution.close(error, run._told())

    def __call__(self, function: _F) -> _F:
        if (
            inspect.iscoroutinefunction(function)
            or inspect.isgeneratorfunction(function)
            or inspect.isasyncgenfunction(function)
        ):
            raise TypeError("observe is for functions that run from begin to end on one thread")

        @functools.wraps(function)
        def observed(*args: Any, **kwargs: Any) -> Any:
            with observe(
                self._what,
                device=self._device,
                batch_size=self._batch_size,
                requests=self._requests,
                rule=self._rule,
            ):
                return function(*args, **kwargs)

        return cast("_F", observed)

    def _begin(self) -> Execution:
        those, context = hardware(), get_current()
        if isinstance(self._what, str):
            name = f"{attributes.OPERATION_INFERENCE} {self._what}"
            about: dict[str, Any] = {
                attributes.OPERATION: attributes.OPERATION_INFERENCE,
                attributes.PROVIDER: PROVIDER,
                attributes.MODEL: self._what,
            }
            devices = self._devices()
        else:
            model = those.models.of(self._what)
            devices = self._devices() if self._device is not None else model.devices()
            model.placed(those.places.of(devices), devices)
            name, about = model.span_name, model.about.copy()
            if next(model.calls) == 0:
                mark_cold(about)
        place = those.places.of(devices)
        about.update(place.attributes)
        tagged = {**about, **current_tags(context)}
        links = [request.link for request in self._requests or ()]
        execution = Execution(those.tracer, name, tagged, context, place.clock, links)
        if self._requests and execution.span.is_recording():
            execution.span = self._shared(those, execution, name, about)
        return execution

    def _shared(self, those: Hardware, execution: Execution, name: str, about: dict[str, Any]) -> Any:
        assert self._requests is not None
        return Shared(those.tracer, execution.span, name, about, self._requests, self._rule)

    def _devices(self) -> tuple[Any, ...]:
        import torch

        if self._device is None:
            if not torch.cuda.is_initialized():
                return ()
            return (torch.device("cuda", torch.cuda.current_device()),)
        several = isinstance(self._device, (list, tuple))
        found = [torch.device(device) for device in (self._device if several else [self._device])]
        return tuple(
            torch.device("cuda", torch.cuda.current_device()) if d.type == "cuda" and d.index is None else d
            for d in found
        )

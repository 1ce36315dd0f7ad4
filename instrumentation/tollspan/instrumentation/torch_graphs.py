"""CUDA graphs: no device is asked while one is captured, and its replay is an execution of the model in it.

In: ``CUDAGraph.capture_begin``, ``capture_end`` and ``replay``. Out: pauses of the resolver; and for a replay outside
of any module call a span with the name and the shapes of what was captured. Where it stands: beside `torch.py`, which
says what is called during a capture.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, Final

from tollspan.instrumentation.calls import get_current
from tollspan.instrumentation.device_clock import DeviceClock
from tollspan.instrumentation.guard import guard, report
from tollspan.instrumentation.instances import PerInstance
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.torch_execution import INSIDE, PROVIDER, Execution, suppressed
from tollspan.instrumentation.torch_hardware import Hardware
from tollspan.instrumentation.torch_resolver import Resolver
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

_CAPTURE: Final = guard("torch.capture")
_REPLAY: Final = "torch.replay"
_END: Final = guard("torch.replay.end")
_UNNAMED: Final = "CUDAGraph"


class GraphNote:
    """What was captured into a graph.

    Attributes:
        span_name, about, clock: of the model whose call was captured; of the last one; None where there was none.
    """

    def __init__(self, graph: Any) -> None:
        self.span_name = f"{attributes.OPERATION_INFERENCE} {_UNNAMED}"
        self.about: dict[str, Any] | None = None
        self.clock: DeviceClock | None = None

    def holds(self, span_name: str, about: dict[str, Any], clock: DeviceClock) -> None:
        """A model's call is being captured. The last one names the graph: those before are warm-up or preparation."""
        passing = {attributes.COLD_START, attributes.COLD_START_SECONDS, *attributes.TAGS.values()}
        self.span_name, self.clock = span_name, clock
        self.about = {key: value for key, value in about.items() if key not in passing}


class _Capture(threading.local):
    """The graph that this thread is capturing."""

    note: GraphNote | None = None


CAPTURE: Final = _Capture()


def graph_points(
    hardware: Hardware, patches: Patches, resolver: Resolver
) -> dict[str, Callable[[Callable[..., Any]], Callable[..., Any]]]:
    """Target → what makes its replacement."""
    notes = PerInstance(GraphNote)

    def begin(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def capture_begin(self: Any, *args: Any, **kwargs: Any) -> Any:
            resolver.capture_begins()
            try:
                result = original(self, *args, **kwargs)
            except BaseException:
                resolver.capture_ended()
                raise
            with _CAPTURE:
                CAPTURE.note = notes.of(self)
            return result

        return capture_begin

    def end(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def capture_end(self: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                return original(self, *args, **kwargs)
            finally:
                CAPTURE.note = None
                resolver.capture_ended()

        return capture_end

    def replay(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def replayed(self: Any, *args: Any, **kwargs: Any) -> Any:
            if INSIDE.active or not patches.active or suppressed(get_current()):
                return original(self, *args, **kwargs)
            call = None
            try:
                call = _replay(hardware, notes.of(self))
            except Exception as fault:  # noqa: BLE001
                report(_REPLAY, fault)
            if call is None:
                return original(self, *args, **kwargs)
            try:
                result = original(self, *args, **kwargs)
            except BaseException as error:
                with _END:
                    call.close(error)
                raise
            with _END:
                call.close(None)
            return result

        return replayed

    graph = "torch.cuda.graphs:CUDAGraph."
    return {graph + "capture_begin": begin, graph + "capture_end": end, graph + "replay": replay}


def _replay(hardware: Hardware, note: GraphNote) -> Execution:
    context = get_current()
    about, clock = note.about, note.clock
    if about is None or clock is None:
        import torch

        place = hardware.places.of((torch.device("cuda", torch.cuda.current_device()),))
        clock = place.clock
        about = {
            attributes.OPERATION: attributes.OPERATION_INFERENCE,
            attributes.PROVIDER: PROVIDER,
            attributes.MODEL: _UNNAMED,
            **place.attributes,
        }
    return Execution(hardware.tracer, note.span_name, {**about, **current_tags(context)}, context, clock)

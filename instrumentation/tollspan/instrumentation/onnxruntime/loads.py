"""A span for each load of a model: the construction of a session, and a change of its execution providers.

In: calls of ``InferenceSession.__init__`` and of ``Session.set_providers``, which makes the session anew. Out: a span
``model_load {model}`` with CPU time, the source and the format of the model, its bytes, and the execution providers
that were asked for and those that came. What a model says of the files beside it is read when the load is over and the
span's end is fixed (`model_files`).

``storage.read.bytes`` is what lies in files: the model's own, its external data as far as it uses it, and binaries of
an execution provider. A model that was handed over as a buffer read only what lies beside it, and initializers that the
program hands over in their own files' place are counted as if they had been read. Of a load that failed nobody knows.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from opentelemetry.context import _SUPPRESS_INSTRUMENTATION_KEY
from opentelemetry.trace import SpanKind, Tracer

from tollspan.instrumentation.calls import get_current
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.onnxruntime import devices
from tollspan.instrumentation.onnxruntime.model_files import Outline, outline, outline_of_file
from tollspan.instrumentation.onnxruntime.runs import _KEY, _SUPPRESS_PLAIN, Execution, closed
from tollspan.instrumentation.onnxruntime.sessions import PROVIDER, named, sessions
from tollspan.instrumentation.tags import current_tags
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes

Source = bytes | str | os.PathLike[str]
Asked = Callable[[tuple[Any, ...], dict[str, Any]], tuple[Any, Any]]
"""(args, kwargs) → source of the model, execution providers that were asked for; None what was not said."""

_STORAGE_BYTES: Final = attributes.usage("storage.read.bytes")
_FOLDER: Final = "session.model_external_initializers_file_folder_path"
_FILE: Final = "file"
_BUFFER: Final = "buffer"
_OPEN: Final = guard("onnxruntime.load.open")
_CLOSE: Final = guard("onnxruntime.load.close")
_FILES: Final = guard("onnxruntime.load.files")


def constructed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """``InferenceSession(path_or_bytes, sess_options=None, providers=None, ...)``"""
    return (
        args[1] if len(args) > 1 else kwargs.get("path_or_bytes"),
        args[3] if len(args) > 3 else kwargs.get("providers"),
    )


def made_anew(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """``Session.set_providers(providers=None, provider_options=None)``"""
    session = args[0]
    source = getattr(session, "_model_path", None) or getattr(session, "_model_bytes", None)
    return source, args[1] if len(args) > 1 else kwargs.get("providers")


class Loads:
    """Makes what stands in the place of the methods that load a model.

    Args: as of `runs.Runs`.
    """

    def __init__(self, tracer: Tracer, patches: Patches, clock_for: devices.ClockFor) -> None:
        self._tracer = tracer
        self._patches = patches
        self._clock_for = clock_for

    def of(self, asked: Asked) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """The replacement of a method."""

        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            @functools.wraps(original)
            def load(*args: Any, **kwargs: Any) -> Any:
                execution = source = None
                if self._patches.active:
                    with _OPEN:
                        source, providers = asked(args, kwargs)
                        execution = self._opening(source, providers)
                if execution is None:
                    return original(*args, **kwargs)
                try:
                    result = original(*args, **kwargs)
                except BaseException as error:
                    closed(execution, error)
                    raise
                with _CLOSE:
                    execution.close(more=functools.partial(self._loaded, execution, args[0], source))
                return result

            return load

        return make

    def _opening(self, source: Any, providers: Any) -> Execution | None:
        context = get_current()
        outer = context.get(_KEY)
        if (
            (outer is not None and not outer.ended)  # type: ignore[attr-defined]
            or context.get(_SUPPRESS_INSTRUMENTATION_KEY)
            or context.get(_SUPPRESS_PLAIN)
        ):
            return None
        about: dict[str, Any] = {
            attributes.OPERATION: attributes.OPERATION_MODEL_LOAD,
            attributes.PROVIDER: PROVIDER,
        }
        model = None
        if isinstance(source, bytes):
            about[attributes.MODEL_SOURCE] = _BUFFER
        elif isinstance(source, (str, os.PathLike)):
            about[attributes.MODEL_SOURCE] = _FILE
            model = about[attributes.MODEL] = Path(os.fsdecode(source)).stem
        if isinstance(providers, (list, tuple)) and providers:
            asked = [each[0] if isinstance(each, tuple) and each else each for each in providers]
            about[attributes.EXECUTION_PROVIDERS_ASKED] = [each for each in asked if isinstance(each, str)]
        about.update(current_tags(context))
        span = self._tracer.start_span(named(attributes.OPERATION_MODEL_LOAD, model), context, SpanKind.INTERNAL, about)
        return Execution(span, context)

    def _loaded(self, execution: Execution, session: Any, source: Any) -> dict[str, Any]:
        note = sessions.of(session)
        note.refresh(session, self._clock_for)
        about: dict[str, Any] = {name: note.about[name] for name in _OF_A_SESSION if name in note.about}
        if note.name is not None:
            execution.span.update_name(named(attributes.OPERATION_MODEL_LOAD, note.name))
        about[attributes.EXECUTION_PROVIDERS] = list(session.get_providers())
        with _FILES:
            about.update(_files(session, source))
        return about


_OF_A_SESSION: Final = (
    attributes.MODEL,
    attributes.MODEL_DTYPE,
    attributes.DEVICE_TYPE,
    attributes.DEVICE_NAME,
)


def _files(session: Any, source: Source) -> dict[str, Any]:
    """Format and bytes of a model that has been loaded."""
    if isinstance(source, bytes):
        size, read = len(source), 0
        said = _outline(outline, source)
        folder = _folder(session) if said is not None and said.parts else ""
    else:
        size = read = os.stat(source).st_size
        said = _outline(outline_of_file, source)
        folder = os.path.dirname(os.fsdecode(source))
    about: dict[str, Any] = {}
    whole: int | None = size
    if said is not None:
        about[attributes.MODEL_FORMAT] = said.format
        for location, used in said.parts.items():
            there = _size(os.path.join(folder, location))
            if there is not None:
                read += there if used is None else used
            part = used if used is not None else there
            whole = None if whole is None or part is None else whole + part
    if whole is not None:
        about[attributes.MODEL_SIZE] = whole
    if read:
        about[_STORAGE_BYTES] = read
    return about


def _outline(read: Callable[[Any], Outline], source: Any) -> Outline | None:
    """The outline; None for a form that we cannot read, which a loader of the program's own may have understood."""
    try:
        return read(source)
    except ValueError:
        return None


def _folder(session: Any) -> str:
    """Where external data of a model lie that was handed over as a buffer: the working directory, or as was said."""
    try:
        return str(session.get_session_options().get_session_config_entry(_FOLDER))
    except RuntimeError:  # nothing was said
        return ""


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:  # the program handed it over otherwise
        return None

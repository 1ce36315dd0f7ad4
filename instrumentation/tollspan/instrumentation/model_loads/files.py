"""What each function that reads models reads: files, by their size and format, before the function runs.

In: the arguments of a call of such a function. Out: `File`s, which are added to the load once the call has returned; of
one that failed nobody knows what it read. Nothing here opens a file, nor moves the position of one that is open.
"""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePath
from typing import Any, Final

from tollspan.instrumentation.model_loads.load import File

Read = Callable[[tuple[Any, ...], dict[str, Any]], Iterable[File]]
"""(args, kwargs) → what the call is going to read."""

PYTORCH: Final = "pytorch"
SAFETENSORS: Final = "safetensors"

_FORMATS: Final = {
    ".safetensors": SAFETENSORS,
    **dict.fromkeys((".bin", ".pt", ".pth", ".ckpt"), PYTORCH),
    ".pt2": "pt2",
    ".gguf": "gguf",
    ".onnx": "onnx",
}
_CACHED: Final = re.compile(r"models--(?P<name>[^/\\]+)[/\\]snapshots[/\\](?P<commit>[0-9a-f]{40})(?:[/\\]|$)")
"""Path of a model's file in the cache of the Hugging Face hub."""


def format_of(path: str) -> str | None:
    """Format of a model's file by its name; None for one that is no model's."""
    return _FORMATS.get(os.path.splitext(path)[1].lower())


def hub_cache(path: str) -> tuple[str, str] | None:
    """Model and commit of a path in the cache of the Hugging Face hub; None for any other."""
    found = _CACHED.search(path) if "models--" in path else None
    return None if found is None else (found["name"].replace("--", "/", 1), found["commit"])


def stem(path: str) -> str:
    """Name of a file without its suffix."""
    return os.path.splitext(os.path.basename(path))[0]


def first(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str, at: int = 0) -> Any:
    """An argument by its place or one of its names; None where it was not given."""
    if len(args) > at:
        return args[at]
    return next((kwargs[name] for name in names if name in kwargs), None)


def on_disk(path: str, kind: str | None = None, *, mapped: bool = False) -> File | None:
    """A file that is going to be read; None where there is none."""
    try:
        size = os.stat(path).st_size
    except OSError:
        return None
    path = os.path.abspath(path)
    cached = hub_cache(path)
    return File(path, size, kind or format_of(path), mapped, True, cached[1] if cached else None)


def given(source: Any, kind: str | None = None, *, mapped: bool = False) -> File | None:
    """A path, an open file or a buffer; None where its size is not known."""
    if isinstance(source, (str, os.PathLike)):
        return on_disk(os.fsdecode(source), kind, mapped=mapped)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return File(id(source), len(source), kind, stored=False)
    if isinstance(source, io.BytesIO):
        return File(id(source), len(source.getbuffer()) - source.tell(), kind, stored=False)
    try:
        size = os.fstat(source.fileno()).st_size - source.tell()
    except (AttributeError, OSError, ValueError, TypeError):  # a file of the program's own making
        return None
    name = getattr(source, "name", None)
    return File(os.path.abspath(name) if isinstance(name, str) else id(source), size, kind) if size > 0 else None


def _those(file: File | None) -> tuple[File, ...]:
    return () if file is None else (file,)


def pickled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``torch.load(f, map_location=None, pickle_module=None, *, weights_only=None, mmap=None)``"""
    mapped = kwargs.get("mmap")
    if mapped is None:
        config: Any = sys.modules.get("torch.utils.serialization.config")
        mapped = getattr(getattr(config, "load", None), "mmap", False)
    return _those(given(first(args, kwargs, "f"), PYTORCH, mapped=bool(mapped)))


def scripted(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``torch.jit.load(f, map_location=None, ...)``"""
    return _those(given(first(args, kwargs, "f"), "torchscript"))


def exported(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``torch.export.load(f, ...)``"""
    return _those(given(first(args, kwargs, "f"), "pt2"))


def safetensors_file(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``safetensors.torch.load_file(filename, device="cpu", *, backend="mmap")``"""
    mapped = kwargs.get("backend", "mmap") == "mmap"
    return _those(given(first(args, kwargs, "filename"), SAFETENSORS, mapped=mapped))


def safetensors_bytes(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``safetensors.torch.load(data)``"""
    return _those(given(first(args, kwargs, "data"), SAFETENSORS))


def safetensors_module(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``safetensors.torch.load_model(model, filename, strict=True, device="cpu")``: copied into the model."""
    return _those(given(first(args, kwargs, "filename", at=1), SAFETENSORS))


def checkpoints(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[File]:
    """``PreTrainedModel._load_pretrained_model(..., checkpoint_files, ...)``, whose place differs between versions:
    the first list of paths. safetensors are mapped, and so are the zip files of torch."""
    lists = (value for value in (*args, *kwargs.values()) if isinstance(value, list) and value)
    for path in next((those for those in lists if all(isinstance(each, (str, PurePath)) for each in those)), ()):
        file = on_disk(os.fsdecode(path), mapped=True)
        if file is not None:
            yield file


def checkpoint(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterable[File]:
    """``accelerate.utils.modeling.load_state_dict(checkpoint_file, device_map=None)``"""
    return _those(given(first(args, kwargs, "checkpoint_file"), mapped=True))

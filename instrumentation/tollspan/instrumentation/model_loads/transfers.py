"""What comes over the network for a load: files of the Hugging Face hub, and those that ``torch.hub`` fetches.

In: the functions of the two that transfer bytes. Out: bytes by meter, added to the load that they run inside of, and
which files of a hub were there already. What is counted is the body of the answers as it came over the wire (of the
hub's newer storage, Xet, what its own client says that it received); headers, and the small answers that only describe
files, are not.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Final
from urllib.parse import urlsplit

from tollspan.instrumentation.calls import attach, get_current
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.model_loads.files import first, format_of, on_disk
from tollspan.instrumentation.model_loads.load import Load, open_load
from tollspan.instrumentation.wrapping import Patches

Original = Callable[..., Any]

_XET: Final = "xethub.hf.co"
"""Where the bytes of Xet come from, wherever the hub itself is."""

_BYTES: Final = guard("model_loads.bytes")
_FILE: Final = guard("model_loads.file")


def host_of(url: object) -> str:
    """Host that a URL leads to; empty where it names none."""
    return (urlsplit(str(url)).hostname or "").rstrip(".")


class _Inside(threading.local):
    """Answers that a transfer on this thread has had; None: there is no transfer."""

    responses: list[Any] | None = None


class Transfers:
    """Makes what stands in the place of functions that transfer files.

    Args:
        patches: those that the replacements are part of.
    """

    def __init__(self, patches: Patches) -> None:
        self._patches = patches
        self._inside = _Inside()

    def _load(self) -> Load | None:
        return open_load() if self._patches.active else None

    def streamed(self, original: Original) -> Original:
        """``http_stream_backoff(method, url, ...)``: a context manager that gives a response to be read."""

        @contextlib.contextmanager
        def counted(load: Load, opened: AbstractContextManager[Any]) -> Iterator[Any]:
            with opened as response:
                try:
                    yield response
                finally:
                    with _BYTES:
                        load.came(host_of(response.url), response.num_bytes_downloaded)

        @functools.wraps(original)
        def stream(*args: Any, **kwargs: Any) -> Any:
            load = self._load()
            opened = original(*args, **kwargs)
            return opened if load is None else counted(load, opened)

        return stream

    def written(self, original: Original) -> Original:
        """``http_get(url, temp_file, ...)`` of versions that have no ``http_stream_backoff``. It calls itself to go on
        after an error."""
        from huggingface_hub import file_download

        if hasattr(file_download, "http_stream_backoff"):
            return original

        @functools.wraps(original)
        def http_get(*args: Any, **kwargs: Any) -> Any:
            load = self._load()
            if load is None or self._inside.responses is not None:
                return original(*args, **kwargs)
            target = first(args, kwargs, "temp_file", at=1)
            before = target.tell()
            responses = self._inside.responses = []
            try:
                return original(*args, **kwargs)
            finally:
                self._inside.responses = None
                with _BYTES:
                    count = sum(response.raw.tell() for response in responses)
                    # hf_transfer leaves the answer alone, asks by itself, and writes to the file by its name.
                    count = count or os.fstat(target.fileno()).st_size - before
                    load.came(host_of(first(args, kwargs, "url")), count)

        return http_get

    def asked(self, original: Original) -> Original:
        """``_request_wrapper(method, url, *, stream=False, ...)``, by which such an ``http_get`` asks."""

        @functools.wraps(original)
        def request(*args: Any, **kwargs: Any) -> Any:
            response = original(*args, **kwargs)
            responses = self._inside.responses
            if responses is not None and kwargs.get("stream"):
                responses.append(response)
            return response

        return request

    def xet(self, original: Original) -> Original:
        """``xet_get(...)``: where its reporter told nothing, nobody knows how many bytes came."""

        @functools.wraps(original)
        def xet_get(*args: Any, **kwargs: Any) -> Any:
            load = self._load()
            before = 0 if load is None else load.transfers
            try:
                return original(*args, **kwargs)
            finally:
                if load is not None and load.transfers == before:
                    load.untold()

        return xet_get

    def reported(self, original: Original) -> Original:
        """``XetDownloadProgressReporter.__exit__``: it has been told of all bytes."""

        @functools.wraps(original)
        def leave(reporter: Any, *args: Any, **kwargs: Any) -> Any:
            load = self._load()
            if load is not None:
                with _BYTES:
                    load.came(_XET, reporter._prev_transfer_bytes_completed)
            return original(reporter, *args, **kwargs)

        return leave

    def downloaded(self, original: Original) -> Original:
        """``hf_hub_download(...)``, which returns the path of the file."""

        @functools.wraps(original)
        def hf_hub_download(*args: Any, **kwargs: Any) -> Any:
            load = self._load()
            if load is None:
                return original(*args, **kwargs)
            before = load.transfers
            path = original(*args, **kwargs)
            with _FILE:
                file = on_disk(path) if isinstance(path, str) else None
                if file is not None:
                    load.fetched(file, load.transfers != before)
            return path

        return hf_hub_download

    def mapped(self, original: Original) -> Original:
        """``hf_thread_map(function, items, ...)``: its threads are inside the load that it is inside of."""

        @functools.wraps(original)
        def thread_map(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            if self._load() is None:
                return original(function, *args, **kwargs)
            context = get_current()

            @functools.wraps(function)
            def inside(*each: Any) -> Any:
                before = get_current()
                attach(context)
                try:
                    return function(*each)
                finally:
                    attach(before)

            return original(inside, *args, **kwargs)

        return thread_map

    def fetched(self, original: Original) -> Original:
        """``torch.hub.download_url_to_file(url, dst, ...)``"""

        @functools.wraps(original)
        def download(*args: Any, **kwargs: Any) -> Any:
            load = self._load()
            if load is None:
                return original(*args, **kwargs)
            result = original(*args, **kwargs)
            with _FILE:
                # The answer has no encoding, since none was asked for.
                size = os.stat(os.path.expanduser(first(args, kwargs, "dst", at=1))).st_size
                load.came(host_of(first(args, kwargs, "url")), size)
            return result

        return download


def has_models(patterns: str | Iterable[str] | None) -> bool:
    """Whether files that match any of these patterns may be a model's."""
    if patterns is None:
        return True
    those = (patterns,) if isinstance(patterns, str) else patterns
    return any(format_of(each) is not None or each.endswith("*") for each in those)

"""What a program sees of a client, written down so that two runs of it can be compared.

In: results, streams, chunks and exceptions. Out: `Seen.lines`, plain data that is equal where the program could not
tell the two runs apart: classes, what an object is an instance of, its `repr`, `dir` and pickle; of an exception also
its arguments, causes, notes and the frames that it came through, without ours and the tests'. Addresses and numbers of
sockets are left out.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
import re
import sys
import traceback
import warnings
from collections import abc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import tollspan.instrumentation

_OURS: Final = str(Path(tollspan.instrumentation.__path__[0]).resolve())
_TESTS: Final = str(Path(__file__).resolve().parent)
_CHANGING: Final = re.compile(
    r"0x[0-9a-f]+|cancel scope [0-9a-f]+|fd=\d+|laddr=\([^)]*\)|raddr=\([^)]*\)"
    r"|Task-\d+|port=\d+|\('127\.0\.0\.1', \d+\)|\d+\.\d+ ?s(?:econds)?\b|created=\d+"
)
_ABSTRACT: Final = (
    *(abc.Iterable, abc.Iterator, abc.Generator, abc.AsyncIterable, abc.AsyncIterator, abc.AsyncGenerator),
    *(abc.Awaitable, abc.Coroutine, abc.Callable, abc.Sized, abc.Mapping, abc.Hashable),
)
_INSPECTED: Final = (inspect.isgenerator, inspect.isasyncgen, inspect.iscoroutine, inspect.isawaitable, callable)
_BEHAVIOUR: Final = (
    *("__iter__", "__next__", "__aiter__", "__anext__", "__enter__", "__exit__", "__aenter__", "__aexit__"),
    *("close", "aclose", "send", "throw", "parse", "response"),
)

_KEPT_BY_COPYING: Final = {"__slotnames__"}
_TAKEN_FROM: Final = {"__next__": "__iter__", "__anext__": "__aiter__"}
"""Streams whose iterator is another object are read by their own ``__next__`` all the same."""


def tidy(text: str) -> str:
    """A text without what differs between two runs of the same program."""
    return _CHANGING.sub("…", text)


def name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def attempt(function: Callable[..., Any], *args: Any) -> Any:
    """What a function returns, or which exception it raises."""
    try:
        return function(*args)
    except Exception as error:
        return f"{name_of(type(error))}: {tidy(str(error))}"


def pickled(value: Any) -> Any:
    return attempt(lambda: tidy(repr(pickle.loads(pickle.dumps(value)))))


def described(value: Any) -> dict[str, Any]:
    """What a program can tell of any object."""
    return {
        "class": name_of(value.__class__),
        "bases": [name_of(base) for base in value.__class__.__mro__ if isinstance(value, base)],
        "abstract": [kind.__name__ for kind in _ABSTRACT if isinstance(value, kind)],
        "inspected": [function.__name__ for function in _INSPECTED if function(value)],
        "has": [name for name in _BEHAVIOUR if hasattr(value, name)],
        "dir": sorted(set(dir(value)) - _KEPT_BY_COPYING),
        "repr": attempt(lambda: tidy(repr(value))),
        "str": attempt(lambda: tidy(str(value))),
        "truth": attempt(bool, value),
        "pickle": pickled(value),
        "copy": attempt(lambda: name_of(copy.copy(value).__class__)),
    }


def frames(error: BaseException) -> list[tuple[str, str]]:
    """File and function of the frames of an exception that are neither the tests' nor ours."""
    return [
        (Path(frame.filename).name, _TAKEN_FROM.get(frame.name, frame.name))
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((_OURS, _TESTS))
    ]


def innermost(error: BaseException) -> str:
    """File that raised an exception."""
    last: TracebackType | None = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    return "" if last is None else last.tb_frame.f_code.co_filename


def described_error(error: BaseException | None, depth: int = 0) -> Any:
    """What a program can tell of an exception, and of those behind it."""
    if error is None or depth > 9:
        return None
    assert not innermost(error).startswith(_OURS), "an exception was raised by us"
    return {
        "class": name_of(type(error)),
        "args": tidy(repr(error.args)),
        "text": tidy(str(error)),
        "attributes": sorted(vars(error)),
        "frames": frames(error),
        "notes": getattr(error, "__notes__", None),
        "pickle": pickled(error),
        "cause": described_error(error.__cause__, depth + 1),
        "context": described_error(error.__context__, depth + 1),
        "suppressed": error.__suppress_context__,
    }


class Seen:
    """What one run of a program saw.

    Attributes:
        lines: what it saw, in order.
        error: class of the exception that it met last.
    """

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []
        self.error: type[BaseException] | None = None

    def note(self, label: str, fact: Any) -> None:
        """Note plain data."""
        self.lines.append((label, fact))

    def value(self, label: str, value: Any) -> None:
        """Note a result or a chunk, which is never one of ours."""
        self.note(label, {"type": name_of(type(value)), **described(value)})

    def stream(self, label: str, stream: Any) -> None:
        """Note something that is read later. It may be stood in for, and must not look so."""
        self.note(label, described(stream))

    @contextmanager
    def failure(self, label: str = "failure") -> Iterator[None]:
        """Note an exception of the block, and swallow it."""
        try:
            yield
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.error = type(error)
            self.note(label, described_error(error))
            return
        self.note(label, None)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Note warnings, and what is raised where nobody catches it."""
        hook = sys.unraisablehook
        sys.unraisablehook = lambda raised: self.note(
            "unraisable", (name_of(raised.exc_type), tidy(str(raised.exc_value)), tidy(str(raised.object)))
        )
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                yield
                gc.collect()
            finally:
                sys.unraisablehook = hook
        # A socket that is left open is told of when the collector comes by, which is not the same moment every time.
        told = {
            (name_of(one.category), tidy(str(one.message))) for one in caught if one.category is not ResourceWarning
        }
        self.note("warnings", sorted(told))

    def in_loop(self) -> None:
        """Note what is raised in the running loop where nobody waits for it."""
        asyncio.get_running_loop().set_exception_handler(
            lambda _, raised: self.note("in the loop", (raised["message"], repr(raised.get("exception"))))
        )

"""Logs: one line a record on standard error, as text for people or JSON for programs.

In: records of `logging`, ours and those of uvicorn, grpc, clickhouse_connect and Python's warnings. Out: lines. JSON is
one object a line: ``time`` (UTC), ``level``, ``logger``, ``message``, ``fields`` (what ``extra=`` gave), ``exception``.
Passwords in URLs, bearer tokens and senders' tokens are hidden in both, wherever they stand. A message that comes again
and again is written a few times in each interval, then counted, and the count is written with the next.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import re
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from types import TracebackType
from typing import Any, Final, TextIO

from tollspan.processor.values import MASK, masked

log = logging.getLogger(__name__)

BURST: Final = 5
"""Records of one kind that are written in an interval before the rest are only counted."""
KINDS: Final = 1024
"""Kinds of records that are remembered at once; the one that was quiet longest is forgotten."""

_TOKENS: Final = re.compile(r"\b(tsp_)[A-Za-z0-9_-]{8,}|((?:[Bb]earer|[Bb]asic)\s+)[A-Za-z0-9._~+/=-]{8,}")
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class LogLevel(StrEnum):
    """What `logging` calls its levels."""

    debug = "debug"
    info = "info"
    warning = "warning"
    error = "error"
    critical = "critical"


class LogFormat(StrEnum):
    """How a record is written."""

    text = "text"
    json = "json"


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What is logged, and how.

    Attributes:
        level: least urgent messages to show.
        format: text for people, json for one object a line.
        repeat_s: interval in which a message that comes again and again is written a few times only; 0 writes all.
    """

    level: LogLevel = LogLevel.info
    format: LogFormat = LogFormat.text
    repeat_s: float = 10.0


def hidden(text: str) -> str:
    """Text without passwords and tokens."""
    return _TOKENS.sub(lambda found: (found[1] or found[2]) + MASK, masked(text) if "://" in text else text)


class TextFormatter(logging.Formatter):
    """``2026-11-21T18:00:00.123Z WARNING logger: message``, a traceback below it."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """UTC, so that lines of several machines sort together."""
        return instant(record.created)

    def format(self, record: logging.LogRecord) -> str:
        """The lines."""
        return hidden(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": instant(record.created),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": hidden(record.getMessage()),
        }
        fields = {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD}
        if fields:
            line["fields"] = fields
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = {
                "type": record.exc_info[0].__name__,
                "message": hidden(str(record.exc_info[1])),
                "stack": hidden(self.formatException(record.exc_info)),
            }
        return json.dumps(line, ensure_ascii=False)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        # JSON has no NaN.
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return hidden(str(value))


def instant(seconds: float) -> str:
    """Seconds since the epoch as an ISO instant of UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Kind:
    __slots__ = ("held", "last", "since", "written")

    def __init__(self, since: float) -> None:
        self.since = since
        self.written = self.held = 0
        self.last: logging.LogRecord | None = None


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes lines, and holds repeats back.

    Args:
        repeat_s: interval of the holding back; 0 writes all.
        stream: standard error when None.
        clock: seconds.
    """

    def __init__(
        self, repeat_s: float, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__(stream)
        self._fixed = stream is not None
        self.repeat_s = repeat_s
        self._clock = clock
        self._kinds: OrderedDict[tuple[str, int, str], _Kind] = OrderedDict()
        self._next_look = 0.0

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it. Called with the handler's lock held."""
        if not self._fixed:
            self.stream = sys.stderr  # whoever captures it may have replaced it
        if self.repeat_s <= 0:
            super().emit(record)
            return
        now = self._clock()
        if now >= self._next_look:
            self._tell(now)
        key = (record.name, record.levelno, str(record.msg))
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = _Kind(now)
            while len(self._kinds) > KINDS:
                self._say(self._kinds.popitem(last=False)[1])
        else:
            self._kinds.move_to_end(key)
        if kind.written < BURST:
            kind.written += 1
            super().emit(record)
        else:
            kind.held += 1
            kind.last = record

    def tell(self) -> None:
        """Write what is held back now."""
        self.acquire()
        try:
            self._tell(float("inf"))
        finally:
            self.release()

    def _tell(self, now: float) -> None:
        """Begin new intervals, and say what the old ones held back."""
        self._next_look = now + self.repeat_s / 4
        for key, kind in list(self._kinds.items()):
            if kind.since + self.repeat_s <= now:
                del self._kinds[key]
                self._say(kind)

    def _say(self, kind: _Kind) -> None:
        if kind.last is None:
            return
        record = kind.last
        said = logging.makeLogRecord(
            {
                **{name: value for name, value in vars(record).items() if name not in ("args", "exc_info", "exc_text")},
                "msg": record.getMessage() + (f" (and {kind.held - 1} more like it)" if kind.held > 1 else ""),
                "created": time.time(),
                "repeated": kind.held,
            }
        )
        super().emit(said)


_handler: LineHandler | None = None


def set_up(settings: LogSettings, stream: TextIO | None = None) -> LineHandler:
    """Make the root logger write as the settings say; again changes what was set before.

    Args:
        stream: standard error when None.
    """
    global _handler
    if settings.format is LogFormat.json:
        # gRPC's core writes lines of its own beside `logging`, which no reader of JSON can take.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    handler = LineHandler(settings.repeat_s, stream)
    handler.setFormatter(JsonFormatter() if settings.format is LogFormat.json else TextFormatter())
    root = logging.getLogger()
    old, _handler = _handler, handler
    if old is None:
        atexit.register(_last_words)
    root.addHandler(handler)
    if old is not None:
        old.tell()
        root.removeHandler(old)
    root.setLevel(settings.level.value.upper())
    logging.captureWarnings(True)
    # They print a traceback for every refused connection; our own line says what is wrong and what to do.
    logging.getLogger("clickhouse_connect").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.ERROR)
    # It tells of its start and its end as if it were the service.
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_thread
    return handler


def _last_words() -> None:
    if _handler is not None:
        _handler.tell()


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, traceback)
    else:
        log.critical("uncaught exception; the process ends", exc_info=(kind, error, traceback))


def _uncaught_in_thread(told: threading.ExceptHookArgs) -> None:
    if told.exc_type is not SystemExit and told.exc_value is not None:
        name = told.thread.name if told.thread is not None else "?"
        log.critical(
            "uncaught exception on thread %s", name, exc_info=(told.exc_type, told.exc_value, told.exc_traceback)
        )

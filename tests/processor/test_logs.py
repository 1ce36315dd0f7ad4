"""Logs are lines that a person or a program reads; nothing secret is in them, and nothing fills the disk."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tollspan.processor import logs
from tollspan.processor.logs import BURST, KINDS, LineHandler, LogFormat, LogLevel, LogSettings, hidden, set_up


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The root logger and the hooks are the test runner's again afterwards."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    monkeypatch.setattr(logs, "_handler", None)
    hooks = sys.excepthook, threading.excepthook
    others = {name: logging.getLogger(name).level for name in ("clickhouse_connect", "urllib3", "uvicorn.error")}
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    sys.excepthook, threading.excepthook = hooks
    for name, was in others.items():
        logging.getLogger(name).setLevel(was)


def lines(settings: LogSettings, *records: tuple[Any, ...], **fields: Any) -> list[str]:
    stream = io.StringIO()
    set_up(settings, stream)
    for level, *said in records:
        logging.getLogger("some.where").log(level, *said, **fields)
    return stream.getvalue().splitlines()


JSON = LogSettings(format=LogFormat.json, repeat_s=0)


def test_a_json_line_is_one_object_with_the_fields_that_were_given() -> None:
    (line,) = lines(JSON, (logging.WARNING, "%d of %s\nin two lines", 3, "x"), extra={"token": "b-1", "took": 0.25})
    found = json.loads(line)
    assert datetime.fromisoformat(found.pop("time")).utcoffset() is not None
    assert found == {
        "level": "warning",
        "logger": "some.where",
        "message": "3 of x\nin two lines",
        "fields": {"token": "b-1", "took": 0.25},
    }


@pytest.mark.parametrize("value", [float("nan"), float("inf"), b"\xff", object(), {"a": {1, 2}}, [None, True, 2**70]])
def test_whatever_a_field_holds_the_line_is_json(value: object) -> None:
    (line,) = lines(JSON, (logging.INFO, "x"), extra={"value": value})
    assert "NaN" not in line
    assert "Infinity" not in line
    json.loads(line)


def test_an_exception_is_in_its_own_object() -> None:
    stream = io.StringIO()
    set_up(JSON, stream)
    try:
        raise RuntimeError("clickhouse://u:hush@h/db is away")
    except RuntimeError:
        logging.getLogger("x").exception("failed")
    found = json.loads(stream.getvalue())["exception"]
    assert (found["type"], found["message"]) == ("RuntimeError", "clickhouse://u:****@h/db is away")
    assert "Traceback" in found["stack"]
    assert "hush" not in stream.getvalue()


def test_text_says_when_in_utc() -> None:
    (line,) = lines(LogSettings(), (logging.INFO, "hello"))
    assert line.endswith("Z INFO some.where: hello")
    datetime.fromisoformat(line.split()[0])


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("store clickhouse://user:pa:s@s@host:8123/db away", "store clickhouse://user:****@host:8123/db away"),
        ("authorization: Bearer abcdefgh123", "authorization: Bearer ****"),
        ("authorization: Basic dXNlcjpwYXNz", "authorization: Basic ****"),
        ("sender has tsp_0123456789abcdef", "sender has tsp_****"),
        ("a bearer of news", "a bearer of news"),
        ("http://localhost:4318/v1/traces", "http://localhost:4318/v1/traces"),
    ],
)
@pytest.mark.parametrize("format", list(LogFormat))
def test_nothing_secret_is_written(text: str, shown: str, format: LogFormat) -> None:
    assert hidden(text) == shown
    settings = LogSettings(format=format, repeat_s=0)
    (first, second) = lines(settings, (logging.INFO, text), (logging.INFO, "%s", text))
    assert shown in first
    assert shown in second
    if format is LogFormat.json:
        (line,) = lines(settings, (logging.INFO, "x"), extra={"said": text})
        assert json.loads(line)["fields"]["said"] == shown


def test_levels_hold_and_can_change_while_it_runs() -> None:
    stream = io.StringIO()
    set_up(LogSettings(level=LogLevel.error), stream)
    handlers = sum(isinstance(handler, LineHandler) for handler in logging.getLogger().handlers)
    logging.getLogger("x").warning("unheard")
    set_up(LogSettings(level=LogLevel.debug, format=LogFormat.json), stream)
    logging.getLogger("x").debug("heard")
    assert [json.loads(line)["message"] for line in stream.getvalue().splitlines()] == ["heard"]
    assert sum(isinstance(handler, LineHandler) for handler in logging.getLogger().handlers) == handlers


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def handled(clock: Clock, repeat_s: float = 10.0) -> tuple[LineHandler, io.StringIO]:
    stream = io.StringIO()
    handler = LineHandler(repeat_s, stream, clock)
    return handler, stream


def record(message: str, *values: object, level: int = logging.WARNING) -> logging.LogRecord:
    return logging.LogRecord("x", level, __file__, 1, message, values, None)


def test_repeats_are_counted_and_told_with_the_last_of_them() -> None:
    clock = Clock()
    handler, stream = handled(clock)
    for number in range(1000):
        handler.handle(record("refused %d", number))
    handler.handle(record("something else"))
    written = stream.getvalue().splitlines()
    assert written == [*(f"refused {number}" for number in range(BURST)), "something else"]
    clock.now = 10.0
    handler.handle(record("later"))
    assert stream.getvalue().splitlines()[len(written) :] == [
        f"refused 999 (and {1000 - BURST - 1} more like it)",
        "later",
    ]
    for number in range(BURST):
        handler.handle(record("refused %d", number))
    assert len(stream.getvalue().splitlines()) == len(written) + 2 + BURST, "a new interval is a new start"


def test_what_is_held_back_is_told_at_the_end() -> None:
    handler, stream = handled(Clock())
    for _ in range(BURST + 1):
        handler.handle(record("again"))
    handler.tell()
    handler.tell()
    assert stream.getvalue().splitlines() == ["again"] * (BURST + 1)


def test_a_flood_of_different_messages_is_bounded() -> None:
    handler, stream = handled(Clock())
    for number in range(3 * KINDS):
        handler.handle(record(f"unique {number}"))
    assert len(handler._kinds) == KINDS
    assert len(stream.getvalue().splitlines()) == 3 * KINDS


def test_nothing_is_held_back_where_that_is_off() -> None:
    handler, stream = handled(Clock(), 0)
    for _ in range(50):
        handler.handle(record("again"))
    assert len(stream.getvalue().splitlines()) == 50


def test_warnings_and_deaths_of_threads_are_log_lines() -> None:
    stream = io.StringIO()
    set_up(JSON, stream)
    warnings.warn("old thing", DeprecationWarning, stacklevel=1)

    def die() -> None:
        raise ValueError("oh")

    thread = threading.Thread(target=die, name="worker")
    thread.start()
    thread.join()
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert found[-1]["message"] == "uncaught exception on thread worker"
    assert found[-1]["exception"]["type"] == "ValueError"
    assert any(each["logger"] == "py.warnings" for each in found) or len(found) == 1  # the runner may keep warnings


def test_a_process_that_dies_of_an_exception_says_so_in_json() -> None:
    program = (
        "import logging, warnings\n"
        "from tollspan.processor.logs import *\n"
        "set_up(LogSettings(format=LogFormat.json))\n"
        "warnings.warn('old')\n"
        "logging.getLogger('uvicorn.error').warning('Invalid HTTP request received.')\n"
        "[logging.getLogger('x').error('again') for _ in range(9)]\n"
        "raise SystemError('the end')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    found = [json.loads(line) for line in done.stderr.splitlines()]
    assert {"py.warnings", "uvicorn.error", "x", "tollspan.processor.logs"} == {each["logger"] for each in found}
    assert found[-1]["message"] == "again (and 3 more like it)"
    assert done.returncode == 1

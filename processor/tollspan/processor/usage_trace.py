"""Usage traces: files that say when calls were made and how many tokens each used.

In: a CSV file with one row a call, in one of `FORMATS`. Out: a `UsageTrace`, checked whole before anything is done with
it. `replay` turns it into spans.
"""

from __future__ import annotations

import csv
import hashlib
import io
import re
from array import array
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Final

from tollspan.processor.errors import ConfigError

MAX_TOKENS: Final = 2**53 - 1
"""Above this a count cannot be a count of tokens; the processor would call it invalid."""

NANO: Final = 10**9
_DIGITS: Final = 9
_END_S: Final = (2**63 - 1) // NANO
_EPOCH: Final = datetime(1970, 1, 1)
_TIMESTAMP: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII
)


class TraceFormat(StrEnum):
    """Usage-trace formats that `read_usage_trace` reads."""

    azure_llm = "azure-llm"


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a format keeps what a span needs: the names of its columns."""

    time: str
    input_tokens: str
    output_tokens: str


FORMATS: Final[dict[TraceFormat, Columns]] = {
    # github.com/Azure/AzurePublicDataset, LLM inference traces 2023 and 2024. Times are UTC without saying so; a
    # request's context tokens are all of its input, generated tokens all of its output.
    TraceFormat.azure_llm: Columns("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
}


@dataclass(frozen=True, slots=True)
class UsageTrace:
    """A usage trace in memory, in the order of the file.

    Attributes:
        content: SHA-256 of the file's bytes.
        start_ns: when each call began, ns since the epoch.
        input_tokens: all input tokens of each call.
        output_tokens: all output tokens of each call.
    """

    content: bytes
    start_ns: array[int] = field(default_factory=lambda: array("q"))
    input_tokens: array[int] = field(default_factory=lambda: array("q"))
    output_tokens: array[int] = field(default_factory=lambda: array("q"))

    def __len__(self) -> int:
        return len(self.start_ns)

    @property
    def first_ns(self) -> int:
        """The earliest start; files are in order of time, but nothing here depends on it."""
        return min(self.start_ns)


def parse_instant(text: str) -> int:
    """Nanoseconds since the epoch of ``2026-11-01T00:00:00Z`` and the like; without an offset it is UTC.

    Digits below the microsecond are kept, which is why this is not `datetime.fromisoformat`.

    Raises:
        ValueError: not an instant, or one that a signed 64-bit count of nanoseconds cannot hold.
    """
    match = _TIMESTAMP.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a time such as 2026-11-01T00:00:00Z")
    fraction, offset = match[7] or "", match[8] or "Z"
    try:
        year, month, day, hour, minute, second = map(int, match.group(1, 2, 3, 4, 5, 6))
        whole = datetime(year, month, day, hour, minute, second)
    except ValueError as error:
        raise ValueError(f"{text!r} is not a time: {error}") from None
    since = whole - _EPOCH
    seconds = since.days * 86_400 + since.seconds
    if offset != "Z":
        ahead = int(offset[1:3]) * 3600 + int(offset[4:6]) * 60
        seconds -= ahead if offset[0] == "+" else -ahead
    if not 0 <= seconds < _END_S:
        raise ValueError(f"{text!r} is not between 1970 and 2262, which spans can express")
    return seconds * NANO + int(fraction.ljust(_DIGITS, "0"))


def read_usage_trace(path: Path, trace_format: TraceFormat = TraceFormat.azure_llm) -> UsageTrace:
    """Read and check a whole file; nothing is sent from a file that has a bad row.

    Raises:
        ConfigError: the file cannot be read, or a row cannot be right; the message names file, line, column and reason.
    """
    columns = FORMATS[trace_format]
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}.", "Give the path of a usage trace.") from None
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text.", f"The format {trace_format.value} is CSV.") from None

    trace = UsageTrace(hashlib.sha256(raw).digest())
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        wanted = (columns.time, columns.input_tokens, columns.output_tokens)
        missing = [name for name in wanted if name not in header]
        if missing:
            raise ConfigError(
                f"{path}:1: column {missing[0]} is missing; the header is {','.join(header)!r}.",
                f"The format {trace_format.value} has the columns {', '.join(wanted)}.",
            )
        at = [header.index(name) for name in wanted]
        blank = 0
        for row in reader:
            if not row:
                blank = blank or reader.line_num
                continue
            if blank:  # empty lines are harmless at the end, but a gap may be a row that got lost
                raise ConfigError(f"{path}:{blank}: the line is empty.", "Nothing was sent.")
            if len(row) != len(header):
                raise _bad_row(
                    path,
                    reader.line_num,
                    header[min(len(row), len(header) - 1)],
                    f"the row has {len(row)} fields and the header {len(header)}",
                )
            try:
                start = parse_instant(row[at[0]])
            except ValueError as error:
                raise _bad_row(path, reader.line_num, wanted[0], str(error)) from None
            trace.start_ns.append(start)
            trace.input_tokens.append(_tokens(path, reader.line_num, wanted[1], row[at[1]]))
            trace.output_tokens.append(_tokens(path, reader.line_num, wanted[2], row[at[2]]))
    except csv.Error as error:
        raise ConfigError(f"{path}:{reader.line_num}: {error}.", "Give an uncompressed CSV file.") from None
    if not trace:
        raise ConfigError(f"{path}: there are no rows below the header.", "There is nothing to replay.")
    return trace


def _tokens(path: Path, line: int, column: str, text: str) -> int:
    stripped = text.strip()
    if not (stripped.isascii() and stripped.isdecimal()):
        raise _bad_row(path, line, column, f"{text!r} is not a whole number of tokens")
    count = int(stripped)
    if count > MAX_TOKENS:
        raise _bad_row(path, line, column, f"{stripped} is more than 2^53 tokens")
    return count


def _bad_row(path: Path, line: int, column: str, reason: str) -> ConfigError:
    return ConfigError(f"{path}:{line}: column {column}: {reason}.", "Nothing was sent.")

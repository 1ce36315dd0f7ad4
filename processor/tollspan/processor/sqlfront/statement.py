"""What a client may ask a read-only port: statements, as ClickHouse's own parser reads them.

In: SQL text from the wire. Out: the same statement written by the engine's formatter, its kind and output format, or a
refusal. Three things keep the port read-only, and none of them puts patterns of ours to the client's text:

1. the session has ``readonly = 1``: the engine refuses writes, DDL, SYSTEM, settings and every table function that
   leaves the store;
2. the engine's parser turns the text into exactly one statement, and what runs is the formatter's text of it;
3. in that text (one line, no comments, strings in one notation) a short lexer finds what an embedded engine allows
   even so, because it takes its user for the one at the terminal: ``INTO OUTFILE``, the function ``file``, the table
   functions that look into this process or out of it, ``KILL``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

READABLE: Final = frozenset({"SELECT", "WITH", "(", "SHOW", "DESCRIBE", "EXISTS", "EXPLAIN"})
"""First words of statements that answer with rows and change nothing."""

HARMLESS: Final = READABLE | {"USE", "SET"}
"""READABLE, and what ends with its request: the engine refuses SET by itself in a read-only session."""

LOCAL_TABLE_FUNCTIONS: Final = frozenset(
    {
        "format",
        "generateRandom",
        "generateSeries",
        "generate_series",
        "merge",
        "mergeTreeIndex",
        "mergeTreeProjection",
        "null",
        "numbers",
        "numbers_mt",
        "primes",
        "SQLStandardValues",
        "values",
        "view",
        "viewExplain",
        "viewIfPermitted",
        "zeros",
        "zeros_mt",
    }
)
"""Table functions that stay inside the store. All others of the engine are refused, those of later versions too."""

_REFUSED_FUNCTION: Final = re.compile(r"file|ai[A-Z]\w*|AI[A-Z]\w*|\w*Evaluate")
"""Functions of a row that read files or call services."""

_TOKEN: Final = re.compile(
    r"""(?P<string>'(?:[^'\\]|\\.|'')*')
      | (?P<quoted>`(?:[^`\\]|\\.|``)*`|"(?:[^"\\]|\\.|"")*")
      | (?P<word>[A-Za-z_][A-Za-z_0-9]*)
      | (?P<number>\d[\w.]*)
      | (?P<space>\s+)
      | (?P<sign>.)""",
    re.VERBOSE | re.DOTALL,
)

_ESCAPES: Final = {"\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r", "\0": "\\0", "\b": "\\b", "\f": "\\f"}
_WRAPPED: Final = re.compile(r"(?:: )?In scope SELECT formatQuerySingleLine\(.*\)(?=\. \()", re.DOTALL)


class Refused(Exception):
    """An answer that is an error, as ClickHouse gives it.

    Attributes:
        code: ClickHouse's error code.
        name: its name.
    """

    def __init__(self, code: int, name: str, message: str) -> None:
        super().__init__(f"Code: {code}. DB::Exception: {message} ({name})")
        self.code, self.name = code, name


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement.

    Attributes:
        text: as the engine's formatter writes it.
        kind: its first word in capitals, or ``(``.
        format: its FORMAT clause, None if it has none.
        body: `text` without FORMAT and what follows it.
    """

    text: str
    kind: str
    format: str | None
    body: str

    @property
    def answers(self) -> bool:
        """Whether it has rows to answer with."""
        return self.kind in READABLE


def parse(handle: Any, sql: str) -> Statement:
    """Let the engine parse one statement.

    Args:
        handle: a chdb connection; it only formats, nothing is executed.
        sql: the client's text.

    Raises:
        Refused: it is empty, does not parse, or is more than one statement.
    """
    if not sql.strip():
        raise Refused(62, "SYNTAX_ERROR", "Syntax error: Empty query.")
    escaped = "".join(_ESCAPES.get(character, character) for character in sql)
    try:
        text = (
            handle.query(
                "SELECT formatQuerySingleLine({statement:String}) FORMAT RawBLOB",
                "RawBLOB",
                params={"statement": escaped},
            )
            .bytes()
            .decode()
        )
    except RuntimeError as error:
        raise from_engine(error) from None
    tokens = [(kind, value, at) for kind, value, at in _lex(text) if kind != "space"]
    kind = tokens[0][1].upper() if tokens else ""
    for index in range(len(tokens) - 1, 0, -1):
        (before, word, at), (following, name, _) = tokens[index - 1], tokens[index]
        last = index == len(tokens) - 1 or tokens[index + 1][1] == "SETTINGS"
        if last and before == "word" and word == "FORMAT" and following in ("word", "quoted"):
            return Statement(text, kind, _bare(name), text[:at].rstrip())
    return Statement(text, kind, None, text)


def outside_functions(handle: Any) -> frozenset[str]:
    """Names, in lower case, of the engine's table functions that are not in `LOCAL_TABLE_FUNCTIONS`."""
    names = handle.query("SELECT name FROM system.table_functions FORMAT TSV", "TSV").bytes().decode().split()
    return frozenset(name.lower() for name in names if name not in LOCAL_TABLE_FUNCTIONS)


def check_readable(statement: Statement, outside: frozenset[str]) -> None:
    """Refuse what ``readonly = 1`` does not.

    Args:
        statement: from `parse`.
        outside: from `outside_functions`.

    Raises:
        Refused: with the code that ClickHouse has for it.
    """
    if statement.kind not in HARMLESS:
        raise Refused(164, "READONLY", f"This port is read-only: {statement.kind} is not allowed.")
    before = ""
    tokens = [(kind, value) for kind, value, _ in _lex(statement.text) if kind != "space"]
    for index, (kind, value) in enumerate(tokens):
        following = tokens[index + 1][1] if index + 1 < len(tokens) else ""
        if kind == "word" and value == "OUTFILE" and before == "INTO":
            raise Refused(164, "READONLY", "This port is read-only: INTO OUTFILE is not allowed.")
        if kind in ("word", "quoted") and (following == "(" or before == "APPLY"):
            name = _bare(value)
            if name.lower() in outside or _REFUSED_FUNCTION.fullmatch(name):
                raise Refused(164, "READONLY", f"This port is read-only: {name} is not allowed, it leaves the store.")
        before = value.upper() if kind == "word" else value


def from_engine(error: BaseException) -> Refused:
    """A chdb error as ClickHouse's server would word it."""
    message = " ".join(str(error).split())
    start = message.find("Code: ")
    message = _WRAPPED.sub("", message[start:] if start >= 0 else message)
    code = re.search(r"Code: (\d+)", message)
    names = re.findall(r"\(([A-Z][A-Z0-9_]+)\)", message)
    refused = Refused(int(code[1]) if code else 1001, names[-1] if names else "STD_EXCEPTION", message)
    if code:
        refused.args = (message,)
    return refused


def _lex(text: str) -> Iterator[tuple[str, str, int]]:
    for match in _TOKEN.finditer(text):
        yield match.lastgroup or "", match.group(), match.start()


def _bare(name: str) -> str:
    return name[1:-1] if name[:1] in ("`", '"') else name

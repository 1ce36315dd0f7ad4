"""What a client may ask a read-only port: statements, as ClickHouse's own parser reads them.

In: SQL text from the wire. Out: the same statement written by the engine's formatter, its kind and output format, or a
refusal. Three things keep the port read-only, and none of them puts patterns of ours to the client's text:

1. the session has ``readonly = 1``: the engine refuses writes, DDL, SYSTEM, settings and every table function that
   leaves the store;
2. the engine's parser turns the text into exactly one statement, and what runs is the formatter's text of it;
3. in that text (one line, no comments, strings in one notation) a short lexer finds what an embedded engine allows
   even so, because it takes its user for the one at the terminal: ``INTO OUTFILE``, the function ``file``, the table
   functions that look into this process or out of it, ``KILL``. A function can also be handed to another one by its
   name alone, so its name is refused wherever an identifier may stand, and in the value of an ``Identifier`` parameter.

System tables that show what others ask are refused too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

READABLE: Final = frozenset({"SELECT", "WITH", "(", "SHOW", "DESCRIBE", "EXISTS", "EXPLAIN"})
"""First words of statements that answer with rows and change nothing."""

HARMLESS: Final = READABLE | {"USE", "SET"}
"""READABLE, and what ends with its request: the engine refuses SET by itself in a read-only session."""

LOCAL_TABLE_FUNCTIONS: Final = frozenset(
    {
        "generateSeries",
        "generate_series",
        "merge",
        "mergeTreeIndex",
        "mergeTreeProjection",
        "numbers",
        "numbers_mt",
        "primes",
        "SQLStandardValues",
        "view",
        "viewExplain",
        "viewIfPermitted",
        "zeros",
        "zeros_mt",
    }
)
"""Table functions that stay inside the store. All others of the engine are refused, those of later versions too.

None that takes a structure may be among them (``values``, ``generateRandom``, ``null``, ``format``): an ``ALIAS``
column there is an expression inside a string, which no parser has seen when the statement is checked.
"""

_REFUSED_FUNCTION: Final = re.compile(r"file|ai[A-Z]\w*|AI[A-Z]\w*|\w*Evaluate")
"""Functions of a row that read files or call services."""

_OTHERS_QUERIES: Final = re.compile(
    r"processes|errors|stack_trace|query_cache|asynchronous_inserts|\w*_log(?:_\d+)?", re.IGNORECASE
)
"""Tables of ``system`` with the text of other clients' queries, or that interrupt this process's threads."""

_OWN_MERGE: Final = ("(", "currentDatabase", "(", ")", ",")
"""How the arguments of ``merge`` begin; another database would be ``system``, by a pattern."""

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
class Outside:
    """What leads out of the store, names in lower case.

    Attributes:
        tables: table functions, which only a parenthesis after it makes of a name.
        functions: functions of a row, those that are user-defined among them; a name alone may be one.
    """

    tables: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()


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


def outside_functions(handle: Any) -> Outside:
    """The engine's functions that a read-only port refuses: what is neither local nor known to be harmless."""
    tables = handle.query("SELECT name FROM system.table_functions FORMAT TSV", "TSV").bytes().decode().split()
    # A user-defined function's body is expanded after our check, and may be anything.
    lines = handle.query("SELECT name, origin FROM system.functions FORMAT TSV", "TSV").bytes().decode().splitlines()
    functions = [line.split("\t") for line in lines]
    return Outside(
        frozenset(name.lower() for name in tables if name not in LOCAL_TABLE_FUNCTIONS),
        frozenset(
            name.lower() for name, origin in functions if origin != "System" or _REFUSED_FUNCTION.fullmatch(name)
        ),
    )


def check_readable(
    statement: Statement, outside: Outside, parameters: Mapping[str, str] | None = None, database: str = ""
) -> None:
    """Refuse what ``readonly = 1`` does not.

    Args:
        statement: from `parse`.
        outside: from `outside_functions`.
        parameters: of the query, by name; those of type ``Identifier`` become part of it.
        database: in which unqualified tables are.

    Raises:
        Refused: with the code that ClickHouse has for it.
    """
    if statement.kind not in HARMLESS:
        raise _read_only(f"{statement.kind} is not allowed.")
    tokens = [(kind, value) for kind, value, _ in _lex(statement.text) if kind != "space"]
    values = [value for _, value in tokens]
    in_system = database.lower() == "system"
    for index, (kind, value) in enumerate(tokens):
        if kind not in ("word", "quoted"):
            continue
        name, before, following = _bare(value), values[index - 1] if index else "", values[index + 1 : index + 6]
        if kind == "word" and value == "OUTFILE" and before == "INTO":
            raise _read_only("INTO OUTFILE is not allowed.")
        if kind == "word" and value == "PROCESSLIST" and before == "SHOW":
            raise _read_only("SHOW PROCESSLIST is not allowed.")
        if name.lower() in outside.functions:
            raise _read_only(f"{name} is not allowed, it leaves the store.")
        if following[:1] == ["("] or before.upper() == "APPLY":
            if name.lower() in outside.tables or _REFUSED_FUNCTION.fullmatch(name):
                raise _read_only(f"{name} is not allowed, it leaves the store.")
            if name == "merge" and (in_system or tuple(following) != _OWN_MERGE):
                raise _read_only("merge is allowed as merge(currentDatabase(), 'pattern').")
        if _OTHERS_QUERIES.fullmatch(name):
            owner = _bare(values[index - 2]).lower() if before == "." else ""
            # A closing brace ends a parameter, which may say `system`.
            if owner in ("system", "}") or (in_system and before != "."):
                raise _read_only(f"system.{name} is not allowed, it shows what others ask.")
    _check_identifiers(values, outside, parameters or {})


def _check_identifiers(values: list[str], outside: Outside, parameters: Mapping[str, str]) -> None:
    """Refuse what would be refused in the text, in the place of a parameter of type ``Identifier``."""
    starts = [at for at in range(len(values) - 4) if values[at] == "{" and values[at + 2] == ":"]
    names = [values[at + 1] for at in starts if values[at + 3].lower() == "identifier"]
    # SETTINGS can set a parameter too, and then the URL does not have its value.
    if names and any(value.startswith("param_") for value in map(_bare, values)):
        raise _read_only("an Identifier parameter is given in the URL.")
    for name in names:
        given = parameters.get(_bare(name), "")
        for part in re.split(r"[^\w]+", given.lower()):
            if part in outside.functions or _OTHERS_QUERIES.fullmatch(part):
                raise _read_only(f"{given[:100]} is not allowed as an identifier.")
        if "\\" in given:
            raise _read_only("a backslash is not allowed in an identifier.")


def _read_only(message: str) -> Refused:
    return Refused(164, "READONLY", f"This port is read-only: {message}")


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

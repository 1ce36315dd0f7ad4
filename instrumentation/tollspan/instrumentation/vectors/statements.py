"""Statements of SQL that ask pgvector for nearest neighbours: which they are, of which table, how many they want.

In: a statement's text and its parameters. Out: `Nearest`, or None for every other statement. Where it stands: it reads
for `tollspan.instrumentation.vectors.pgvector`. Nothing of a text leaves this module but the name of a table.

pgvector shares its operators with other types of PostgreSQL (``<->`` with geometries, cubes and full text search). A
statement counts where one of its operands can be seen to be a vector: a literal, a cast, or a parameter. Where none
can, it counts if the program uses pgvector's own package and nothing in the text is of those other types.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

__all__ = ["Nearest", "nearest"]

_OPERATOR: Final = re.compile(r"<(?:[-=#+~]|%%?)>")
_OWN: Final = frozenset({"<+>", "<~>", "<%>", "<%%>"})
"""Operators that no other type has."""

_LONGEST_KEPT: Final = 8_192
"""Characters of a statement that is remembered. A vector that is written out makes each of them another."""

_ASKS: Final = re.compile(
    r"(?:\s|/\*.*?\*/|--[^\n]*\n|\()*(?:SELECT|WITH|INSERT|UPDATE|DELETE|MERGE|COPY)\b", re.IGNORECASE | re.DOTALL
)
"""What runs now, unlike EXPLAIN, CREATE VIEW, DECLARE ..."""

_WRITTEN: Final = re.compile(r"'(?:\[\s*[-\d]|\{[\d\s.:,e+-]*\}/\d)")
"""A vector that is written out, all of it or what is not zero."""

_PLACE: Final = r"%\(\w+\)[sbt]?|%[sbt]|\$\d+"
_NAME: Final = r'(?:"[^"]+"|[a-z_][\w$]*)'
_TOKEN: Final = re.compile(
    rf"""
      (?P<literal> \be?'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | \$(?P<tag>[a-z_]*)\$.*?\$(?P=tag)\$ )
    | (?P<comment> --[^\n]* | /\*.*?\*/ )
    | \bFROM\s+(?:ONLY\s+)?(?P<table>{_NAME}(?:\s*\.\s*{_NAME})*)
    | \b(?:LIMIT|FETCH\s+(?:FIRST|NEXT))\s+(?:(?P<number>\d+)|(?P<limit>{_PLACE}))
    | (?P<operator> <(?:[-=\#+~]|%%?)> )
    | (?P<vector> (?:::|\bAS)\s*(?:"?\w+"?\.)?"?(?:vector|halfvec|sparsevec|bit)\b )
    | (?P<other> \bst_\w+\s*\( | ::\s*(?:geometry|geography|point|box|circle|polygon|cube|tsquery|text)\b
        | \bto_tsquery\b | \bphraseto_tsquery\b | \bpoint\s*\( | \bcube\s*\( )
    | (?P<place> {_PLACE} )
    | (?P<quoted> "[^"]*" )
    | (?P<open> \( )
    | (?P<close> \) )
    """,
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)


class Nearest(NamedTuple):
    """A statement that asks for nearest neighbours.

    Attributes:
        table: it looks in, as the statement names it; None where it names none.
        top_k: how many it wants; None where it does not say.
    """

    table: str | None
    top_k: int | None


class _Form(NamedTuple):
    """What the text alone tells.

    Attributes:
        table: as in `Nearest`.
        limit: a number, or a parameter by its name or position; None: there is none.
        vector: an operand is a vector; None: it cannot be seen whether one is.
    """

    table: str | None
    limit: int | str | None
    vector: bool | None


class _Group:
    """What stands between two parentheses, those within apart."""

    __slots__ = ("outer", "table")

    def __init__(self, outer: _Group | None) -> None:
        self.outer = outer
        self.table: str | None = None


def nearest(text: str, parameters: Any) -> Nearest | None:
    """Read a statement.

    Args:
        text: with parameters as ``%s``, ``%(name)s`` or ``$1``.
        parameters: a mapping or sequence; None: there are none.
    """
    if _OPERATOR.search(text) is None:  # every statement of the program passes here
        return None
    form = _kept(text) if len(text) <= _LONGEST_KEPT else _read(text)
    if form is None:
        return None
    vector = form.vector
    if vector is not True and any(map(_is_vector, _values(parameters))):
        vector = True
    if vector is None:
        vector = "pgvector" in sys.modules
    return Nearest(form.table, _number(form.limit, parameters)) if vector else None


def _read(text: str) -> _Form | None:
    if _ASKS.match(text) is None:
        return None
    group = _Group(None)
    position = 0
    asked: _Group | None = None
    operator = ""
    limit: int | str | None = None
    vector: bool | None = None
    first: str | None = None
    other = False
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        if kind == "table":
            group.table = group.table or token["table"]
            first = first or group.table
        elif kind == "operator" and (asked is None or operator not in _OWN):
            asked, operator = asked or group, token["operator"]
        elif kind == "vector" or (kind == "literal" and _WRITTEN.match(token["literal"])):
            vector = True
        elif kind == "other":
            other = True
        elif kind == "open":
            group = _Group(group)
        elif kind == "close":
            group = group.outer or group
        elif kind == "number" and asked is not None and limit is None:
            limit = int(token["number"])
        elif kind in ("limit", "place"):
            place = token[kind]
            if place.startswith("%("):
                name: str = place[2 : place.index(")")]
            elif place.startswith("$"):
                name = f"#{int(place[1:]) - 1}"
            else:
                name, position = f"#{position}", position + 1
            if kind == "limit" and asked is not None and limit is None:
                limit = name
    if asked is None:
        return None
    if vector is None:
        vector = True if operator in _OWN else False if other else None
    while asked.table is None and asked.outer is not None:
        asked = asked.outer
    table = asked.table or first  # of a query within its FROM
    return _Form(None if table is None else re.sub(r"\s*\.\s*", ".", table).replace('"', ""), limit, vector)


_kept: Final = functools.lru_cache(maxsize=256)(_read)


def _values(parameters: Any) -> Iterable[Any]:
    if isinstance(parameters, Mapping):
        return parameters.values()
    return parameters if isinstance(parameters, (list, tuple)) else ()


def _is_vector(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return bool(value[:1] == "[" and value[-1:] == "]")
    if kind is list:
        return bool(value) and type(value[0]) is float
    module: str = kind.__module__
    return module.partition(".")[0] == "pgvector" or f"{module}.{kind.__name__}" == "numpy.ndarray"


def _number(limit: int | str | None, parameters: Any) -> int | None:
    if limit is None or isinstance(limit, int):
        return limit
    found: Any = None
    if isinstance(parameters, Mapping):
        found = parameters.get(limit)
    elif limit.startswith("#") and isinstance(parameters, Sequence) and not isinstance(parameters, str):
        place = int(limit[1:])
        found = parameters[place] if place < len(parameters) else None
    return found if type(found) is int else None

"""Values of settings: what a person writes to what a dataclass's field holds, and back.

In: text (an environment variable, a flag) or YAML nodes, each with where it was given. Out: values of the field's type,
or a sentence that says what is wrong with them. `config` reads whole configurations with this.

What a field's type and name say:

    ``…_bytes: int``        a size: ``8 GiB``, ``64MiB``, ``500 kB``, ``1048576``
    ``…_s: float``          a duration: ``250ms``, ``5s``, ``1.5m``, ``1h``, ``7d``; a bare number is seconds
    ``X | None``            ``off``, ``none`` or YAML's null for None
    ``Annotated[float, Between(0, 1)]``
    ``Annotated[str, Secret()]``  never printed
    ``tuple[X, ...]``       a YAML list; elsewhere ``a,b`` or ``[a, b]``
    ``dict[str, str]``      a YAML mapping; elsewhere ``k=v,k=v`` or ``{k: v}``
    a dataclass             a YAML mapping of its fields; elsewhere ``{field: value}``
"""

from __future__ import annotations

import dataclasses
import difflib
import enum
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, Union

import yaml

SIZES: Final = {
    "": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12,
    "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40,
    "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40,
    "ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40,
}  # fmt: skip
"""Unit → bytes. Single letters are binary, as in most daemons' configuration and in Kubernetes' ``Gi``."""
TIMES: Final = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
"""Unit → seconds, with the letters that Prometheus and Go use."""
NONE: Final = frozenset({"off", "none", "null", "~"})
_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_AMOUNT: Final = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?|\.[0-9]+)\s*([A-Za-zµ]*)")
_LOGIN: Final = re.compile(r"(://[^/@:\s]*):\S*@")
MASK: Final = "****"


@dataclass(frozen=True, slots=True)
class Between:
    """Bounds of a number, both of them allowed."""

    least: float
    most: float


@dataclass(frozen=True, slots=True)
class Secret:
    """Marks a value that is never printed. Passwords in URLs are hidden without it."""


class Given(NamedTuple):
    """A value as it was written.

    Attributes:
        value: text; None for YAML's null; a list or a dict of `Given` for what YAML holds.
        where: for people: ``tollspan.yaml:4``, ``TOLLSPAN_KEEP``, ``--keep``.
        base: folder that relative paths are meant from; None: the one the process runs in.
    """

    value: str | list[Given] | dict[str, Given] | None
    where: str
    base: Path | None = None


class Problem(ValueError):
    """A value that cannot be used; ``where`` is more exact than the setting's own where it stands inside of a list."""

    def __init__(self, message: str, where: str = "") -> None:
        super().__init__(message)
        self.where = where


class Bare(NamedTuple):
    """A field's type taken apart.

    Attributes:
        type: without None and without marks.
        optional: None is allowed.
        marks: what stands in ``Annotated``.
    """

    type: Any
    optional: bool
    marks: tuple[Any, ...]


def bare(hint: Any) -> Bare:
    """Take a type apart."""
    optional, marks = False, ()
    while True:
        origin = typing.get_origin(hint)
        if origin is Annotated:
            hint, *found = typing.get_args(hint)
            marks = (*marks, *found)
        elif origin in (Union, types.UnionType):
            inside = [each for each in typing.get_args(hint) if each is not type(None)]
            if len(inside) != 1:
                raise TypeError(f"a setting's type can be X or X | None, not {hint}")
            hint, optional = inside[0], True
        else:
            return Bare(hint, optional, marks)


def nearest(word: str, known: Iterable[str]) -> str:
    """``; did you mean …?`` where something known is close, else ''."""
    known = list(known)
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not found:
        # A right last part under a wrong section, or the other way round.
        last = word.rsplit(".", 1)[-1]
        found = [each for each in known if each.rsplit(".", 1)[-1] == last][:1]
    return f"; did you mean {found[0]}?" if found else ""


# -- reading ---------------------------------------------------------------------------------------------------------


def read(hint: Any, name: str, given: Given) -> Any:
    """The value of a field.

    Args:
        hint: the field's type.
        name: the field's name, which says whether a number is a size or a duration.
        given: what was written.

    Raises:
        Problem: it cannot be read; the message begins in the middle of a sentence (``has to be …``).
    """
    kind, optional, marks = bare(hint)
    value = given.value
    if value is None or (optional and isinstance(value, str) and value.strip().lower() in NONE):
        if optional:
            return None
        raise Problem("has to have a value")
    origin = typing.get_origin(kind)
    if dataclasses.is_dataclass(kind) or origin in (tuple, list, dict, Mapping):
        return _whole(kind, origin, given)
    if not isinstance(value, str):
        raise Problem(f"has to be {describe(hint, name)}, not a {'list' if isinstance(value, list) else 'mapping'}")
    text = value.strip()
    if origin is Literal:
        return _choice(text, {str(each): each for each in typing.get_args(kind)})
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _choice(text, {str(each.value): each for each in kind})
    if kind is bool:
        if text.lower() in _TRUE | _FALSE:
            return text.lower() in _TRUE
        raise Problem("has to be true or false")
    if kind in (int, float):
        return _number(kind, name, text, marks, hint)
    if kind is Path:
        if not text:
            raise Problem("has to be a path")
        path = Path(text).expanduser()
        return path if given.base is None or path.is_absolute() else given.base / path
    if kind is str:
        return text
    raise TypeError(f"no setting can have the type {kind}")


def _choice(text: str, choices: Mapping[str, Any]) -> Any:
    for word, value in choices.items():
        if word.lower() == text.lower():
            return value
    raise Problem(f"has to be one of {', '.join(choices)}, not {text!r}{nearest(text.lower(), choices)}")


def is_size(name: str) -> bool:
    """Whether a field of this name holds bytes."""
    return name == "bytes" or name.endswith("_bytes")


def is_time(name: str) -> bool:
    """Whether a field of this name holds seconds."""
    return name.endswith("_s") and not name.endswith("_per_s")


def _number(kind: type, name: str, text: str, marks: tuple[Any, ...], hint: Any) -> int | float:
    units: Mapping[str, float] = SIZES if is_size(name) else TIMES if is_time(name) else {"": 1}
    found = _AMOUNT.fullmatch(text)
    scale = None
    if found is not None:
        unit = found[2]
        # `M` is no minute and `ms` no megasecond, so only sizes may be written in any case.
        scale = units.get(unit.lower() if units is SIZES else unit)
    if found is None or scale is None:
        raise Problem(f"has to be {describe(hint, name)}, not {text!r}")
    digits = found[1].replace("_", "")
    whole = "." not in digits and isinstance(scale, int)
    number: int | float = int(digits) * int(scale) if whole else float(digits) * scale
    if not math.isfinite(number):
        raise Problem("is too large")
    if kind is int:
        if number != int(number):
            raise Problem(f"has to be a whole number, not {text!r}")
        number = int(number)
    else:
        number = float(number)
    for mark in marks:
        if isinstance(mark, Between) and not mark.least <= number <= mark.most:
            raise Problem(f"has to be {describe(hint, name)}, not {text!r}")
    return number


def _whole(kind: Any, origin: Any, given: Given) -> Any:
    """A list, a mapping or a dataclass."""
    if isinstance(given.value, str):
        given = _unfolded(given, origin)
    arguments = typing.get_args(kind)
    if origin in (tuple, list):
        # One alone may stand without its list.
        rows = given.value if isinstance(given.value, list) else [given]
        return tuple(_inside(arguments[0], "", row, f"[{number}]") for number, row in enumerate(rows))
    if not isinstance(given.value, dict):
        raise Problem("has to be a mapping (name: value)", given.where)
    if origin is not None:
        return {key: _inside(arguments[1], "", each, f".{key}") for key, each in given.value.items()}
    hints = typing.get_type_hints(kind, include_extras=True)
    names = {setting_name(field.name, hints[field.name]): field for field in dataclasses.fields(kind)}
    values = {}
    for key, each in given.value.items():
        if key not in names:
            raise Problem(f"has no {key}{nearest(key, names) or ': it takes ' + ', '.join(names)}", each.where)
        field = names[key]
        values[field.name] = _inside(hints[field.name], field.name, each, f".{key}")
    for key, field in names.items():
        if field.name not in values and not has_default(field):
            raise Problem(f"lacks {key}", given.where)
    try:
        return kind(**values)
    except Problem:
        raise
    except ValueError as error:
        raise Problem(str(error), given.where) from error


def _inside(hint: Any, name: str, given: Given, part: str) -> Any:
    try:
        return read(hint, name, given)
    except Problem as error:
        raise Problem(f"{part} {error}", error.where or given.where) from error


def _unfolded(given: Given, origin: Any) -> Given:
    """A list or mapping that was written in one line of text."""
    assert isinstance(given.value, str)
    text = given.value.strip()
    if text[:1] not in ("[", "{"):
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if origin in (tuple, list):
            return given._replace(value=[given._replace(value=part) for part in parts])
        pairs = {}
        for part in parts:
            key, equals, value = part.partition("=")
            if not equals:
                raise Problem(f"has to be name=value, … or {{name: value}}, not {text!r}")
            pairs[key.strip()] = given._replace(value=value.strip())
        return given._replace(value=pairs)
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise Problem(f"is no YAML: {str(error).splitlines()[0]}") from error
    return from_node(node, lambda _: given.where, given.base, [])


def from_node(node: Any, where: Callable[[Any], str], base: Path | None, problems: list[str]) -> Given:
    """A YAML node as `Given`, every scalar as the text that stands there.

    Text and not YAML's own reading of it: ``off``, ``no`` and ``012`` mean what the setting's type says.

    Args:
        where: tells a node's place.
        base: see `Given`.
        problems: gets keys that are there twice, and what is no plain YAML.
    """
    place = where(node)
    if isinstance(node, yaml.ScalarNode):
        null = node.tag.endswith(":null") and node.style is None
        return Given(None if null else node.value, place, base)
    if isinstance(node, yaml.SequenceNode):
        return Given([from_node(each, where, base, problems) for each in node.value], place, base)
    found: dict[str, Given] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
            problems.append(f"{where(key)}: a key has to be plain text here")
        elif key.value in found:
            problems.append(f"{where(key)}: {key.value} is there twice, first at {found[key.value].where}")
        else:
            # Where the key stands: that is the line a reader looks for.
            found[key.value] = from_node(value, where, base, problems)._replace(where=where(key))
    return Given(found, place, base)


def setting_name(field: str, hint: Any) -> str:
    """How a field is called in a configuration: durations without their ``_s``."""
    return field[:-2] if is_time(field) and bare(hint).type in (int, float) else field


def has_default(field: dataclasses.Field[Any]) -> bool:
    """Whether a dataclass's field can be left out."""
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


# -- showing ---------------------------------------------------------------------------------------------------------


def masked(text: str) -> str:
    """Text with the passwords of URLs in it hidden."""
    return _LOGIN.sub(rf"\1:{MASK}@", text)


def show(hint: Any, name: str, value: Any) -> Any:
    """A value as YAML should say it: readable sizes and durations, secrets hidden."""
    kind, _, marks = bare(hint)
    if value is None:
        return None
    if any(isinstance(mark, Secret) for mark in marks):
        return MASK if value else ""
    origin = typing.get_origin(kind)
    if origin in (tuple, list):
        return [show(typing.get_args(kind)[0], "", each) for each in value]
    if origin in (dict, Mapping):
        return {key: show(typing.get_args(kind)[1], "", each) for key, each in value.items()}
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return {
            setting_name(field.name, hints[field.name]): show(hints[field.name], field.name, getattr(value, field.name))
            for field in dataclasses.fields(kind)
        }
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        if is_size(name):
            return show_size(int(value))
        return show_time(float(value)) if is_time(name) else value
    return masked(str(value))


def show_size(count: int) -> str:
    """Bytes in the largest unit that leaves a whole number."""
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        scale = SIZES[unit.lower()]
        if count and count % scale == 0:
            return f"{count // scale} {unit}"
    return str(count)


def show_time(seconds: float) -> str:
    """Seconds in the largest unit that leaves a whole number."""
    micros = round(seconds * 1e6)
    for unit in ("d", "h", "m", "s", "ms", "us"):
        scale = round(TIMES[unit] * 1e6)
        if micros and micros % scale == 0 and micros / 1e6 == seconds:
            return f"{micros // scale}{unit}"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def describe(hint: Any, name: str) -> str:
    """What a value has to be, for messages and lists of settings."""
    kind, optional, marks = bare(hint)
    origin = typing.get_origin(kind)
    bounds = next((mark for mark in marks if isinstance(mark, Between)), None)
    if origin is Literal:
        said = " | ".join(map(str, typing.get_args(kind)))
    elif isinstance(kind, type) and issubclass(kind, enum.Enum):
        said = " | ".join(str(each.value) for each in kind)
    elif kind is bool:
        said = "true | false"
    elif kind in (int, float) and is_size(name):
        said = "a size such as 512 MiB"
    elif kind in (int, float) and is_time(name):
        said = "a duration such as 30s"
    elif kind in (int, float):
        said = "a whole number" if kind is int else "a number"
        said += f" from {bounds.least:g} to {bounds.most:g}" if bounds else ""
    elif kind is Path:
        said = "a path"
    elif origin in (tuple, list):
        said = "a list"
    elif kind is str:
        said = "text"
    else:
        said = "a mapping"
    return f"{said}, or off" if optional else said

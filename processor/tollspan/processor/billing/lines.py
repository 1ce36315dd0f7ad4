"""Files of billing exports to lines of one shape (`LINES`).

In: CSV (also compressed) or Parquet. Out: an Arrow table. A file is taken whole or not at all: one line without a
number or a date would make the bill look smaller than it is. Amounts are read from their text and are never floats;
where Parquet has doubles (AWS does), the shortest decimal number that stands for the double is the amount.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import yaml

from tollspan.processor.billing.formats import CUR, CUR_PROVIDER, FORMATS, PROVIDERS, BillFormat, format_of, plain_name
from tollspan.processor.errors import ConfigError
from tollspan.processor.rounding import EXACT, MONEY, to_money

_NUMBER: Final = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,2})?$"
_DAY: Final = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([T ].*)?$"
_TEXTS: Final = ("category", "provider", "model", "service", "sku", "tenant", "feature", "description", "currency")

LINES: Final = pa.schema(
    [
        pa.field("bill", pa.string(), nullable=False),
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.uint64(), nullable=False),
        pa.field("day", pa.date32(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXTS),
        pa.field("cost", MONEY, nullable=False),
        pa.field("step", MONEY, nullable=False),
    ]
)
"""``billed_lines``."""


@dataclass(frozen=True, slots=True)
class Names:
    """How a bill's names are the ledger's.

    Attributes:
        providers: the bill's, in lower case → the ledger's.
        models: pattern with ``*`` → the ledger's model; the first that a line's model, SKU, description or service
            fits, whatever the case.
        tenant_tags, feature_tags: keys of tags that tell tenant and feature, in order.
    """

    providers: Mapping[str, str] = field(default_factory=dict)
    models: Mapping[str, str] = field(default_factory=dict)
    tenant_tags: tuple[str, ...] = ("tenant", "user_tenant", "user:tenant", "tollspan.tenant")
    feature_tags: tuple[str, ...] = ("feature", "user_feature", "user:feature", "tollspan.feature")


def read_names(path: Path) -> Names:
    """Names from YAML: ``providers`` and ``models`` are mappings, ``tenant_tags`` and ``feature_tags`` lists.

    Raises:
        ConfigError: it cannot be read, or has something else in it.
    """
    try:
        said = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {str(error).splitlines()[0]}.") from None
    kinds: dict[str, type] = {"providers": dict, "models": dict, "tenant_tags": list, "feature_tags": list}
    if not isinstance(said, dict) or not said.keys() <= kinds.keys():
        raise ConfigError(f"{path}: only {', '.join(kinds)} can stand in it.")
    for name, value in said.items():
        texts = [*value, *value.values()] if isinstance(value, dict) else value
        if not isinstance(value, kinds[name]) or not all(isinstance(text, str) for text in texts):
            what = "a mapping of names" if kinds[name] is dict else "a list of names"
            raise ConfigError(f"{path}: {name} has to be {what}.")
    return Names(
        {name.lower(): known for name, known in said.get("providers", {}).items()},
        said.get("models", {}),
        tuple(said["tenant_tags"]) if "tenant_tags" in said else Names().tenant_tags,
        tuple(said["feature_tags"]) if "feature_tags" in said else Names().feature_tags,
    )


def read_lines(
    path: Path, bill_format: str = "", names: Names | None = None, provider: str = "", bill: str = ""
) -> tuple[pa.Table, str]:
    """The lines of one file.

    Args:
        path: CSV (``.csv``, ``.csv.gz``, ``.csv.zst``) or Parquet.
        bill_format: one of `FORMATS`; '' to see it by the columns.
        names: how names are the ledger's.
        provider: of all lines, as the ledger names it; '' for what they say.
        bill: of all lines; '' for issuer, account and billing period of each.

    Returns:
        A table of `LINES`, ``file`` empty; and the format's name.

    Raises:
        ConfigError: it cannot be read, or a line has no amount or no day; names the line.
    """
    names = names or Names()
    table = _table(path)
    table = table.rename_columns([plain_name(name) for name in table.column_names])
    try:
        chosen = FORMATS[bill_format] if bill_format else format_of(table.column_names)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None
    missing = [name for name in chosen.needs if name not in table.column_names]
    if missing:
        raise ConfigError(f"{path} has no column {', '.join(missing)}, which a bill of format {chosen.name} has.")
    if not table.num_rows:
        raise ConfigError(f"{path} has no lines.", "A bill of nothing cannot be told from one that was cut off.")
    said = {name: _texts(table, chosen, name) for name in (*_TEXTS, "issuer", "account", "period", "day", "cost")}
    days = _days(path, said["day"])
    cost, step = _amounts(path, said["cost"])
    said["category"] = _categories(path, said["category"], chosen)
    said["provider"] = _each(said["provider"], lambda name: provider or _provider(name, chosen, names))
    said["model"] = _models(said, names)
    for name, keys in (("tenant", names.tenant_tags), ("feature", names.feature_tags)):
        tagged = _tagged(path, table, chosen, keys)
        if tagged is not None:
            said[name] = pc.if_else(pc.equal(said[name], ""), tagged, said[name])
    said["currency"] = pc.utf8_upper(said["currency"])
    period = pc.utf8_slice_codeunits(pc.if_else(pc.equal(said["period"], ""), said["day"], said["period"]), 0, 7)
    named = pc.binary_join_element_wise(
        _each(said["issuer"], lambda name: name or provider or "-"),
        _each(said["account"], lambda name: name or "-"),
        period,
        "/",
    )
    columns = {
        "bill": pa.array([bill] * table.num_rows, pa.string()) if bill else named,
        "file": pa.array([""] * table.num_rows, pa.string()),
        "line": pa.array(range(1, table.num_rows + 1), pa.uint64()),
        "day": days,
        **{name: said[name] for name in _TEXTS},
        "cost": cost,
        "step": step,
    }
    return pa.table(columns).select(LINES.names).cast(LINES), chosen.name


def _table(path: Path) -> pa.Table:
    try:
        if path.suffix.lower() == ".parquet":
            return pq.read_table(path)
        with pa.input_stream(str(path), compression="detect") as stream:
            heading = stream.read(1 << 20).split(b"\n", 1)[0].decode("utf-8-sig").strip("\r")
        columns = next(iter(_heading(heading)), [])
        if not any(columns):
            raise ConfigError(f"{path} has no heading.", "Its first line has to name the columns.")
        options = pacsv.ConvertOptions(
            column_types=dict.fromkeys(columns, pa.string()), strings_can_be_null=True, null_values=[""]
        )
        parse = pacsv.ParseOptions(newlines_in_values=True)
        with pa.input_stream(str(path), compression="detect") as stream:
            return pacsv.read_csv(stream, convert_options=options, parse_options=parse)
    except (OSError, pa.ArrowInvalid, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{path} cannot be read: {str(error).splitlines()[0]}.", "It has to be CSV or Parquet."
        ) from None


def _heading(line: str) -> Sequence[list[str]]:
    import csv

    return list(csv.reader([line]))


def _texts(table: pa.Table, chosen: BillFormat, name: str) -> pa.ChunkedArray:
    """What lines say of one thing, as texts; '' where they say nothing."""
    for column in chosen.columns.get(name, ()):
        if column in table.column_names:
            told = pc.fill_null(pc.utf8_trim_whitespace(_as_text(table[column])), "")
            return pc.if_else(pc.equal(told, ""), chosen.constant.get(name, ""), told)
    return pa.chunked_array([pa.array([chosen.constant.get(name, "")] * table.num_rows, pa.string())])


def _as_text(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type):
        # As ISO in UTC; an instant without a zone is taken for one.
        return pc.strftime(column.cast(pa.timestamp("s", "UTC"), safe=False), format="%Y-%m-%dT%H:%M:%SZ")
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.string())


def _days(path: Path, texts: pa.ChunkedArray) -> pa.ChunkedArray:
    _refuse(path, texts, pc.match_substring_regex(texts, _DAY), "is no day", "Write days as 2026-11-01.")
    try:
        return pc.utf8_slice_codeunits(texts, 0, 10).cast(pa.date32())
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}.", "Write days as 2026-11-01.") from None


def _amounts(path: Path, texts: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Costs, and the last place that each is written to."""
    _refuse(path, texts, pc.match_substring_regex(texts, _NUMBER), "is no amount", "Write amounts as 1234.56.")
    plain = pc.replace_substring_regex(texts, r"^\+", "")
    try:
        cost = to_money(plain.cast(EXACT))
    except pa.ArrowInvalid:
        raise ConfigError(
            f"{path}: an amount has more digits than money has here (26 before, 38 after the point)."
        ) from None
    # A text without an exponent shows how exact it is; another is as exact as money here.
    shown = pc.match_substring_regex(plain, "[eE]")
    after = pc.replace_substring_regex(plain, r"^[^.]*\.?", "")
    places = pc.min_element_wise(pc.if_else(shown, 12, pc.utf8_length(after)), 12)
    steps = pa.array([Decimal(1).scaleb(-place) for place in range(13)], MONEY)
    return cost, pc.take(steps, pc.cast(places, pa.int64()))


def _refuse(path: Path, texts: pa.ChunkedArray, good: pa.ChunkedArray, why: str, hint: str) -> None:
    bad = pc.index(good, value=False).as_py()
    if bad >= 0:
        more = pc.sum(pc.invert(good)).as_py() - 1
        rest = f" (and {more} more)" if more else ""
        raise ConfigError(f"{path}, line {bad + 1} below the heading: {texts[bad].as_py()!r} {why}{rest}.", hint)


def _each(texts: pa.ChunkedArray, of: Callable[[str], str]) -> pa.ChunkedArray:
    """A function over the distinct texts."""
    coded = texts.combine_chunks().dictionary_encode()
    coded = coded.combine_chunks() if isinstance(coded, pa.ChunkedArray) else coded
    told = pa.array([of(text) for text in coded.dictionary.to_pylist()], pa.string())
    return pa.chunked_array([pc.take(told, coded.indices)])


def _categories(path: Path, texts: pa.ChunkedArray, chosen: BillFormat) -> pa.ChunkedArray:
    def known(text: str) -> str:
        found = chosen.categories.get(text.lower())
        if found is None:
            raise ConfigError(
                f"{path}: {text!r} is no kind of line that {chosen.name} has.",
                f"Known are {', '.join(name for name in chosen.categories if name)}.",
            )
        return found

    return _each(texts, known)


def _provider(name: str, chosen: BillFormat, names: Names) -> str:
    lower = name.lower()
    known = names.providers.get(lower) or PROVIDERS.get(lower)
    return known or (CUR_PROVIDER if chosen is CUR else lower)


def _models(said: Mapping[str, pa.ChunkedArray], names: Names) -> pa.ChunkedArray:
    model = said["model"]
    found = pa.chunked_array([pa.array([""] * len(model), pa.string())])
    for pattern, known in names.models.items():
        exact = ".*".join(re.escape(part) for part in pattern.split("*"))
        fits = [
            pc.match_substring_regex(said[name], f"(?is)^{exact}$")
            for name in ("model", "sku", "description", "service")
        ]
        hit = pc.and_(pc.equal(found, ""), pc.or_(pc.or_(fits[0], fits[1]), pc.or_(fits[2], fits[3])))
        found = pc.if_else(hit, known, found)
    return pc.if_else(pc.equal(found, ""), model, found)


def _tagged(path: Path, table: pa.Table, chosen: BillFormat, keys: Sequence[str]) -> pa.ChunkedArray | None:
    """The first of some tags that a line has; '' where it has none. None: there is no column of tags."""
    column = next((name for name in chosen.tags if name in table.column_names), None)
    if column is None:
        return None

    def first(tags: Mapping[str, Any]) -> str:
        return next((str(tags[key]) for key in keys if tags.get(key) not in (None, "")), "")

    def parsed(text: str) -> str:
        try:
            tags = json.loads(text) if text else {}
            return first(tags if isinstance(tags, dict) else dict(tags))
        except (ValueError, TypeError):
            raise ConfigError(f"{path}: {column} {text[:80]!r} is no JSON object.") from None

    if pa.types.is_map(table[column].type):
        told = [first(dict(tags or ())) for tags in table[column].to_pylist()]
        return pa.chunked_array([pa.array(told, pa.string())])
    return _each(pc.fill_null(_as_text(table[column]), ""), parsed)

"""Pivot: from one row for each attribute to one column for each wanted key.

In: the flat attributes of `Decoded`. Out: for a list of keys in order of preference, a text column, a column of
quantities in base steps, small integers, flags or amounts of money, each of one row a span. Used by `normalize`.

Work goes by key, never by span: a key's rows are found by its code, and land at their owners by index arithmetic. Texts
are made by shape: spans that say the same texts, under a scope of the same name, have one shape, of which a batch has
few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.processor.decode import Attributes, Decoded
from tollspan.processor.decode.anyvalue import (
    BOOL,
    DOUBLE,
    EMPTY,
    INT,
    STRING,
    as_text,
    classify,
)
from tollspan.processor.decode.arrow_bytes import Mask, Rows, cut
from tollspan.processor.decode.fused import kernels, numbered_rows, placed
from tollspan.processor.decode.tables import Said
from tollspan.processor.dialects import TEXT, Source
from tollspan.processor.judged import MOST, Remembered
from tollspan.processor.rounding import EXACT, MONEY, to_money

Codes: TypeAlias = npt.NDArray[np.uint8]
Steps: TypeAlias = npt.NDArray[np.int64]

TEXT_TYPE: Final = pa.dictionary(pa.int32(), pa.string())


LARGEST_COUNT: Final = 2**53
"""Largest count of whole things: a double or a JSON number holds no more exactly."""

GOOD, NOT_A_NUMBER, FRACTIONAL, NEGATIVE, TOO_LARGE = range(5)
"""What a value is as a quantity."""

_NAMES: Final = np.zeros(256, np.bool_)
_NAMES[[STRING, BOOL, INT, DOUBLE]] = True
"""Kinds of values that can name something."""

TEXT_KEYS: Final = frozenset(key for source in TEXT.values() for key in source.keys)
"""Keys that are read as texts alone."""

_NO_ROWS: Final[Rows] = np.zeros(0, np.int64)
_DECIMAL: Final = r"^-?[0-9]+(\.[0-9]+)?$"
_INTEGER: Final = r"^-?[0-9]{1,18}$"

# Amounts of money: at most 38 decimals each, with the exponents that `_amounts` lets through.
_AMOUNT: Final = r"^([0-9]{1,15}(\.[0-9]{1,38})?|[0-9](\.[0-9]{1,25})?[eE][+-]?[0-9]{1,3})$"
_TOTAL: Final = r'"total"\s*:\s*"?(?P<total>[0-9.eE+-]+)'
_TOO_DEAR: Final = 1e15
_NOTHING: Final = 1e-13
"""Amounts below this round to zero."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """Spans by what they say: columns and arrays *by shape* have a row for each shape.

    Attributes:
        rows: the first span of each shape, int64.
        of: the shape of each of n spans, int64; None: each has its own, and what is by shape is by span.
    """

    rows: Rows
    of: Rows | None

    def spread(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """An array by span from one by shape."""
        return values if self.of is None else values.take(self.of)

    def column(self, column: Any, rows: Rows | None = None, *, null: str | None = None) -> Any:
        """A dictionary column by span from one by shape.

        Args:
            column: by shape.
            rows: of which spans, in that order; all by default.
            null: what stands where nothing is said, in the place of null.
        """
        if self.of is None and rows is None and null is None:
            return column
        of = rows if self.of is None else self.of if rows is None else self.of.take(rows)
        codes, said = codes_of(column)
        words = column.dictionary
        if null is not None and said is not None:
            words = pa.concat_arrays([words, pa.array([null], words.type)])
            codes, said = np.where(said, codes, np.int32(len(words) - 1)), None
        if of is not None:
            codes, said = codes.take(of), None if said is None else said.take(of)
        return dictionary(codes, said, words)


def codes_of(column: Any) -> tuple[npt.NDArray[np.int32], Mask | None]:
    """Numbers of a dictionary column's values (anything where it is null), and where it is not; None: nowhere."""
    indices = column.indices
    size, begin = len(indices), indices.offset
    if not size:
        return np.zeros(0, np.int32), None
    nulls, values = indices.buffers()
    codes = np.frombuffer(values, np.int32, size, 4 * begin)
    if not indices.null_count:
        return codes, None
    return codes, np.unpackbits(np.frombuffer(nulls, np.uint8), count=begin + size, bitorder="little")[begin:].view(
        np.bool_
    )


def says(column: Any, word: str) -> Mask:
    """Where a dictionary column of texts is the given one."""
    table = np.array([each == word for each in column.dictionary.to_pylist()], np.bool_)
    codes, said = codes_of(column)
    if not len(table):
        return np.zeros(len(codes), np.bool_)
    if said is None:
        return table.take(codes)
    found: Mask = table.take(np.where(said, codes, 0)) & said
    return found


def dictionary(codes: npt.NDArray[np.int32], said: Mask | None, words: Any) -> Any:
    """A dictionary column; null where nothing is ``said``, None: nowhere."""
    nulls = None if said is None else pa.py_buffer(np.packbits(said, bitorder="little"))
    codes = np.ascontiguousarray(codes, np.int32)
    indices = pa.Array.from_buffers(pa.int32(), len(codes), [nulls, pa.py_buffer(codes)])
    return pa.DictionaryArray.from_arrays(indices, words)


def nullable(values: npt.NDArray[Any], valid: Mask, type_: Any) -> Any:
    """A column of numbers or truths, null where they are not valid; Arrow's own conversion takes ten times as long.

    Args:
        values: numbers as wide as those of the type, or truths.
    """
    nulls = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    if values.dtype == np.bool_:
        values = np.packbits(values, bitorder="little")
    return pa.Array.from_buffers(type_, len(valid), [nulls, pa.py_buffer(np.ascontiguousarray(values))])


class Scopes(NamedTuple):
    """Instrumentation scopes of n spans, each name and version once.

    Attributes:
        names, versions: of each.
        of: number of each span's scope, int64.
    """

    names: list[str]
    versions: list[str]
    of: Rows


class _Rows:
    """Rows of attributes by key."""

    def __init__(self, attributes: Attributes, wanted: Callable[[Any], Mask]) -> None:
        self.attributes = attributes
        self._codes = np.flatnonzero(wanted(attributes.keys))
        self._keys: list[str] = [attributes.keys[code].as_py() for code in self._codes.tolist()]
        self.present: Set[str] = frozenset(self._keys)
        """The wanted keys that occur."""
        self._numbers: dict[str, tuple[Codes, Steps, int]] = {}
        """Kinds and contents by owner of the keys whose values are all integers, all doubles or all booleans, and which
        of these; none before `said`, and where they are not at hand."""

    @cached_property
    def _found(self) -> dict[str, list[Rows]]:
        found: dict[str, list[Rows]] = {}
        for key, rows in zip(self._keys, self.attributes.by_key(self._codes), strict=True):
            found.setdefault(key, []).append(rows)
        return found

    def said(self, columns: Sequence[Sequence[str]]) -> Said | None:
        """See `Attributes.first_said`; `only` knows then what the other keys give."""
        numbers = [place for place, key in enumerate(self._keys) if key not in TEXT_KEYS]
        keys = [self._keys[place] for place in numbers]
        if len(set(keys)) < len(keys):
            numbers, keys = [], []
        said = self.attributes.first_said(columns, self._codes[numbers])
        if said is not None:
            kinds = {1 << kind: kind for kind in (INT, DOUBLE, BOOL)}
            self._numbers = {
                key: (given, values, kinds[seen])
                for key, given, values, seen in zip(keys, said.given, said.numbers, said.kinds.tolist(), strict=True)
                if seen in kinds
            }
        return said

    def only(self, keys: Iterable[str], *kinds: int) -> tuple[Mask, Steps, int] | None:
        """The one of the keys that occurs, if its values are all of one of the given kinds: which owners have it, its
        contents (0 elsewhere), and its kind. None where it has to be looked for by rows."""
        here = [key for key in keys if key in self.present]
        found = self._numbers.get(here[0]) if len(here) == 1 else None
        if found is None or found[2] not in kinds:
            return None
        return found[0] != EMPTY, found[1], found[2]

    def candidates(self, keys: Iterable[str]) -> tuple[Rows, Rows]:
        """Owners and rows of all given keys, the preferred key last, so that writing in this order lets it win."""
        keys = tuple(keys)
        if self.present.isdisjoint(keys):
            return _NO_ROWS, _NO_ROWS
        rows = [found for key in reversed(keys) for found in self._found.get(key, ())]
        if not rows:
            return _NO_ROWS, _NO_ROWS
        joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
        return self.attributes.owners_of(joined), joined

    def encoded(self, picked: Iterable[tuple[Rows, Rows]]) -> tuple[npt.NDArray[np.int32], Any]:
        """Values at the rows of several `candidates`, one after the other, see `Attributes.encode`."""
        rows = [rows for _, rows in picked if len(rows)]
        return self.attributes.encode(np.concatenate(rows) if rows else _NO_ROWS)

    def chosen(self, keys: Iterable[str]) -> tuple[Rows, Rows]:
        """Owners that have one of the keys, each once, and the row of the most preferred."""
        owners, rows = self.candidates(keys)
        if not len(rows) or (owners[1:] > owners[:-1]).all():  # each once
            return owners, rows
        row_of = np.full(len(self.attributes.offsets) - 1, -1, np.int64)
        row_of[owners] = rows
        owners = np.flatnonzero(row_of >= 0)
        return owners, row_of[owners]


class Pivot:
    """Columns of a batch by attribute key.

    Args:
        decoded: n spans.
        wanted: which of some keys (string array) will be asked for.
    """

    def __init__(self, decoded: Decoded, wanted: Callable[[Any], Mask]) -> None:
        self.length = len(decoded)
        self._spans = _Rows(decoded.attributes, wanted)
        self._resources = _Rows(decoded.resources, wanted)
        self._resource_of = np.asarray(decoded.spans["resource"])
        self._scopes, self._scope_of = decoded.scopes, np.asarray(decoded.spans["scope"])
        self._resource_count = len(decoded.resources.offsets) - 1

    def texts(self, sources: Mapping[str, Source], *, by_span: bool = False) -> tuple[dict[str, Any], Shapes]:
        """Text columns, each ``dictionary<int32, string>`` without repeated values, null = not said; and their shapes.

        Numbers and booleans are taken as text; arrays, key-value lists, bytes and empty strings say nothing. What is
        longer than a name can be (`arrow_bytes.LONGEST_NAME`) ends in ``…``. Spans of one shape have scopes of one name
        and version.

        Args:
            sources: of the columns.
            by_span: give each span a shape of its own.
        """
        each = Shapes(np.arange(self.length), None)
        said = self._spans.said([s.keys if s.span else () for s in sources.values()])
        if said is not None:
            return self._texts(sources, said, each if by_span else None)
        # The values of all columns are made text together: the cost of a call into Arrow is paid once, not by column.
        nobody = (_NO_ROWS, _NO_ROWS)
        spans = [self._spans.candidates(s.keys) if s.span else nobody for s in sources.values()]
        resources = [self._resources.candidates(s.keys) if s.resource else nobody for s in sources.values()]
        vocabulary, codes = _vocabulary(
            [self._spans.encoded(spans), self._resources.encoded(resources)],
            [name for source in sources.values() for name in source.rename.values()],
        )
        out = {}
        at, resource_at = 0, sum(len(rows) for _, rows in spans)
        for (column, source), (owners, _), (resource_owners, _) in zip(sources.items(), spans, resources, strict=True):
            column_codes = np.full(self.length, -1, np.int32)
            edit = vocabulary.edited(source)
            if len(resource_owners):
                of_resource = np.full(self._resource_count, -1, np.int32)
                _put(of_resource, resource_owners, edit(codes[resource_at : resource_at + len(resource_owners)]))
                column_codes = of_resource[self._resource_of]
                resource_at += len(resource_owners)
            if len(owners):
                _put(column_codes, owners, edit(codes[at : at + len(owners)]))
                at += len(owners)
            out[column] = _compact(column_codes, vocabulary.words)
        return out, each

    def _texts(
        self,
        sources: Mapping[str, Source],
        found_: Said,
        shapes: Shapes | None,
    ) -> tuple[dict[str, Any], Shapes]:
        """`texts`, from what `Attributes.first_said` found."""
        nobody = (_NO_ROWS, _NO_ROWS)
        places, said, values, heads, number_of, *_ = found_
        resources = [self._resources.candidates(s.keys) if s.resource else nobody for s in sources.values()]
        vocabulary, codes = _vocabulary(
            [(np.arange(len(values), dtype=np.int32), values), self._resources.encoded(resources)],
            [name for source in sources.values() for name in source.rename.values()],
        )
        of_value, at = codes[: len(values)], len(values)
        found: dict[str, tuple[int | None, npt.NDArray[np.int32], npt.NDArray[np.int32] | None]] = {}
        for number, ((column, source), (owners, _)) in enumerate(zip(sources.items(), resources, strict=True)):
            if number not in places and not len(owners):
                continue
            edit = vocabulary.edited(source)
            of_resource = None
            if len(owners):
                of_resource = np.full(self._resource_count, -1, np.int32)
                _put(of_resource, owners, edit(codes[at : at + len(owners)]))
                at += len(owners)
            table = edit(of_value)
            if number in places and source.ignore and (table[of_value >= 0] < 0).any():
                # A value that is ignored may hide one of a key that is less preferred.
                said[:, places[number]] = self._unignored(source, values, table)[heads]
                table = np.arange(len(vocabulary), dtype=np.int32)
            found[column] = places.get(number), table, of_resource
        if shapes is None:
            origins = self._origins([of_resource for *_, of_resource in found.values() if of_resource is not None])
            if origins is None:
                shapes = Shapes(heads, number_of)
            else:
                pairs = np.column_stack([number_of.astype(np.int32), origins])
                shapes = Shapes(*numbered_rows(kernels(), pairs))
        number_of = number_of.take(shapes.rows)
        out = dict.fromkeys(sources, pa.nulls(len(shapes.rows), TEXT_TYPE))
        nothing, of_row = np.full(len(shapes.rows), -1, np.int32), self._resource_of.take(shapes.rows)
        for column, (place, table, of_resource) in found.items():
            mine = nothing if place is None else said[number_of, place]
            indices, words = placed(kernels(), mine, table, of_resource, of_row, len(vocabulary))
            if len(words):
                out[column] = pa.DictionaryArray.from_arrays(indices, vocabulary.take(words))
        return out, shapes

    def _origins(self, of_resource: list[npt.NDArray[np.int32]]) -> npt.NDArray[np.int32] | None:
        """A number for each span: alike where the scopes have one name and version, and the resources say the same.

        Args:
            of_resource: what each resource says, by column.

        Returns:
            None where all spans are alike.
        """
        resource = np.zeros(self._resource_count, np.int64)
        if of_resource and self._resource_count:
            said = np.stack(of_resource)
            if (said != said[:, :1]).any():
                _, resource = np.unique(said, axis=1, return_inverse=True)
        scopes = self.scopes
        resource = resource.reshape(-1)
        if len(scopes.names) <= 1 and not resource.any():
            return None
        pairs = resource.take(self._resource_of) * len(scopes.names) + scopes.of
        if self._resource_count * len(scopes.names) > np.iinfo(np.int32).max:
            _, pairs = np.unique(pairs, return_inverse=True)
        return pairs.astype(np.int32)

    @cached_property
    def scopes(self) -> Scopes:
        """The scopes of the spans, those of one name and version as one."""
        if len(self._scopes) <= MOST:
            return self._few_scopes()
        name, version = (self._scopes[key].dictionary_encode() for key in ("name", "version"))
        names, versions = np.asarray(name.indices), np.asarray(version.indices)
        pairs = names.astype(np.int64) * max(1, len(version.dictionary)) + versions
        _, first, number = np.unique(pairs, return_index=True, return_inverse=True)
        at = pa.array(first)
        return Scopes(
            self._scopes["name"].take(at).to_pylist(),
            self._scopes["version"].take(at).to_pylist(),
            number.reshape(-1).take(self._scope_of),
        )

    def _few_scopes(self) -> Scopes:
        pairs = list(zip(*(self._scopes[key].to_pylist() for key in ("name", "version")), strict=True))
        # In the order in which many would be numbered.
        places: tuple[dict[str, int], ...] = ({}, {})
        numbered = [
            tuple(known.setdefault(text, len(known)) for known, text in zip(places, pair, strict=True))
            for pair in pairs
        ]
        distinct = {pair: number for number, pair in enumerate(sorted(set(numbered)))}
        first = [pairs[numbered.index(pair)] for pair in distinct]
        of = np.array([distinct[pair] for pair in numbered], np.int64)
        return Scopes([name for name, _ in first], [version for _, version in first], of.take(self._scope_of))

    def _unignored(self, source: Source, values: Any, table: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Words of a column of which some values are ignored, those that `table` has none for."""
        owners, rows = self._spans.candidates(source.keys)
        codes, distinct = self._spans.attributes.encode(rows)
        number = np.asarray(pc.fill_null(pc.index_in(distinct, value_set=values), len(values)))
        out = np.full(self.length, -1, np.int32)
        _put(out, owners, np.append(table, np.int32(-1))[number[codes]])
        return out

    def quantity(self, keys: Iterable[str], scale: int) -> tuple[Steps, Mask, Codes] | None:
        """A quantity in base steps.

        Args:
            keys: attribute keys, the preferred one first.
            scale: base steps in one unit; with scale 1 only whole numbers are good. Seconds given as doubles are exact
                to the nanosecond up to 2**50 ns (13 days), and beyond that as exact as a double is.

        Returns:
            Steps (int64), whether the span gave the quantity at all, and what is wrong with what it gave (`GOOD` ...;
            steps are 0 unless good), each of length n. None when no span has any of the keys.
        """
        keys = tuple(keys)
        if self._spans.present.isdisjoint(keys):
            return None
        only = self._spans.only(keys, INT, DOUBLE)
        if only is not None:
            return self._only_quantity(*only, scale)
        owners, rows = self._spans.chosen(keys)
        if not len(rows):
            return None
        steps, codes = _steps(self._spans.attributes, rows, scale)
        values, given, wrong = self._empty(np.int64), self._empty(np.bool_), self._empty(np.uint8)
        values[owners], given[owners], wrong[owners] = steps, True, codes
        return values, given, wrong

    def _only_quantity(self, given: Mask, contents: Steps, kind: int, scale: int) -> tuple[Steps, Mask, Codes]:
        """`quantity` of values of one kind, 0 where there is none."""
        if kind == INT:
            # As unsigned numbers the negative ones are the largest.
            most = contents.view(np.uint64).max()
            if most <= (LARGEST_COUNT if scale == 1 else np.iinfo(np.int64).max // scale):
                return contents if scale == 1 else contents * scale, given, self._empty(np.uint8)
            steps, codes = _from_integers(contents, scale)
            return steps, given, codes
        values, wrong, owners = self._empty(np.int64), self._empty(np.uint8), np.flatnonzero(given)
        values[owners], wrong[owners] = _from_doubles(contents.take(owners).view(np.float64), scale)
        return values, given, wrong

    @property
    def present(self) -> Set[str]:
        """The wanted keys that some span has."""
        return self._spans.present

    def written(self, key: str) -> tuple[Rows, Any]:
        """Spans (ascending) that have ``key`` as a text, and those texts (string array)."""
        if key not in self._spans.present or self._spans.only((key,), INT, DOUBLE, BOOL) is not None:
            return _NO_ROWS, pa.array([], pa.string())
        owners, rows = self._spans.chosen((key,))
        if not len(rows):
            return owners, pa.array([], pa.string())
        texts = self._spans.attributes.kinds[rows] == STRING
        return owners[texts], self._spans.attributes.strings(rows[texts])

    def integer(self, keys: Iterable[str], kind: Any) -> Any:
        """A column of counts that take part in no price, Arrow type ``kind``; what is no such count is null."""
        found = self.quantity(keys, 1)
        if found is None:
            return pa.nulls(self.length, kind)
        values, given, wrong = found
        fits = given & (wrong == GOOD) & (values <= (1 << kind.bit_width - 1) - 1)
        return nullable(np.where(fits, values, 0).astype(kind.to_pandas_dtype(), copy=False), fits, kind)

    def flag(self, keys: Iterable[str]) -> Any:
        """A boolean column; null where the span does not say, or says it in another type."""
        keys = tuple(keys)
        if self._spans.present.isdisjoint(keys):
            return pa.nulls(self.length, pa.bool_())
        only = self._spans.only(keys, BOOL)
        if only is not None:
            return nullable(only[1] != 0, only[0], pa.bool_())
        owners, rows = self._spans.chosen(keys)
        ours = self._spans.attributes.kinds[rows] == BOOL
        if not ours.any():
            return pa.nulls(self.length, pa.bool_())
        values, given = self._empty(np.bool_), self._empty(np.bool_)
        values[owners[ours]] = self._spans.attributes.booleans(rows[ours])
        given[owners[ours]] = True
        return nullable(values, given, pa.bool_())

    def money(self, keys: Iterable[str]) -> Any:
        """A column of amounts, decimal128(38, 12), rounded half to even; null where a span gives none that can be.

        A number is taken by its shortest decimal form, a text as it stands or as JSON with a ``total``. What is
        negative, not a number or 10**15 and more is no amount.
        """
        keys = tuple(keys)
        if self._spans.present.isdisjoint(keys):
            return pa.nulls(self.length, MONEY)
        owners, rows = self._spans.chosen(keys)
        kinds = self._spans.attributes.kinds[rows]
        speaks = (kinds == DOUBLE) | (kinds == STRING) | (kinds == INT)
        owners, rows = owners[speaks], rows[speaks]
        if not len(rows):
            return pa.nulls(self.length, MONEY)
        amounts = _amounts(as_text(self._spans.attributes.take(rows), kinds[speaks]))
        place = self._empty(np.int64)
        place[owners] = np.arange(1, len(owners) + 1)
        return amounts.take(pa.array(place - 1, mask=place == 0))

    def having(self, keys: Mask) -> Mask:
        """Which spans carry any of the keys marked in a mask over ``decoded.attributes.keys``."""
        attributes = self._spans.attributes
        counts = np.concatenate((np.zeros(1, np.int64), np.cumsum(keys[attributes.codes], dtype=np.int64)))
        return counts[attributes.offsets[1:]] > counts[attributes.offsets[:-1]]

    def _empty(self, kind: Any) -> Any:
        return np.zeros(self.length, kind)


def _put(out: npt.NDArray[np.int32], owners: Rows, codes: npt.NDArray[Any]) -> None:
    said = codes >= 0
    if said.all():
        out[owners] = codes
    else:
        out[owners[said]] = codes[said]


class _Vocabulary:
    """Distinct texts.

    Args:
        words: string array.
        places: of each text in it, where there are few.
    """

    def __init__(self, words: Any, places: dict[str, int] | None) -> None:
        self.words, self._places = words, places
        self._texts = None if places is None else list(places)

    def __len__(self) -> int:
        return len(self.words)

    def take(self, rows: Rows) -> Any:
        """Some of them, string array."""
        if self._texts is None:
            return self.words.take(pa.array(rows))
        return pa.array([self._texts[row] for row in rows.tolist()], pa.string())

    def edited(self, source: Source) -> Callable[[npt.NDArray[np.int32]], npt.NDArray[np.int32]]:
        """A function that applies a source's ignored and renamed values to places here."""
        if not source.ignore and not source.rename:
            return lambda codes: codes
        table = np.append(np.arange(len(self), dtype=np.int32), np.int32(-1))
        words = [*source.ignore, *source.rename, *source.rename.values()]
        if self._places is None:
            at = np.asarray(pc.fill_null(pc.index_in(pa.array(words, pa.string()), value_set=self.words), -1))
        else:
            at = np.array([self._places.get(word, -1) for word in words], np.int64)
        ignored, renamed = len(source.ignore), len(source.rename)
        table[at[:ignored]] = -1
        table[at[ignored : ignored + renamed]] = at[ignored + renamed :]
        table[-1] = -1  # where a word that does not occur was written, and where codes of silent values point
        return lambda codes: table[codes]


def _vocabulary(
    encoded: list[tuple[npt.NDArray[np.int32], Any]], more: list[str]
) -> tuple[_Vocabulary, npt.NDArray[np.int32]]:
    """Distinct texts among values (and ``more``), and for each value its index there, -1 where it says nothing.

    Args:
        encoded: values as `Attributes.encode` gives them, in parts; what comes out is in one.
    """
    distinct = pa.concat_arrays([values for _, values in encoded])
    starts = np.cumsum([0, *(len(values) for _, values in encoded)])
    codes = np.concatenate([codes + np.int32(start) for (codes, _), start in zip(encoded, starts[:-1], strict=True)])
    if len(distinct) <= MOST:
        places: dict[str, int] = {}
        of_value = np.array(
            [places.setdefault(text, len(places)) if text else -1 for text in _AS_NAMES(distinct)], np.int32
        )
        for text in more:
            places.setdefault(text, len(places))
        return _Vocabulary(pa.array(list(places), pa.string()), places), of_value.take(codes)
    values, speaks = _names(distinct)
    words = pa.concat_arrays([values, pa.array(more, pa.string())]).dictionary_encode()
    of_word = np.asarray(words.indices)[: len(values)]
    empty = pc.index(words.dictionary, "").as_py()
    of_value = np.full(len(distinct), -1, np.int32)
    of_value[speaks] = np.where(of_word == empty, -1, of_word)
    return _Vocabulary(words.dictionary, None), of_value.take(codes)


def _names(distinct: Any) -> tuple[Any, Mask]:
    """Names of some values (as `Attributes.raw` has them), string array of those that can have one; and which can."""
    kinds = classify(distinct)
    speaks = _NAMES[kinds]
    return cut(as_text(distinct.filter(pa.array(speaks)), kinds[speaks])), speaks


def _names_or_nothing(distinct: Any) -> list[str]:
    """The name of each of some values, '' where it has none."""
    values, speaks = _names(distinct)
    found = iter(values.to_pylist())
    return [next(found) if said else "" for said in speaks.tolist()]


_AS_NAMES: Final = Remembered(_names_or_nothing)


def _compact(codes: npt.NDArray[np.int32], vocabulary: Any) -> Any:
    """A dictionary column from codes, its dictionary reduced to the words that occur."""
    used = np.zeros(len(vocabulary) + 1, np.bool_)
    used[codes] = True  # -1 is the last
    silent = used[-1]
    used[-1] = False
    words = np.flatnonzero(used)
    if not len(words):
        return pa.nulls(len(codes), TEXT_TYPE)
    place = np.cumsum(used, dtype=np.int32) - np.int32(1)
    indices = pa.array(place[codes], mask=codes < 0) if silent else pa.array(place[codes])
    return pa.DictionaryArray.from_arrays(indices, vocabulary.take(pa.array(words)))


def _amounts(written: Any) -> Any:
    """Amounts of money, decimal128(38, 12), from their texts; null where a text is none."""
    braced = pc.starts_with(written, "{")
    if pc.any(braced).as_py():
        written = pc.if_else(braced, pc.struct_field(pc.extract_regex(written, _TOTAL), "total"), written)
    written = pc.if_else(pc.match_substring_regex(written, _AMOUNT), written, None)
    size = pc.cast(written, pa.float64())
    written = pc.if_else(pc.less(size, _NOTHING), "0", pc.if_else(pc.less(size, _TOO_DEAR), written, None))
    return to_money(pc.cast(written, EXACT))


def _steps(attributes: Attributes, rows: Rows, scale: int) -> tuple[Steps, Codes]:
    """Values at ``rows`` in base steps of ``scale`` to a unit, and what each of them is as a quantity."""
    kinds = attributes.kinds[rows]
    if (kinds == INT).all():
        return _from_integers(attributes.integers(rows), scale)
    steps = np.zeros(len(rows), np.int64)
    codes = np.full(len(rows), NOT_A_NUMBER, np.uint8)
    at = np.flatnonzero(kinds == INT)
    steps[at], codes[at] = _from_integers(attributes.integers(rows[at]), scale)
    at = np.flatnonzero(kinds == DOUBLE)
    steps[at], codes[at] = _from_doubles(attributes.doubles(rows[at]), scale)
    at = np.flatnonzero(kinds == STRING)
    if len(at):
        steps[at], codes[at] = from_texts(attributes.strings(rows[at]), scale)
    return steps, codes


def from_texts(written: Any, scale: int) -> tuple[Steps, Codes]:
    """Quantities in base steps from their texts (string array), and what each is as a quantity."""
    steps = np.zeros(len(written), np.int64)
    codes = np.full(len(written), NOT_A_NUMBER, np.uint8)
    whole = np.asarray(pc.match_substring_regex(written, _INTEGER))
    other = np.asarray(pc.match_substring_regex(written, _DECIMAL)) & ~whole
    numbers = np.asarray(pc.cast(written.filter(pa.array(whole)), pa.int64()))
    steps[whole], codes[whole] = _from_integers(numbers, scale)
    fractions = np.asarray(pc.cast(written.filter(pa.array(other)), pa.float64()))
    steps[other], codes[other] = _from_doubles(fractions, scale)
    return steps, codes


def _from_integers(values: Steps, scale: int) -> tuple[Steps, Codes]:
    codes = np.zeros(len(values), np.uint8)
    codes[values > (LARGEST_COUNT if scale == 1 else np.iinfo(np.int64).max // scale)] = TOO_LARGE
    codes[values < 0] = NEGATIVE
    return np.where(codes == GOOD, values, 0) * scale, codes


def _from_doubles(values: npt.NDArray[np.float64], scale: int) -> tuple[Steps, Codes]:
    with np.errstate(invalid="ignore", over="ignore"):
        scaled = values * scale
        steps = np.rint(scaled)
        codes = np.zeros(len(values), np.uint8)
        if scale == 1:
            codes[steps != values] = FRACTIONAL
        codes[scaled > LARGEST_COUNT if scale == 1 else scaled >= 2.0**63] = TOO_LARGE
        codes[values < 0] = NEGATIVE
        codes[np.isnan(values)] = NOT_A_NUMBER
    return np.where(codes == GOOD, steps, 0).astype(np.int64), codes

"""What `decode` gives: spans of a batch as Arrow columns, and attributes as one flat table.

In: columns that either reading of the wire (`fused`, `by_ptars`) made. Out: `Decoded`, `Attributes`, `Checked`, with
what the stages behind ask of them. The two readings give the same; only where values stand differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from tollspan.processor.decode import anyvalue
from tollspan.processor.decode.anyvalue import Kinds
from tollspan.processor.decode.arrow_bytes import Bytes, Mask, Rows, row_indices

BAD_TRACE_ID: Final = "bad_trace_id"
BAD_SPAN_ID: Final = "bad_span_id"
BAD_PARENT_SPAN_ID: Final = "bad_parent_span_id"
"""Why a span is rejected: an identifier of the wrong length, or a trace or span id of zero bytes only."""

COLUMNS: Final = [
    "trace_id",
    "span_id",
    "parent_span_id",
    "trace_state",
    "name",
    "kind",
    "start_ns",
    "end_ns",
    "status_code",
    "status_message",
    "resource",
    "scope",
    "events",
    "links",
    "flags",
    "dropped_attributes",
    "dropped_events",
    "dropped_links",
]
SCOPE_COLUMNS: Final = ["name", "version", "schema_url", "dropped_attributes"]
RESOURCE_COLUMNS: Final = ["schema_url", "dropped_attributes"]


class Checked(NamedTuple):
    """What a receiver has to know of a request before it acknowledges it.

    Attributes:
        error: why it is no OTLP request and cannot be acknowledged; None when it can.
        spans: how many spans it has, rejected ones among them; 0 where ``error`` is given.
        rejected: spans that `decode` will leave out, by reason as in ``Decoded.rejected``; absent = none. A receiver
            tells their number as partial success.
    """

    error: str | None
    spans: int = 0
    rejected: dict[str, int] = {}  # noqa: RUF012  (nobody writes into it)


class Said(NamedTuple):
    """What n owners say; those that say the same, under the same keys and in the same order, share a number. And the
    numbers that they give under k other keys.

    Attributes:
        places: the columns of which some key occurs, with their places in
        said: int32, a row for each number: what is said in each of these columns, by number of the value; -1 = nothing.
        values: the distinct values, as in `Attributes.raw`.
        heads: int64, the first owner of each number.
        of: int64, n: the number of each owner.
        given: uint8 (k, n), the kind of the value of each of the keys (`anyvalue.EMPTY` = none); of several the last.
        numbers: int64 (k, n), these values: integers, bits of doubles and booleans; 0 where there is none and anything
            for other kinds.
        kinds: int64, k: the kinds that occur, as bits.
    """

    places: dict[int, int]
    said: npt.NDArray[np.int32]
    values: Any
    heads: Rows
    of: Rows
    given: npt.NDArray[np.uint8]
    numbers: npt.NDArray[np.int64]
    kinds: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Attributes:
    """Attributes of n owners (spans, resources or events), one row each, an owner's rows next to each other.

    Attributes:
        offsets: int64, length n + 1; owner i has the rows ``offsets[i]`` to ``offsets[i + 1]``.
        keys: string array, the distinct keys.
        codes: int32, length m, index of each row's key in ``keys``.
        raw: binary array, length m, values as canonical ``AnyValue`` messages (see `anyvalue`). Whoever needs some of
            them asks `take` and its neighbours, which do not make the others.
        kinds: uint8, length m, kind of each value.
    """

    offsets: npt.NDArray[np.int64]
    keys: Any
    codes: npt.NDArray[np.int32]
    raw: Any
    kinds: Kinds

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def owners(self) -> Rows:
        """Owner of each row, int64 of length m."""
        return np.repeat(np.arange(len(self.offsets) - 1, dtype=np.int64), np.diff(self.offsets))

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        return int(self.offsets.nbytes + self.keys.nbytes + self.codes.nbytes + self.raw.nbytes + self.kinds.nbytes)

    def take(self, rows: Rows) -> Any:
        """``raw`` at the given rows."""
        return self.raw.take(pa.array(rows))

    def owners_of(self, rows: Rows) -> Rows:
        """Owners of the given rows, int64."""
        return self.owners[rows]

    def by_key(self, codes: Rows) -> list[Rows]:
        """For each of some keys (distinct numbers in ``keys``) its rows that have a value, ascending, int64."""
        numbers = self.codes.astype(np.uint8) if len(self.keys) <= 256 else self.codes
        found = (np.flatnonzero(numbers == code) for code in codes)
        return [rows[self.kinds[rows] != anyvalue.EMPTY] for rows in found]

    def encode(self, rows: Rows) -> tuple[npt.NDArray[np.int32], Any]:
        """Values at ``rows`` as numbers, equal ones alike; and the distinct values, as in ``raw``, by number."""
        encoded = self.take(rows).dictionary_encode()
        return np.asarray(encoded.indices), encoded.dictionary

    def first_said(self, columns: Sequence[Sequence[str]], codes: Rows) -> Said | None:
        """For each owner and column the first of the column's keys that says something; and numbers, by key.

        Texts that are not empty, numbers and booleans say something; of two values of one key the later counts.

        Args:
            columns: keys of each column, the preferred one first.
            codes: distinct numbers in ``keys`` of those whose values are wanted as numbers; of one that a column is
                read from no kind occurs.

        Returns:
            None where the reading is no faster at it than `by_key` is.
        """
        return None

    def content(self, keys: npt.NDArray[np.uint64], most: int, constants: npt.NDArray[np.uint64]) -> Any:
        """Hashes of each owner's attributes as `tollspan.processor.recent` makes them, uint64; None: it has to itself.

        Args:
            keys: a hash of each key.
            most: bytes of a value that are looked at.
            constants: the base, what lengths are multiplied with, and what is mixed with.
        """
        return None

    def integers(self, rows: Rows) -> npt.NDArray[np.int64]:
        """Integers at ``rows``, which must be of kind ``INT``."""
        return anyvalue.integers(self.raw, rows)

    def doubles(self, rows: Rows) -> npt.NDArray[np.float64]:
        """Doubles at ``rows``, which must be of kind ``DOUBLE``."""
        return anyvalue.doubles(self.raw, rows)

    def booleans(self, rows: Rows) -> Mask:
        """Booleans at ``rows``, which must be of kind ``BOOL``."""
        return anyvalue.booleans(self.raw, rows)

    def strings(self, rows: Rows) -> Any:
        """Text at ``rows``, which must be of kind ``STRING``: a string array, bad UTF-8 replaced by U+FFFD."""
        return anyvalue.strings(self.raw, rows)

    def texts(self) -> Any:
        """Every value as text, see `anyvalue.as_text`."""
        return anyvalue.as_text(self.raw, self.kinds)

    def select(self, owners: Rows) -> Attributes:
        """A copy for the given owners (int64, in that order; repeats allowed), with no key that none of them has."""
        rows, offsets = row_indices(self.offsets, owners)
        codes = self.codes[rows]
        keys = self.keys
        used = np.zeros(len(keys), np.bool_)
        used[codes] = True
        if not used.all():
            codes = (np.cumsum(used, dtype=np.int32) - 1)[codes]
            keys = keys.filter(pa.array(used))
        return Attributes(offsets, keys, codes, self.take(rows), self.kinds[rows])

    def maps(self) -> Any:
        """``map<string, string>`` of length n, values as `anyvalue.as_text` writes them."""
        return pa.MapArray.from_arrays(
            pa.array(self.offsets.astype(np.int32)), self.keys.take(pa.array(self.codes)), self.texts()
        )


class Stored(Protocol):
    """Bytes of a batch that are somewhere else, its payloads one behind the other."""

    @property
    def nbytes(self) -> int:
        """Memory that they take."""

    def read(self, starts: Rows, sizes: Rows) -> tuple[Bytes, Rows]:
        """Stretches of them: bytes, read-only, and where in these each stretch begins; eight bytes follow the last.

        Raises:
            OSError: they are not to be had.
        """


class Waiting(Protocol):
    """Spans that wait for a decision, in as little memory as they need."""

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""

    def select(self, rows: Rows) -> Decoded:
        """The given spans (int64, in that order; repeats allowed), as `Decoded.select` gives them."""

    def messages(self) -> Any:
        """The spans as they came, in protobuf form without their trace states: binary array; None where they have to
        be written anew."""

    def some(self, rows: Rows) -> Waiting:
        """The given spans, which go on waiting, in memory of their own."""

    def resting(self, stored: Stored) -> Waiting:
        """The same spans with their bytes in another place, if they are the same there.

        Args:
            stored: the payloads that they were decoded from.
        """


@dataclass(frozen=True, slots=True)
class Decoded:
    """Spans of a batch.

    Attributes:
        spans: n rows: ``trace_id`` fixed_size_binary(16); ``span_id``, ``parent_span_id`` fixed_size_binary(8) (parent:
            zero bytes when there is none); ``trace_state``, ``name``, ``status_message`` string; ``kind``,
            ``status_code`` int32; ``start_ns``, ``end_ns`` uint64, ns since the epoch as sent; ``resource``, ``scope``
            int32, row in the tables below; ``events``, ``links`` list<binary>, each an undecoded message; ``flags``,
            ``dropped_attributes``, ``dropped_events``, ``dropped_links`` uint32. No nulls.
        attributes: of the spans.
        resources: attributes of the resources.
        scopes: ``name``, ``version``, ``schema_url`` (string) and ``dropped_attributes`` (uint32) of the
            instrumentation scopes.
        scope_attributes: attributes of the scopes.
        resource_facts: ``schema_url`` (string) and ``dropped_attributes`` (uint32) of the resources.
        rejected: spans left out, by reason; absent = none.
        malformed: indices of the payloads that are not OTLP, ascending; nothing of these is here.
        wire: the same spans in less memory, where the reading has them, but for their trace states; None: there is
            nothing smaller.
    """

    spans: Any
    attributes: Attributes
    resources: Attributes
    scopes: Any
    scope_attributes: Attributes
    resource_facts: Any
    rejected: dict[str, int] = field(default_factory=dict)
    malformed: list[int] = field(default_factory=list)
    wire: Waiting | None = None

    def __len__(self) -> int:
        return int(self.spans.num_rows)

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes of what is held here."""
        tables = (self.spans, self.scopes, self.resource_facts)
        return sum(map(_nbytes, (*tables, self.attributes, self.resources, self.scope_attributes)))

    def waiting(self, stored: Stored | None = None) -> Waiting:
        """These spans for later: in wire form where that is at hand.

        Args:
            stored: the payloads that they were decoded from; what waits in wire form is then not in memory.
        """
        if self.wire is None:
            return self
        return self.wire if stored is None else self.wire.resting(stored)

    def resting(self, stored: Stored) -> Waiting:
        """See `Waiting`."""
        return self

    def some(self, rows: Rows) -> Waiting:
        """See `Waiting`."""
        return self.select(rows)

    def messages(self) -> Any:
        """See `Waiting`."""
        return None if self.wire is None or self.wire is self else self.wire.messages()

    def select(self, rows: Rows) -> Decoded:
        """The given spans (int64, in that order) with their own memory, so that the batch's can be freed."""
        spans = self.spans.take(pa.array(rows))
        resources, resource = np.unique(np.asarray(spans["resource"]), return_inverse=True)
        scopes, scope = np.unique(np.asarray(spans["scope"]), return_inverse=True)
        spans = with_columns(
            spans, resource=pa.array(resource.astype(np.int32)), scope=pa.array(scope.astype(np.int32))
        )
        return Decoded(
            spans,
            self.attributes.select(rows),
            self.resources.select(resources.astype(np.int64)),
            self.scopes.take(pa.array(scopes)),
            self.scope_attributes.select(scopes.astype(np.int64)),
            self.resource_facts.take(pa.array(resources)),
        )


def with_columns(batch: Any, **replaced: Any) -> Any:
    """A record batch with some of its columns replaced."""
    return pa.RecordBatch.from_arrays(
        [replaced.get(name, column) for name, column in zip(batch.schema.names, batch.columns, strict=True)],
        names=batch.schema.names,
    )


def attributes_together(parts: Sequence[Attributes]) -> Attributes:
    """Attributes of the owners of the first part, then of the next; at least one part."""
    if len(parts) == 1:
        return parts[0]
    keys = pa.concat_arrays([each.keys for each in parts]).dictionary_encode()
    place, counts = np.asarray(keys.indices), np.cumsum([0, *(len(each.keys) for each in parts)])
    ends = np.cumsum([0, *(len(each) for each in parts)])
    return Attributes(
        np.concatenate([[0], *(each.offsets[1:] + end for each, end in zip(parts, ends[:-1], strict=True))]),
        keys.dictionary,
        np.concatenate([place[each.codes + start] for each, start in zip(parts, counts[:-1], strict=True)]),
        pa.concat_arrays([each.raw for each in parts]),
        np.concatenate([each.kinds for each in parts]),
    )


def rows_together(batches: Sequence[Any]) -> Any:
    """Record batches of the same columns, at least one, in one."""
    if len(batches) == 1:
        return batches[0]
    columns = zip(*(each.columns for each in batches), strict=True)
    return pa.RecordBatch.from_arrays([pa.concat_arrays(each) for each in columns], names=batches[0].schema.names)


def _nbytes(part: Any) -> int:
    return int(part.nbytes)

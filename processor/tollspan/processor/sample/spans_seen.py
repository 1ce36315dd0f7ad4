"""What a policy sees of a batch that arrives: canonical columns and attributes, asked by their distinct values.

In: `types.Arrived`. Out: masks over its spans for conditions (`conditions`), and columns of `Signs`. Texts are compared
once for each distinct value of a batch, and found again by their codes; of an attribute that no span has nothing is
looked at but its name.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.attributes import REQUEST_FINGERPRINT, SAMPLING_KEEP
from tollspan.processor.charge import plain
from tollspan.processor.decode import Attributes
from tollspan.processor.decode.anyvalue import BOOL, DOUBLE, INT, STRING, as_text, classify
from tollspan.processor.decode.arrow_bytes import layout
from tollspan.processor.identity import U64, Mask, Rows, trace_keys
from tollspan.processor.sample.matchers import PRESENT, Matcher
from tollspan.processor.sample.types import Arrived

VERSION: Final = "service.version"
"""Resource attribute that a version is."""

ROUTE: Final = " | "
"""Between service and name of a root span, in the name of a route."""

LARGEST_COST: Final = np.iinfo(np.int64).max
"""Pico-dollars that a cost is cut at where it is compared, 9.2 million USD; the ledger's are not."""

_MOST_KEYS: Final = 200_000

_keys: dict[str, int] = {}


def key_of(text: str) -> int:
    """64-bit key of a text, the same everywhere and always; 0 for ''."""
    if not text:
        return 0
    found = _keys.get(text)
    if found is None:
        if len(_keys) >= _MOST_KEYS:
            _keys.clear()
        digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        found = _keys[text] = int.from_bytes(digest, "big") or 1
    return found


def keys_of(texts: Iterable[str | None]) -> U64:
    """`key_of` each; 0 for None."""
    return np.array([key_of(text or "") for text in texts], np.uint64)


class Seen:
    """A batch of n spans.

    Args:
        arrived: the batch.
        wanted: names of attributes that will be asked for, of spans and of resources.
    """

    def __init__(self, arrived: Arrived, wanted: tuple[frozenset[str], frozenset[str]]) -> None:
        self.arrived = arrived
        self._decoded, self._table = arrived.decoded, arrived.normalized.columns
        self._wanted = wanted
        self._coded: dict[str, tuple[npt.NDArray[np.int32], Any]] = {}
        self._values: dict[tuple[str, bool], tuple[npt.NDArray[np.int32], Any]] = {}

    def __len__(self) -> int:
        return len(self.arrived)

    # -- conditions ----------------------------------------------------------------------------------------------------

    @property
    def root(self) -> Mask:
        """Spans without a parent."""
        return self.arrived.who.root

    def text(self, column: str, matcher: Matcher) -> Mask:
        """Spans whose canonical column, or name, matches."""
        codes, words = self._codes(column)
        return np.append(matcher.texts(words), False).take(codes)

    def one_of(self, column: str, values: frozenset[str]) -> Mask:
        """Spans whose dictionary column is one of some values."""
        codes, words = self._codes(column)
        return np.append(np.array([word in values for word in words.to_pylist()], np.bool_), False).take(codes)

    def flag(self, column: str) -> Mask:
        """Spans whose boolean column is true."""
        values = plain(self._table[column])
        if values.null_count == len(values):
            return np.zeros(len(self), np.bool_)
        return np.asarray(pc.fill_null(values, False))

    def http_status(self, ranges: tuple[tuple[int, int], ...]) -> Mask:
        """Spans with an HTTP status in one of the ranges."""
        column = plain(self._table["http_status"])
        found = np.zeros(len(self), np.bool_)
        if column.null_count == len(column):
            return found
        values = np.asarray(pc.fill_null(column, -1))
        for low, high in ranges:
            found |= (values >= low) & (values <= high)
        return found

    def cost_status(self, values: frozenset[str]) -> Mask:
        """Spans whose row in the ledger has one of some statuses."""
        found = np.zeros(len(self), np.bool_)
        charged = self.arrived.charged
        found[charged.rows] = np.asarray(
            pc.is_in(_text(plain(charged.ledger["cost_status"])), pa.array(sorted(values), pa.string()))
        )
        return found

    def asked(self, keep: bool) -> Mask:
        """Spans on which the program asked that their trace be kept, or dropped."""
        found = np.zeros(len(self), np.bool_)
        rows = self._rows[0].get(SAMPLING_KEEP)
        if rows is not None:
            attributes = self._decoded.attributes
            rows = rows[attributes.kinds[rows] == BOOL]
            if len(rows):
                said = attributes.booleans(rows) == keep
                found[attributes.owners_of(rows[said])] = True
        return found

    def attribute(self, key: str, resource: bool, matcher: Matcher) -> Mask:
        """Spans whose attribute, or whose resource's, matches."""
        attributes = self._decoded.resources if resource else self._decoded.attributes
        found = np.zeros(len(attributes.offsets) - 1, np.bool_)
        rows = self._rows[resource].get(key)
        if rows is not None and len(rows):
            if matcher.numeric:
                rows = rows[matcher.numbers(_numbers(attributes, rows))]
            elif matcher is not PRESENT:
                codes, texts = self._encoded(attributes, key, resource, rows)
                rows = rows[matcher.texts(texts).take(codes)]
            found[attributes.owners_of(rows)] = True
        return found[np.asarray(self._decoded.spans["resource"])] if resource else found

    # -- signs ---------------------------------------------------------------------------------------------------------

    @property
    def start(self) -> npt.NDArray[np.int64]:
        """Ns since the epoch."""
        return np.asarray(self._table["start_ns"])

    @property
    def end(self) -> npt.NDArray[np.int64]:
        """Ns since the epoch."""
        return np.asarray(self._table["end_ns"])

    @cached_property
    def known_cost(self) -> Mask:
        """Spans whose cost the ledger knows."""
        found = np.zeros(len(self), np.bool_)
        charged = self.arrived.charged
        found[charged.rows] = np.asarray(pc.is_valid(plain(charged.ledger["cost"])))
        return found

    @cached_property
    def cost(self) -> npt.NDArray[np.int64]:
        """Pico-dollars, 0 where there is no cost."""
        found = np.zeros(len(self), np.int64)
        charged = self.arrived.charged
        found[charged.rows] = picos(plain(charged.ledger["cost"]))
        return found

    @cached_property
    def calls(self) -> Mask:
        """Model calls that are billed as such: no roll-ups."""
        found = self.one_of("kind", frozenset({"inference"}))
        return found & ~self.cost_status(frozenset({"rollup"}))

    @cached_property
    def tokens(self) -> npt.NDArray[np.int32]:
        """Input tokens of a call, -1 where it tells none and of spans that are no calls; cut at the largest int32."""
        found = np.full(len(self), -1, np.int64)
        for meter, values in self.arrived.normalized.quantities.items():
            if meter.startswith("tokens.input."):
                column = plain(values)
                given = np.asarray(pc.is_valid(column))
                found[given & (found < 0)] = 0
                found += np.asarray(pc.fill_null(column, 0))
        found[~self.calls] = -1
        return np.minimum(found, 2**31 - 1).astype(np.int32)

    @property
    def retries(self) -> npt.NDArray[np.int32]:
        """Attempts made again inside the call, 0 where it does not tell."""
        column = plain(self._table["retries"])
        found: npt.NDArray[np.int32] = np.maximum(np.asarray(pc.fill_null(column, 0)), 0).astype(np.int32)
        return found

    @property
    def request(self) -> U64:
        """Key of the request's fingerprint, 0 where there is none."""
        found = np.zeros(len(self), np.uint64)
        rows = self._rows[0].get(REQUEST_FINGERPRINT)
        if rows is not None and len(rows):
            attributes = self._decoded.attributes
            rows = rows[attributes.kinds[rows] == STRING]
            # A fingerprint is a keyed hash: half of its digits are enough.
            found[attributes.owners_of(rows)] = _first_bytes(attributes.strings(rows))
        return found

    def keys(self, dimension: str) -> tuple[U64, Callable[[], dict[int, str]]]:
        """Keys of a dimension by span, 0 where it is not said; and a function that tells what the keys are called."""
        if dimension == "route":
            codes, words = self._routes
        elif dimension == "version":
            rows = self._rows[1].get(VERSION)
            attributes = self._decoded.resources
            codes, words = np.zeros(0, np.int32), pa.array([], pa.string())
            of_resource = np.full(len(attributes.offsets) - 1, 0, np.int32)
            if rows is not None and len(rows):
                codes, words = self._encoded(attributes, VERSION, True, rows)
                of_resource[:] = len(words)
                of_resource[attributes.owners_of(rows)] = codes
            codes = of_resource[np.asarray(self._decoded.spans["resource"])]
        else:
            codes, words = self._codes(dimension)
            if dimension == "model":
                codes, words = self._models(codes, words)
        texts = words.to_pylist()
        keys = np.append(keys_of(texts), np.uint64(0))
        return keys.take(codes), lambda: {key_of(text): text for text in texts if text}

    # -- how -----------------------------------------------------------------------------------------------------------

    def _models(self, codes: npt.NDArray[np.int32], words: Any) -> tuple[npt.NDArray[np.int32], Any]:
        """The model that answered, or else the one that was asked for: as the queries on the ledger say it."""
        silent = codes == len(words)
        asked, names = self._codes("request_model")
        if not silent.any() or not len(names):
            return codes, words
        both = pa.concat_arrays([words, names])
        # Null of the second stands behind both.
        shifted = np.where(asked == len(names), len(both), asked + len(words)).astype(np.int32)
        return np.where(silent, shifted, codes), both

    @cached_property
    def _routes(self) -> tuple[npt.NDArray[np.int32], Any]:
        roots = np.flatnonzero(self.root)
        out = np.zeros(len(self), np.int32)
        if not len(roots):
            return out, pa.array([], pa.string())
        at = pa.array(roots)
        services = _text(pc.fill_null(_text(plain(self._table["service"]).take(at)), ""))
        names = pc.fill_null(_text(plain(self._table["name"]).take(at)), "")
        routes = pc.binary_join_element_wise(services, names, ROUTE).dictionary_encode()
        out[:] = len(routes.dictionary)
        out[roots] = np.asarray(routes.indices)
        return out, routes.dictionary

    def _codes(self, column: str) -> tuple[npt.NDArray[np.int32], Any]:
        """Numbers of a column's values among its distinct ones, null behind the last."""
        known = self._coded.get(column)
        if known is None:
            values = plain(self._table[column])
            if not pa.types.is_dictionary(values.type):
                values = values.dictionary_encode()
            words = values.dictionary.cast(pa.string())
            codes = np.asarray(values.indices.fill_null(len(words)) if values.null_count else values.indices)
            known = self._coded[column] = (codes.astype(np.int32, copy=False), words)
        return known

    @cached_property
    def _rows(self) -> tuple[dict[str, Rows], dict[str, Rows]]:
        """Rows of the wanted attributes that occur, of spans and of resources."""
        return (
            _rows(self._decoded.attributes, self._wanted[0]),
            _rows(self._decoded.resources, self._wanted[1]),
        )

    def _encoded(
        self, attributes: Attributes, key: str, resource: bool, rows: Rows
    ) -> tuple[npt.NDArray[np.int32], Any]:
        """Numbers of an attribute's values at its rows, and the distinct ones as text."""
        known = self._values.get((key, resource))
        if known is None:
            codes, distinct = attributes.encode(rows)
            known = self._values[key, resource] = (codes, as_text(distinct, classify(distinct)))
        return known


def picos(costs: Any) -> npt.NDArray[np.int64]:
    """Costs (decimal128(38, 12)) as whole pico-dollars, 0 for null, cut at `LARGEST_COST`."""
    if not len(costs):
        return np.zeros(0, np.int64)
    raw = np.frombuffer(costs.buffers()[1], np.int64, 2 * len(costs), costs.offset * 16).reshape(-1, 2)
    low, high = raw[:, 0], raw[:, 1]
    values = np.where(high == (low >> 63), low, np.where(high < 0, -LARGEST_COST, LARGEST_COST))
    if costs.null_count:
        values = np.where(np.asarray(pc.is_valid(costs)), values, 0)
    return values


def _rows(attributes: Attributes, wanted: frozenset[str]) -> dict[str, Rows]:
    if not wanted:
        return {}
    names = pa.array(sorted(wanted), pa.string())
    codes = np.flatnonzero(np.asarray(pc.is_in(attributes.keys, value_set=names)))
    if not len(codes):
        return {}
    found = attributes.by_key(codes)
    return dict(zip(attributes.keys.take(pa.array(codes)).to_pylist(), found, strict=True))


def _numbers(attributes: Attributes, rows: Rows) -> npt.NDArray[np.float64]:
    """Numbers at rows; what is none is NaN."""
    out = np.full(len(rows), np.nan)
    kinds = attributes.kinds[rows]
    whole, double = kinds == INT, kinds == DOUBLE
    out[whole] = attributes.integers(rows[whole])
    out[double] = attributes.doubles(rows[double])
    return out


def _first_bytes(texts: Any) -> U64:
    """A key of the first sixteen bytes of each text."""
    offsets, data = layout(texts)
    if not len(texts):
        return np.zeros(0, np.uint64)
    at = offsets[:-1, None].astype(np.int64) + np.arange(16)
    raw = np.where(at < offsets[1:, None], data.take(at, mode="clip"), 0).astype(np.uint8)
    halves = np.ascontiguousarray(raw).view(">u8").astype(np.uint64)
    keys = trace_keys(halves, np.uint64(1))
    return np.where(keys == 0, np.uint64(1), keys)


def _text(column: Any) -> Any:
    return column.cast(pa.string()) if pa.types.is_dictionary(column.type) else column

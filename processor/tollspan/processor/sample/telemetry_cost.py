"""What telemetry itself takes: bytes received and stored, by minute, tenant, service and rule; and what that costs.

In: the spans of a batch as they arrive, and later what became of each. Out: rows of ``telemetry``, once all spans of a
batch are decided. Beside `pipeline`; `accounts` puts the rows into the store before the batch is released from the
journal, so a crash repeats them onto themselves.

    part, shares = arrived(token, part, attempt, received_ns, received, everything, decoded, table)    # shares wait
    shares.select(rows)                                                                   # wherever the bodies are cut
    shares.decided(rows, Rules(…))                                                                    # at the decision
    shares.kept(rows, Rules(…), stored, content, removed)                               # when what is kept is written
    rows_of(parts, engine, retention_s)                                                           # when all is decided

*Received* is a span's share of its request, with what the request says once for many spans. *Stored* is the size of its
row in ``spans`` (texts, and fixed widths of numbers), not compressed: how well a store compresses is its own business,
so a price for storage is one for these bytes. What is stored is paid for as long as it is kept, the retention.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing import PriceEngine, Selectors
from tollspan.pricing.meters import METERS
from tollspan.processor.decode import Decoded
from tollspan.processor.decode.arrow_bytes import layout
from tollspan.processor.identity import Mask, Rows
from tollspan.processor.sample.faster import kernels, read_only
from tollspan.processor.sample.names import REASONS, RULES
from tollspan.processor.sample.thresholds import RANDOM_BITS

RECEIVED: Final = "telemetry.bytes"
STORED: Final = "telemetry.stored.byte_seconds"
"""Meters."""

RETENTION_S: Final = 30 * 86_400
"""How long bodies are stored where nobody says."""

MINUTE_NS: Final = 60 * 10**9
_LAST_MINUTE: Final = (2**63 - 1) // MINUTE_NS
_NEAR: Final = 120
_FAR: Final = 2 * 1440
"""Minutes between a span's start and its receipt, up to which it is counted by the minute, and by the hour."""
_ROOM: Final = 1 << 18
"""Numbers up to which distinct ones are found in a table, without sorting."""
_LIMITS: Final = np.array([_NEAR, _FAR, _LAST_MINUTE])
_MOST_GROUPS: Final = 64
"""Groups of a batch up to which a kernel finds them."""
_KINDS: Final = (np.int32, np.int64)
_SPAN_BYTES: Final = 100
"""About what a span has beside its attributes."""
_MONEY: Final = pa.decimal128(38, 12)

_COUNTS: Final = (
    "spans",
    "bytes",
    "wanted_bytes",
    "kept_spans",
    "kept_bytes",
    "stored_bytes",
    "content_bytes",
    "removed_bytes",
)
_SPANS, _BYTES, _WANTED, _KEPT, _KEPT_BYTES, _STORED, _CONTENT, _REMOVED = range(len(_COUNTS))

Sizes = npt.NDArray[np.int64]


class Rules(NamedTuple):
    """What decided m spans or traces.

    Attributes (shape (m,)):
        ground: number of the rule, whether it kept the trace or not (see `names`); 0: none.
        steered: whether a budget steers it.
        full: threshold that the trace would have had without one, uint64.
    """

    ground: npt.NDArray[np.integer[Any]]
    steered: Mask
    full: npt.NDArray[np.uint64]


@dataclass(slots=True)
class Part:
    """A part of a batch while its spans are being decided.

    Attributes:
        token, part, attempt: as in ``batches``.
        received_ns: when the batch was received.
        minutes: int64 of g, ns since the epoch; ``tenants``, ``services``: string arrays of g. Each group is another.
        spans, received: int64 of g.
    """

    stays_in_memory: ClassVar[bool] = True
    """Not to be put on disk with what waits: all of its spans count into this one (see `spill`)."""

    token: str
    part: str
    attempt: int
    received_ns: int
    minutes: Sizes
    tenants: Any
    services: Any
    spans: Sizes
    received: Sizes
    _tallies: dict[tuple[int, bool], npt.NDArray[np.int64]] = field(default_factory=dict)

    def claim_nothing(self, received: int) -> None:
        """Put bytes that are no new span's (duplicates, broken requests) to nobody's account; before `add`."""
        minute = min(max(self.received_ns // MINUTE_NS, 0), _LAST_MINUTE) * MINUTE_NS
        nobody = pc.and_(pc.equal(self.tenants, ""), pc.equal(self.services, ""))
        at = np.flatnonzero((self.minutes == minute) & np.asarray(nobody, dtype=np.bool_))
        if len(at):
            self.received[at[0]] += received
            return
        self.minutes, self.spans = np.append(self.minutes, minute), np.append(self.spans, 0)
        self.received = np.append(self.received, received)
        self.tenants, self.services = (
            pa.concat_arrays([texts, pa.array([""], pa.string())]) for texts in (self.tenants, self.services)
        )

    def add(self, group: npt.NDArray[np.int32], of: Rules, trace: Rows, counts: Mapping[int, Any]) -> None:
        """Count m spans of t traces.

        Args:
            group: of each, m.
            of: what decided each trace, t.
            trace: number of each span's trace, m.
            counts: place in `_COUNTS` → numbers of m; None: one for each span.
        """
        if not len(trace):
            return
        groups = len(self.minutes)
        numbers, code = _numbered(of.ground.astype(np.int64) * 2 + of.steered)
        cell = code[trace] * groups + group
        cells = len(numbers) * groups
        columns = [np.rint(np.bincount(cell, column, cells)).astype(np.int64) for column in counts.values()]
        self.put(numbers, list(counts), np.stack([np.bincount(cell, None, cells), *columns]))

    def put(self, numbers: Sizes, places: list[int], sums: Sizes) -> None:
        """Add what some spans come to.

        Args:
            numbers: of rules, twice, and one more where a budget steers it; k.
            places: in `_COUNTS`.
            sums: (1 + places, k × groups): spans, and what belongs at each place.
        """
        of_rule = sums.reshape(len(sums), len(numbers), -1)
        for number in np.flatnonzero(of_rule[0].any(axis=1)).tolist():
            key = int(numbers[number]) >> 1, bool(numbers[number] & 1)
            tally = self._tallies.setdefault(key, np.zeros((len(_COUNTS), len(self.minutes)), np.int64))
            tally[places] += of_rule[1:, number]

    def rows(self, engine: PriceEngine, retention_s: int) -> pa.Table:
        """Rows for ``telemetry``, g of them; see `rows_of`."""
        return rows_of([self], engine, retention_s)

    def tally(self, key: tuple[int, bool]) -> npt.NDArray[np.int64]:
        """What one rule decided (its number, and whether a budget steers it), (`_COUNTS`, g); zeros where nothing."""
        found = self._tallies.get(key)
        return np.zeros((len(_COUNTS), len(self.minutes)), np.int64) if found is None else found

    @property
    def decided_by(self) -> Iterable[tuple[int, bool]]:
        """The rules that decided something."""
        return self._tallies


def rows_of(parts: Sequence[Part], engine: PriceEngine, retention_s: int) -> pa.Table:
    """Rows for ``telemetry`` of some parts, at least one.

    Args:
        parts: of which all spans are decided; g groups together.
        engine: prices both meters.
        retention_s: how long bodies are stored.
    """
    counts = [len(part.minutes) for part in parts]
    groups, keys = sum(counts), list(dict.fromkeys(key for part in parts for key in part.decided_by))
    all_ = np.zeros((len(keys), len(_COUNTS), groups), np.int64)
    for number, key in enumerate(keys):
        np.concatenate([part.tally(key) for part in parts], axis=1, out=all_[number])
    minutes, spans, received = (
        np.concatenate([getattr(part, name) for part in parts]) for name in ("minutes", "spans", "received")
    )
    # Group after group, and in each the rules that decided something of it.
    of_group, of_key = np.nonzero(all_[:, _SPANS, :].T)
    entries = all_[of_key, :, of_group]
    ends = pa.array(np.concatenate(([0], np.cumsum(np.bincount(of_group, minlength=groups)))).astype(np.int32))
    paid = priced(engine, STORED, minutes[of_group], entries[:, _STORED] * retention_s)
    stored = _summed_cost(paid, of_group, groups)

    def listed(values: Any) -> Any:
        return pa.ListArray.from_arrays(ends, values)

    def of_part(name: str) -> list[Any]:
        return [value for part, count in zip(parts, counts, strict=True) for value in [getattr(part, name)] * count]

    grounds = [keys[number][0] for number in of_key.tolist()]
    totals = all_.sum(axis=0)
    return pa.table(
        {
            "minute": pa.array(minutes).cast(pa.timestamp("ns", "UTC")),
            "tenant": pa.concat_arrays([part.tenants for part in parts]),
            "service": pa.concat_arrays([part.services for part in parts]),
            "token": pa.array(of_part("token"), pa.string()),
            "part": pa.array(of_part("part"), pa.string()),
            "attempt": pa.array(of_part("attempt"), pa.uint64()),
            "received_at": pa.array(of_part("received_ns"), pa.int64()).cast(pa.timestamp("ns", "UTC")),
            "spans": pa.array(spans.astype(np.uint64)),
            "bytes": pa.array(received.astype(np.uint64)),
            "kept_spans": pa.array(totals[_KEPT].astype(np.uint64)),
            "stored_bytes": pa.array(totals[_STORED].astype(np.uint64)),
            "removed_bytes": pa.array(totals[_REMOVED].astype(np.uint64)),
            "received_cost": priced(engine, RECEIVED, minutes, received),
            "stored_cost": stored,
            "retention_s": pa.array(np.full(groups, retention_s, np.uint64)),
            "book_version": pa.array([engine.book_version] * groups, pa.string()),
            "rules.rule": listed(pa.array([RULES[ground] for ground in grounds], pa.string())),
            "rules.reason": listed(pa.array([REASONS[ground] for ground in grounds], pa.string())),
            "rules.steered": listed(pa.array([keys[number][1] for number in of_key.tolist()], pa.bool_())),
            **{
                f"rules.{name}": listed(pa.array(entries[:, place].astype(np.uint64)))
                for place, name in enumerate(_COUNTS)
            },
            "rules.stored_cost": listed(paid),
        }
    )


@dataclass(slots=True)
class Shares:
    """Which spans of a part wait: 8 bytes a span.

    Attributes:
        part: whose they are.
        group: int32 of n, number in the part's groups.
        sizes: uint32 of n, bytes received.
    """

    part: Part
    group: npt.NDArray[np.int32]
    sizes: npt.NDArray[np.uint32]

    def select(self, rows: Rows) -> Shares:
        """A copy for some of the spans."""
        return Shares(self.part, self.group[rows], self.sizes[rows])

    @property
    def nbytes(self) -> int:
        """Memory."""
        return int(self.group.nbytes + self.sizes.nbytes)

    def decided(self, rows: Rows, of: Rules, trace: Rows | None = None) -> None:
        """Some of them are decided.

        Args:
            rows: m of them.
            of: what decided each of t traces.
            trace: number of the trace of each row, m; None: there is one for each row.
        """
        trace = np.arange(len(rows)) if trace is None else trace
        share = 1.0 - of.full.astype(np.float64) / 2.0**RANDOM_BITS
        if (compiled := kernels()) is not None and len(trace):
            numbers, code = _numbered(of.ground.astype(np.int64) * 2 + of.steered)
            cells = len(numbers) * len(self.part.minutes)
            sums, wanted_sums = np.zeros((2, cells), np.int64), np.zeros(cells)
            given = (
                (rows, np.int64),
                (trace, np.int64),
                (self.group, np.int32),
                (self.sizes, np.uint32),
                (code, np.int64),
            )
            arrays = (read_only(each, kind) for each, kind in given)
            compiled.tally(*arrays, share, len(self.part.minutes), sums, wanted_sums)
            told = np.stack([sums[0], sums[0], sums[1], np.rint(wanted_sums).astype(np.int64)])
            self.part.put(numbers, [_SPANS, _BYTES, _WANTED], told)
            return
        sizes = self.sizes[rows]
        wanted = sizes * share[trace]
        self.part.add(self.group[rows], of, trace, {_SPANS: None, _BYTES: sizes, _WANTED: wanted})

    def kept(
        self, rows: Rows, of: Rules, stored: Sizes, content: Sizes, removed: Sizes, trace: Rows | None = None
    ) -> None:
        """Some of those have a body in the store.

        Args:
            rows, of, trace: as in `decided`.
            stored, content, removed: bytes of their rows, of content in these, and of content that was taken out.
        """
        trace = np.arange(len(rows)) if trace is None else trace
        counts = {_KEPT: None, _KEPT_BYTES: self.sizes[rows], _STORED: stored, _CONTENT: content, _REMOVED: removed}
        self.part.add(self.group[rows], of, trace, counts)


def arrived(
    token: str,
    part: str,
    attempt: int,
    received_ns: int,
    received: int,
    everything: Decoded,
    decoded: Decoded,
    table: pa.Table,
) -> tuple[Part, Shares]:
    """Take a part of a batch in.

    Args:
        token, part, attempt: as in ``batches``.
        received_ns: when the batch was received.
        received: bytes of the part's requests.
        everything: its spans.
        decoded: those of them that are new, n.
        table: canonical columns of these (see `normalize`).

    Returns:
        The part, of which the received bytes add up to ``received``; and the share of each new span.
    """
    sizes = span_sizes(decoded)
    whole = int(sizes.sum()) if everything is decoded else int(span_sizes(everything).sum())
    tenant, service = _coded(table["tenant"]), _coded(table["service"])
    starts = np.asarray(decoded.spans["start_ns"])
    found = _grouped(starts, received_ns, tenant, service, sizes, received, max(whole, 1))
    minutes, of_tenant, of_service = found.keys
    made = Part(
        token,
        part,
        attempt,
        received_ns,
        minutes * MINUTE_NS,
        tenant.texts.take(pa.array(of_tenant)),
        service.texts.take(pa.array(of_service)),
        *found.sums,
    )
    left = received - int(found.sums[1].sum())
    if left:
        made.claim_nothing(left)
    return made, Shares(made, found.group, found.shares)


class _Coded(NamedTuple):
    """A column of n texts.

    Attributes:
        codes: int32 of n. numbers: int64, for each code the number of its text. texts: different ones, '' for null.
    """

    codes: npt.NDArray[np.int32]
    numbers: Sizes
    texts: Any


class _Groups(NamedTuple):
    """Spans by minute, tenant and service.

    Attributes:
        keys: int64 (3, g), ascending: minute, number of the tenant and of the service.
        sums: int64 (2, g): spans and bytes.
        group: int32 of n. shares: uint32 of n, bytes.
    """

    keys: Sizes
    sums: Sizes
    group: npt.NDArray[np.int32]
    shares: npt.NDArray[np.uint32]


def _grouped(
    starts: npt.NDArray[np.uint64],
    received_ns: int,
    tenant: _Coded,
    service: _Coded,
    sizes: Sizes,
    received: int,
    whole: int,
) -> _Groups:
    """Groups of n spans (at least one), and how many of ``received`` bytes each has; ``whole`` is what counts as all.

    Rounded where they add up, so that nothing is lost between them. A batch is far below 2³¹ bytes.
    """
    if (compiled := kernels()) is not None:
        keys, sums = np.zeros((3, _MOST_GROUPS), np.int64), np.zeros((2, _MOST_GROUPS), np.int64)
        group, shares = np.empty(len(starts), np.int32), np.empty(len(starts), np.uint32)
        columns = [read_only(each, kind) for one in (tenant, service) for each, kind in zip(one, _KINDS, strict=False)]
        spans = read_only(starts, np.uint64), _LIMITS, received_ns // MINUTE_NS, *columns, read_only(sizes, np.int64)
        count = compiled.shares(*spans, received, whole, keys, sums, group, shares)
        if count >= 0:
            order = np.lexsort(keys[::-1, :count])
            if not (order == np.arange(count)).all():
                place = np.empty(count, np.int32)
                place[order] = np.arange(count, dtype=np.int32)
                group = place[group]
            return _Groups(keys[:, order], sums[:, order], group, shares)
    minutes, number = _numbered(minutes_of(starts, received_ns))
    tenants, services = len(tenant.texts), len(service.texts)
    of_tenant, of_service = tenant.numbers[tenant.codes], service.numbers[service.codes]
    pairs, groups = _numbered((number * tenants + of_tenant) * services + of_service)
    parts = np.diff(np.cumsum(sizes) * received // whole, prepend=0)
    sums = np.stack([np.bincount(groups), np.bincount(groups, parts).astype(np.int64)])
    keys = np.stack([minutes[pairs // services // tenants], pairs // services % tenants, pairs % services])
    return _Groups(keys, sums, groups.astype(np.int32), parts.astype(np.uint32))


def minutes_of(started: npt.NDArray[np.uint64], received_ns: int) -> Sizes:
    """The minute since 1970 that n spans are counted in, int64.

    It is the one in which a span started; where that is hours from its receipt it is the first of its hour, and from
    days on the first of its day, so that spans of a whole year in one batch make no row for each of its minutes.
    """
    minute = (np.minimum(started, np.uint64(_LAST_MINUTE * MINUTE_NS)) // np.uint64(MINUTE_NS)).astype(np.int64)
    away = np.abs(minute - received_ns // MINUTE_NS)
    if int(away.max(initial=0)) <= _NEAR:
        return minute
    coarse = np.where(away <= _FAR, minute // 60 * 60, minute // 1440 * 1440)
    return np.where(away <= _NEAR, minute, coarse)


def unclaimed(token: str, part: str, attempt: int, received_ns: int, received: int) -> Part:
    """A part of a batch that has no new span."""
    nothing = np.zeros(0, np.int64)
    texts = pa.array([], pa.string())
    made = Part(token, part, attempt, received_ns, nothing, texts, texts, nothing, nothing)
    made.claim_nothing(received)
    return made


def _summed_cost(costs: Any, group: Sizes, groups: int) -> Any:
    """Sums of costs by group, decimal128(38, 12); null where all of a group's are. One without any costs nothing."""
    place = np.full(groups, -1, np.int64)
    if costs.null_count == len(costs):
        place[group] = 0
        sums = pa.nulls(1, costs.type)
    else:
        found = (
            pa.table({"group": group, "cost": costs})
            .group_by("group", use_threads=False)
            .aggregate([("cost", "sum")])
            .sort_by("group")
        )
        place[np.asarray(found["group"])] = np.arange(found.num_rows)
        sums = found["cost_sum"].combine_chunks().cast(costs.type)
    # What nothing was stored of costs nothing, whatever the price.
    return pc.if_else(pa.array(place < 0), pa.scalar(0).cast(costs.type), sums.take(pa.array(place, mask=place < 0)))


def span_sizes(decoded: Decoded) -> Sizes:
    """About how many bytes each of n spans has, int64: on the wire, or by its attributes and events."""
    places = getattr(decoded.wire, "places", None)
    if places is not None:
        return np.asarray(places[1], np.int64)
    attributes, events = decoded.attributes, decoded.spans["events"]
    offsets = np.asarray(events.offsets).astype(np.int64)
    inside = _lengths(events.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0])))
    of_rows = _lengths(attributes.raw) + _lengths(attributes.keys)[attributes.codes]
    return _SPAN_BYTES + _summed(of_rows, attributes.offsets) + _summed(inside, offsets - offsets[0])


def row_bytes(table: pa.Table) -> Sizes:
    """Size of each of n rows, not compressed, int64: bytes of texts and widths of numbers, 8 for each list or map."""
    found, width = np.zeros(table.num_rows, np.int64), 0
    for column in table.columns:
        array = _whole(column)
        if isinstance(array, pa.ChunkedArray):  # of a table without rows
            continue
        if (bits := _width(array.type)) is not None:
            width += bits
            continue
        if pa.types.is_nested(array.type):
            if _empty(array):
                width += 8
            else:
                found += np.diff(_ends(array, np.arange(len(array) + 1)))
        else:
            found += _sizes(array)
    return found + width


def _whole(column: Any) -> Any:
    """A column in one piece; not copied where it is."""
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _empty(lists: Any) -> bool:
    """Whether no list has a value."""
    offsets = np.asarray(lists.offsets)
    return bool(offsets[-1] == offsets[0])


def _width(kind: Any) -> int | None:
    """Bytes of a value of a type that has as many for all; None for the others."""
    if pa.types.is_dictionary(kind) or pa.types.is_nested(kind):
        return None
    if pa.types.is_string(kind) or pa.types.is_binary(kind):
        return None
    bits: int = kind.bit_width
    return max(bits // 8, 1)


def _ends(array: Any, at: Sizes) -> Sizes:
    """Bytes of the values of an array up to some of its positions, 0 to its length."""
    kind = array.type
    if (width := _width(kind)) is not None:
        return at * width
    if pa.types.is_map(kind) or pa.types.is_list(kind):
        # A list that is null has no values in what is made here.
        below = np.asarray(array.offsets)[at].astype(np.int64)
        values = (array.keys, array.items) if pa.types.is_map(kind) else (array.values,)
        return at * 8 + sum(_ends(each, below) for each in values)
    if pa.types.is_dictionary(kind) or array.null_count:
        return np.concatenate((np.zeros(1, np.int64), np.cumsum(_sizes(array))))[at]
    return layout(array)[0][at].astype(np.int64)


def _sizes(array: Any) -> Sizes:
    """Bytes of each of n texts, dictionaries or not."""
    if not pa.types.is_dictionary(array.type):
        return _lengths(array) if array.null_count else np.diff(layout(array)[0]).astype(np.int64)
    lengths = _lengths(array.dictionary)
    if not array.indices.null_count:
        return lengths.take(np.asarray(array.indices))
    return np.append(lengths, 0).take(np.asarray(array.indices.cast(pa.int64()).fill_null(len(lengths))))


def _summed(values: Sizes, offsets: npt.NDArray[np.int64]) -> Sizes:
    """Sum of the values from each offset to the next."""
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(values)))
    return np.diff(ends[offsets])


def _lengths(values: Any) -> Sizes:
    return np.asarray(pc.fill_null(pc.binary_length(values), 0)).astype(np.int64)


def _numbered(values: Sizes) -> tuple[Sizes, Sizes]:
    """The distinct ones of n numbers from 0 on, ascending, and where each stands among them; n at least 1."""
    least = int(values.min())
    room = int(values.max()) - least + 1
    if room > _ROOM:
        distinct, place = np.unique(values, return_inverse=True)
        return distinct, place.reshape(-1)
    used = np.zeros(room, np.bool_)
    used[values - least] = True
    place = np.cumsum(used, dtype=np.int64) - 1
    return np.flatnonzero(used) + least, place[values - least]


def _coded(column: Any) -> _Coded:
    """A column of text by numbers; null is ''."""
    column = _whole(column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    # Once more, for '' may be among the texts already, and groups have to be different ones.
    texts = pa.concat_arrays([column.dictionary.cast(pa.string()), pa.array([""], pa.string())]).dictionary_encode()
    codes = column.indices.cast(pa.int32())
    codes = np.asarray(codes.fill_null(len(texts) - 1) if codes.null_count else codes)
    return _Coded(codes, np.asarray(texts.indices).astype(np.int64), texts.dictionary)


def priced(engine: PriceEngine, meter: str, at: Sizes, quantities: Sizes) -> Any:
    """What n quantities of a meter of telemetry cost, decimal128(38, 12); null without a price."""
    if _unpriced(engine, meter, at):
        return pa.nulls(len(at), _MONEY)
    cost = engine.price_columns(at, {}, {meter: pa.array(quantities)})["cost"]
    return cost.combine_chunks() if isinstance(cost, pa.ChunkedArray) else cost


def _unpriced(engine: PriceEngine, meter: str, at: Sizes) -> bool:
    """Whether a meter has no price at any of these instants; False also where that takes a closer look."""
    if not len(at):
        return False
    situation = engine.situation(METERS[meter].axis, Selectors())
    first, last = int(at.min()), int(at.max())
    if situation.schedules or bisect_right(situation.cuts, first) != bisect_right(situation.cuts, last):
        return False
    return situation.quote(meter, first).row is None

"""Normalize: spans of every dialect to one set of canonical columns and disjoint quantities.

In: `Decoded`. Out: `Normalized`, one row a span in the same order, as ARCHITECTURE.md lists the columns. Between
`decode` and `charge`. What is read from where stands in `dialects`; how a key becomes a column, in `pivot`; how counts
become disjoint meters, in `tollspan.pricing.conventions`.

Unknown is never zero: what a span does not say is null, and what it says wrongly makes its usage ``invalid`` with a
reason; nothing is clamped, guessed or dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.arrays import validity
from tollspan.pricing.attributes import USAGE_PREFIX, usage
from tollspan.pricing.conventions import INVALID_REASONS
from tollspan.pricing.meters import METERS
from tollspan.processor.decode import Decoded
from tollspan.processor.decode.arrow_bytes import Mask
from tollspan.processor.dialects import (
    BATCH_TIER,
    COSTS,
    ESTIMATES,
    FLAGS,
    INTEGERS,
    LATER,
    MODEL_OBJECTS,
    NO_MODEL_CALLS,
    OPERATION_KINDS,
    OPERATION_NAMES,
    OWN_PROVIDER,
    SENDER_TENANT,
    TEXT,
    TOLD_INVALID,
    TWO_SIDED,
)
from tollspan.processor.judged import Judged
from tollspan.processor.pivot import (
    FRACTIONAL,
    GOOD,
    NEGATIVE,
    NOT_A_NUMBER,
    TEXT_TYPE,
    TOO_LARGE,
    Pivot,
    Shapes,
    codes_of,
    dictionary,
    nullable,
)
from tollspan.processor.providers import provided
from tollspan.processor.usage_counts import CONVENTION_NAMES, Counts, counts_of
from tollspan.processor.usage_counts import KEYS as COUNT_KEYS

REASONS: Final = (
    None,
    "usage_not_a_number",
    "usage_fractional",
    "usage_negative",
    "usage_too_large",
    "usage_inconsistent",
    "usage_unknown_meter",
    "usage_conflict",
    "time",
)
"""Why the usage of a span cannot be right, the first that applies: a count that is no number, not whole, negative or
absurdly large; parts that exceed the whole that includes them; a ``tollspan.usage.`` attribute of no known meter;
token counts and ``tollspan.usage.tokens.`` that contradict each other; a start or end that cannot be (zero, after
2262, end before start, more than a day in the future)."""

_INCONSISTENT, _UNKNOWN_METER, _CONFLICT, _TIME = 5, 6, 7, 8
_OF_PIVOT: Final = np.zeros(5, np.uint8)
_OF_PIVOT[[GOOD, NOT_A_NUMBER, FRACTIONAL, NEGATIVE, TOO_LARGE]] = range(5)
_OF_CONVENTIONS: Final = np.array([REASONS.index(reason) for reason in INVALID_REASONS], np.uint8)

_MODEL: Final = r'"model"\s*:\s*"(?P<model>[^"\\]{1,256})"'

_LAST_INSTANT: Final = np.uint64(2**63 - 1)
CLOCK_SKEW_NS: Final = 86_400 * 10**9
"""How far in the future a span may start by a clock that runs ahead of ours."""

_METER_KEYS: Final = {meter: usage(meter) for meter in METERS}
WANTED: Final = pa.array(
    sorted(
        {key for source in (*TEXT.values(), TOLD_INVALID, SENDER_TENANT) for key in source.keys}
        | {key for keys in (*INTEGERS.values(), *FLAGS.values()) for key in keys}
        | COUNT_KEYS
        | {*COSTS, *MODEL_OBJECTS, *(flag for _, flag, _ in ESTIMATES)}
        | {key for later in LATER for key in (later.key, *later.unless)}
        | set(_METER_KEYS.values())
    ),
    pa.string(),
)
"""Every key that is read."""
_WHOLES: Final = ("tokens.input.uncached", "tokens.output")
"""Meters that a span has exactly when it tells its input and its output."""
_KINDS: Final = ("inference", "model_load", "feature_read", "capacity", "other")
_BILLED_ANYWAY: Final = np.isin(_KINDS, ("inference", "capacity"))
"""Kinds that are rows of the ledger also without any usage: what they cost is then not known."""
_STATUSES: Final = ("unset", "ok", "error")
_KIND_WORDS, _STATUS_WORDS, _CONVENTION_WORDS = (
    pa.array(words, pa.string()) for words in (_KINDS, _STATUSES, CONVENTION_NAMES)
)


_IS_WANTED: Final = Judged(lambda keys: np.asarray(pc.is_in(keys, value_set=WANTED)))
_OF_NO_METER: Final = Judged(
    lambda keys: np.asarray(pc.and_not(pc.starts_with(keys, USAGE_PREFIX), pc.is_in(keys, value_set=WANTED)))
)


class Columns:
    """Canonical columns by name, those of texts made from what is said by shape when somebody asks for them.

    Args:
        shapes: of the spans.
        said: text columns by shape.
        made: the other columns.
    """

    def __init__(self, shapes: Shapes, said: dict[str, Any], made: dict[str, Any]) -> None:
        self._shapes, self._said, self._made = shapes, said, made
        self.column_names = [*made, *said]

    def __getitem__(self, name: str) -> Any:
        if name not in self._made:
            self._made[name] = self._shapes.column(self._said[name])
        return self._made[name]


@dataclass(frozen=True)
class Normalized:
    """Canonical columns of a batch.

    Attributes:
        columns: as ``table``, made one by one when they are asked for.
        table: one row a span, in the order of ``Decoded.spans``; the columns are those of ARCHITECTURE.md, and
            ``incomplete`` (bool): usage of which a part is certainly missing. A call that takes tokens in and gives
            tokens out (`dialects.TWO_SIDED`) tells some tokens but not both its input and its output, so that what the
            quantities cost is a lower bound. Never set where no tokens were told, or what was told is ``invalid``.
            ``reported_cost`` (decimal128(38, 12), USD): what the span itself says that the call cost.
        quantities: meter → int64 array of n base steps, null = not given; only meters that some span gave.
        shapes: of the spans, and
        said: its text columns by shape; None and empty where columns are not known by shape.
    """

    columns: Columns | pa.Table
    quantities: dict[str, Any]
    shapes: Shapes | None = None
    said: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.columns["start_ns"])

    @cached_property
    def table(self) -> pa.Table:
        """See above."""
        if isinstance(self.columns, pa.Table):
            return self.columns
        return pa.table({name: self.columns[name] for name in self.columns.column_names})


def normalize(decoded: Decoded, *, received_ns: int) -> Normalized:
    """Bring a batch to canonical form.

    Args:
        decoded: n spans.
        received_ns: when the batch came in, ns since the epoch; only spans that start later than that by more than
            `CLOCK_SKEW_NS` are affected by it.

    Returns:
        Columns and quantities. No input raises.
    """
    pivot = Pivot(decoded, _IS_WANTED)
    invalid = np.zeros(len(decoded), np.uint8)
    text, shapes = pivot.texts(
        {**TEXT, "own_provider": OWN_PROVIDER, "told_invalid": TOLD_INVALID, "sender_tenant": SENDER_TENANT},
        # What a model's name is looked for in is no text that a shape has.
        by_span=not pivot.present.isdisjoint(MODEL_OBJECTS),
    )
    text["tenant"] = _above(text.pop("sender_tenant"), text["tenant"])
    text["service_tier"], text["processing"] = _processing(text["service_tier"], text["processing"])
    for column, source in TEXT.items():
        if source.quoted:
            text[column] = _unquoted(text[column])
        if source.fold:
            text[column] = _folded(text[column], source.rename)
    text["operation"] = _folded(text["operation"], OPERATION_NAMES, others=False)
    text["request_model"] = _inside(pivot, text["request_model"], text["model"])
    own = _folded(text.pop("own_provider"), OWN_PROVIDER.rename)
    scopes, models = pivot.scopes, (text["model"], text["request_model"])
    text["provider"], assumed = provided(text["provider"], own, *models, scopes.names, scopes.of.take(shapes.rows))
    counts = counts_of(pivot, shapes, text["provider"], *models)
    quantities, tokens, given = _quantities(pivot, decoded, counts, invalid)
    times = _times(decoded, received_ns, invalid)
    told = _told_invalid(text.pop("told_invalid"))
    if told is not None:
        told = shapes.spread(told)
        _mark(invalid, told)
        given |= told > 0
    with_tokens, without, sided = _kinds(text["operation"])
    kind = np.where(tokens, shapes.spread(with_tokens), shapes.spread(without))
    two_sided = shapes.spread(sided)
    halved = two_sided & ~_whole(quantities, len(decoded))
    incomplete = tokens & (invalid == 0) & (halved | counts.short)
    status = np.asarray(decoded.spans["status_code"])
    if status.view(np.uint32).max(initial=0) >= len(_STATUSES):  # unsigned, negative ones are the largest
        status = np.where((status < 0) | (status >= len(_STATUSES)), 0, status)
    columns = Columns(
        shapes,
        text,
        {
            "trace_id": decoded.spans["trace_id"],
            "span_id": decoded.spans["span_id"],
            "parent_span_id": decoded.spans["parent_span_id"],
            **times,
            "name": decoded.spans["name"],
            "kind": dictionary(kind, None, _KIND_WORDS),
            "span_status": dictionary(status, None, _STATUS_WORDS),
            "http_status": pivot.integer(INTEGERS["http_status"], pa.int32()),
            "retries": pivot.integer(INTEGERS["retries"], pa.int32()),
            "cold_start": pivot.flag(FLAGS["cold_start"]),
            "sent": pivot.flag(FLAGS["sent"]),
            "deferred": _deferred(pivot, decoded, two_sided & ~tokens & (status != _STATUSES.index("error"))),
            "estimated": _estimated(pivot, shapes, text["provider"]),
            "elsewhere": pivot.flag(FLAGS["elsewhere"]),
            "slim": pivot.flag(FLAGS["slim"]),
            "batch_size": pivot.integer(INTEGERS["batch_size"], pa.int64()),
            "invalid": _invalid(invalid),
            "convention": _convention(counts.convention),
            "billable": _truths(given | _BILLED_ANYWAY.take(kind)),
            "token_bearing": _truths(tokens),
            "incomplete": _truths(incomplete),
            "provider_assumed": _truths(shapes.spread(assumed)),
            "reported_cost": pivot.money(COSTS),
        },
    )
    return Normalized(columns, quantities, shapes, text)


def _invalid(codes: npt.NDArray[np.uint8]) -> Any:
    """Reasons by their codes."""
    if not codes.any():
        return pa.nulls(len(codes), pa.string())
    return pa.array(REASONS, pa.string()).take(pa.array(codes))


def _mark(invalid: npt.NDArray[np.uint8], codes: npt.NDArray[np.uint8]) -> None:
    """Give the rows that have no reason yet the given one."""
    if codes.any():
        np.copyto(invalid, codes, where=invalid == 0)


def _quantities(
    pivot: Pivot, decoded: Decoded, counts: Counts, invalid: npt.NDArray[np.uint8]
) -> tuple[dict[str, Any], Mask, Mask]:
    """Quantities by meter; which spans gave token counts; and which gave any usage, right or wrong."""
    length = pivot.length
    columns, counted = dict(counts.meters), counts.counted
    _mark(invalid, _OF_PIVOT.take(counts.wrong))
    _mark(invalid, _OF_CONVENTIONS.take(counts.inconsistent))
    if invalid.any():
        # A count that could not be read leaves the others without their whole: such a span has no token quantities.
        right = invalid == 0
        columns = {meter: (values, valid & right) for meter, (values, valid) in columns.items()}

    tokens, any_usage = counted.copy(), counted.copy()
    for meter, key in _METER_KEYS.items():
        if key not in pivot.present or (found := pivot.quantity((key,), METERS[meter].scale)) is None:
            continue
        values, given, wrong = found
        any_usage |= given
        valid = given
        if wrong.any():
            _mark(invalid, np.where(given, _OF_PIVOT[wrong], 0).astype(np.uint8))
            valid = given & (wrong == GOOD)
        if meter.startswith("tokens."):
            tokens |= given
            converted_values, converted_valid = columns.get(meter, (values, np.zeros(length, np.bool_)))
            differ = given & counted & ~(converted_valid & (converted_values == values))
            _mark(invalid, np.where(differ, _CONFLICT, 0).astype(np.uint8))
            values, valid = np.where(converted_valid, converted_values, values), valid | converted_valid
        columns[meter] = (values, valid)

    keys = decoded.attributes.keys
    unknown = _OF_NO_METER(keys)
    if unknown.any():
        spans = pivot.having(unknown)
        any_usage |= spans
        _mark(invalid, np.where(spans, _UNKNOWN_METER, 0).astype(np.uint8))
    quantities = {
        meter: nullable(*columns[meter], pa.int64()) for meter in METERS if meter in columns and columns[meter][1].any()
    }
    return quantities, tokens, any_usage


def _deferred(pivot: Pivot, decoded: Decoded, silent: Mask) -> Any:
    """Which spans say that their usage is told later, or are known to (`dialects.LATER`), of calls that tell none."""
    said = pivot.flag(FLAGS["deferred"])
    for later in LATER:
        owners, values = pivot.written(later.key)
        if not len(owners):
            continue
        scopes = np.array([name.startswith(later.scope) for name in pivot.scopes.names], np.bool_)
        elsewhere = np.zeros(len(decoded), np.bool_)
        elsewhere[owners] = np.asarray(pc.equal(values, later.value))
        elsewhere &= silent & scopes[pivot.scopes.of]
        if elsewhere.any():
            keys = pc.is_in(decoded.attributes.keys, value_set=pa.array(later.unless))
            elsewhere &= ~pivot.having(np.asarray(keys))
            said = pc.if_else(pa.array(elsewhere), True, said)
    return said


def _estimated(pivot: Pivot, shapes: Shapes, provider: Any) -> Any:
    """Which spans say that their usage is an estimate, or come from a library that estimates without saying so."""
    said = pivot.flag(FLAGS["estimated"])
    scopes = pivot.scopes
    for scope, flag, providers in ESTIMATES:
        if scope in scopes.names:
            mine = pa.array(np.array([name == scope for name in scopes.names], np.bool_)[scopes.of])
            theirs = pc.is_in(pc.cast(shapes.column(provider), pa.string()), pa.array(sorted(providers)))
            made_up = pc.and_(pc.and_(mine, theirs), pc.fill_null(pivot.flag((flag,)), False))
            said = pc.if_else(made_up, True, said)
    return said


def _times(decoded: Decoded, received_ns: int, invalid: npt.NDArray[np.uint8]) -> dict[str, Any]:
    said_start, said_end = decoded.spans["start_ns"], decoded.spans["end_ns"]
    start, end = np.asarray(said_start), np.asarray(said_end)
    backwards = end < start
    latest = np.uint64(min(max(received_ns, 0) + CLOCK_SKEW_NS, int(_LAST_INSTANT)))
    if len(start) and start.min() > 0 and start.max() <= latest and end.max() <= _LAST_INSTANT and not backwards.any():
        # The same bits, and no copy of them.
        instants = {"start_ns": said_start.view(pa.int64()), "end_ns": said_end.view(pa.int64())}
        return {**instants, "duration_ns": pa.array(end - start)}
    wrong = (start == 0) | (start > latest) | (end > _LAST_INSTANT) | backwards
    _mark(invalid, np.where(wrong, _TIME, 0).astype(np.uint8))
    return {
        # What a signed 64-bit instant cannot hold is stored as 0; the row is marked above.
        "start_ns": pa.array(np.where(start > _LAST_INSTANT, 0, start).astype(np.int64)),
        "end_ns": pa.array(np.where(end > _LAST_INSTANT, 0, end).astype(np.int64)),
        "duration_ns": pa.array(np.where(backwards, 0, end - start)),
    }


def _processing(tier: Any, processing: Any) -> tuple[Any, Any]:
    """Service tier and processing: a call served at the batch tier was processed as a batch."""
    words = tier.dictionary.to_pylist()
    if BATCH_TIER not in words:
        return tier, processing
    batch = words.index(BATCH_TIER)
    at = np.asarray(pc.fill_null(tier.indices, -1)) == batch
    tier = pa.DictionaryArray.from_arrays(pc.if_else(pa.array(at), None, tier.indices), tier.dictionary)
    said = pc.if_else(pa.array(at), BATCH_TIER, pc.cast(processing, pa.string()))
    return tier, pc.cast(said.dictionary_encode(), TEXT_TYPE)


def _told_invalid(said: Any) -> npt.NDArray[np.uint8] | None:
    """Codes of the reasons that instrumentations give themselves; None where none does."""
    if said.null_count == len(said):
        return None
    known = [REASONS.index(text) if text in REASONS else _INCONSISTENT for text in said.dictionary.to_pylist()]
    codes = np.array([*known, 0], np.uint8)
    at: npt.NDArray[np.int32] = np.asarray(pc.fill_null(said.indices, len(known)))
    return codes[at]


def _above(preferred: Any, column: Any) -> Any:
    """A text column, with what another says where that one says something."""
    if preferred.null_count == len(preferred):
        return column
    both = pc.coalesce(preferred.cast(pa.string()), column.cast(pa.string()))
    return both.dictionary_encode().cast(TEXT_TYPE)


def _inside(pivot: Pivot, request_model: Any, model: Any) -> Any:
    """The models that were asked for, with those that stand inside of an object where nothing else tells one."""
    for key in MODEL_OBJECTS:
        owners, texts = pivot.written(key)
        silent = np.asarray(pc.and_(pc.is_null(request_model), pc.is_null(model)))[owners] if len(owners) else owners
        if not len(owners) or not silent.any():
            continue
        found = pc.struct_field(pc.extract_regex(texts.filter(pa.array(silent)), _MODEL), "model")
        place = np.zeros(pivot.length, np.int64)
        place[owners[silent]] = np.arange(1, len(found) + 1)
        inside = found.take(pa.array(place - 1, mask=place == 0))
        request_model = pc.coalesce(pc.cast(request_model, pa.string()), inside).dictionary_encode().cast(TEXT_TYPE)
    return request_model


def _unquoted(column: Any) -> Any:
    """A text column without the quotes of values that are texts written as JSON."""
    values = column.dictionary.to_pylist()
    if not any(value.startswith('"') for value in values):
        return column
    return _respelled(column, [value.strip('"') for value in values])


def _folded(column: Any, rename: dict[str, str], *, others: bool = True) -> Any:
    """A text column with its values in their current spelling, and in lower case (or else as given)."""
    values = column.dictionary.to_pylist()
    return _respelled(column, [rename.get(low := value.lower(), low if others else value) for value in values])


def _respelled(column: Any, current: list[str]) -> Any:
    """A text column with other words in the place of its values; an empty one is null."""
    values = column.dictionary.to_pylist()
    if current == values:
        return column
    words = {word: position for position, word in enumerate(dict.fromkeys(filter(None, current)))}
    place = pa.array([words.get(value) for value in current], pa.int32())
    return pa.DictionaryArray.from_arrays(place.take(column.indices), pa.array(words, pa.string()))


def _kinds(operation: Any) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], Mask]:
    """Index in `_KINDS` by operation, of spans with tokens and without, and whether it is one of `TWO_SIDED`.

    Tokens are spent by calls of models: a span with token usage is an inference where its operation is not given or
    not known.
    """
    other, inference = _KINDS.index("other"), _KINDS.index("inference")
    # By distinct operation; the last entry is for spans without one.
    values = [value.lower() for value in operation.dictionary.to_pylist()]
    without = np.array([_KINDS.index(OPERATION_KINDS.get(value, "other")) for value in values] + [other], np.int32)
    unknown = np.array([value not in OPERATION_KINDS and value not in NO_MODEL_CALLS for value in values] + [True])
    two_sided = np.array([value in TWO_SIDED for value in values] + [False])
    codes, said = codes_of(operation)
    at = codes if said is None else np.where(said, codes, -1)
    return np.where(unknown, np.int32(inference), without)[at], without[at], two_sided[at]


def _whole(quantities: dict[str, Any], length: int) -> Mask:
    """Which spans tell both their input and their output."""
    whole: Mask = np.ones(length, np.bool_)
    for meter in _WHOLES:
        whole &= validity(quantities[meter]) if meter in quantities else np.False_
    return whole


def _truths(values: Mask) -> Any:
    """A boolean column without nulls."""
    return pa.Array.from_buffers(pa.bool_(), len(values), [None, pa.py_buffer(np.packbits(values, bitorder="little"))])


def _convention(codes: npt.NDArray[np.int32]) -> Any:
    """Names of conventions by their codes; a negative one is null."""
    said = codes >= 0
    return dictionary(codes, None if said.all() else said, _CONVENTION_WORDS)

"""Bodies without content: the first thing that telemetry sheds, before any span is dropped.

In: `Decoded` spans that are to be kept without what was said (see `content_names`). Out: the same spans with structure,
usage, tags and times, without the attributes and events that are content, marked with `CONTENT`; and how many bytes
that saved, span by span. Between `sample` and `bodies` or `encode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from itertools import chain
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.attributes import CONTENT
from tollspan.processor.decode import Attributes, Decoded, read_messages
from tollspan.processor.decode.anyvalue import STRING
from tollspan.processor.decode.arrow_bytes import replace as replace_rows
from tollspan.processor.decode.arrow_bytes import text
from tollspan.processor.decode.tables import with_columns
from tollspan.processor.identity import Mask, Rows
from tollspan.processor.judged import Judged
from tollspan.processor.sample.content_names import ATTRIBUTES, EVENTS, STRUCTURE

REMOVED: Final = "removed"
"""Value of `CONTENT`."""

_MARK: Final = pa.array([b"\x0a" + bytes([len(REMOVED)]) + REMOVED.encode()], pa.binary())


class Stripped(NamedTuple):
    """Spans without content.

    Attributes:
        decoded: n spans.
        removed: int64 of n, bytes that each lost, about: names and values of attributes, and whole events.
    """

    decoded: Decoded
    removed: npt.NDArray[np.int64]


class _Events(NamedTuple):
    """What of the events of a batch is content.

    Attributes:
        owners: int64 of k, span of each event.
        gone: k; whole events.
        batch, attributes: the events' columns.
        rows: m; attributes of events that are content.
    """

    owners: Rows
    gone: Mask
    batch: Any
    attributes: Attributes
    rows: Mask


def without_content(decoded: Decoded) -> Decoded:
    """Spans without their content; see `strip`."""
    return strip(decoded).decoded


def strip(decoded: Decoded) -> Stripped:
    """Take the content out of spans.

    Args:
        decoded: n spans, unchanged.

    Returns:
        n spans in the same order. Where something went, the span has the attribute `CONTENT` and its dropped counts
        are higher by what went; spans that had no content are as they were.
    """
    spans, attributes = decoded.spans, decoded.attributes
    content = _content_rows(attributes)
    removed = _sizes(attributes, content)
    columns: dict[str, Any] = {"dropped_attributes": _more(spans["dropped_attributes"], attributes.offsets, content)}
    events = _events(spans["events"])
    if events is not None:
        lists, lost, gone = _without_events(spans["events"], events)
        removed += lost
        counts = np.asarray(spans["dropped_events"]).astype(np.int64) + gone
        columns |= {"events": lists, "dropped_events": pa.array(np.minimum(counts, 2**32 - 1).astype(np.uint32))}
    if not removed.any():
        return Stripped(decoded, removed)
    marked = _marked(_filtered(attributes, ~content), removed > 0)
    return Stripped(
        replace(decoded, spans=with_columns(spans, **columns), attributes=marked, wire=None),
        removed,
    )


def content_bytes(decoded: Decoded) -> npt.NDArray[np.int64]:
    """How many bytes of content each of n spans has: what `strip` would say, int64 of n."""
    attributes, lists = decoded.attributes, decoded.spans["events"]
    found = _sizes(attributes, _content_rows(attributes))
    events = _events(lists)
    if events is None:
        return found
    whole = np.where(events.gone, _lengths(_values(lists)), 0)
    inside = np.where(events.gone, 0, _sizes(events.attributes, events.rows))
    np.add.at(found, events.owners, whole + inside)
    return found


def is_content(names: Any) -> Mask:
    """Which of n names of attributes (a string array) are content."""
    return _matched(names, _pattern("attributes")) & ~_matched(names, _pattern("structure"))


def is_content_event(names: Any) -> Mask:
    """Which of n names of events (a string array) are content as a whole."""
    return _matched(names, _pattern("events"))


_CONTENT_KEYS: Final = Judged(is_content)


@cache
def _pattern(which: str) -> str:
    tables: dict[str, Iterable[str]] = {
        "attributes": chain.from_iterable(ATTRIBUTES.values()),
        "structure": STRUCTURE,
        "events": chain.from_iterable(EVENTS.values()),
    }
    made = (re.escape(name).replace(r"\*", ".*").replace(r"\#", "[0-9]+") for name in dict.fromkeys(tables[which]))
    return f"^(?s:{'|'.join(made)})$"


def _matched(names: Any, pattern: str) -> Mask:
    if not len(names):
        return np.zeros(0, np.bool_)
    return np.asarray(pc.match_substring_regex(names, pattern), dtype=np.bool_)


def _content_rows(attributes: Attributes) -> Mask:
    """Which rows of attributes are content."""
    return _CONTENT_KEYS(attributes.keys)[attributes.codes] if len(attributes) else np.zeros(0, np.bool_)


def _sizes(attributes: Attributes, chosen: Mask) -> npt.NDArray[np.int64]:
    """Bytes of names and values of the chosen rows, by owner, int64."""
    rows = np.flatnonzero(chosen)
    owners = len(attributes.offsets) - 1
    if not len(rows):
        return np.zeros(owners, np.int64)
    sizes = _lengths(attributes.take(rows)) + _lengths(attributes.keys)[attributes.codes[rows]]
    found = np.zeros(owners, np.int64)
    np.add.at(found, attributes.owners_of(rows), sizes)
    return found


def _more(counts: Any, offsets: Rows, gone: Mask) -> Any:
    """Dropped counts of n owners, higher by their rows that go."""
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(gone, dtype=np.int64)))
    found = np.asarray(counts).astype(np.int64) + np.diff(ends[offsets])
    return pa.array(np.minimum(found, 2**32 - 1).astype(np.uint32))


def _filtered(attributes: Attributes, stay: Mask) -> Attributes:
    """The rows that stay; keys that nobody has any more stay in the list of keys."""
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(stay, dtype=np.int64)))
    rows = np.flatnonzero(stay)
    return Attributes(
        ends[attributes.offsets], attributes.keys, attributes.codes[rows], attributes.take(rows), attributes.kinds[rows]
    )


def _marked(attributes: Attributes, owners: Mask) -> Attributes:
    """With `CONTENT` as the last attribute of some owners, in the place of one that they had."""
    known = np.asarray(pc.equal(attributes.keys, CONTENT), dtype=np.bool_)
    if known.any():
        attributes = _filtered(attributes, ~(known[attributes.codes] & owners[attributes.owners]))
    rows = len(attributes)
    offsets = attributes.offsets + np.concatenate((np.zeros(1, np.int64), np.cumsum(owners, dtype=np.int64)))
    marks = offsets[1:][owners] - 1
    source = np.full(int(offsets[-1]), rows, np.int64)
    others = np.ones(len(source), np.bool_)
    others[marks] = False
    source[others] = np.arange(rows)
    code = np.int32(len(attributes.keys))
    return Attributes(
        offsets,
        pa.concat_arrays([attributes.keys, pa.array([CONTENT], attributes.keys.type)]),
        np.append(attributes.codes, code)[source],
        pa.concat_arrays([attributes.raw.cast(pa.binary()), _MARK]).take(pa.array(source)),
        np.append(attributes.kinds, np.uint8(STRING))[source],
    )


def _values(lists: Any) -> Any:
    offsets = np.asarray(lists.offsets)
    return lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))


def _events(lists: Any) -> _Events | None:
    """What of the events is content; None where nothing is."""
    values = _values(lists)
    if not len(values):
        return None
    batch, attributes = read_messages("Event", values)
    gone = is_content_event(text(batch["name"]))
    rows = _content_rows(attributes)
    if not gone.any() and not rows.any():
        return None
    owners = np.repeat(np.arange(len(lists), dtype=np.int64), np.diff(np.asarray(lists.offsets)))
    return _Events(owners, gone, batch, attributes, rows)


def _without_events(lists: Any, events: _Events) -> tuple[Any, npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Lists of n spans without content; bytes that each span lost; whole events that it lost."""
    values = _values(lists)
    before = _lengths(values)
    touched = np.zeros(len(values), np.bool_)
    touched[events.attributes.owners[events.rows]] = True
    rewritten = np.flatnonzero(touched & ~events.gone)
    if len(rewritten):
        values = replace_rows(values, rewritten, _rewritten(events, rewritten))
    lost = np.where(events.gone, before, before - _lengths(values))
    removed, gone = np.zeros(len(lists), np.int64), np.zeros(len(lists), np.int64)
    np.add.at(removed, events.owners, lost)
    np.add.at(gone, events.owners, events.gone.astype(np.int64))
    stay = ~events.gone
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(stay, dtype=np.int64)))
    offsets = np.asarray(lists.offsets).astype(np.int64)
    made = pa.ListArray.from_arrays(
        pa.array(ends[offsets - offsets[0]].astype(np.int32)), values.filter(pa.array(stay)).cast(pa.binary())
    )
    return made, removed, gone


def _rewritten(events: _Events, rows: Rows) -> Any:
    """Messages of some events without the attributes that are content."""
    # Writing OTLP needs protobuf's classes, which nobody else here does.
    from tollspan.processor.encode import event

    dropped = _more(events.batch["dropped_attributes_count"], events.attributes.offsets, events.rows)
    batch = with_columns(events.batch, dropped_attributes_count=dropped).take(pa.array(rows))
    return event(batch, _filtered(events.attributes, ~events.rows).select(rows))


def _lengths(values: Any) -> npt.NDArray[np.int64]:
    return np.asarray(pc.binary_length(values)).astype(np.int64)

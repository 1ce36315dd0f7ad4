"""Bodies: kept spans in the shape of the OpenTelemetry Collector's ClickHouse exporter.

In: `Decoded`, the rows that sampling keeps, and columns to put beside them. Out: a table for ``spans``, with the column
names and value forms of the exporter's ``otel_traces``, so that dashboards written for it work. Between `sample` and
`write`; kept spans are few, and only for them are events, links and text forms of attributes made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from tollspan.pricing.attributes import SERVICE_NAME
from tollspan.processor.decode import Attributes, Decoded, read_messages
from tollspan.processor.decode.arrow_bytes import cut, hexadecimal, replace, text

INSTANT: Final = pa.timestamp("ns", "UTC")

SPAN_KINDS: Final = pa.array(["Unspecified", "Internal", "Server", "Client", "Producer", "Consumer"], pa.string())
STATUS_CODES: Final = pa.array(["Unset", "Ok", "Error"], pa.string())
"""Names by OTLP number; a number that has none is written as the first."""

MOST_RESOURCE_BYTES: Final = 256 << 20
"""Bound on resource attributes in one table. OTLP says them once for many spans and ``otel_traces`` repeats them in
every row, so a few megabytes on the wire could become gigabytes here."""
LEFT_OUT: Final = "tollspan.left_out"
"""Stands instead of resource attributes that would not fit that bound, and says how many bytes they have."""

_MAP: Final = pa.map_(pa.string(), pa.string())
_OF_EVENTS: Final = {"Events.Timestamp": INSTANT, "Events.Name": pa.string(), "Events.Attributes": _MAP}
_OF_LINKS: Final = {
    "Links.TraceId": pa.string(),
    "Links.SpanId": pa.string(),
    "Links.TraceState": pa.string(),
    "Links.Attributes": _MAP,
}


def bodies(chosen: Decoded, extra: Mapping[str, Any]) -> pa.Table:
    """Full spans.

    Args:
        chosen: k spans.
        extra: columns of length k that are appended.

    Returns:
        k rows with ``Timestamp`` timestamp[ns, UTC], ``TraceId``, ``SpanId``, ``ParentSpanId`` lowercase hex (``''``
        for a root), ``TraceState``, ``SpanName``, ``SpanKind``, ``ServiceName`` (``''`` when the resource has none),
        ``ResourceAttributes`` map, ``ScopeName``, ``ScopeVersion``, ``SpanAttributes`` map, ``Duration`` uint64 ns,
        ``StatusCode``, ``StatusMessage``; the lists ``Events.Timestamp``, ``Events.Name``, ``Events.Attributes``,
        ``Links.TraceId``, ``Links.SpanId``, ``Links.TraceState``, ``Links.Attributes``; and ``extra``. Texts of which
        there are few are dictionaries, so are keys of attributes, and values of resources'. No nulls of its own. An
        instant past 2262 is written as the epoch, the duration of a span that ends before it starts as 0.
    """
    spans = chosen.spans
    resource, scope, resources = spans["resource"], spans["scope"], chosen.resources.maps()
    start, end = np.asarray(spans["start_ns"]), np.asarray(spans["end_ns"])
    columns: dict[str, Any] = {
        "Timestamp": _instants(start),
        "TraceId": hexadecimal(spans["trace_id"]),
        "SpanId": hexadecimal(spans["span_id"]),
        "ParentSpanId": hexadecimal(spans["parent_span_id"], zero_is_empty=True),
        "TraceState": spans["trace_state"],
        "SpanName": spans["name"],
        "SpanKind": _named(spans["kind"], SPAN_KINDS),
        "ServiceName": by_number(_service_names(resources), resource),
        "ResourceAttributes": _resource_maps(resources, chosen.resources.offsets, resource),
        "ScopeName": by_number(cut(chosen.scopes["name"]), scope),
        "ScopeVersion": by_number(cut(chosen.scopes["version"]), scope),
        "SpanAttributes": _maps(chosen.attributes),
        "Duration": pa.array(np.where(end < start, 0, end - start).astype(np.uint64)),
        "StatusCode": _named(spans["status_code"], STATUS_CODES),
        "StatusMessage": spans["status_message"],
        **_events(spans["events"]),
        **_links(spans["links"]),
    }
    return pa.table({**columns, **extra})


def by_number(texts: Any, numbers: Any) -> Any:
    """The text at each of some numbers, as a dictionary of different ones.

    Args:
        texts: string array, few and maybe alike.
        numbers: integers, an array of either kind.
    """
    coded, numbers = texts.dictionary_encode(), np.asarray(numbers)
    if len(coded.dictionary) < len(texts):
        numbers = np.asarray(coded.indices)[numbers]
    return pa.DictionaryArray.from_arrays(pa.array(numbers, pa.int32()), coded.dictionary)


def together(tables: Sequence[pa.Table]) -> pa.Table:
    """Tables of `bodies`, at least one, in one: what is written at once has one dictionary for all keys of maps."""
    if len(tables) == 1:
        return tables[0]
    whole = pa.concat_tables(tables, promote_options="permissive")
    for name in ("ResourceAttributes", "SpanAttributes"):
        maps = [chunk for chunk in whole[name].chunks if len(chunk)]
        if maps:
            parts = [
                pa.concat_arrays([getattr(each, part)[_inside(each)] for each in maps]) for part in ("keys", "items")
            ]
            counts = np.concatenate([np.diff(np.asarray(each.offsets)) for each in maps])
            ends = np.concatenate((np.zeros(1, np.int32), np.cumsum(counts, dtype=np.int32)))
            made = pa.MapArray.from_arrays(pa.array(ends), *parts)
            whole = whole.set_column(whole.column_names.index(name), name, made)
    return whole


def _inside(lists: Any) -> slice:
    """Where the values of lists stand."""
    offsets = np.asarray(lists.offsets)
    return slice(int(offsets[0]), int(offsets[-1]))


def _instants(nanoseconds: npt.NDArray[np.uint64]) -> Any:
    fits = nanoseconds < np.uint64(2**63)
    return pa.array(np.where(fits, nanoseconds, 0).astype(np.int64)).cast(INSTANT)


def _named(numbers: Any, names: Any) -> Any:
    values = np.asarray(numbers)
    return by_number(names, np.where((values < 0) | (values >= len(names)), 0, values))


def _service_names(resources: Any) -> Any:
    """``service.name`` of each resource as text, ``''`` where it has none."""
    return cut(pc.fill_null(pc.map_lookup(resources, SERVICE_NAME, "last"), ""))


def _resource_maps(maps: Any, offsets: Any, resource: Any) -> Any:
    """Resource attributes of each span, as maps; ``offsets`` are those of ``maps``."""
    lengths = np.asarray(pc.binary_length(maps.keys)).astype(np.int64) + np.asarray(pc.binary_length(maps.items))
    ends = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths)))[offsets]
    sizes = np.diff(ends)
    if len(resource) and int(sizes[np.asarray(resource)].sum()) > MOST_RESOURCE_BYTES:
        large = np.flatnonzero(sizes > MOST_RESOURCE_BYTES // len(resource))
        notes = pa.MapArray.from_arrays(
            pa.array(np.arange(len(large) + 1, dtype=np.int32)),
            pa.array([LEFT_OUT] * len(large), pa.string()),
            pc.binary_join_element_wise(pc.cast(pa.array(sizes[large]), pa.string()), "bytes", " "),
        )
        maps = replace(maps, large, notes)
    keys, items = (part[_inside(maps)].dictionary_encode() for part in (maps.keys, maps.items))
    ends = np.asarray(maps.offsets)
    coded = pa.MapArray.from_arrays(pa.array(ends - ends[0]), keys, items)
    return coded.take(pa.array(resource) if isinstance(resource, np.ndarray) else resource)


def _maps(attributes: Attributes) -> Any:
    """Attributes of n owners as ``map<dictionary, string>``: a key is said once."""
    keys = by_number(attributes.keys, attributes.codes)
    return pa.MapArray.from_arrays(pa.array(attributes.offsets.astype(np.int32)), keys, attributes.texts())


def _messages(lists: Any, message: str) -> tuple[Any, Any, Attributes]:
    """Offsets of a list column, and the messages in it as columns."""
    offsets = np.asarray(lists.offsets)
    values = lists.values.slice(int(offsets[0]), int(offsets[-1] - offsets[0]))
    batch, attributes = read_messages(message, values)
    return pa.array(offsets - offsets[0]), batch, attributes


def _events(lists: Any) -> dict[str, Any]:
    if not _any(lists):
        return {name: _nothing(len(lists), kind) for name, kind in _OF_EVENTS.items()}
    offsets, batch, attributes = _messages(lists, "Event")
    return {
        "Events.Timestamp": _list(offsets, _instants(np.asarray(batch["time_unix_nano"]))),
        "Events.Name": _list(offsets, text(batch["name"])),
        "Events.Attributes": _list(offsets, attributes.maps()),
    }


def _links(lists: Any) -> dict[str, Any]:
    if not _any(lists):
        return {name: _nothing(len(lists), kind) for name, kind in _OF_LINKS.items()}
    offsets, batch, attributes = _messages(lists, "Link")
    return {
        "Links.TraceId": _list(offsets, hexadecimal(batch["trace_id"])),
        "Links.SpanId": _list(offsets, hexadecimal(batch["span_id"])),
        "Links.TraceState": _list(offsets, text(batch["trace_state"])),
        "Links.Attributes": _list(offsets, attributes.maps()),
    }


def _any(lists: Any) -> bool:
    """Whether any list has something in it."""
    offsets = np.asarray(lists.offsets)
    return bool(offsets[-1] > offsets[0])


def _nothing(rows: int, kind: Any) -> Any:
    """Empty lists."""
    return _list(pa.array(np.zeros(rows + 1, np.int32)), pa.array([], kind))


def _list(offsets: Any, values: Any) -> Any:
    return pa.ListArray.from_arrays(offsets, values)

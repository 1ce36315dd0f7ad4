"""The table ``sampling_levels``: rows out of figures and histograms, and what stands in it.

Of a minute, metric, dimension and key that several processors write the row that was written first stays; counts that
each processor has for itself stand under its own name (``source``), the last one of each, and are added up. A row with
the key '' says that the minute was looked at.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pyarrow as pa

from tollspan.processor.sample.figures import State
from tollspan.processor.sample.states import Reads, instant
from tollspan.processor.schema import SCHEMAS

if TYPE_CHECKING:
    from tollspan.processor.store import Store

TABLE: Final = "sampling_levels"

_FIRST_WINS: Final = 2**62
_AT: Final = "toInt64(intDiv(toUnixTimestamp(minute), 60))"
_BETWEEN: Final = "minute >= {since:DateTime('UTC')} AND minute < {until:DateTime('UTC')}"

Series = tuple[str, str]
"""Metric and dimension."""


class Figure(NamedTuple):
    """A plain figure.

    Attributes:
        minute: minutes since 1970, = start_ns // 60e9.
        metric: ``base_rate``, ``content_rate`` …
        dimension: by what; '' = for everything.
        key: of the dimension; '' where it is ''.
        value: the figure.
    """

    minute: int
    metric: str
    dimension: str
    key: str
    value: float


def histogram_row(
    now: float, minute: int, series: Series, key: str, histogram: Mapping[int, int], source: str = ""
) -> dict[str, Any]:
    """A row with a histogram, written at ``now`` (seconds since 1970); with ``source`` a processor's own counts."""
    return _row(now, minute, *series, key, source) | {
        "buckets": list(histogram),
        "counts": list(histogram.values()),
        "value": None,
    }


def figure_row(now: float, figure: Figure) -> dict[str, Any]:
    """A row with a plain figure."""
    row = _row(now, figure.minute, figure.metric, figure.dimension, figure.key, "")
    return row | {"buckets": [], "counts": [], "value": figure.value}


def _row(now: float, minute: int, metric: str, dimension: str, key: str, source: str) -> dict[str, Any]:
    written = int(now * 1000)
    return {
        "minute": minute * 60,
        "metric": metric,
        "dimension": dimension,
        "key": key,
        "source": source,
        "published_at": written,
        "precedence": written if source else _FIRST_WINS - written,
    }


def publish(store: Store, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows.

    Raises:
        StoreError, StoreUnavailable: they are not written, or nobody knows.
    """
    if rows:
        store.insert(TABLE, pa.Table.from_pylist(list(rows), schema=SCHEMAS[TABLE]), uuid.uuid4().hex)


def looked_at(reader: Reads, series: Series, since: int, until: int) -> set[int]:
    """Minutes from ``since`` until before ``until`` whose histograms somebody has written."""
    return _minutes(
        reader, f"metric = {_quoted(series[0])} AND dimension = {_quoted(series[1])} AND key = '' AND source = ''",
        since, until,
    )  # fmt: skip


def has_figures(reader: Reads, metric: str, minute: int) -> bool:
    """Whether there is any row of a metric and minute."""
    return bool(_minutes(reader, f"metric = {_quoted(metric)}", minute, minute + 1))


def _minutes(reader: Reads, where: str, since: int, until: int) -> set[int]:
    rows = reader.query(
        f"SELECT DISTINCT {_AT} AS at FROM {TABLE} WHERE {where} AND {_BETWEEN}",
        {"since": _seconds(since), "until": _seconds(until)},
    )
    return set(rows["at"].to_pylist())


def histograms(reader: Reads, series: Series, since: int, until: int) -> dict[int, State]:
    """Histograms by minute, from ``since`` until before ``until``; of counts of several processors the sum."""
    out: dict[int, State] = {minute: {} for minute in range(since, until)}
    rows = reader.query(
        f"SELECT {_AT} AS at, key, buckets, counts FROM {TABLE} FINAL"
        f" WHERE metric = {{metric:String}} AND dimension = {{dimension:String}} AND {_BETWEEN} AND notEmpty(buckets)",
        {"metric": series[0], "dimension": series[1], "since": _seconds(since), "until": _seconds(until)},
    )
    columns = (rows[name].to_pylist() for name in ("at", "key", "buckets", "counts"))
    for minute, key, buckets, counts in zip(*columns, strict=True):
        histogram = out[minute].setdefault(key, {})
        for number, count in zip(buckets, counts, strict=True):
            histogram[number] = histogram.get(number, 0) + count
    return out


def figures(reader: Reads, metrics: Iterable[str], since: int) -> list[Figure]:
    """Plain figures of some metrics from a minute on, those of minutes to come with them."""
    rows = reader.query(
        f"SELECT {_AT} AS at, metric, dimension, key, assumeNotNull(value) AS figure FROM {TABLE} FINAL"
        f" WHERE metric IN ({', '.join(map(_quoted, metrics))}) AND isNotNull(value)"
        " AND minute >= {since:DateTime('UTC')}",
        {"since": _seconds(since)},
    )
    return [Figure(row["at"], row["metric"], row["dimension"], row["key"], row["figure"]) for row in rows.to_pylist()]


def _quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _seconds(minute: int) -> str:
    return instant(minute * 60)[:19]

"""ClickHouse's HTTP interface on an embedded store.

`front` serves, `statement` decides what a read-only port runs, `wire` is HTTP.
"""

from __future__ import annotations

from tollspan.processor.sqlfront.front import Asked, Fault, SqlFront

__all__ = ["Asked", "Fault", "SqlFront"]

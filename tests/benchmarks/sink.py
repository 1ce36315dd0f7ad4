"""A ClickHouse server on the wire that discards inserts of spans, so that only the client's own work is measured.

    python tests/benchmarks/sink.py PORT

Everything else (handshake, DDL, the migrations' bookkeeping) is real: it runs on an embedded engine.
"""

from __future__ import annotations

import signal
import sys
import tempfile
from typing import Any

from tollspan.processor.sqlfront import SqlFront
from tollspan.processor.sqlfront.wire import Answer, Request
from tollspan.processor.store import open_store


class Sink(SqlFront):
    """Answers inserts without looking at their rows."""

    def _execute(self, request: Request, whole: bytes, insert: bool) -> Answer:
        if insert and b"schema_migrations" not in whole[:400]:
            return Answer()
        return super()._execute(request, whole, insert)


def main() -> None:
    arguments: dict[str, Any] = {"address": f"127.0.0.1:{sys.argv[1]}", "writable": True}
    with tempfile.TemporaryDirectory(prefix="tollspan-sink-") as folder, open_store(f"chdb://{folder}") as store:
        sink = Sink(store, **arguments)
        sink.start()
        signal.sigwait({signal.SIGTERM, signal.SIGINT})
        sink.stop()


if __name__ == "__main__":
    main()

"""An HTTP server that answers as ClickHouse does as far as clients ask before they insert, and discards inserts.

    python tests/benchmarks/sink.py PORT

SELECTs and DDL are run on an in-memory chdb, so every client finds real answers; INSERT bodies are read and dropped.
"""

from __future__ import annotations

import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import chdb
from chdb import session


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    engine: session.Session
    lock = threading.Lock()

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def do_POST(self) -> None:
        data = self.body()
        parameters = {k: v[-1] for k, v in parse_qs(urlsplit(self.path).query).items()}
        sql = parameters.get("query", "")
        answer, status = b"", 200
        is_insert = "insert into" in (sql or data[:200].decode("latin-1")).lower()
        if not is_insert:
            text = sql or data.decode()
            form = self.headers.get("X-ClickHouse-Format") or parameters.get("default_format") or "TabSeparated"
            try:
                with self.lock:
                    answer = bytes(self.engine.query(text, form).bytes() or b"")
            except Exception as error:
                answer, status = str(error).encode(), 500
        self.send_response(status)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


def main() -> None:
    Handler.engine = session.Session()
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()


if __name__ == "__main__":
    assert chdb
    main()

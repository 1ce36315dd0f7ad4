"""A Hugging Face hub of the test's own, on this machine, in the wire format of the real one.

In: requests of the real ``huggingface_hub``. Out: what the hub answers to what a download needs: the description of a
revision, its tree, and files, of which the big ones come from another address after a redirect.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Attributes:
    url: its address.
    storage: where big files come from: another host, or the client would follow where it is to be told.
    files: what its one repository has, by name. The client remembers which there are.
    repository: its name.
    sent: bodies of files that went out, bytes as on the wire.
    broken: how often the connection breaks off in the middle of a file that is asked for.
    """

    def __init__(self, files: dict[str, bytes], repository: str = "acme/ranker") -> None:
        self.files = files
        self.repository = repository
        self.sent = 0
        self.broken = 0
        self._lock = threading.Lock()
        self.url = self.storage = ""

    def went_out(self, count: int) -> None:
        """Bytes of a file were sent."""
        with self._lock:
            self.sent += count


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """The hub at work, on a port that was free."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def reply(self, status: int, body: bytes, headers: dict[str, str], *, send: bool) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if send:
                self.wfile.write(body)

        def answer(self, *, body: bool) -> None:
            path = unquote(urlsplit(self.path).path).strip("/")
            described = f"api/models/{hub.repository}"
            if path in (described, f"{described}/revision/main", f"{described}/revision/{COMMIT}"):
                about = {"id": hub.repository, "sha": COMMIT, "siblings": [{"rfilename": name} for name in hub.files]}
                return self.reply(200, json.dumps(about).encode(), {"Content-Type": "application/json"}, send=body)
            if path.startswith(f"{described}/tree/"):
                tree = [
                    {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                    for name, data in hub.files.items()
                ]
                return self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, send=body)
            for revision in ("main", COMMIT):
                start = f"{hub.repository}/resolve/{revision}/"
                if path.startswith(start) and path.removeprefix(start) in hub.files:
                    return self.file(hub.files[path.removeprefix(start)], path.removeprefix(start), send=body)
            if path.startswith("storage/"):
                return self.stored(hub.files[path.removeprefix("storage/")], send=body)
            code = "EntryNotFound" if path.startswith(hub.repository) else "RepoNotFound"
            return self.reply(404, b"", {"X-Error-Code": code, "X-Repo-Commit": COMMIT}, send=body)

        def file(self, data: bytes, name: str, *, send: bool) -> None:
            about = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(data).hexdigest()}"', "Accept-Ranges": "bytes"}
            if not name.endswith((".json", ".txt")):
                about |= {
                    "Location": f"{hub.storage}/storage/{name}",
                    "X-Linked-Size": str(len(data)),
                    "X-Linked-ETag": f'"{hashlib.sha256(data).hexdigest()}"',
                }
                return self.reply(302, b"", about, send=send)
            if send and "gzip" in self.headers.get("Accept-Encoding", ""):
                data = gzip.compress(data)
                about["Content-Encoding"] = "gzip"
            if send:
                hub.went_out(len(data))
            return self.reply(200, data, about, send=send)

        def stored(self, data: bytes, *, send: bool) -> None:
            asked = self.headers.get("Range", "")
            begin = int(asked.removeprefix("bytes=").partition("-")[0]) if asked else 0
            rest = data[begin:]
            about = {"Content-Range": f"bytes {begin}-{len(data) - 1}/{len(data)}"} if asked else {}
            if send and hub.broken:
                hub.broken -= 1
                self.send_response(206 if asked else 200)
                self.send_header("Content-Length", str(len(rest)))
                self.end_headers()
                self.wfile.write(rest[: len(rest) // 2])
                hub.went_out(len(rest) // 2)
                self.close_connection = True
                return None
            if send:
                hub.went_out(len(rest))
            return self.reply(206 if asked else 200, rest, about, send=send)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    port = server.server_address[1]
    hub.url, hub.storage = f"http://127.0.0.1:{port}", f"http://localhost:{port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

"""HTTP as ClickHouse speaks it: requests read whole and decompressed, answers and errors with its headers.

In: a socket. Out: a `Request` for the front and an `Answer` from it. Nothing here knows SQL.
"""

from __future__ import annotations

import email.parser
import email.policy
import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

import pyarrow as pa

from tollspan.processor.addresses import host_name
from tollspan.processor.senders import credentials
from tollspan.processor.sqlfront.statement import Refused

log = logging.getLogger(__name__)

REQUIRED_PASSWORD: Final = 194
AUTHENTICATION_FAILED: Final = 516
UNKNOWN_EXCEPTION: Final = 1002
"""ClickHouse's error codes."""

CODINGS: Final[dict[str, str]] = {"zstd": "zstd", "lz4": "lz4", "gzip": "gzip", "br": "brotli"}
"""Content-Encoding → pyarrow's codec, in our order of preference."""

UNGUARDED: Final = frozenset({"/ping", "/replicas_status"})
"""Health checks, which need no login."""

STATUSES: Final[dict[int, int]] = {
    27: 400,  # CANNOT_PARSE_INPUT_ASSERTION_FAILED
    33: 400,  # CANNOT_READ_ALL_DATA
    36: 400,  # BAD_ARGUMENTS
    43: 400,  # ILLEGAL_TYPE_OF_ARGUMENT
    46: 404,  # UNKNOWN_FUNCTION
    47: 404,  # UNKNOWN_IDENTIFIER
    48: 501,  # NOT_IMPLEMENTED
    50: 404,  # UNKNOWN_TYPE
    53: 400,  # TYPE_MISMATCH
    60: 404,  # UNKNOWN_TABLE
    62: 400,  # SYNTAX_ERROR
    73: 404,  # UNKNOWN_FORMAT
    81: 404,  # UNKNOWN_DATABASE
    115: 404,  # UNKNOWN_SETTING
    117: 400,  # INCORRECT_DATA
    159: 408,  # TIMEOUT_EXCEEDED
    194: 401,  # REQUIRED_PASSWORD
    202: 503,  # TOO_MANY_SIMULTANEOUS_QUERIES
    457: 400,  # BAD_QUERY_PARAMETER
    497: 403,  # ACCESS_DENIED
    516: 403,  # AUTHENTICATION_FAILED
}
"""HTTP status of a ClickHouse error code; 500 for the others."""

_TYPES: Final[dict[str, str]] = {
    "JSON": "application/json; charset=UTF-8",
    "CSV": "text/csv; charset=UTF-8; header=absent",
    "TabSeparated": "text/tab-separated-values; charset=UTF-8",
    "TSV": "text/tab-separated-values; charset=UTF-8",
    "XML": "application/xml; charset=UTF-8",
    "Markdown": "text/markdown; charset=UTF-8",
    "Pretty": "text/plain; charset=UTF-8",
    "Vertical": "text/plain; charset=UTF-8",
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked.

    Attributes:
        method: ``GET`` or ``POST``.
        params: of the URL and of a multipart form.
        headers: names in lower case.
        body: decompressed.
    """

    method: str
    params: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes


@dataclass(slots=True)
class Answer:
    """What it gets.

    Attributes:
        body: uncompressed.
        format: the ClickHouse format of the body; None for a statement without rows.
        summary: for ``X-ClickHouse-Summary``.
        status: HTTP status.
        code: ClickHouse's error code, 0 for none.
        drop: close the connection instead of answering (fault injection).
    """

    body: bytes = b""
    format: str | None = None
    summary: dict[str, str] = field(default_factory=dict)
    status: int = 200
    code: int = 0
    drop: bool = False


class Malformed(Exception):
    """A request that is no proper HTTP; carries its status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Handler(BaseHTTPRequestHandler):
    """One connection. The front sets the class attributes on a subclass of its own."""

    protocol_version = "HTTP/1.1"
    server_version = "tollspan"
    sys_version = ""
    timeout = 60
    disable_nagle_algorithm = True
    wbufsize = -1

    server: Any
    answer: Callable[[Request], Answer]
    admits: Callable[[str, str], bool] | None = None
    metrics: Callable[[], str] | None = None
    allowed_hosts: frozenset[str] | None
    max_body: int
    server_name: str
    timezone: str

    def do_GET(self) -> None:
        """Answer a GET."""
        self._serve()

    def do_POST(self) -> None:
        """Answer a POST."""
        self._serve()

    def do_HEAD(self) -> None:
        """Answer a health check that wants no body."""
        self._serve()

    def version_string(self) -> str:
        """The Server header."""
        return self.server_version

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: queries are their clients' business."""

    def _serve(self) -> None:
        try:
            self._check_origin()
            path = urlsplit(self.path)
            params = dict(parse_qsl(path.query, keep_blank_values=True))
            if path.path not in UNGUARDED:
                self._check_login(params)
            body = self._read_body()
            self.server.read(self.connection)
            if path.path in ("/ping", "/replicas_status") or (path.path == "/" and not params and not body):
                self._plain(200, "Ok.\n")
                return
            metrics = type(self).metrics
            if path.path == "/metrics" and metrics is not None:
                self._plain(200, metrics())
                return
            if path.path != "/":
                self._plain(
                    404, f"There is no handle {path.path}\n\nUse / or /ping for health checks, /?query= for SQL.\n"
                )
                return
            headers = {name.lower(): value for name, value in self.headers.items()}
            if headers.get("content-type", "").startswith("multipart/form-data"):
                params, body = {**params, **_form(headers["content-type"], body)}, b""
            result = self._answered(Request(self.command, params, headers, body))
        except Malformed as error:
            self.close_connection = True
            self._plain(error.status, f"{error}\n")
            return
        except Refused as error:
            result = Answer(
                f"{error}\n".encode(), "TabSeparated", status=STATUSES.get(error.code, 500), code=error.code
            )
            params = {}
            if error.code in (REQUIRED_PASSWORD, AUTHENTICATION_FAILED):
                # Its body was not read.
                self.close_connection = True
        if result.drop:
            self.close_connection = True
            return
        self._send(result, params)

    def _answered(self, request: Request) -> Answer:
        """What the front answers.

        Raises:
            Refused: by the front, or because of a fault of ours, which is not to end as a connection without an answer.
        """
        try:
            return type(self).answer(request)
        except Refused:
            raise
        except Exception:
            log.exception("a query met a fault of ours")
            said = "Internal error; the log of the service says more."
            raise Refused(UNKNOWN_EXCEPTION, "UNKNOWN_EXCEPTION", said) from None

    def _check_origin(self) -> None:
        """Keep web pages out: neither a name that was rebound to this machine, nor another site's script."""
        host = self.headers.get("Host", "")
        if self.allowed_hosts is not None and host and host_name(host) not in self.allowed_hosts:
            raise Malformed(403, f"Host {host} is not this port's name. Use 127.0.0.1 or localhost.")
        origin = self.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Malformed(403, "Requests from web pages are not answered.")

    def _check_login(self, params: Mapping[str, str]) -> None:
        """Let nobody in who is no reader, where there are readers; said before the body is read.

        Raises:
            Refused: no login, or a wrong one.
        """
        admits = type(self).admits
        if admits is None:
            return
        user, secret = _login(self.headers, params)
        if not secret:
            raise Refused(
                REQUIRED_PASSWORD,
                "REQUIRED_PASSWORD",
                "A login is needed: a reader's id as the user and its token as the password.",
            )
        if not admits(user, secret):
            raise Refused(
                AUTHENTICATION_FAILED,
                "AUTHENTICATION_FAILED",
                f"{user[:100]}: Authentication failed: the password is wrong, or there is no such reader.",
            )

    def _read_body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            raw = self._read_chunks()
        else:
            try:
                length = int(self.headers.get("Content-Length", 0))
            except ValueError:
                raise Malformed(400, "Content-Length is not a number.") from None
            if not 0 <= length <= self.max_body:
                raise Malformed(413, f"Request body is larger than {self.max_body} bytes.")
            raw = self.rfile.read(length) if length else b""
            if len(raw) < length:
                raise Malformed(400, "Request body ended early.")
        coding = self.headers.get("Content-Encoding", "identity").strip().lower()
        if coding in ("", "identity") or not raw:
            return raw
        if coding not in CODINGS:
            raise Malformed(415, f"Content-Encoding {coding} is not known; {', '.join(CODINGS)} are.")
        try:
            # Read one byte more than is allowed, never all that a small body may unfold to.
            plain = bytes(pa.CompressedInputStream(pa.BufferReader(raw), CODINGS[coding]).read(self.max_body + 1))
        except (OSError, pa.ArrowInvalid):
            raise Malformed(400, f"Request body is not {coding}.") from None
        if len(plain) > self.max_body:
            raise Malformed(413, f"Request body is larger than {self.max_body} bytes.")
        return plain

    def _read_chunks(self) -> bytes:
        parts, total = [], 0
        while True:
            line = self.rfile.readline(1026)
            try:
                size = int(line.split(b";")[0], 16)
            except ValueError:
                raise Malformed(400, "Request body is not chunked as it says.") from None
            if size == 0:
                break
            total += size
            if size < 0 or total > self.max_body:
                raise Malformed(413, f"Request body is larger than {self.max_body} bytes.")
            part = self.rfile.read(size)
            if len(part) < size:
                raise Malformed(400, "Request body ended early.")
            parts.append(part)
            self.rfile.readline(8)
        while self.rfile.readline(1026) not in (b"\r\n", b"\n", b""):
            pass
        return b"".join(parts)

    def _send(self, result: Answer, params: Mapping[str, str]) -> None:
        body, coding = result.body, None
        if body and params.get("enable_http_compression") in ("1", "true"):
            coding = _chosen(self.headers.get("Accept-Encoding", ""))
            if coding:
                sink = pa.BufferOutputStream()
                with pa.CompressedOutputStream(sink, CODINGS[coding]) as out:
                    out.write(body)
                body = sink.getvalue().to_pybytes()
        self.send_response(result.status)
        self.send_header("Content-Type", _content_type(result.format))
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-ClickHouse-Server-Display-Name", self.server_name)
        self.send_header("X-ClickHouse-Query-Id", _query_id(params))
        self.send_header("X-ClickHouse-Timezone", self.timezone)
        if result.format is not None:
            self.send_header("X-ClickHouse-Format", result.format)
        if result.code:
            self.send_header("X-ClickHouse-Exception-Code", str(result.code))
        if result.code == REQUIRED_PASSWORD:
            self.send_header("WWW-Authenticate", 'Basic realm="Tollspan SQL"')
        if self.close_connection:
            self.send_header("Connection", "close")
        if coding:
            self.send_header("Content-Encoding", coding)
        if result.summary:
            self.send_header("X-ClickHouse-Summary", json.dumps(result.summary))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.server.wait(self.connection)

    def _plain(self, status: int, text: str) -> None:
        body = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=UTF-8")
        self.send_header("Content-Length", str(len(body)))
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.server.wait(self.connection)


def _login(headers: Any, params: Mapping[str, str]) -> tuple[str, str]:
    """User and password (or token) of a request, by any of the ways that ClickHouse knows; '' where there is none."""
    if (found := credentials(headers.get("Authorization", ""))) is not None:
        return found
    if "X-ClickHouse-Key" in headers:
        return headers.get("X-ClickHouse-User", ""), headers["X-ClickHouse-Key"]
    return params.get("user", ""), params.get("password", "")


def _form(content_type: str, body: bytes) -> dict[str, str]:
    """Plain fields of a multipart form: how clients send a query whose parameters are too long for a URL."""
    parser = email.parser.BytesParser(policy=email.policy.HTTP)
    message = parser.parsebytes(b"Content-Type: " + content_type.encode("latin-1") + b"\r\n\r\n" + body)
    fields: dict[str, str] = {}
    for part in message.iter_parts() if message.is_multipart() else ():
        name = part.get_param("name", header="content-disposition")
        if part.get_filename() is not None:
            raise Refused(48, "NOT_IMPLEMENTED", "External tables are not supported on this port.")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            fields[name] = content.decode("utf-8", "replace")
    return fields


def _chosen(accepted: str) -> str | None:
    offers = {}
    for item in accepted.lower().split(","):
        coding, _, quality = item.strip().partition(";")
        offers[coding.strip()] = quality.replace(" ", "") != "q=0"
    return next((coding for coding in CODINGS if offers.get(coding)), None)


def _content_type(form: str | None) -> str:
    if form is None:
        return "text/plain; charset=UTF-8"
    for start, content_type in _TYPES.items():
        if form.startswith(start):
            return content_type
    return "application/octet-stream"


def _query_id(params: Mapping[str, str]) -> str:
    given = params.get("query_id", "")
    # It goes into a header: nothing that could end one.
    return given if given and given.isprintable() and given.isascii() and len(given) <= 200 else str(uuid.uuid4())

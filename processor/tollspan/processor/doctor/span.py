"""A test span, sent over OTLP as a program sends one, until it is in the ledger with its price.

It can enter no bill: it counts zero tokens, so its price is worked out and its cost is exactly 0; it is no model call
(``execute_tool``), so no count of inferences has it; and its tenant and service are ``tollspan-doctor``. It is not
removed: `tollspan reconcile` proves that the ledger has every span that was acknowledged, and this is one. The same
span goes to both ports, and has to be there once.
"""

from __future__ import annotations

import http.client
import os
import ssl
import time
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tollspan.pricing import attributes as names
from tollspan.processor.config import Config, Places, TlsSettings
from tollspan.processor.doctor.files import certificate as read_certificate
from tollspan.processor.doctor.finding import FAIL, Finding, fail, ok, skip, warn
from tollspan.processor.doctor.live import TIMEOUT_S, Live, reachable
from tollspan.processor.errors import ConfigError, TollspanError
from tollspan.processor.receive import EXPORT
from tollspan.processor.store import connect_for_query

if TYPE_CHECKING:
    from tollspan.processor.doctor import Asked

WHO: Final = "tollspan-doctor"
PROVIDER: Final = "openai"
MODEL: Final = "gpt-5-mini"
"""In the shipped book; a book of the user's that lacks it cannot take it away."""


def span(config: Config, live: Live, asked: Asked) -> Iterator[Finding]:
    """Send it, and look for it."""
    tls = config.get(TlsSettings)
    if not asked.send:
        return
    if not live.running:
        yield skip("span.sent", "No service runs, so no span was sent.", "Start it and run this again.")
        return
    if config.get(Places).senders is not None and not asked.token:
        yield skip("span.sent", "Senders log in here, and no token was given.", "Give --token or set TOLLSPAN_TOKEN.")
        return
    if tls.client_ca is not None:
        yield skip("span.sent", "Senders need certificates here, and this has none.")
        return
    trace_id = os.urandom(16)
    payload = request(trace_id)
    sent = False
    for name, address, send in (("grpc", live.grpc, _grpc), ("http", live.http, _http)):
        if not address:
            continue
        try:
            trouble = send(address, payload, asked, tls.cert)
        except (OSError, http.client.HTTPException, TollspanError) as error:
            trouble = f"{error}"
        if trouble:
            do = "Give --ca, the authority of its certificate." if "CERTIFICATE_VERIFY" in trouble.upper() else ""
            yield Finding(
                f"span.{name}",
                FAIL,
                f"{address} did not take the test span: {trouble.rstrip('.')}.",
                do or _help(trouble),
            )
        else:
            yield ok(f"span.{name}", f"{address} took a test span.")
            sent = True
    if sent:
        yield from _arrived(config, trace_id, asked.wait_s)


def _help(trouble: str) -> str:
    if "CERTIFICATE_VERIFY" in trouble.upper():
        return "Give --ca, the authority of its certificate."
    if "token" in trouble.lower() or "401" in trouble:
        return "Give --token or set TOLLSPAN_TOKEN; `tollspan token` makes one."
    return "See the findings above, and the service's log."


def request(trace_id: bytes, now_ns: int | None = None) -> bytes:
    """An ``ExportTraceServiceRequest`` with the test span."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.trace.v1.trace_pb2 import Span

    made = ExportTraceServiceRequest()
    resource = made.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = WHO
    scope = resource.scope_spans.add()
    scope.scope.name = WHO
    now_ns = time.time_ns() if now_ns is None else now_ns
    one = scope.spans.add(
        trace_id=trace_id,
        span_id=os.urandom(8),
        name="tollspan doctor",
        kind=Span.SPAN_KIND_INTERNAL,
        start_time_unix_nano=now_ns,
        end_time_unix_nano=now_ns + 1000,
    )
    texts = {
        names.OPERATION_NAME: "execute_tool",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": MODEL,
        names.TENANT: WHO,
    }
    for key, text in texts.items():
        one.attributes.add(key=key).value.string_value = text
    for key in (names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS):
        one.attributes.add(key=key).value.int_value = 0
    return made.SerializeToString()


def _grpc(address: str, payload: bytes, asked: Asked, certificate: Path | None) -> str:
    """Why it was not taken; '' when it was."""
    import grpc

    host, port = reachable(address)
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    options: list[tuple[str, Any]] = [("grpc.enable_http_proxy", 0)]
    if certificate is None:
        channel = grpc.insecure_channel(target, options)
    else:
        roots = Path(asked.ca).read_bytes() if asked.ca else certificate.read_bytes()
        # This machine is asked by its address, and its certificate has a name.
        if name := _name(certificate):
            options.append(("grpc.ssl_target_name_override", name))
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(roots), options)
    metadata = [("authorization", f"Bearer {asked.token}")] if asked.token else []
    try:
        with channel:
            answer = channel.unary_unary(EXPORT)(payload, timeout=TIMEOUT_S, metadata=metadata)
    except grpc.RpcError as error:
        return f"{error.code().name}: {error.details()}"
    return f"it took it only in part: {answer!r}" if answer else ""


def _http(address: str, payload: bytes, asked: Asked, certificate: Path | None) -> str:
    """Why it was not taken; '' when it was."""
    host, port = reachable(address)
    connection: http.client.HTTPConnection
    if certificate is None:
        connection = http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
    else:
        context = ssl.create_default_context(cafile=asked.ca)
        context.check_hostname = False
        if asked.ca is None:
            context.load_verify_locations(cafile=str(certificate))
        connection = http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=context)
    headers = {"content-type": "application/x-protobuf"}
    if asked.token:
        headers["authorization"] = f"Bearer {asked.token}"
    try:
        connection.request("POST", "/v1/traces", payload, headers)
        answer = connection.getresponse()
        said = answer.read()
    finally:
        connection.close()
    if answer.status == 200:
        return f"it took it only in part: {said!r}" if said else ""
    return f"HTTP {answer.status}: {_message(said)}"


def _message(body: bytes) -> str:
    from google.protobuf.message import DecodeError
    from google.rpc import status_pb2

    try:
        return str(status_pb2.Status.FromString(body).message)
    except DecodeError:
        return body[:200].decode("utf-8", "replace")


def _name(certificate: Path) -> str:
    try:
        facts = read_certificate(certificate)
    except (OSError, ValueError):
        return ""
    return next((value for kind, value in facts.get("subjectAltName", ()) if kind == "DNS"), "")


def _arrived(config: Config, trace_id: bytes, wait_s: float) -> Iterator[Finding]:
    began = time.monotonic()
    rows: list[dict[str, Any]] = []
    trouble = ""
    while not rows and time.monotonic() - began < wait_s:
        try:
            with connect_for_query(config.get(Places).store) as reader:
                # Straight from the table, so that a row which is there twice is seen.
                rows = reader.rows(
                    "SELECT cost, cost_status, kind, tenant FROM ledger FINAL WHERE trace_id = unhex({id:String})",
                    {"id": trace_id.hex()},
                )
            trouble = ""
        except (TollspanError, ConfigError) as error:
            trouble = str(error)
        if not rows:
            time.sleep(0.25)
    took = time.monotonic() - began
    if not rows:
        why = f" ({trouble})" if trouble else ""
        yield fail(
            "span.ledger",
            f"It was acknowledged, and is not in the ledger after {wait_s:.0f} s{why}.",
            "It is safe in the journal. See the findings on journal and store, and the service's log.",
        )
        return
    row = rows[0]
    if len(rows) > 1:
        yield fail("span.ledger", f"It is in the ledger {len(rows)} times.", "Report this as a bug.")
    elif row["cost_status"] != "priced":
        yield warn(
            "span.ledger",
            f"It arrived after {took:.1f} s, and is {row['cost_status']}.",
            f"`tollspan price --provider {PROVIDER} --model {MODEL} --usage tokens.output=1 --explain` says why.",
        )
    elif Decimal(row["cost"]) != 0:
        yield warn(
            "span.ledger",
            f"It arrived priced after {took:.1f} s and costs {row['cost']} USD: your book asks a fee for a"
            f" request that counts nothing. The row is tenant {row['tenant']}'s.",
            "Leave that tenant out of bills.",
        )
    else:
        yield ok("span.ledger", f"It was in the ledger after {took:.1f} s: once, priced, at a cost of 0.")

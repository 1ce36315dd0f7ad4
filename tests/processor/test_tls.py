"""Both OTLP ports under TLS: the stock exporters get through, others do not, and replaced certificates are taken."""

from __future__ import annotations

import shutil
import socket
import ssl
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter

from tollspan.processor import http_server
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError
from tollspan.processor.intake import Intake
from tollspan.processor.journal import Journal
from tollspan.processor.receive import EXPORT, GrpcSettings, Receiver
from tollspan.processor.receive_http import HttpReceiver, HttpSettings
from tollspan.processor.tls import Tls, TlsFiles

from .test_receive import request, span_names

TRACES = "/v1/traces"


class Certificates:
    """An authority, a server's certificate and a sender's, as files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.ca_file))
        self.files = TlsFiles(folder / "server.pem", folder / "server.key")
        self.renew()
        sender = self.ca.issue_cert("sender@example.org")
        self.sender, self.sender_key = folder / "sender.pem", folder / "sender.key"
        sender.cert_chain_pems[0].write_to_path(str(self.sender))
        sender.private_key_pem.write_to_path(str(self.sender_key))

    def renew(self, ca: Any = None) -> None:
        server = (ca or self.ca).issue_cert("localhost", "127.0.0.1")
        server.cert_chain_pems[0].write_to_path(str(self.files.certificate))
        server.private_key_pem.write_to_path(str(self.files.key))


@pytest.fixture
def certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Certificates:
    for name in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)  # of the machine; requests prefers it to what a program asks for
    folder = tmp_path / "tls"
    folder.mkdir()
    return Certificates(folder)


class Line:
    """A journal behind both receivers."""

    def __init__(self, directory: Path, files: TlsFiles) -> None:
        self.counters = Counters()
        self.journal = Journal(directory, counters=self.counters)
        intake = Intake(self.journal, counters=self.counters)
        self.tls = Tls(files, self.counters)
        self.receivers = (
            Receiver(intake, address="127.0.0.1:0", tls=self.tls),
            HttpReceiver(intake, address="127.0.0.1:0", tls=self.tls),
        )
        self.ports = {
            name: int(receiver.start().rpartition(":")[2])
            for name, receiver in zip(("grpc", "http"), self.receivers, strict=True)
        }

    def journaled(self) -> list[bytes]:
        found: list[bytes] = []
        while (batch := self.journal.next_batch(1 << 30, timeout=0)) is not None:
            found += batch.payloads
        return found

    def serial(self, protocol: str, ca: Path) -> int:
        """Serial number of the certificate that a new connection is shown."""
        context = ssl.create_default_context(cafile=str(ca))
        context.set_alpn_protocols(["h2"] if protocol == "grpc" else ["http/1.1"])
        with (
            socket.create_connection(("127.0.0.1", self.ports[protocol]), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as secure,
        ):
            return int(secure.getpeercert()["serialNumber"], 16)  # type: ignore[index, arg-type]

    def close(self) -> None:
        for receiver in self.receivers:
            receiver.stop()
        self.journal.close()


@pytest.fixture
def line(tmp_path: Path, certificates: Certificates) -> Iterator[Line]:
    opened = Line(tmp_path / "journal", certificates.files)
    yield opened
    opened.close()


@pytest.fixture
def mutual(tmp_path: Path, certificates: Certificates) -> Iterator[Line]:
    files = TlsFiles(certificates.files.certificate, certificates.files.key, certificates.ca_file)
    opened = Line(tmp_path / "journal", files)
    yield opened
    opened.close()


def exporter(line: Line, protocol: str, ca: Path, sender: Path | None = None, key: Path | None = None) -> SpanExporter:
    """The stock exporter, as a user sets it up."""
    if protocol == "http":
        return HttpExporter(
            endpoint=f"https://localhost:{line.ports['http']}{TRACES}",
            certificate_file=str(ca),
            client_certificate_file=str(sender) if sender else None,
            client_key_file=str(key) if key else None,
            timeout=5,
        )
    credentials = grpc.ssl_channel_credentials(
        ca.read_bytes(), key.read_bytes() if key else None, sender.read_bytes() if sender else None
    )
    return GrpcExporter(endpoint=f"https://localhost:{line.ports['grpc']}", credentials=credentials, timeout=5)


def send(out: SpanExporter, name: str) -> None:
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(out))
    provider.get_tracer("t").start_span(name).end()
    provider.shutdown()


both = pytest.mark.parametrize("protocol", ["grpc", "http"])


@both
def test_the_stock_exporter_delivers(line: Line, certificates: Certificates, protocol: str) -> None:
    send(exporter(line, protocol, certificates.ca_file), "over TLS")
    assert span_names(line.journaled()) == ["over TLS"]


@both
def test_a_sender_who_trusts_another_authority_sends_nothing(line: Line, tmp_path: Path, protocol: str) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    send(exporter(line, protocol, other), "lost")
    assert line.journaled() == []


def test_plain_text_is_not_taken(line: Line) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{line.ports['grpc']}") as channel, pytest.raises(grpc.RpcError):
        channel.unary_unary(EXPORT)(request(), timeout=5)
    with socket.create_connection(("127.0.0.1", line.ports["http"]), timeout=10) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n")
        try:
            assert b"200" not in client.recv(1000)
        except ConnectionError:
            pass
    assert line.journaled() == []


@both
def test_senders_need_a_certificate_where_an_authority_is_named(
    mutual: Line, certificates: Certificates, protocol: str
) -> None:
    send(exporter(mutual, protocol, certificates.ca_file), "without")
    assert mutual.journaled() == []
    send(
        exporter(mutual, protocol, certificates.ca_file, certificates.sender, certificates.sender_key),
        "with",
    )
    assert span_names(mutual.journaled()) == ["with"]


@both
def test_a_certificate_of_another_authority_is_none(
    mutual: Line, certificates: Certificates, tmp_path: Path, protocol: str
) -> None:
    stranger = trustme.CA().issue_cert("stranger@example.org")
    certificate, key = tmp_path / "stranger.pem", tmp_path / "stranger.key"
    stranger.cert_chain_pems[0].write_to_path(str(certificate))
    stranger.private_key_pem.write_to_path(str(key))
    send(exporter(mutual, protocol, certificates.ca_file, certificate, key), "stranger")
    assert mutual.journaled() == []


@both
def test_a_renewed_certificate_is_taken_without_a_restart(
    tmp_path: Path, certificates: Certificates, protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_server, "RELOAD_S", 0.05)
    line = Line(tmp_path / "journal", certificates.files)
    before = line.serial(protocol, certificates.ca_file)
    certificates.renew()
    until = time.monotonic() + 10
    # While one server takes over from the other, both accept.
    renewed = 0
    while renewed < 10 and time.monotonic() < until:
        renewed = 0 if line.serial(protocol, certificates.ca_file) == before else renewed + 1
        time.sleep(0.05)
    assert renewed == 10
    send(exporter(line, protocol, certificates.ca_file), "after")
    assert span_names(line.journaled()) == ["after"]
    line.close()


def test_files_that_do_not_belong_together_change_nothing_and_are_counted(
    line: Line, certificates: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    before = line.serial("grpc", certificates.ca_file)
    trustme.CA().issue_cert("localhost").private_key_pem.write_to_path(str(certificates.files.key))
    assert not line.tls.reload()
    assert not line.tls.reload()
    assert line.counters.get("tls.reload_errors") == 1
    assert caplog.text.count("stay in use") == 1
    assert line.serial("grpc", certificates.ca_file) == before
    certificates.renew()
    assert line.tls.reload()


def test_a_certificate_behind_a_link_that_moves_is_seen(tmp_path: Path, certificates: Certificates) -> None:
    """As Kubernetes replaces a mounted secret."""
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "now"
    shutil.copytree(certificates.folder, first)
    certificates.renew()
    shutil.copytree(certificates.folder, second)
    link.symlink_to(first)
    tls = Tls(TlsFiles(link / "server.pem", link / "server.key"))
    link.unlink()
    link.symlink_to(second)
    assert tls.reload()


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda c: c.files.certificate.unlink(), "cannot be read"),
        (lambda c: c.files.key.write_text("nothing"), "PEM"),
        (lambda c: c.files.key.write_bytes(c.sender_key.read_bytes()), "cannot be used"),
    ],
)
def test_files_that_are_wrong_at_the_start_are_one_line(certificates: Certificates, spoil: Any, says: str) -> None:
    spoil(certificates)
    with pytest.raises(ConfigError, match=says):
        Tls(certificates.files)


def test_an_open_address_is_allowed_under_tls(tmp_path: Path, certificates: Certificates) -> None:
    journal = Journal(tmp_path / "journal")
    receiver = Receiver(Intake(journal), address="0.0.0.0:0", tls=Tls(certificates.files))
    assert receiver.start()
    receiver.stop()
    journal.close()


def test_a_handshake_that_stalls_is_given_up(tmp_path: Path, certificates: Certificates) -> None:
    journal = Journal(tmp_path / "journal")
    intake, tls = Intake(journal), Tls(certificates.files)
    receivers = (
        Receiver(intake, address="127.0.0.1:0", tls=tls, settings=GrpcSettings(handshake_s=0.5)),
        HttpReceiver(intake, address="127.0.0.1:0", tls=tls, settings=HttpSettings(stalled_s=0.5)),
    )
    for receiver in receivers:
        port = int(receiver.start().rpartition(":")[2])
        for beginning in (b"", b"\x16\x03\x01"):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(beginning)
                try:
                    while client.recv(4096):
                        pass
                except ConnectionError:
                    pass
        receiver.stop()
    journal.close()

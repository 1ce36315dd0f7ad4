"""The doctor finds what is broken, says what to do, and its own span enters no bill."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tollspan.processor.config import load, service_config
from tollspan.processor.counters import Counters
from tollspan.processor.doctor import AREAS, FAIL, OK, SKIP, WARN, Asked, Finding, examine
from tollspan.processor.doctor import files as doctor_files
from tollspan.processor.doctor import store as doctor_store
from tollspan.processor.doctor.live import Live
from tollspan.processor.doctor.ports import owner_of
from tollspan.processor.journal import Journal
from tollspan.processor.senders import new_token
from tollspan.processor.service import Service
from tollspan.processor.store import open_store

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service as Process
from service import chat, payload, tollspan

QUIET = {"listen": "127.0.0.1:0", "http": "off", "sql": "off"}


def found(
    areas: str, environment: dict[str, str] | None = None, asked: dict[str, Any] | None = None, **flags: str
) -> dict[str, Finding]:
    config = load(flags=flags, environment={})
    request = Asked(**{"environment": environment or {}, "wait_s": 20.0, **(asked or {})})
    return {finding.check: finding for finding in examine(config, request, areas.split(","))}


@pytest.fixture
def store(tmp_path: Path) -> str:
    return f"chdb://{tmp_path}/store"


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Callable[..., dict[str, str]]]:
    """Start a service in this process; the flags that lead the doctor to it."""
    started: list[Service] = []

    def start(**flags: str) -> dict[str, str]:
        flags = {"store": f"chdb://{tmp_path}/store", "sampling.decision_wait": "0s", "sql": "127.0.0.1:0", **flags}
        config = load(flags={"listen": "127.0.0.1:0", "http": "127.0.0.1:0", **flags}, environment={})
        service = Service(service_config(config), config)
        service.start()
        started.append(service)
        return {**flags, "listen": service.grpc_address, "http": service.http_address, "sql": service.sql_address}

    yield start
    for each in started:
        each.stop()


# -- a service that is well --------------------------------------------------------------------------------------------


def test_all_is_well_with_a_service_that_runs_and_its_span_is_in_no_bill(tmp_path: Path) -> None:
    with Process(tmp_path / "store", ["--decision-wait", "0"]) as process:
        process.export(payload([chat(number) for number in range(1, 4)]))
        deadline = time.monotonic() + 30
        while process.query("total")["inferences"] != 3:
            assert time.monotonic() < deadline
        before = process.query("total")
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{process.info['grpc']}",
            "OTEL_METRICS_EXPORTER": "none",
            "OTEL_LOGS_EXPORTER": "none",
        }
        done = tollspan("doctor", "--store", process.url, "--format", "json", **environment)
        rows = {row["check"]: row for row in json.loads(done.stdout)}
        wrong = [row for row in rows.values() if row["status"] == FAIL]
        assert (done.returncode, wrong) == (0, []), done.stderr
        for check in (
            "ready.service",
            "ports.grpc",
            "ports.http",
            "ports.sql",
            "journal.sync",
            "store.reach",
            "span.grpc",
        ):
            assert rows[check]["status"] == OK, rows[check]
        assert "once, priced, at a cost of 0" in rows["span.ledger"]["found"]
        after = process.query("total")
        assert (after["inferences"], Decimal(after["cost"])) == (3, Decimal(before["cost"]))
        assert after["ledger_rows"] == before["ledger_rows"] + 1
        assert after["unpriced_rows"] == 0
        tenants = {row["tenant"]: row for row in process.query("by-tenant")}
        assert Decimal(tenants.get("tollspan-doctor", {"cost": 0})["cost"]) == 0


def test_the_table_is_for_people_and_quiet_shows_only_what_is_wrong(tmp_path: Path) -> None:
    store = f"chdb://{tmp_path}/s"
    done = tollspan("doctor", "--store", store, "--only", "ready,config", "--http", "off", "--sql", "off")
    assert done.returncode == 1
    assert "tollspan serve" in done.stdout
    assert "1 ok, 1 failed" in done.stderr
    done = tollspan("doctor", "--store", store, "--only", "ready,config", "--http", "off", "-q", "--format", "csv")
    (row,) = csv.DictReader(io.StringIO(done.stdout))
    assert (row["check"], row["status"]) == ("ready.service", FAIL)


def test_a_broken_configuration_is_a_finding_for_each_mistake(tmp_path: Path) -> None:
    file = tmp_path / "t.yaml"
    file.write_text("sampling: {kep: 1}\nlog: {level: banana}\n")
    done = tollspan("doctor", "--config", str(file), "--format", "json")
    assert done.returncode == 1
    rows = json.loads(done.stdout)
    assert [row["found"].partition(" ")[0] for row in rows] == ["t.yaml:1:", "t.yaml:2:"]


@pytest.mark.parametrize("words", [["--only", "redy"], ["--journal-max-byts", "1"]])
def test_wrong_usage_is_two(words: list[str]) -> None:
    done = tollspan("doctor", *words)
    assert done.returncode == 2
    assert "did you mean" in done.stderr


def test_a_check_with_a_fault_of_its_own_hides_no_other(monkeypatch: pytest.MonkeyPatch, store: str) -> None:
    def broken(*_: object) -> Iterator[Finding]:
        raise RuntimeError("clickhouse://u:hush@h/ oh")

    monkeypatch.setitem(AREAS, "tls", broken)  # type: ignore[arg-type]
    seen = found("config,tls,senders", store=store, **QUIET)
    assert seen["tls.fault"].status == FAIL
    assert "hush" not in seen["tls.fault"].found
    assert seen["senders.file"].status == OK


# -- ports -------------------------------------------------------------------------------------------------------------


def test_a_port_that_another_program_has_is_named_with_the_program(store: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        seen = found("ready,ports", store=store, listen=f"127.0.0.1:{port}", http="off", sql="off")
        assert seen["ports.grpc"].status == FAIL
        assert f"pid {os.getpid()}" in seen["ports.grpc"].found
        assert owner_of(port).startswith(f"pid {os.getpid()} (")
    assert seen["ready.service"].status == FAIL


def test_a_web_server_is_not_taken_for_tollspan(store: str) -> None:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"hello")

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port}"
        seen = found("ready,ports", store=store, listen="127.0.0.1:0", http=address, sql="off")
        server.shutdown()
    assert "is not Tollspan" in seen["ready.service"].found
    assert seen["ports.http"].status == FAIL


def test_free_and_open_and_wrong_addresses(store: str) -> None:
    assert found("ports", store=store, listen="127.0.0.1:0", http="off", sql="off")["ports.http"].status == OK
    assert found("ports", store=store, **{**QUIET, "listen": "nonsense"})["ports.grpc"].status == FAIL
    refused = found("ports", store=store, **{**QUIET, "listen": "0.0.0.0:0"})["ports.grpc"]
    assert (refused.status, "not encrypted" in refused.found) == (FAIL, True)
    opened = found("ports", store=store, insecure_listen="true", **{**QUIET, "listen": "0.0.0.0:0"})
    assert (opened["ports.grpc.open"].status, opened["ports.grpc.anybody"].status) == (WARN, WARN)


def test_a_service_with_other_ports_than_configured_is_seen(running: Callable[..., dict[str, str]]) -> None:
    flags = running()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        other = f"127.0.0.1:{free.getsockname()[1]}"
    # This process has the store, so nothing is read of where the service listens.
    seen = found("ports", **{**flags, "listen": other})
    assert seen["ports.http"].status == OK
    assert (seen["ports.grpc"].status, "does not have" in seen["ports.grpc"].found) == (FAIL, True)


def test_a_service_that_drains_is_not_ready(
    running: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Service, "readiness", lambda self: (503, "draining\nstore: away\n"))
    flags = running()
    seen = found("ready", **flags)
    assert (seen["ready.service"].status, seen["ready.store"].status) == (FAIL, WARN)
    assert "start it again" in seen["ready.service"].do


# -- TLS, senders, prices ----------------------------------------------------------------------------------------------


def certificate(folder: Path, begins: float, ends: float, name: str = "c") -> tuple[Path, Path]:
    """A self-signed certificate for localhost, valid between so many days from now."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + datetime.timedelta(days=begins))
        .not_valid_after(now + datetime.timedelta(days=ends))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), False)
        .sign(key, hashes.SHA256())
    )
    cert, private = folder / f"{name}.crt", folder / f"{name}.key"
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    private.chmod(0o600)
    return cert, private


@pytest.mark.parametrize(
    ("begins", "ends", "status", "said"),
    [(-1, 90, OK, "holds until"), (-9, -1, FAIL, "ended on"), (-1, 5, WARN, "ends on"), (1, 90, FAIL, "begins only")],
)
def test_dates_of_a_certificate(tmp_path: Path, store: str, begins: int, ends: int, status: str, said: str) -> None:
    cert, key = certificate(tmp_path, begins, ends)
    seen = found("tls", store=store, **{"tls.cert": str(cert), "tls.key": str(key)}, **QUIET)
    assert seen["tls.files"].status == OK
    assert (seen["tls.certificate"].status, said in seen["tls.certificate"].found) == (status, True)


def test_a_key_of_another_certificate_and_one_that_everybody_reads(tmp_path: Path, store: str) -> None:
    (cert, key), (_, other) = certificate(tmp_path, -1, 90), certificate(tmp_path, -1, 90, "other")
    assert found("tls", store=store, **{"tls.cert": str(cert), "tls.key": str(other)})["tls.files"].status == FAIL
    key.chmod(0o644)
    seen = found("tls", store=store, **{"tls.cert": str(cert), "tls.key": str(key)}, **QUIET)
    assert (seen["tls.key"].status, seen["tls.key"].do) == (WARN, f"chmod 600 {key}")
    gone = found("tls", store=store, **{"tls.cert": "/no.crt", "tls.key": str(key)})
    assert gone["tls.files"].status == FAIL


def test_a_span_goes_through_tls_and_login_and_without_a_token_none_is_sent(
    tmp_path: Path, running: Callable[..., dict[str, str]]
) -> None:
    cert, key = certificate(tmp_path, -1, 90)
    token, digest = new_token()
    senders = tmp_path / "senders.yaml"
    senders.write_text(f"senders:\n  - {{id: a, sha256: '{digest}', tenant: acme}}\n")
    flags = running(**{"tls.cert": str(cert), "tls.key": str(key), "senders": str(senders)})
    areas = "ready,tls,senders,span"
    seen = found(areas, **flags)
    assert (seen["span.sent"].status, seen["tls.served"].status) == (SKIP, OK)
    assert "1 token" in seen["senders.file"].found
    wrong = found(areas, asked={"token": "tsp_wrong"}, **flags)
    assert (wrong["span.grpc"].status, wrong["span.http"].status) == (FAIL, FAIL)
    assert "--token" in wrong["span.grpc"].do
    assert "span.ledger" not in wrong
    right = found(areas, asked={"token": token}, **flags)
    assert (right["span.grpc"].status, right["span.http"].status) == (OK, OK), right
    assert right["span.ledger"].status == OK
    certificate(tmp_path, -1, 80)  # in the place of the one that is served
    config = load(flags=flags, environment={})
    live = Live.found(config)
    newer = {each.check: each for each in doctor_files.tls(config, live, Asked())}
    assert newer["tls.served"].status in (OK, WARN)


@pytest.mark.parametrize(("text", "status"), [("senders: 7\n", FAIL), ("senders: []\n", WARN), ("[", FAIL)])
def test_a_senders_file_that_lets_nobody_in(tmp_path: Path, store: str, text: str, status: str) -> None:
    path = tmp_path / "senders.yaml"
    path.write_text(text)
    assert found("senders", store=store, senders=str(path))["senders.file"].status == status


def test_a_price_book_that_is_broken_or_not_there(tmp_path: Path, store: str) -> None:
    path = tmp_path / "book.yaml"
    path.write_text("price_book: {id: x}\nprices: [{meter: nonsense}]\n")
    assert found("prices", store=store, prices=str(path))["prices.book"].status == FAIL
    assert found("prices", store=store, prices="/not/there.yaml")["prices.book"].status == FAIL
    assert found("prices", store=store)["prices.book"].status == OK


def test_a_sampling_file_that_cannot_be_used_is_found(tmp_path: Path, store: str) -> None:
    path = tmp_path / "sampling.yaml"
    path.write_text("rules:\n- {when: {slow: 1s}, keep: 1}\n- {when: {slow: 2s}, keep: 1}\n")
    told = found("sampling", store=store, **{"sampling.file": str(path)})
    assert told["sampling.file"].status == OK
    assert told["sampling.rules"].status == WARN
    path.write_text("rules: [{when: {slow: soon}, keep: 1}]\n")
    assert found("sampling", store=store, **{"sampling.file": str(path)})["sampling.file"].status == FAIL
    assert found("sampling", store=store)["sampling.file"].status == SKIP


# -- the journal -------------------------------------------------------------------------------------------------------


def test_a_journal_that_cannot_be_written(tmp_path: Path, store: str) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    seen = found("journal", store=store, **{"journal.directory": f"{blocked}/journal"})
    assert seen["journal.directory"].status == FAIL
    assert "journal.directory" in seen["journal.directory"].do


def test_no_room_a_slow_disk_and_one_in_memory(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(doctor_files.shutil, "disk_usage", lambda _: usage._replace(free=1 << 30))
    assert found("journal", store=store)["journal.space"].status == WARN
    monkeypatch.setattr(doctor_files.shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    assert found("journal", store=store)["journal.space"].status == FAIL
    monkeypatch.setattr(doctor_files, "_sync_times", lambda _: [0.2, 0.3])
    assert found("journal", store=store)["journal.sync"].status == WARN
    monkeypatch.setattr(doctor_files, "file_system", lambda _: "tmpfs")
    assert found("journal", store=store)["journal.disk"].status == FAIL
    monkeypatch.setattr(doctor_files, "file_system", lambda _: "nfs4")
    assert found("journal", store=store)["journal.disk"].status == WARN


def test_what_waits_in_a_journal_and_what_is_damaged(tmp_path: Path, store: str) -> None:
    folder = tmp_path / "journal"
    journal = Journal(folder, counters=Counters())
    for number in range(3):
        journal.append(payload([chat(number + 1)])).wait()
    journal.close()
    seen = found("journal", store=store, journal=str(folder))
    assert (seen["journal.lag"].status, "3 requests wait" in seen["journal.lag"].found) == (WARN, True)
    (segment,) = folder.glob("segment-*.log")
    content = bytearray(segment.read_bytes())
    content[200] ^= 0xFF
    segment.write_bytes(content)
    damaged = found("journal", store=store, journal=str(folder))
    assert damaged["journal.damage"].status == FAIL
    assert "inspect" in damaged["journal.damage"].do


def test_the_lag_of_a_running_service_is_told(
    running: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = running()
    assert found("journal", **flags)["journal.lag"].status == OK
    real = Live.found

    def behind(config: Any) -> Live:
        live = real(config)
        live.metrics |= {"tollspan_lag_seconds": 900.0, "tollspan_lag_bytes": float(5 << 20)}
        return live

    monkeypatch.setattr(Live, "found", behind)
    late = found("journal", **flags)["journal.lag"]
    assert (late.status, "900 s" in late.found) == (WARN, True)


# -- the store ---------------------------------------------------------------------------------------------------------


def test_a_store_that_is_away_a_bad_url_and_one_not_made_yet(tmp_path: Path, store: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    seen = found("store,clock,journal", store=f"clickhouse://u:hush@127.0.0.1:{port}/x", journal=str(tmp_path / "j"))
    assert seen["store.reach"].status == FAIL
    assert "hush" not in "".join(seen["store.reach"])
    assert seen["clock.skew"].status == SKIP
    assert found("store", store="mysql://x")["store.url"].status == FAIL
    assert found("store", store=store)["store.reach"].status == OK


def test_migrations_columns_deduplication_and_parts(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_store(store) as opened:
        opened.migrate()
    well = found("store", store=store)
    assert {well[f"store.{name}"].status for name in ("migrations", "columns", "deduplication", "parts")} == {OK}
    with open_store(store) as opened:
        opened.execute("ALTER TABLE ledger DROP COLUMN feature")
        opened.execute("ALTER TABLE traces RESET SETTING non_replicated_deduplication_window")
        opened.execute("INSERT INTO schema_migrations (version, name, checksum) VALUES (9999, 'later', 'x')")
    broken = found("store", store=store)
    assert broken["store.migrations"].status == FAIL
    assert (broken["store.deduplication"].status, "traces" in broken["store.deduplication"].found) == (FAIL, True)
    with open_store(store) as opened:
        opened.execute("DELETE FROM schema_migrations WHERE version = 9999")
    monkeypatch.setattr(doctor_store, "PARTS_FAIL", 1)
    broken = found("store", store=store)
    assert (broken["store.columns"].status, "ledger lacks feature" in broken["store.columns"].found) == (FAIL, True)
    assert broken["store.parts"].status == FAIL
    with open_store(store) as opened:
        version = opened.rows("SELECT max(version) AS v FROM schema_migrations")[0]["v"]
        opened.execute(f"DELETE FROM schema_migrations WHERE version = {version}")
    assert found("store", store=store)["store.migrations"].status == WARN


def test_rights_and_clocks_of_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        """Answers as a server would."""

        def __init__(self, skew: float = 0.0, may: int = 1) -> None:
            self.skew, self.may = skew, may

        def rows(self, sql: str, parameters: object = None) -> list[dict[str, Any]]:
            if sql.startswith("CHECK GRANT"):
                return [{"result": self.may if "INSERT" in sql else 1}]
            return [{"t": time.time() + self.skew}]

        def __enter__(self) -> Server:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def rights(may: int) -> Finding:
        (finding,) = doctor_store._rights(Server(may=may), False)  # type: ignore[arg-type]
        return finding

    assert rights(1).status == OK
    assert (rights(0).status, rights(0).do) == (FAIL, "GRANT INSERT ON database.* TO user")
    for skew, status in ((0.0, OK), (5.0, WARN), (-5.0, WARN), (3600.0, FAIL)):
        monkeypatch.setattr(doctor_store, "connect_for_query", lambda _, skew=skew: Server(skew))
        assert found("clock", store="clickhouse://127.0.0.1:1/x")["clock.skew"].status == status
    monkeypatch.setattr(doctor_store.time, "time", lambda: 1000.0)
    assert found("clock", store="clickhouse://127.0.0.1:1/x")["clock.date"].status == FAIL


# -- the span ----------------------------------------------------------------------------------------------------------


def test_a_span_that_does_not_arrive_is_said_to_be_safe(
    running: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tollspan.processor.pipeline import Pipeline

    monkeypatch.setattr(Pipeline, "step", lambda self, timeout_s: bool(time.sleep(min(timeout_s, 0.05))))
    flags = running()
    seen = found("span", asked={"wait_s": 1.0}, **flags)
    assert seen["span.ledger"].status == FAIL
    assert "journal" in seen["span.ledger"].do


def test_no_span_is_sent_without_a_service_or_when_that_is_not_wanted(store: str) -> None:
    assert found("span", store=store, **QUIET)["span.sent"].status == SKIP
    assert found("span", store=store, asked={"send": False}, **QUIET) == {}


# -- the plugin --------------------------------------------------------------------------------------------------------


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize(
    ("environment", "check", "status"),
    [
        ({"OTEL_SDK_DISABLED": "true"}, "plugin.sdk", FAIL),
        ({"OTEL_TRACES_EXPORTER": "console"}, "plugin.exporter", FAIL),
        ({"OTEL_TRACES_EXPORTER": "otlp,tollspan", "TOLLSPAN_STORE": "mysql://x"}, "plugin.exporter", WARN),
        ({"OTEL_TRACES_EXPORTER": "tollspan", "TOLLSPAN_STORE": "mysql://x"}, "plugin.exporter", FAIL),
        ({"OTEL_TRACES_EXPORTER": "tollspan", "TOLLSPAN_STORE": "chdb:///tmp/none-such"}, "plugin.exporter", OK),
        ({"OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, "plugin.sampler", FAIL),
        ({"OTEL_TRACES_SAMPLER": "tollspan", "OTEL_TRACES_SAMPLER_ARG": "0.1"}, "plugin.sampler", OK),
        ({"OTEL_TRACES_SAMPLER": "tollspan", "OTEL_TRACES_SAMPLER_ARG": "10%"}, "plugin.sampler", WARN),
        ({"OTEL_EXPORTER_OTLP_PROTOCOL": "kafka"}, "plugin.protocol", FAIL),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}, "plugin.protocol", FAIL),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "plugin.protocol",
            FAIL,
        ),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "127.0.0.1:4318", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
            "plugin.endpoint",
            FAIL,
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}, "plugin.endpoint", FAIL),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:LISTENING"}, "plugin.endpoint", OK),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "tollspan_openai"}, "plugin.disabled", WARN),
        ({"OTEL_PYTHON_DISABLED_INSTRUMENTATIONS": "tollspan_opnai"}, "plugin.disabled_names", WARN),
        ({}, "plugin.launcher", OK),
        ({}, "plugin.instrumentations", OK),
    ],
)
def test_what_a_program_s_environment_does(
    environment: dict[str, str], check: str, status: str, store: str, listening: int
) -> None:
    given = {name: value.replace("LISTENING", str(listening)) for name, value in environment.items()}
    seen = found("plugin", given, store=store, http="127.0.0.1:4318", listen="127.0.0.1:4317", sql="off")
    assert seen[check].status == status, seen


def test_instrumentations_of_libraries_that_are_here_would_load(store: str) -> None:
    seen = found("plugin", store=store, **QUIET)
    assert "openai" in seen["plugin.instrumentations"].found
    assert not [finding for finding in seen.values() if finding.status == FAIL and "instrumented" in finding.found]


def test_paths_that_would_be_doubled_or_missing(store: str, listening: int) -> None:
    http = {"OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"}
    base = f"http://127.0.0.1:{listening}"
    own = found("plugin", {**http, "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": base}, store=store, **QUIET)
    assert f"{base}/v1/traces" in own["plugin.endpoint"].do or own["plugin.endpoint"].status == OK
    twice = {**http, "OTEL_EXPORTER_OTLP_ENDPOINT": f"{base}/v1/traces"}
    config = load(flags={"store": store, **QUIET}, environment={})
    every = list(examine(config, Asked(environment=twice), ["plugin"]))
    assert any("once more" in finding.found for finding in every)


def test_a_login_without_a_header_and_tls_where_there_is_none(
    tmp_path: Path, running: Callable[..., dict[str, str]]
) -> None:
    senders = tmp_path / "senders.yaml"
    senders.write_text(f"senders:\n  - {{id: a, sha256: '{new_token()[1]}'}}\n")
    flags = running(senders=str(senders))
    environment = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"https://{flags['listen']}"}
    seen = found("plugin", environment, **flags)
    assert seen["plugin.headers"].status == FAIL
    assert (seen["plugin.tls"].status, "http://" in seen["plugin.tls"].do) == (FAIL, True)
    assert seen["plugin.metrics"].status == WARN
    with_header = {**environment, "OTEL_EXPORTER_OTLP_HEADERS": "authorization=Bearer%20x"}
    assert "plugin.headers" not in found("plugin", with_header, **flags)


# -- forwarding --------------------------------------------------------------------------------------------------------


def test_endpoints_that_spans_are_sent_on_to(
    tmp_path: Path, store: str, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert found("forward", store=store, **QUIET)["forward.endpoints"].status == OK
    here = {"forward.endpoint": f"http://127.0.0.1:{listening}"}
    assert found("forward", store=store, **here, **QUIET)["forward.default"].status == OK
    away = {"forward.endpoint": "http://127.0.0.1:9"}
    assert found("forward", store=store, **away, **QUIET)["forward.default"].status == FAIL
    several = {"forward.endpoints": f"[{{endpoint: 'http://127.0.0.1:{listening}', name: b, max_bytes: 1 MiB}}]"}
    real = Live.found

    def troubled(config: Any) -> Live:
        live = real(config)
        live.metrics |= {
            'tollspan_forward_up{endpoint="b"}': 0.0,
            'tollspan_forward_waiting_bytes{endpoint="b"}': float(900 << 10),
        }
        return live

    monkeypatch.setattr(Live, "found", troubled)
    seen = found("forward", store=store, **several, **QUIET)
    assert [seen[f"forward.b{part}"].status for part in ("", ".up", ".spool")] == [OK, WARN, WARN]


def test_readers_of_the_sql_port_are_looked_at_too(tmp_path: Path, store: str) -> None:
    path = tmp_path / "readers.yaml"
    path.write_text(f"readers:\n  - {{id: grafana, sha256: '{new_token()[1]}'}}\n")
    assert found("senders", store=store, readers=str(path), **QUIET)["senders.readers"].status == OK
    path.write_text("readers: 5\n")
    assert found("senders", store=store, readers=str(path), **QUIET)["senders.readers"].status == FAIL


def test_a_port_that_the_system_chose_is_not_guessed(
    tmp_path: Path, running: Callable[..., dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        away = f"clickhouse://127.0.0.1:{free.getsockname()[1]}/x"
    flags = running(store=away, journal=str(tmp_path / "j"), **{"shutdown.drain": "100ms"})
    seen = found("ready,ports,span", asked={"wait_s": 0.3}, **{**flags, "listen": "127.0.0.1:0"})
    assert (seen["ports.grpc"].status, seen["ports.http"].status) == (SKIP, OK)
    assert "span.grpc" not in seen
    assert (seen["span.http"].status, seen["span.ledger"].status) == (OK, FAIL)
    assert seen["ready.store"].status == WARN

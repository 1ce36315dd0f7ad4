"""The whole line, in real processes: what goes in over OTLP comes out of ``tollspan query``, to the last digit."""

from __future__ import annotations

import csv
import gzip
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from decimal import Decimal
from pathlib import Path

import clickhouse_connect
import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from service import TOLLSPAN, Service, chat, payload, tollspan

INPUT, OUTPUT = Decimal("0.25") / 1_000_000, Decimal("2") / 1_000_000
"""gpt-5-mini's list price per token in USD."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def trace_file(tmp_path: Path) -> Path:
    rng = random.Random(5)
    path = tmp_path / "trace.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["TIMESTAMP", "ContextTokens", "GeneratedTokens"])
        for i in range(700):
            stamp = f"2023-11-16 18:{17 + i // 60:02d}:{i % 60:02d}.{rng.randrange(10**7):07d}"
            writer.writerow([stamp, rng.randrange(1, 8000), rng.randrange(1, 900)])
    return path


def test_a_replayed_trace_costs_what_ten_lines_of_decimal_say_and_only_once(folder: Path, trace_file: Path) -> None:
    with trace_file.open() as file:
        rows = list(csv.DictReader(file))
    expected = sum((int(r["ContextTokens"]) * INPUT + int(r["GeneratedTokens"]) * OUTPUT for r in rows), Decimal(0))
    with Service(folder) as service:
        for _ in range(2):
            done = tollspan(
                "replay", str(trace_file), "--format", "azure-llm", "--provider", "openai", "--model", "gpt-5-mini",
                "--start", "2026-11-01T00:00:00Z", "--to", service.info["grpc"],
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
        service.stop()
        total = service.query("total")
    assert total["inferences"] == 700
    assert Decimal(total["cost"]) == expected
    assert total["currency"] == "USD"
    assert total["unpriced_inferences"] == 0


def die_and_come_back(folder: Path, kills: int) -> None:
    """kill -9 in the middle of a load, so many times; acked ⊆ stored ⊆ sent, and each costs what it costs."""
    rng = random.Random(11)
    acked: dict[int, Decimal] = {}
    sent: dict[int, Decimal] = {}
    number = 0
    service = Service(folder, ["--keep", "1.0"])
    for life in range(kills + 1):
        with service:
            with grpc.insecure_channel(service.info["grpc"]) as channel:
                export = channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
                flights = []
                for _ in range(60):
                    spans, costs = [], {}
                    for _ in range(rng.randrange(1, 40)):
                        number += 1
                        tokens = (rng.randrange(1, 5000), rng.randrange(1, 500))
                        spans.append(chat(number, tokens=tokens))
                        costs[number] = tokens[0] * INPUT + tokens[1] * OUTPUT
                    sent |= costs
                    flights.append((export.future(payload(spans), timeout=20), costs))
                if life < kills:
                    for flight, costs in flights[: rng.randrange(10, 50)]:
                        flight.result()
                        acked |= costs
                    service.kill()
                for flight, costs in flights:
                    # What was acknowledged before the kill counts, whenever we look.
                    if flight.exception() is None:
                        acked |= costs
            if life == kills:
                stats = service.stop()
    assert acked
    total = service.query("total")
    from tollspan.processor.store import open_store

    store = open_store(service.url, create=False)
    try:
        rows = store.query("SELECT reinterpretAsUInt64(reverse(span_id)) AS id, cost FROM ledger FINAL", {}).to_pylist()
        bodies = store.query("SELECT count() AS n, uniqExact(SpanId) AS u FROM spans FINAL", {}).to_pylist()
    finally:
        store.close()
    stored = {row["id"]: row["cost"] for row in rows}
    assert len(rows) == len(stored), "no span is there twice"
    assert acked.keys() <= stored.keys() <= sent.keys()
    assert all(stored[i] == sent[i] for i in stored)
    assert Decimal(total["cost"]) == sum(stored.values())
    assert bodies[0]["u"] == bodies[0]["n"] == len(stored), "with keep=1 every body survives as well"
    assert stats["decoded.spans"] > 0


def test_what_was_acknowledged_is_there_once_after_kill_nine(folder: Path) -> None:
    die_and_come_back(folder, kills=3)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_what_was_acknowledged_is_there_once_after_many_kills(folder: Path) -> None:
    die_and_come_back(folder, kills=25)


def test_a_replay_survives_kill_nine_of_the_service(folder: Path, tmp_path: Path) -> None:
    """The service dies in the middle of a replay and comes back: the replay ends well and every call is there once."""
    rng = random.Random(3)
    calls = [(rng.randrange(1, 8000), rng.randrange(1, 900)) for _ in range(60_000)]
    path = tmp_path / "long.csv"
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for i, (read, written) in enumerate(calls):
            file.write(f"2023-11-16 {i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}.5,{read},{written}\n")
    service = Service(folder)
    with service:
        service.options = ["--listen", service.info["grpc"]]
        command = [*TOLLSPAN, "replay", str(path), "--provider", "openai", "--model", "gpt-5-mini"]
        replay = subprocess.Popen(
            [*command, "--to", service.info["grpc"]], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        journal = folder / "journal"
        deadline = time.monotonic() + 60
        while sum(p.stat().st_size for p in journal.glob("segment-*")) < 1_000_000:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert replay.poll() is None, "still replaying"
        service.kill()
        service.start()
        output, _ = replay.communicate(timeout=90)
        assert replay.returncode == 0, output
        assert "accepted 60000, refused 0" in output
        service.stop()
    total = service.query("total")
    assert total["inferences"] == 60_000
    assert Decimal(total["cost"]) == sum(read * INPUT + written * OUTPUT for read, written in calls)


def test_errors_are_kept_and_the_ledger_has_everything(folder: Path) -> None:
    with Service(folder, ["--keep", "0", "--decision-wait", "0"]) as service:
        spans = [chat(1), chat(2, error=True), chat(3, trace=2, parent=2, tokens=(10, 10))]
        service.export(payload(spans))
        stats = service.stop()
        by_model = service.query("by-model")
        traces = service.query("traces")
    assert stats["spans_acked"] == 3
    assert stats["ledger.rows"] == 3
    assert stats["sampled.kept_spans"] == 2, "the error's whole trace"
    assert sum(row["inferences"] for row in by_model) == 2, "span 2 repeats the tokens of its child: a roll-up"
    assert len(traces) == 2


def test_unknown_models_are_unpriced_and_counted(folder: Path) -> None:
    with Service(folder) as service:
        unknown = chat(2)
        unknown.attributes[2].value.string_value = "house-model-nobody-knows"
        service.export(payload([chat(1), unknown, chat(3, tokens=None)]))
        service.stop()
        total, unpriced = service.query("total"), service.query("unpriced")
    assert total["inferences"] == 3
    assert total["unpriced_inferences"] == 2
    assert Decimal(total["cost"]) == 1000 * INPUT + 100 * OUTPUT
    assert "house-model-nobody-knows" in str(unpriced)


def test_malformed_otlp_is_refused_and_the_service_goes_on(folder: Path) -> None:
    with Service(folder) as service:
        with pytest.raises(grpc.RpcError) as refusal:
            service.export(b"\x0a\xff\xff\xff\xff\x0fnot otlp")
        assert refusal.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        service.export(payload([chat(1)]))
        stats = service.stop()
        assert service.query("total")["inferences"] == 1
    assert stats["receive.refused.malformed"] == 1


def test_sql_on_clickhouses_http_interface_is_read_only(folder: Path) -> None:
    with Service(folder, ["--decision-wait", "0"]) as service:
        service.export(payload([chat(1)]))
        host, port = service.info["sql"].split(":")

        def ask(sql: str) -> str:
            url = f"http://{host}:{port}/?query=" + urllib.parse.quote(sql)
            with urllib.request.urlopen(url, timeout=20) as answer:
                return str(answer.read().decode())

        assert ask("SELECT 1") == "1\n"
        client = clickhouse_connect.get_client(host=host, port=int(port), database="tollspan")
        deadline = time.monotonic() + 20
        while client.query("SELECT count() FROM ledger FINAL").result_rows != [(1,)]:
            assert time.monotonic() < deadline, "the ledger row did not appear"
        assert service.query("total")["inferences"] == 1, "the query command goes through the service's port"
        with pytest.raises(urllib.error.HTTPError):
            ask("DROP TABLE tollspan.ledger")
        assert ask("SELECT count() FROM tollspan.ledger FINAL") == "1\n"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--store", "mysql://nowhere"], "mysql"),
        (["--keep", "1.5"], "1.5"),
        (["--listen", "0.0.0.0:4317"], "insecure"),
    ],
)
def test_bad_settings_are_one_line_and_no_traceback(tmp_path: Path, options: list[str], says: str) -> None:
    base = ["--store", f"chdb://{tmp_path}/s", "--listen", "127.0.0.1:0", "--http", "off", "--sql", "off"]
    done = tollspan("serve", *base, *options)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_broken_price_book_names_file_line_and_reason(tmp_path: Path) -> None:
    book = tmp_path / "prices.yaml"
    book.write_text(
        "price_book: {id: mine, version: 1, currency: USD}\n"
        "prices:\n"
        "  - {id: a, provider: openai, sku: x, meter: tokens.outptu, amount: '1', per: 1000000}\n"
    )
    done = tollspan("serve", "--store", f"chdb://{tmp_path}/s", "--prices", str(book))
    assert done.returncode != 0
    assert f"{book}:3" in done.stderr
    assert "tokens.outptu" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_and_a_store_in_use_say_so(folder: Path, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = tollspan(
            "serve", "--store", f"chdb://{tmp_path}/other", "--listen", address, "--http", "off", "--sql", "off"
        )
        assert done.returncode != 0
        assert address in done.stderr
        assert "Traceback" not in done.stderr
    with Service(folder) as service:
        done = tollspan("serve", "--store", service.url, "--listen", "127.0.0.1:0", "--http", "off", "--sql", "off")
        assert done.returncode != 0
        assert str(service.info["pid"]) in done.stderr
        assert "Traceback" not in done.stderr


def test_the_same_spans_over_http_and_grpc_cost_once(folder: Path) -> None:
    spans = [chat(number, tokens=(100, 10)) for number in range(1, 21)]
    body = payload(spans)
    with Service(folder) as service:
        url = f"http://{service.info['http']}/v1/traces"
        for encoding, sent in (("gzip", gzip.compress(body)), ("identity", body)):
            headers = {"content-type": "application/x-protobuf", "content-encoding": encoding}
            with urllib.request.urlopen(urllib.request.Request(url, sent, headers), timeout=20) as answer:
                assert answer.status == 200
        with grpc.insecure_channel(service.info["grpc"]) as channel:
            channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(body, timeout=20)
        assert urllib.request.urlopen(f"http://{service.info['http']}/readyz", timeout=20).read() == b"ok\n"
        metrics = urllib.request.urlopen(f"http://{service.info['http']}/metrics", timeout=20).read().decode()
        assert "tollspan_receive_accepted_total 3\n" in metrics
        service.stop()
        total = service.query("total")
    assert total["inferences"] == 20
    assert Decimal(total["cost"]) == 20 * (100 * INPUT + 10 * OUTPUT)


def test_a_certificate_without_its_key_is_one_line(tmp_path: Path) -> None:
    done = tollspan("serve", "--store", f"chdb://{tmp_path}/s", "--tls-cert", "cert.pem")
    assert done.returncode != 0
    assert "--tls-key" in done.stderr
    assert "Traceback" not in done.stderr


def test_senders_log_in_and_are_billed_as_their_tenant(folder: Path, tmp_path: Path) -> None:
    made = tollspan("token", "acme-prod", "--tenant", "acme")
    token = made.stdout.partition("Bearer%20")[2].partition("'")[0]
    senders = tmp_path / "senders.yaml"
    senders.write_text("senders:\n" + made.stdout.splitlines()[-1] + "\n")
    body = payload([chat(1, **{"tollspan.tenant": "rival"})])
    with Service(folder, ["--senders", str(senders)]) as service:
        export = "/opentelemetry.proto.collector.trace.v1.TraceService/Export"
        with grpc.insecure_channel(service.info["grpc"]) as channel:
            with pytest.raises(grpc.RpcError) as refused:
                channel.unary_unary(export)(body, timeout=20)
            assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
            channel.unary_unary(export)(body, timeout=20, metadata=(("authorization", f"Bearer {token}"),))
        service.stop()
        done = tollspan("query", "by-tenant", "--store", service.url, "--format", "csv")
    assert "acme" in done.stdout
    assert "rival" not in done.stdout


def test_an_agent_whose_call_came_before_a_restart_is_not_billed_beside_it(folder: Path) -> None:
    service = Service(folder)
    for spans in ([chat(2, trace=1, parent=1)], [chat(1, tokens=(5000, 500))]):
        with service, grpc.insecure_channel(service.info["grpc"]) as channel:
            channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")(
                payload(spans), timeout=20
            )
            service.stop()
    assert Decimal(service.query("total")["cost"]) == 1000 * INPUT + 100 * OUTPUT

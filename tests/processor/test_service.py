"""A running service: ready or not and why, reloads that a broken file cannot harm, a drain that ends in time."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor import notify
from tollspan.processor.config import load, service_config
from tollspan.processor.errors import ConfigError
from tollspan.processor.runtime import journal_directory
from tollspan.processor.service import Service

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import Service as Process
from service import chat, payload, tollspan

BOOK = """
price_book: {id: house, version: VERSION, currency: USD}
prices:
  - {id: house/in, provider: openai, sku: gpt-5-mini, meter: tokens.output, amount: "3", per: 1000000}
"""


def until(done: Callable[[], Any], what: str, timeout_s: float = 30.0) -> Any:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = done()
        if found:
            return found
        time.sleep(0.05)
    raise AssertionError(what)


def page(address: str, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def samples(address: str) -> dict[str, float]:
    lines = [line for line in page(address, "/metrics")[1].splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


class Run:
    """A service in this process, from a configuration file."""

    def __init__(self, folder: Path, text: str = "", **flags: str) -> None:
        self.file = folder / "tollspan.yaml"
        self.file.write_text(text)
        ports = {"listen": "127.0.0.1:0", "http": "127.0.0.1:0", "sql": "off"}
        self.flags = {"store": f"chdb://{folder}/store", **ports, **flags}
        config = self.read()
        self.service = Service(service_config(config), config, self.read)

    def read(self) -> Any:
        return load(self.file, flags=self.flags, environment={})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., Run]]:
    started: list[Run] = []

    def start(text: str = "", **flags: str) -> Run:
        made = Run(tmp_path, text, **flags)
        made.service.start()
        started.append(made)
        return made

    yield start
    for each in started:
        each.service.stop()


# -- health and readiness ----------------------------------------------------------------------------------------------


def test_it_is_live_and_ready_and_says_what_it_holds(run: Callable[..., Run]) -> None:
    service = run().service
    assert page(service.http_address, "/healthz") == (200, "ok\n")
    assert page(service.http_address, "/livez") == (200, "ok\n")
    assert page(service.http_address, "/readyz") == (200, "ok\n")
    found = samples(service.http_address)
    assert (found["tollspan_ready"], found["tollspan_store_up"], found["tollspan_pipeline_up"]) == (1, 1, 1)
    assert found["tollspan_journal_cap_bytes"] == 8 << 30
    assert found["tollspan_lag_seconds"] == 0
    assert found["process_resident_memory_bytes"] > 10 << 20


def test_what_comes_in_is_counted_timed_and_lag_is_seen(run: Callable[..., Run]) -> None:
    service = run("sampling: {decision_wait: 0s}").service
    url = f"http://{service.http_address}/v1/traces"
    body = payload([chat(number) for number in range(1, 6)])
    request = urllib.request.Request(url, body, {"content-type": "application/x-protobuf"})
    urllib.request.urlopen(request, timeout=20).close()
    found = until(
        lambda: (now := samples(service.http_address)).get('tollspan_priced_total{status="priced"}') == 5 and now,
        "the rows are written",
    )
    assert found['tollspan_write_rows_total{table="ledger"}'] == 5
    assert found["tollspan_receive_spans_total"] == 5
    assert found["tollspan_receive_seconds_count"] == 1
    for stage in ("decode", "normalize", "assemble", "charge", "write_ledger"):
        assert found[f'tollspan_pipeline_stage_seconds_count{{stage="{stage}"}}'] >= 1
    assert found["tollspan_decoded_bytes_total"] >= len(body)
    assert found["tollspan_lag_spans"] == 0


def test_draining_is_live_and_not_ready(run: Callable[..., Run]) -> None:
    service = run().service
    assert service._intake is not None
    service._intake.drain(0.1)
    status, text = page(service.http_address, "/readyz")
    assert status == 503
    assert "drain" in text
    assert page(service.http_address, "/healthz")[0] == 200


def test_a_full_journal_is_not_ready_and_says_so(run: Callable[..., Run]) -> None:
    service = run("journal: {max_bytes: 4096, segment_bytes: 1024}").service
    url = f"http://{service.http_address}/v1/traces"
    body = payload([chat(number) for number in range(1, 60)])
    request = urllib.request.Request(url, body, {"content-type": "application/x-protobuf"})
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=20)
    assert caught.value.code == 503
    assert samples(service.http_address)['tollspan_receive_refused_total{reason="journal_full"}'] == 1
    assert page(service.http_address, "/healthz")[0] == 200


def test_a_store_that_is_away_is_said_and_spans_are_taken(tmp_path: Path, run: Callable[..., Run]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    url = f"clickhouse://user:hush@127.0.0.1:{port}/x"
    service = run("shutdown: {drain: 200ms}", store=url, **{"journal.directory": f"{tmp_path}/j"}).service
    status, text = until(
        lambda: (found := page(service.http_address, "/readyz"))[1].count("\n") > 1 and found, "the store is said"
    )
    assert status == 200
    assert text.startswith("ok\nstore: ")
    assert "hush" not in text
    found = samples(service.http_address)
    assert (found["tollspan_store_up"], found["tollspan_ready"]) == (0, 1)


def test_a_dead_pipeline_is_not_live(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    service = run().service
    monkeypatch.setattr(type(service.runtime), "alive", property(lambda _: False))
    assert page(service.http_address, "/healthz")[0] == 503


# -- reload ------------------------------------------------------------------------------------------------------------


def messages(caplog: pytest.LogCaptureFixture) -> str:
    return "\n".join(record.getMessage() for record in caplog.records)


def test_settings_that_can_change_do_and_the_log_names_those_that_need_a_restart(
    run: Callable[..., Run], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    made = run("sampling: {keep: 0.1}")
    service = made.service
    pipeline = until(lambda: service.runtime._pipeline, "the worker has begun")
    before = pipeline.sampler.policy.threshold
    made.file.write_text(
        "sampling: {keep: 0.5, decision_wait: 9s}\njournal: {max_bytes: 1 GiB}\nshutdown: {grace: 1s}\n"
    )
    service.reload()
    assert pipeline.sampler.policy.threshold == 2**55 != before
    assert pipeline.sampler.wait_s == 9.0
    assert service.config.grace_s == 1.0
    said = messages(caplog)
    assert "setting sampling.keep: 0.1 → 0.5 (tollspan.yaml:1)" in said
    assert "setting journal.max_bytes: 8 GiB → 1 GiB (tollspan.yaml:2) needs a restart" in said
    assert "3 changed, 1 need a restart" in said
    caplog.clear()
    service.reload()
    assert "journal.max_bytes: 8 GiB → 1 GiB" in messages(caplog), "it still needs one"
    assert "0 changed, 1 need a restart" in messages(caplog)


@pytest.mark.parametrize("broken", ["sampling: {keep: 7}", "sampling: [", "samplng: {keep: 0.5}"])
def test_a_broken_file_changes_nothing(run: Callable[..., Run], caplog: pytest.LogCaptureFixture, broken: str) -> None:
    made = run("sampling: {keep: 0.1}")
    pipeline = until(lambda: made.service.runtime._pipeline, "the worker has begun")
    before = pipeline.sampler.policy.threshold
    made.file.write_text(f"{broken}\nshutdown: {{grace: 1s}}\n" if "[" not in broken else broken)
    made.service.reload()
    assert pipeline.sampler.policy.threshold == before
    assert made.service.config.grace_s == 5.0
    assert "configuration not reloaded, the one in use stays" in messages(caplog)
    assert made.service.runtime.counters.get("config.reload_failed") == 1


def test_prices_and_settings_are_read_at_sighup_by_a_real_process(tmp_path: Path) -> None:
    book, file = tmp_path / "book.yaml", tmp_path / "t.yaml"
    book.write_text(BOOK.replace("VERSION", "1"))
    file.write_text("log: {format: json}\nsampling: {keep: 0.1}\n")
    lines: list[dict[str, Any]] = []
    with Process(tmp_path / "store", ["--config", str(file), "--prices", str(book)]) as process:
        assert process.process is not None
        assert process.process.stderr is not None
        stream = process.process.stderr
        reader = threading.Thread(target=lambda: [lines.append(json.loads(line)) for line in stream], daemon=True)
        reader.start()
        for name in ("grpc", "http"):
            # What is no request must not make a library write lines that are no JSON.
            host, port = process.info[name].split(":")
            for garbage in (b"\x16\x03\x01\x02\x00\x01", b"GET \xff\xfe nonsense\r\n\r\n", bytes(100)):
                with socket.create_connection((host, int(port)), timeout=20) as line:
                    line.sendall(garbage)
        book.write_text(BOOK.replace("VERSION", "2"))
        file.write_text("log: {format: json, level: debug}\nsampling: {keep: 0.75}\n")
        process.process.send_signal(signal.SIGHUP)
        until(lambda: any("prices reloaded" in line["message"] for line in lines), "prices are read")
        until(
            lambda: any("setting sampling.keep: 0.1 → 0.75" in line["message"] for line in lines), "settings are read"
        )
        process.process.send_signal(signal.SIGTERM)
        assert process.process.wait(60) == 0
        reader.join(20)
    said = [line["message"] for line in lines]
    assert "serving" in said
    assert said[-1] == "stopped" or "stopped" in said


# -- the end -----------------------------------------------------------------------------------------------------------


def test_a_stop_ends_by_its_deadline_although_the_store_is_away(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [
        sys.executable, "-m", "tollspan.processor.main", "serve", "--store", f"clickhouse://127.0.0.1:{port}/x",
        "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0", "--journal", str(tmp_path / "j"), "--log-format", "json",
        "--shutdown-grace", "200ms", "--shutdown-drain", "1s",
    ]  # fmt: skip
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        address = ""
        for line in process.stderr:
            found = json.loads(line)
            if found["message"] == "serving":
                address = found["fields"]["http"]
                break
        body = payload([chat(number) for number in range(1, 6)])
        request = urllib.request.Request(
            f"http://{address}/v1/traces", body, {"content-type": "application/x-protobuf"}
        )
        urllib.request.urlopen(request, timeout=20).close()
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        rest = process.communicate(timeout=60)[0], process.returncode
        assert rest[1] == 0
        assert time.monotonic() - began < 15
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def test_an_open_address_is_refused_with_what_to_do(tmp_path: Path) -> None:
    done = tollspan("serve", "--store", f"chdb://{tmp_path}/s", "--http", "0.0.0.0:0", "--listen", "127.0.0.1:0")
    assert done.returncode == 1
    assert "open to other machines" in done.stderr
    assert "Traceback" not in done.stderr


def test_its_own_port_is_no_backend_for_its_metrics(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = Run(tmp_path, f"telemetry: {{endpoint: 'http://127.0.0.1:{port}'}}", listen=f"127.0.0.1:{port}")
    with pytest.raises(ConfigError, match="is this service itself"):
        made.service.start()


def test_a_store_with_a_new_password_finds_the_journal_that_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOLLSPAN_DATA_DIR", str(tmp_path))
    places = {journal_directory(f"clickhouse://u:{word}@h:8123/db", None) for word in ("old", "new", "p%40ss")}
    assert len(places) == 1
    assert places != {journal_directory("clickhouse://u:old@h:8123/other", None)}
    # One that a version before this made stays where it is.
    url = "clickhouse://u:old@h:8123/db"
    before = tmp_path / "journals" / hashlib.sha256(url.encode()).hexdigest()[:16]
    before.mkdir(parents=True)
    assert journal_directory(url, None) == before


# -- systemd -----------------------------------------------------------------------------------------------------------


def test_systemd_hears_ready_reload_watchdog_and_stopping(tmp_path: Path) -> None:
    where = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(where)
        ear.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": where, "WATCHDOG_USEC": "400000"}
        command = [
            sys.executable, "-m", "tollspan.processor.main", "serve", "--store", f"chdb://{tmp_path}/s",
            "--listen", "127.0.0.1:0", "--http", "off", "--sql", "off",
        ]  # fmt: skip
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        try:
            heard: list[str] = []

            def hear(word: str) -> None:
                until(lambda: heard.append(ear.recv(4096).decode()) or word in heard[-1], f"systemd hears {word}")

            hear("READY=1")
            hear("WATCHDOG=1")
            hear("WATCHDOG=1")
            process.send_signal(signal.SIGHUP)
            hear("RELOADING=1")
            assert "MONOTONIC_USEC=" in heard[-1]
            hear("READY=1")
            process.send_signal(signal.SIGTERM)
            hear("STOPPING=1")
            assert process.wait(60) == 0
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


ANOTHER_THREAD = """
import signal, sys, threading
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.service import Service, ServiceConfig

service = Service(ServiceConfig(RuntimeConfig(store=sys.argv[1]), listen="127.0.0.1:0", http=None, sql=None))
service.heed_signals()
service.start()
strike = lambda: signal.pthread_kill(threading.get_ident(), signal.SIGTERM)
threading.Timer(0.5, strike).start()
service.wait()
"""


def test_a_signal_that_another_thread_is_given_stops_the_service_too(tmp_path: Path) -> None:
    command = [sys.executable, "-c", ANOTHER_THREAD, f"chdb://{tmp_path}/s"]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_without_systemd_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    monkeypatch.delenv("WATCHDOG_USEC", raising=False)
    notify.notify("READY=1")
    assert notify.watchdog_s() is None
    monkeypatch.setenv("NOTIFY_SOCKET", "/not/there")
    notify.notify("READY=1")
    monkeypatch.setenv("WATCHDOG_USEC", "1000000")
    assert notify.watchdog_s() == 0.5
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert notify.watchdog_s() is None


def test_an_abstract_socket_is_heard_too(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0tollspan-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@tollspan-test-{os.getpid()}")
        ear.settimeout(5)
        notify.notify("READY=1", "STATUS=x")
        assert ear.recv(100) == b"READY=1\nSTATUS=x"


def test_a_stop_while_the_decoder_is_being_compiled_ends_well(tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "NUMBA_CACHE_DIR": str(tmp_path / "cache"),
        "TOLLSPAN_DATA_DIR": str(tmp_path / "data"),
    }
    command = [sys.executable, "-m", "tollspan.processor.main", "serve"]
    command += ["--listen", "127.0.0.1:0", "--http", "off", "--sql", "off", "--pipeline-compile-bytes", "0"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert any("ledger in" in line for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert "stopped" in said

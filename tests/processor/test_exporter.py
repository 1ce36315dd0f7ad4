"""The drop-in exporter: durable when it says so, priced when the program ends, and never in the program's way."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor, SpanExportResult

from tollspan.processor.errors import ConfigError
from tollspan.processor.exporter import ExporterSettings, TollspanSpanExporter
from tollspan.processor.inbox import Inbox
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Settings
from tollspan.processor.runtime import RuntimeConfig
from tollspan.processor.store import open_store

USAGE = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-5-mini",
    "gen_ai.usage.input_tokens": 1000,
    "gen_ai.usage.output_tokens": 100,
}
CALL = Decimal("0.00045")
TOLLSPAN = [sys.executable, "-m", "tollspan.processor.main"]


def wait_for(what: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What ``what`` gives once it is true."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not come about in time")


def end_span(provider: TracerProvider, name: str = "chat") -> None:
    provider.get_tracer("test").start_span(name, attributes=USAGE).end()


# -- in this process ------------------------------------------------------------------------------------------------


def test_spans_of_the_sdk_become_ledger_rows(store_url: str, tmp_path: Path) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, journal=tmp_path / "j", settings=Settings(keep=1.0)))
    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    for _ in range(20):
        with tracer.start_as_current_span("request"), tracer.start_as_current_span("chat", attributes=USAGE):
            pass
    provider.shutdown()
    with open_store(store_url, create=False) as store:
        (row,) = store.query("SELECT count() AS n, sum(cost) AS cost FROM ledger FINAL").to_pylist()
        (bodies,) = store.query("SELECT count() AS n FROM spans FINAL").to_pylist()
    assert (row["n"], row["cost"]) == (20, 20 * CALL)
    assert bodies["n"] == 40


def test_after_shutdown_exports_fail_and_nothing_raises(store_url: str, tmp_path: Path) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, journal=tmp_path / "j"))
    exporter.shutdown()
    assert exporter.export([]) is SpanExportResult.FAILURE
    exporter.shutdown()


def test_a_wrong_store_is_said_once_and_the_program_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    exporter = TollspanSpanExporter(RuntimeConfig("mysql://nowhere"))
    with caplog.at_level(logging.ERROR):
        assert exporter.export([]) is SpanExportResult.FAILURE
        assert exporter.export([]) is SpanExportResult.FAILURE
    assert len([r for r in caplog.records if "mysql" in r.getMessage()]) == 1


def test_a_broken_price_book_is_said_once_and_what_was_accepted_stays(
    store_url: str, store_directory: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "prices.yaml").write_text("not: a book\n")
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, prices=tmp_path / "prices.yaml", journal=tmp_path / "j"))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    inbox = Inbox(store_directory / "inbox" / store_url.partition("database=")[2])
    try:
        end_span(provider)
        wait_for(lambda: exporter._broken)
        assert exporter.export([]) is SpanExportResult.FAILURE
        assert len([r for r in caplog.records if "exporter is off" in r.getMessage()]) == 1
        provider.shutdown()
        assert len(inbox.waiting()) == 1, "the span is durable, and the next start with a right book prices it"
    finally:
        for path in inbox.waiting():
            path.unlink()


def test_nothing_is_opened_before_the_first_export_and_nothing_is_left_behind(store_url: str, tmp_path: Path) -> None:
    before = set(threading.enumerate()), len(os.listdir("/proc/self/fd"))
    exporter = TollspanSpanExporter(RuntimeConfig(store_url, journal=tmp_path / "j"))
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    assert set(threading.enumerate()) == before[0]
    assert not (tmp_path / "j").exists()
    end_span(provider)
    provider.shutdown()
    assert [t.name for t in set(threading.enumerate()) - before[0] if t.name.startswith("tollspan")] == []
    gone = weakref.ref(exporter)
    del exporter, provider
    gc.collect()
    assert gone() is None, "the fork hook holds nobody"
    # The engine keeps its own descriptors; none of them grows with the number of exporters.
    assert len(os.listdir("/proc/self/fd")) < before[1] + 200


def test_settings_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = RuntimeConfig.from_environment(
        {"TOLLSPAN_STORE": "chdb:///x", "TOLLSPAN_PRICES": str(tmp_path / "p.yaml"), "TOLLSPAN_KEEP": "0.25"}
    )
    assert (config.store, config.prices, config.settings.keep) == ("chdb:///x", tmp_path / "p.yaml", 0.25)
    with pytest.raises(ConfigError, match="keep"):
        RuntimeConfig.from_environment({"TOLLSPAN_KEEP": "lots"})
    monkeypatch.setenv("TOLLSPAN_EXPORTER_TIMEOUT", "3s")
    monkeypatch.setenv("TOLLSPAN_QUARANTINE_MAX_BYTES", "1 MiB")
    exporter = TollspanSpanExporter()
    place = exporter._place()
    assert exporter._given().timeout_s == 3.0
    assert place.quarantine.max_bytes == 1 << 20


# -- slow and full disks --------------------------------------------------------------------------------------------


def test_a_disk_that_hangs_holds_one_caller_until_its_timeout_and_the_others_not_at_all(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    exporter = TollspanSpanExporter(
        RuntimeConfig(store_url, journal=tmp_path / "j"), ExporterSettings(timeout_s=0.5, drain_s=5.0)
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    end_span(provider)
    wait_for(lambda: exporter._runtime)
    goes_on = threading.Event()
    original = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: goes_on.wait(30) and original(fd))
    took = []
    for _ in range(20):
        began = time.monotonic()
        assert exporter.export([]) is SpanExportResult.FAILURE
        took.append(time.monotonic() - began)
    assert 0.4 < took[0] < 3
    assert sum(took[1:]) < 1.0
    goes_on.set()
    wait_for(lambda: exporter.export([]) is SpanExportResult.SUCCESS)
    provider.shutdown()


def test_what_waits_for_the_disk_is_bounded(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tollspan.processor.inbox import InboxWriter

    goes_on = threading.Event()
    original = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: goes_on.wait(30) and original(fd))
    writer = InboxWriter(Inbox(tmp_path / "inbox"), pending_bytes=1000)
    tickets = [writer.append(b"x" * 100) for _ in range(50)]
    refused = [ticket for ticket in tickets if ticket.done()]
    assert len(refused) == 40
    goes_on.set()
    assert writer.close(10)
    assert sum(path.stat().st_size for path in writer.inbox.waiting()) == 1000


def test_a_full_inbox_refuses_and_takes_again_when_it_is_emptied(tmp_path: Path) -> None:
    from tollspan.processor.errors import JournalFull

    inbox = Inbox(tmp_path / "inbox", max_bytes=100)
    path = inbox.put(b"x" * 80)
    with pytest.raises(JournalFull, match="cap of 100 bytes"):
        inbox.put(b"y" * 30)
    path.unlink()
    inbox._counted_at = -1.0
    inbox.put(b"y" * 30)
    assert [p.read_bytes() for p in inbox.waiting()] == [b"y" * 30]


def test_a_store_that_is_away_or_silent_holds_up_neither_export_nor_exit(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        url = f"clickhouse://127.0.0.1:{silent.getsockname()[1]}/db"
        exporter = TollspanSpanExporter(RuntimeConfig(url, journal=tmp_path / "j"))
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        began = time.monotonic()
        end_span(provider)
        assert time.monotonic() - began < 5, "accepted by the journal, whatever the store does"
        provider.shutdown()
        assert time.monotonic() - began < 30
    with contextlib.closing(Journal(tmp_path / "j")) as journal:
        batch = journal.next_batch(1 << 20, 1.0)
        assert batch is not None, "the span waits in the journal"
        assert len(batch.payloads) == 1


# -- whole programs -------------------------------------------------------------------------------------------------

PREAMBLE = f"""
import os, signal, sys, threading, time
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from tollspan.processor.exporter import TollspanSpanExporter

exporter = TollspanSpanExporter()

def set_up(processor=BatchSpanProcessor):
    provider = TracerProvider()
    provider.add_span_processor(processor(exporter))
    trace.set_tracer_provider(provider)

def call(times=1):
    for _ in range(times):
        trace.get_tracer("t").start_span("chat", attributes={USAGE!r}).end()

def own(processor=BatchSpanProcessor):
    # Owns the store before it goes on: what a program does that has worked for a while.
    set_up(processor)
    call()
    trace.get_tracer_provider().force_flush()
    deadline = time.monotonic() + 60
    while exporter._runtime is None:
        assert time.monotonic() < deadline
        time.sleep(0.02)
"""


def environment(store: Path, **more: str) -> dict[str, str]:
    return os.environ | {"TOLLSPAN_STORE": f"chdb://{store}", "TOLLSPAN_SAMPLING_DECISION_WAIT": "0s"} | more


def run(store: Path, program: str, *, code: int | None = 0, python: str = sys.executable) -> str:
    """Run a program to its end; what it wrote to stderr."""
    path = store.with_name("program.py")
    path.write_text(PREAMBLE + program)
    done = subprocess.run([python, str(path)], env=environment(store), capture_output=True, text=True, timeout=100)
    if code is not None:
        assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def inferences(store: Path) -> int:
    """Calls in the ledger, after whatever waits has been taken up by a service that is started for it."""
    done = subprocess.run(
        [*TOLLSPAN, "query", "total", "--format", "json", "--store", f"chdb://{store}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout) if done.stdout.lstrip().startswith("[") else [json.loads(done.stdout)]
    assert Decimal(row["cost"]) == row["inferences"] * CALL
    return int(row["inferences"])


def waiting(store: Path) -> list[Path]:
    return Inbox(store / "inbox" / "tollspan").waiting()


def take_up(store: Path) -> None:
    """The next start: whatever waits in journal and inbox is priced."""
    run(store, "own()\n")


def test_an_import_starts_and_writes_nothing(tmp_path: Path) -> None:
    program = (
        "import os, threading\n"
        "before = set(os.listdir('.'))\n"
        "import tollspan.processor.exporter as e\n"
        "e.TollspanSpanExporter()\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert set(os.listdir('.')) == before\n"
        "import sys; assert 'chdb' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(tmp_path / "store"),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "store").exists()


def test_what_the_batch_processor_holds_at_exit_is_written_before_the_process_ends(tmp_path: Path) -> None:
    program = (
        "from opentelemetry import trace\n"
        f"usage = {USAGE!r}\n"
        "for _ in range(7):\n"
        "    trace.get_tracer('t').start_span('chat', attributes=usage).end()\n"
    )
    settings = environment(tmp_path / "store") | {
        "OTEL_TRACES_EXPORTER": "tollspan", "OTEL_METRICS_EXPORTER": "none", "OTEL_LOGS_EXPORTER": "none"
    }  # fmt: skip
    launcher = str(Path(sys.executable).parent / "opentelemetry-instrument")
    done = subprocess.run(
        [launcher, sys.executable, "-c", program], env=settings, capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 0, done.stderr
    assert inferences(tmp_path / "store") == 7


FLUSH = "trace.get_tracer_provider().force_flush()"
ENDINGS = {
    # Where nothing runs at the end, the spans are those that were exported.
    "BatchSpanProcessor": {
        "call(3); sys.exit(7)": 7,
        "call(3); raise ValueError": 1,
        f"call(3); {FLUSH}; os.execv('/bin/true', ['true'])": 0,
        f"call(3); {FLUSH}; os._exit(5)": 5,
    },
    "SimpleSpanProcessor": {
        "call(3); os.kill(os.getpid(), signal.SIGTERM); time.sleep(30)": -15,
        "call(3); os.kill(os.getpid(), signal.SIGKILL)": -9,
    },
}


@pytest.mark.parametrize("processor", ENDINGS)
def test_forked_childrens_spans_reach_the_ledger_however_they_end(tmp_path: Path, processor: str) -> None:
    endings = ENDINGS[processor]
    said = run(
        tmp_path / "store",
        f"own({processor})\n"
        f"for ending in {list(endings)!r}:\n"
        "    began = time.monotonic()\n"
        "    if (child := os.fork()) == 0:\n"
        "        exec(ending)\n"
        "    print('ended', os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), time.monotonic() - began)\n",
    )
    ended = [line.split()[1:] for line in said.splitlines() if line.startswith("ended ")]
    assert [int(status) for status, _ in ended] == list(endings.values())
    assert all(float(took) < 20 for _, took in ended), "no child hangs at its end"
    assert waiting(tmp_path / "store") == [], "the parent took it up before it ended"
    assert inferences(tmp_path / "store") == 1 + 3 * len(endings)


def test_children_of_multiprocessing_flush_although_they_end_by_os_exit(tmp_path: Path) -> None:
    run(
        tmp_path / "store",
        "import multiprocessing\n"
        "from concurrent.futures import ProcessPoolExecutor\n"
        "if __name__ == '__main__':\n"
        "    own()\n"
        "    fork = multiprocessing.get_context('fork')\n"
        "    some = [fork.Process(target=call, args=(2,)) for _ in range(3)]\n"
        "    for each in some: each.start()\n"
        "    for each in some: each.join()\n"
        "    with ProcessPoolExecutor(2, mp_context=fork) as pool:\n"
        "        list(pool.map(call, [1, 1, 1, 1]))\n",
    )
    assert inferences(tmp_path / "store") == 1 + 6 + 4


def test_spawned_children_have_an_exporter_of_their_own_and_share_the_store(tmp_path: Path) -> None:
    run(
        tmp_path / "store",
        "import multiprocessing\n"
        "def work():\n"
        "    set_up()\n"
        "    call(2)\n"
        "    trace.get_tracer_provider().shutdown()\n"
        "if __name__ == '__main__':\n"
        "    own()\n"
        "    spawn = multiprocessing.get_context('spawn')\n"
        "    some = [spawn.Process(target=work) for _ in range(2)]\n"
        "    for each in some: each.start()\n"
        "    for each in some: each.join()\n"
        "    assert [each.exitcode for each in some] == [0, 0]\n",
    )
    assert inferences(tmp_path / "store") == 1 + 4


def test_a_fork_out_of_many_threads_that_end_spans_loses_none_of_its_own(tmp_path: Path) -> None:
    said = run(
        tmp_path / "store",
        "own(SimpleSpanProcessor)\n"
        "stop = threading.Event()\n"
        "made = []\n"
        "def work():\n"
        "    while not stop.is_set():\n"
        "        call(); made.append(1)\n"
        "threads = [threading.Thread(target=work) for _ in range(4)]\n"
        "for each in threads: each.start()\n"
        "children = []\n"
        "for _ in range(5):\n"
        "    time.sleep(0.05)\n"
        "    if (child := os.fork()) == 0:\n"
        "        call(4)\n"
        "        sys.exit(0)\n"
        "    children.append(child)\n"
        "assert [os.waitpid(child, 0)[1] for child in children] == [0] * 5\n"
        "stop.set()\n"
        "for each in threads: each.join()\n"
        "print('made', len(made))\n",
    )
    made = int(said.split("made ")[1].split()[0])
    assert inferences(tmp_path / "store") == 1 + made + 20


def test_a_child_that_outlives_its_parent_has_its_spans_written_when_it_ends(tmp_path: Path) -> None:
    # The parent is gone, and this process cannot open the engine: another one does.
    done = tmp_path / "done"
    run(
        tmp_path / "store",
        "own()\n"
        "parent = os.getpid()\n"
        "if os.fork() == 0:\n"
        "    sys.stdout = sys.stderr = open(os.devnull, 'w')\n"
        "    os.dup2(sys.stdout.fileno(), 1); os.dup2(sys.stdout.fileno(), 2)\n"
        "    while os.getppid() == parent: time.sleep(0.05)\n"
        "    time.sleep(0.3)\n"
        "    call(3)\n"
        "    trace.get_tracer_provider().shutdown()\n"
        f"    open({str(done)!r}, 'w').close()\n"
        "    os._exit(0)\n",
    )
    wait_for(done.exists)
    assert waiting(tmp_path / "store") == []
    assert inferences(tmp_path / "store") == 4


def test_two_programs_on_one_store_both_count_and_the_second_takes_over(tmp_path: Path) -> None:
    store = tmp_path / "store"
    (tmp_path / "first.py").write_text(PREAMBLE + "own()\nprint('ready', flush=True)\nsys.stdin.readline()\ncall(2)\n")
    (tmp_path / "second.py").write_text(
        PREAMBLE + "set_up(SimpleSpanProcessor)\ncall(3)\nassert exporter._runtime is None\n"
        "print('ready', flush=True)\nsys.stdin.readline()\n"
        "deadline = time.monotonic() + 30\n"
        "while exporter._runtime is None and time.monotonic() < deadline: time.sleep(0.05)\n"
        "assert exporter._runtime is not None, 'it owns the store when the first is gone'\ncall(4)\n"
    )

    def start(name: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(tmp_path / name)], env=environment(store), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n", process.communicate()
        return process

    first = start("first.py")
    second = start("second.py")
    _, wrong = first.communicate("go\n", timeout=60)
    assert first.returncode == 0, wrong
    _, wrong = second.communicate("go\n", timeout=60)
    assert second.returncode == 0, wrong
    assert inferences(store) == 1 + 2 + 3 + 4


def test_a_running_service_takes_up_what_a_program_beside_it_exports(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
    from service import Service

    with Service(tmp_path / "store", ["--decision-wait", "0"]) as service:
        run(tmp_path / "store", "set_up()\ncall(5)\n")
        wait_for(lambda: not waiting(tmp_path / "store"))
        stats = service.stop()
        service.process = None
    assert stats["inbox.taken"] >= 1
    assert stats["ledger.rows"] == 5
    assert inferences(tmp_path / "store") == 5


@pytest.mark.parametrize("owns", [True, False])
def test_what_an_export_accepted_outlives_kill_9(tmp_path: Path, owns: bool) -> None:
    done = run(
        tmp_path / "store",
        ("own(SimpleSpanProcessor)\n" if owns else "set_up(SimpleSpanProcessor)\n")
        + "call(25)\nprint('accepted', flush=True)\nos.kill(os.getpid(), signal.SIGKILL)\n",
        code=-signal.SIGKILL,
    )
    assert "accepted" in done
    take_up(tmp_path / "store")
    assert inferences(tmp_path / "store") == 25 + 1 + owns


def test_databases_of_one_store_have_inboxes_of_their_own(tmp_path: Path) -> None:
    store = tmp_path / "store"
    other = f"chdb://{store}?database=other"
    (tmp_path / "program.py").write_text(PREAMBLE + "own()\nprint('ready', flush=True)\nsys.stdin.readline()\n")
    owner = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py")], env=environment(store), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    (tmp_path / "second.py").write_text(PREAMBLE + "set_up(SimpleSpanProcessor)\ncall(3)\n")
    done = subprocess.run(
        [sys.executable, str(tmp_path / "second.py")], env=environment(store, TOLLSPAN_STORE=other),
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(Inbox(store / "inbox" / "other").waiting()) >= 1
    _, wrong = owner.communicate("go\n", timeout=60)
    assert owner.returncode == 0, wrong
    assert inferences(store) == 1, "the owner has not taken what is another database's"


GUNICORN_APP = """
def app(environ, start_response):
    call()
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""


@pytest.mark.parametrize("before", ["own()", "set_up()"])
def test_gunicorn_with_preload_counts_every_request_of_every_worker(tmp_path: Path, before: str) -> None:
    pytest.importorskip("gunicorn")
    import urllib.request

    store = tmp_path / "store"
    (tmp_path / "webapp.py").write_text(PREAMBLE + before + "\n" + GUNICORN_APP)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--max-requests", "15"]
    command += ["--graceful-timeout", "20", "--bind", f"127.0.0.1:{port}", "webapp:app"]
    server = subprocess.Popen(command, cwd=tmp_path, env=environment(store), stderr=subprocess.PIPE, text=True)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def ask() -> str | None:
        with contextlib.suppress(OSError):
            return str(opener.open(f"http://127.0.0.1:{port}/", timeout=10).read().decode())
        return None

    try:
        wait_for(ask, 60)
        answers = [wait_for(ask) for _ in range(40)]
        assert len(set(answers)) > 1
        began = time.monotonic()
        server.send_signal(signal.SIGTERM)
        _, said = server.communicate(timeout=60)
        assert time.monotonic() - began < 18, "no worker hangs at its end"
    finally:
        server.kill()
    assert server.returncode == 0, said
    assert "WORKER TIMEOUT" not in said
    # On a slow machine something may have waited for the next start, which counts one of its own.
    take_up(store)
    assert inferences(store) == 41 + (1 if before == "own()" else 0) + 1

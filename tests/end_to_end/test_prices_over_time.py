"""Prices change while a real service runs and between its lives; what was priced stays, until somebody reprices it."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

sys.path.insert(0, str(Path(__file__).parent))
from service import TOLLSPAN, Service, chat, payload, tollspan

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def book(path: Path, per_token: str) -> Path:
    """A book in which a token of any kind costs so much; put in place whole."""
    draft = path.with_suffix(".new")
    draft.write_text(
        "price_book: {id: mine, version: 1, currency: USD}\nprices:\n"
        + "".join(
            f"  - {{id: '{meter}', provider: openai, sku: gpt-5-mini, meter: {meter}, amount: '{per_token}', per: 1}}\n"
            for meter in ("tokens.input.uncached", "tokens.output")
        )
    )
    draft.replace(path)
    return path


@pytest.fixture
def prices(tmp_path: Path) -> Path:
    return book(tmp_path / "prices.yaml", "1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def costs(service: Service) -> list[Decimal | None]:
    """Of all rows, in the order of their spans."""
    url = f"http://{service.info['sql']}/?default_format=JSON&query="
    sql = "SELECT toString(cost) AS cost FROM ledger FINAL ORDER BY span_id".replace(" ", "%20")
    with urllib.request.urlopen(url + sql, timeout=20) as answer:
        rows = json.loads(answer.read())["data"]
    return [None if row["cost"] is None else Decimal(row["cost"]) for row in rows]


def wait(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def health(service: Service, name: str) -> int:
    with grpc.insecure_channel(service.info["grpc"]) as channel:
        request = health_pb2.HealthCheckRequest(service=name)
        return int(health_pb2_grpc.HealthStub(channel).Check(request, timeout=10).status)


def metrics(service: Service) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{service.info['sql']}/metrics", timeout=20) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}


def test_a_span_sent_again_after_a_restart_with_another_book_keeps_its_first_price(folder: Path, prices: Path) -> None:
    options = ["--prices", str(prices), "--decision-wait", "0"]
    with Service(folder, options) as service:
        service.export(payload([chat(1, tokens=(10, 5))]))
        service.stop()
    book(prices, "100")
    with Service(folder, options) as service:
        service.export(payload([chat(1, tokens=(10, 5)), chat(2, tokens=(10, 5))]))
        wait(lambda: len(costs(service)) == 2, "the second span arrives")
        assert costs(service) == [15, 1500]
        service.stop()


def test_a_running_service_takes_a_good_book_and_no_broken_one(folder: Path, prices: Path) -> None:
    with Service(folder, ["--prices", str(prices), "--decision-wait", "0"]) as service:
        process = service.process
        assert process is not None
        service.export(payload([chat(1, tokens=(10, 5))]))
        wait(lambda: costs(service) == [15], "the first book's price")
        assert health(service, "tollspan.prices") == SERVING
        assert metrics(service)["tollspan_prices_reload_error"] == 0

        book(prices, "2")
        wait(lambda: metrics(service)["tollspan_prices_reloaded_total"] == 1, "the change is seen without being asked")
        service.export(payload([chat(2, tokens=(10, 5))]))
        wait(lambda: costs(service) == [15, 30], "new spans have the new price, old ones theirs")

        prices.write_text(
            "price_book: {id: mine, version: 2, currency: USD}\nprices: [{id: x, meter: tokens.outptu}]\n"
        )
        process.send_signal(signal.SIGHUP)
        wait(lambda: metrics(service)["tollspan_prices_reload_error"] == 1, "the broken book is noticed")
        assert health(service, "tollspan.prices") == NOT_SERVING
        assert health(service, "") == SERVING
        assert metrics(service)["tollspan_prices_reload_failed_total"] == 1
        service.export(payload([chat(3, tokens=(10, 5))]))
        wait(lambda: costs(service) == [15, 30, 30], "the last good book stays in use")

        book(prices, "3")
        process.send_signal(signal.SIGHUP)
        wait(lambda: metrics(service)["tollspan_prices_reload_error"] == 0, "a good book ends it")
        assert health(service, "tollspan.prices") == SERVING
        service.export(payload([chat(4, tokens=(10, 5))]))
        wait(lambda: len(costs(service)) == 4, "the fourth span arrives")
        assert costs(service) == [15, 30, 30, 45]
        stats = service.stop()
        assert process.stderr is not None
        said = process.stderr.read().decode()
    assert (stats["prices.reloaded"], stats["prices.reload_failed"]) == (2, 1)
    assert said.count("price book not reloaded") == 1
    assert f"{prices}:2" in said
    assert "tokens.outptu" in said
    assert "Traceback" not in said


def test_repricing_is_a_command_with_figures_and_stops_at_closed_months(folder: Path, prices: Path) -> None:
    month = "2025-11"  # of the spans
    with Service(folder, ["--prices", str(prices), "--decision-wait", "0"]) as service:
        service.export(payload([chat(n, tokens=(10, 5), **{"tollspan.tenant": f"t{n % 2}"}) for n in range(1, 5)]))
        wait(lambda: len(costs(service)) == 4, "the spans arrive")
        book(prices, "2")
        command = ["reprice", "--since", month + "-01", "--book", str(prices), "--store", service.url]
        tried = tollspan(*command, "--dry-run", "--format", "json")
        refused = tollspan(*command)
        service.stop()
    assert tried.returncode == 0, tried.stderr
    total = json.loads(tried.stdout)["total"]
    assert (Decimal(total["old_cost"]), Decimal(total["new_cost"]), total["changed"]) == (60, 120, 4)
    assert refused.returncode == 1
    assert "is in use by" in refused.stderr
    assert "Stop it first" in refused.stderr
    assert "Traceback" not in refused.stderr

    assert tollspan("close", "--month", month, "--store", service.url).returncode == 0
    closed = tollspan(*command)
    assert closed.returncode == 1
    assert month in closed.stderr
    assert Decimal(service.query("total")["cost"]) == 60
    listed = json.loads(tollspan("close", "--store", service.url, "--format", "json").stdout)
    assert [(row["period"], row["late_rows"]) for row in listed] == [(month, 0)]

    assert tollspan("close", "--month", month, "--reopen", "--store", service.url).returncode == 0
    done = tollspan(*command, "--format", "markdown")
    assert done.returncode == 0, done.stderr
    assert "60 USD → 120 USD (+60), 4 of 4 rows change" in done.stdout
    assert "| t0 | openai | gpt-5-mini | 30 | 60 | 30 | 2 | 2 |" in done.stdout
    assert Decimal(service.query("total")["cost"]) == 120
    again = tollspan(*command)
    assert "nothing to write" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["reprice"], 2, "--since"),
        (["reprice", "--since", "yesterdayish"], 2, "neither an instant nor an age"),
        (["reprice", "--since", ""], 2, "--since"),
        (["reprice", "--since", "2026-02-01", "--until", "2026-01-01"], 2, "not before"),
        (["reprice", "--since", "2026-01-01", "--book", "nowhere.yaml"], 1, "nowhere.yaml"),
        (["reprice", "--since", "2026-01-01"], 1, "no store"),
        (["close", "--month", "October"], 2, "no month"),
        (["close", "--reopen"], 2, "Which month"),
        (["close", "--month", "2026-10"], 1, "no store"),
    ],
)
def test_wrong_use_is_one_line_and_an_exit_code(tmp_path: Path, arguments: list[str], code: int, says: str) -> None:
    done = tollspan(*arguments, TOLLSPAN_STORE=f"chdb://{tmp_path}/none")
    assert done.returncode == code
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_a_repricing_that_is_killed_is_completed_by_the_same_command(
    folder: Path, prices: Path, tmp_path: Path
) -> None:
    rng = random.Random(13)
    calls = [(rng.randrange(1, 8000), rng.randrange(1, 900)) for _ in range(40_000)]
    path = tmp_path / "trace.csv"
    with path.open("w") as file:
        file.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for i, (read, written) in enumerate(calls):
            file.write(f"2023-11-16 {i // 3600:02d}:{i // 60 % 60:02d}:{i % 60:02d}.5,{read},{written}\n")
    with Service(folder, ["--prices", str(prices)]) as service:
        done = tollspan(
            "replay", str(path), "--provider", "openai", "--model", "gpt-5-mini", "--to", service.info["grpc"]
        )
        assert done.returncode == 0, done.stderr
        service.stop()
    tokens = sum(read + written for read, written in calls)
    assert Decimal(service.query("total")["cost"]) == tokens

    book(prices, "2")
    command = ["reprice", "--since", "2023-01-01", "--until", "2027-01-01", "--book", str(prices)]
    killed = 0
    for pause in (0.0, 0.3, 0.6, 0.9):
        process = subprocess.Popen(
            [*TOLLSPAN, *command, "--store", service.url], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        pid = str(process.pid)
        while pid not in (folder / "lock").read_text() and process.poll() is None:
            time.sleep(0.005)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(pause)
        process.kill()
        killed += process.wait() == -signal.SIGKILL
    assert killed, "at least one was in the middle of it"
    done = tollspan(*command, "--store", service.url)
    assert done.returncode == 0, done.stderr
    total = service.query("total")
    assert (Decimal(total["cost"]), total["inferences"]) == (2 * tokens, 40_000)

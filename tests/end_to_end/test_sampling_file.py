"""A sampling file under a real service: rules decide bodies, change while it runs, and never touch a cost."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tollspan.processor.store import connect_for_query

from .service import Service, chat, payload, tollspan
from .test_prices_over_time import NOT_SERVING, SERVING, health

FIRST = """
rules:
  - {name: beta-users, when: {attributes: {app.tier: beta}}, keep: always}
  - {name: dear-calls, when: {expensive: 0.01}, keep: always, content: remove}
  - {name: probes, when: {feature: probe}, keep: never}
base: {keep: never}
"""
SECOND = FIRST.replace("beta}}, keep: always", "beta}}, keep: never").replace(
    "keep: never}\nbase", "keep: always}\nbase"
)
BROKEN = FIRST.replace("app.tier: beta", "app.tier: {regex: '('}")


def until(holds: Callable[[], Any], what: str) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


def page(service: Service, path: str) -> str:
    with urllib.request.urlopen(f"http://{service.info['http']}{path}", timeout=10) as answer:
        return str(answer.read().decode())


def ask(service: Service, sql: str) -> list[dict[str, Any]]:
    with connect_for_query(service.url) as reader:
        return reader.rows(sql)


def send(service: Service, first: int) -> None:
    service.export(
        payload(
            [
                chat(first, **{"app.tier": "beta"}),
                chat(first + 1, tokens=(100_000, 1)),
                chat(first + 2, **{"tollspan.feature": "probe"}),
                chat(first + 3, **{"tollspan.sampling.keep": True}),
                chat(first + 4, error=True),
            ]
        )
    )


def kept(service: Service, first: int) -> dict[int, str]:
    """Number of the span, from 0, → the rule that kept it."""
    rows = ask(service, "SELECT SpanId, KeepRule FROM spans FINAL ORDER BY SpanId")
    found = {int(row["SpanId"], 16) - first: row["KeepRule"] for row in rows}
    return {number: rule for number, rule in found.items() if 0 <= number < 10}


def test_rules_decide_and_change_under_a_running_service(tmp_path: Path) -> None:
    folder, file = tmp_path / "store", tmp_path / "sampling.yaml"
    file.write_text(FIRST)
    with Service(folder, ["--sampling-file", str(file), "--decision-wait", "0"]) as service:
        send(service, 1000)
        until(lambda: ask(service, "SELECT count() AS n FROM traces FINAL")[0]["n"] == 5, "five are decided")
        assert kept(service, 1000) == {0: "beta-users", 1: "dear-calls", 3: "keep"}

        file.write_text(SECOND)
        until(lambda: "sampling_file_reloaded_total 1" in page(service, "/metrics"), "the second is read")
        send(service, 2000)
        until(lambda: ask(service, "SELECT count() AS n FROM traces FINAL")[0]["n"] == 10, "ten are decided")
        assert kept(service, 2000) == {1: "dear-calls", 2: "probes", 3: "keep"}

        file.write_text(BROKEN)
        until(lambda: "sampling_file_reload_failed_total 1" in page(service, "/metrics"), "the third is refused")
        assert "sampling: the file is broken, the last good rules are in use" in page(service, "/readyz")
        assert (health(service, "tollspan.sampling"), health(service, "")) == (NOT_SERVING, SERVING)
        send(service, 3000)
        until(lambda: ask(service, "SELECT count() AS n FROM traces FINAL")[0]["n"] == 15, "fifteen are decided")
        assert kept(service, 3000) == {1: "dear-calls", 2: "probes", 3: "keep"}

        assert ask(service, "SELECT count() AS n, countIf(isNotNull(cost)) AS costed FROM ledger FINAL") == [
            {"n": 15, "costed": 15}
        ], "what is kept is no matter of cost"
        reasons = ask(service, "SELECT keep_rule, keep_reason FROM traces FINAL WHERE kept GROUP BY ALL ORDER BY ALL")
        assert [tuple(row.values()) for row in reasons] == [
            ("beta-users", "match"),
            ("dear-calls", "expensive"),
            ("keep", "keep"),
            ("probes", "match"),
        ]
        stats = service.stop()
    assert stats["sampled.rule.dear-calls"] == 3


@pytest.mark.parametrize(
    ("variable", "text", "told"),
    [
        ("sampling.yaml", BROKEN, "is no regular expression"),
        ("elsewhere.yaml", FIRST, "cannot read the sampling file"),
    ],
)
def test_a_broken_file_stops_the_start_in_words(tmp_path: Path, variable: str, text: str, told: str) -> None:
    (tmp_path / "sampling.yaml").write_text(text)
    done = tollspan(
        "serve", "--store", f"chdb://{tmp_path}/s", "--listen", "127.0.0.1:0", "--http", "off", "--sql", "off",
        TOLLSPAN_SAMPLING_FILE=str(tmp_path / variable),
    )  # fmt: skip
    assert done.returncode != 0
    assert told in done.stderr
    assert "Traceback" not in done.stderr

"""A month made of the Azure trace: replayed over OTLP into a service, and every figure computed once more in pandas.

``TOLLSPAN_AZURE_TRACE=FILE`` takes the published trace (AzurePublicDataset, LLM inference trace 2023); otherwise a made
one of its shape is used. Its hour is cut into slices, two for each of 24 days, so that days, weekdays and hours differ.
pandas reads the same files, keeps money as Decimal, and knows nothing of the ledger.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import ROUND_DOWN, ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from tests.end_to_end.service import Service
from tollspan.processor.cli.replay import replay
from tollspan.processor.queries import run
from tollspan.processor.report import build_report, chosen
from tollspan.processor.store import connect_for_query

FIRST, DAYS = date(2026, 9, 23), 24
STARTS = ("06:10:00", "12:59:30")
"""Each day's slices; the second goes over an hour's end."""
AT = datetime(2026, 10, 16, 15, 30, tzinfo=UTC)
INPUT, OUTPUT = Decimal("0.2134567"), Decimal("1.7654321")
"""USD for a million tokens, with so many places that every charge is rounded."""
BOOK = f"""
price_book: {{id: month, version: "1", currency: USD}}
prices:
  - {{provider: acme, sku: coder, meter: tokens.input.uncached, amount: "{INPUT}", per: 1000000}}
  - {{provider: acme, sku: coder, meter: tokens.output, amount: "{OUTPUT}", per: 1000000}}
"""
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
PICO, MEAN = Decimal("1E-12"), Decimal("1E-18")

app = typer.Typer()
app.command()(replay)


@dataclass
class Month:
    """What the service answers, and the calls as pandas reads them from the files."""

    reader: Any
    calls: pd.DataFrame


def lines() -> list[str]:
    """Rows of a trace: time, context tokens, generated tokens."""
    given = os.environ.get("TOLLSPAN_AZURE_TRACE")
    if given:
        return Path(given).read_text(encoding="utf-8").splitlines()[1:]
    rng, at, made = random.Random(23), 0, []
    for _ in range(4_000):
        at += int(rng.expovariate(1 / 4_000_000))  # in units of 100 ns, as the trace has them
        moment = datetime(2023, 11, 16, 18, 17, 3) + timedelta(microseconds=at // 10)
        tokens = min(int(rng.lognormvariate(7, 1)) + 3, 7_437), min(int(rng.lognormvariate(2.7, 1)) + 6, 1_899)
        made.append(f"{moment:%Y-%m-%d %H:%M:%S.%f}{at % 10},{tokens[0]},{tokens[1]}")
    return made


def read(path: Path, start: str) -> pd.DataFrame:
    """A slice in pandas, moved to where it is replayed, with the price of each call."""
    calls = pd.read_csv(path)
    told = pd.to_datetime(calls["TIMESTAMP"], utc=True)
    calls["start"] = told - told.min() + pd.Timestamp(start)
    tokens = {"input": ("ContextTokens", INPUT), "output": ("GeneratedTokens", OUTPUT)}
    for name, (column, price) in tokens.items():
        calls[name] = calls[column].astype("int64")
        usd = [(Decimal(n) * price / 1_000_000).quantize(PICO, ROUND_HALF_EVEN) for n in calls[name].tolist()]
        calls[f"{name}_cost"] = pd.Series(usd, dtype=object)
    calls["cost"] = calls["input_cost"] + calls["output_cost"]
    return calls[["start", "input", "output", "cost"]]


@pytest.fixture(scope="module")
def month(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Month]:
    folder = tmp_path_factory.mktemp("month")
    (folder / "prices.yaml").write_text(BOOK, encoding="utf-8")
    rows = lines()
    slices = np.array_split(np.array(rows), DAYS * len(STARTS))
    with Service(folder / "store", ["--prices", str(folder / "prices.yaml"), "--keep", "0"]) as service:
        parts = []
        for n, part in enumerate(slices):
            start = f"{FIRST + timedelta(days=n // len(STARTS))}T{STARTS[n % len(STARTS)]}Z"
            path = folder / f"{n}.csv"
            path.write_text("\n".join([HEADER, *part]) + "\n", encoding="utf-8")
            for _ in range(2 if n == 0 else 1):  # the first one again: it is a resend, and changes nothing
                arguments = [str(path), "--provider", "acme", "--model", "coder", "--start", start]
                done = CliRunner().invoke(app, [*arguments, "--to", service.info["grpc"]])
                assert done.exit_code == 0, done.output
            parts.append(read(path, start))
        with connect_for_query(service.url) as reader:
            deadline = time.monotonic() + 60
            while run(reader, "total")[0]["inferences"] < len(rows) and time.monotonic() < deadline:
                time.sleep(0.1)
            yield Month(reader, pd.concat(parts, ignore_index=True))


def test_the_month_is_in_the_ledger_call_by_call(month: Month) -> None:
    (total,) = run(month.reader, "total")
    assert (total["inferences"], total["unpriced_rows"]) == (len(month.calls), 0)
    assert total["cost"] == month.calls["cost"].sum()
    stored = month.reader.rows(
        "SELECT toUnixTimestamp64Nano(start_time) AS at, cost FROM ledger FINAL ORDER BY at, cost"
    )
    ours = sorted(zip(month.calls["start"].astype("int64"), month.calls["cost"], strict=True))
    assert [(row["at"], row["cost"]) for row in stored] == ours


def test_cost_for_each_inference_and_tokens_by_hour_are_those_of_pandas(month: Month) -> None:
    by_hour = month.calls.groupby(month.calls["start"].dt.floor("h")).agg(
        n=("cost", "size"), cost=("cost", "sum"), input=("input", "sum"), output=("output", "sum")
    )
    rows = [row for row in run(month.reader, "cost-per-inference", by=["hour"]) if row["component"] == "all"]
    assert [row["hour"] for row in rows] == [each.to_pydatetime() for each in by_hour.index]
    assert len(rows) > DAYS * len(STARTS)  # slices go over an hour's end
    with localcontext() as context:
        context.prec = 60
        for row, (_, ours) in zip(rows, by_hour.iterrows(), strict=True):
            assert (row["cost"], row["priced_inferences"]) == (ours["cost"], ours["n"])
            assert row["cost_per_inference"] == (ours["cost"] / ours["n"]).quantize(MEAN, ROUND_DOWN)
            assert row["cost_per_1000"] == (1000 * ours["cost"] / ours["n"]).quantize(MEAN, ROUND_DOWN)
    tokens = month.reader.rows(
        "SELECT toStartOfHour(start_time) AS hour, sum(input_tokens) AS input, sum(output_tokens) AS output"
        " FROM ledger FINAL GROUP BY hour ORDER BY hour"
    )
    assert [(row["input"], row["output"]) for row in tokens] == list(
        zip(by_hour["input"].tolist(), by_hour["output"].tolist(), strict=True)
    )


def test_the_months_projection_is_that_of_pandas(month: Month) -> None:
    (row,) = run(month.reader, "forecast", until=AT)
    calls = month.calls[month.calls["start"] < AT]
    daily = calls.groupby(calls["start"].dt.date)["cost"].sum()
    spent = daily[[day >= date(2026, 10, 1) for day in daily.index]].sum()
    past = daily[[day < AT.date() for day in daily.index]]
    assert len(past) == row["history_days"] == 23
    kinds = pd.Series([day.weekday() for day in past.index], index=past.index)
    with localcontext() as context:
        context.prec = 60
        means = {
            kind: (past[kinds == kind].sum() / int((kinds == kind).sum())).quantize(PICO, ROUND_DOWN)
            for kind in range(7)
        }
        left = [(AT.date() + timedelta(days=n), 86_400) for n in range(16)]
        left[0] = (left[0][0], 86_400 - (15 * 60 + 30) * 60)
        rest = sum(
            ((means[day.weekday()] * seconds / 86_400).quantize(PICO, ROUND_DOWN) for day, seconds in left), Decimal(0)
        )
    assert (row["spent"], row["expected_rest"], row["days_left"]) == (spent, rest, 16)
    assert row["forecast"] == spent + rest
    # The interval is an estimate, in floats on both sides.
    off = np.array([float(cost - means[kinds[day]]) for day, cost in past.items()])
    spread = np.sqrt((off**2).sum() / (len(past) - 7))
    weights = pd.Series([seconds / 86_400 for _, seconds in left])
    weekdays = pd.Series([day.weekday() for day, _ in left])
    inner = (weights**2).sum() + sum(weights[weekdays == kind].sum() ** 2 / (kinds == kind).sum() for kind in range(7))
    margin = 1.96 * spread * np.sqrt(inner)
    assert float(row["forecast_to"] - row["forecast"]) == pytest.approx(margin, rel=1e-9)


def test_the_report_of_a_week_is_that_of_pandas(month: Month) -> None:
    since, until = datetime(2026, 10, 8, tzinfo=UTC), datetime(2026, 10, 15, tzinfo=UTC)
    report = build_report(month.reader, since, until, sections=chosen(["executive"], ["model"]))
    start, cost = month.calls["start"], month.calls["cost"]
    now, before = (start >= since) & (start < until), (start >= since - timedelta(days=7)) & (start < since)
    (change,) = report["change"]
    assert (report["total"]["cost"], change["cost"]) == (cost[now].sum(), cost[now].sum())
    assert change["cost_before"] == cost[before].sum()
    with localcontext() as context:
        context.prec = 60
        volume = ((int(now.sum()) - int(before.sum())) * cost[before].sum() / int(before.sum())).quantize(
            PICO, ROUND_DOWN
        )
    assert (change["volume_effect"], change["rate_effect"]) == (volume, cost[now].sum() - cost[before].sum() - volume)
    daily = month.calls[now].groupby(start[now].dt.date)["cost"].sum()
    assert {row["day"]: row["cost"] for row in report["trend"]} == dict(daily)

"""Metrics are text that Prometheus reads."""

from __future__ import annotations

import re

from tollspan.processor.metrics import exposition

SAMPLE = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]* \d+")


def test_counters_and_gauges_have_a_type_and_a_name_that_prometheus_takes() -> None:
    text = exposition({"receive.refused.slow-disk": 3, "ledger.rows": 0}, {"prices.reload_error": 1})
    assert text.splitlines() == [
        "# TYPE tollspan_ledger_rows_total counter",
        "tollspan_ledger_rows_total 0",
        "# TYPE tollspan_receive_refused_slow_disk_total counter",
        "tollspan_receive_refused_slow_disk_total 3",
        "# TYPE tollspan_prices_reload_error gauge",
        "tollspan_prices_reload_error 1",
    ]
    assert text.endswith("\n"), "the last line ends too"
    assert all(SAMPLE.fullmatch(line) for line in text.splitlines() if not line.startswith("#"))

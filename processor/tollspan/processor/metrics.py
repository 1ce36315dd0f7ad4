"""Metrics as Prometheus reads them: every counter, and what is the case now.

In: a snapshot of `Counters` and gauges by name. Out: the text exposition format, version 0.0.4 (prometheus.io,
"Exposition formats", read 2026-11-21). A counter ``receive.accepted`` is ``tollspan_receive_accepted_total``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_UNFIT: Final = re.compile(r"[^a-zA-Z0-9_]")


def exposition(counters: Mapping[str, int], gauges: Mapping[str, int]) -> str:
    """The text of a scrape.

    Args:
        counters: counts since the start of the process, by dotted name.
        gauges: current values, likewise.
    """
    lines = []
    for kind, suffix, values in (("counter", "_total", counters), ("gauge", "", gauges)):
        for name, value in sorted(values.items()):
            metric = f"tollspan_{_UNFIT.sub('_', name)}{suffix}"
            lines += [f"# TYPE {metric} {kind}", f"{metric} {value}"]
    return "\n".join(lines) + "\n"

"""What the run cost, computed a second time by other means: the figures that Tollspan's ledger has to equal.

    python tally.py --served served.jsonl --spans spans.txt

Nothing here comes from Tollspan. The LLM's tokens are those that the stub's own record says it served, priced by the
rates of ``../support_agent/tally.py``; all else is the raw usage of the spans that OpenTelemetry's stock console
exporter printed, priced by the rates of ``prices.yaml`` written a second time. All arithmetic is `decimal`; one charge
is one kind of usage of one span, rounded half-even to 10^-12 USD. A usage without a rate here ends the tally: to leave
it out would be to price it at zero.

It prints the same JSON object as the support assistant's tally, with ``parts``: cost by part of a request.
"""

from __future__ import annotations

import argparse
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

# First, since its tally has the name of this one.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support_agent"))
import tally as support

USAGE = "tollspan.usage."
GB = Decimal(10) ** 9

RATES: dict[str, tuple[str, Decimal]] = {
    "cpu.seconds": ("0.0425", Decimal(3600)),
    "cpu.idle_seconds": ("0.0425", Decimal(3600)),
    "feature.reads": ("0.28", support.MILLION),
    "feature.writes": ("1.25", support.MILLION),
    "vector.queries": ("12", support.MILLION),
    "storage.read.bytes": ("0.0125", GB),
    "network.egress.internet.bytes": ("0.09", GB),
    "network.ingress.internet.bytes": ("0", GB),
}
"""Meter → USD, and for how many of the meter's unit."""

STORES = {"feature_read": "feature", "feature_write": "feature", "vector_query": "vector"}
"""Operation → part of the bill that its reads and bytes belong to."""


def part_of(meter: str, operation: str | None) -> str:
    if meter.endswith(".idle_seconds"):
        return "idle"
    family = meter.split(".")[0]
    if family in ("feature", "vector", "network"):
        return family
    if family == "storage":
        return STORES.get(operation or "", "storage")
    return "compute"


def counts(attributes: dict[str, Any], meter: str, part: str) -> bool:
    """Whether a usage is charged here: of the LLM's tokens the stub tells, and a call that the provider refused is not
    billed, its bytes neither."""
    refused = attributes.get("http.response.status_code", 0) >= 400
    return not meter.startswith("tokens.") and not (part == "network" and refused)


def tally(served: Path, spans: Path) -> dict[str, Any]:
    """See the module's text."""
    llm = support.tally_served(served)
    parts = {"model": llm.cost}
    traces = set()
    printed = executions = 0
    for span in support.printed_spans(spans):
        printed += 1
        traces.add(span["context"]["trace_id"])
        attributes = span["attributes"] or {}
        operation = attributes.get("tollspan.operation")
        executions += operation == "inference"
        for name, quantity in attributes.items():
            if not name.startswith(USAGE):
                continue
            meter = name.removeprefix(USAGE)
            part = part_of(meter, operation)
            if counts(attributes, meter, part):
                rate, per = RATES[meter]
                parts[part] = parts.get(part, Decimal(0)) + support.charge(Decimal(quantity), Decimal(rate), per)
    return {
        "cost": format(sum(parts.values(), Decimal(0)), "f"),
        "parts": {part: format(cost, "f") for part, cost in sorted(parts.items())},
        "inferences": llm.counts["llm_calls"] + executions,
        **llm.counts,
        "tokens": llm.tokens,
        "spans": printed,
        "traces": len(traces),
        "by_model": {model: None if cost is None else format(cost, "f") for model, cost in llm.by_model.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Compute the cost of a run without Tollspan.")
    parser.add_argument("--served", type=Path, required=True, help="the LLM server's own record")
    parser.add_argument("--spans", type=Path, required=True, help="what the console exporter printed")
    args = parser.parse_args()
    print(json.dumps(tally(args.served, args.spans), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())

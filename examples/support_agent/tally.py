"""What the run cost, computed a second time by other means: the figure that Tollspan's ledger has to equal.

    python tally.py --served served.jsonl --spans spans.txt

Nothing here comes from Tollspan. The tokens are those that the LLM providers' server says it served (`llm_stub`'s own
record), and the machine time, feature reads and bytes those of the spans that OpenTelemetry's stock console exporter
printed. The rates are written down by hand, from the sources given beside them, and all arithmetic is `decimal`.

Rounding: one charge is one kind of usage of one call. It is rounded half-even to 10^-12 USD, then charges are summed.
Where a model has no rate here its tokens are counted and left out of the sum, never priced at zero.

It prints one JSON object: ``cost`` and its parts ``llm``, ``compute`` and ``storage`` as decimal strings in USD;
``inferences`` (LLM calls that were served, plus model executions on the own machine), ``unpriced_inferences`` and
``incomplete`` (calls whose client went away: generated and billed by the provider, unknown to the client, and so not
in ``cost``); ``tokens`` of each kind, whether they have a rate or not; ``spans`` and ``traces`` printed; ``by_model``
cost or null.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any, NamedTuple

MILLION = Decimal(1_000_000)
STEP = Decimal("1E-12")


class Rates(NamedTuple):
    """USD per million tokens. Cached: read from a prompt cache; written: to one, for five minutes or for an hour."""

    uncached: str
    cached: str
    output: str
    written_5m: str | None = None
    written_1h: str | None = None


# As served on 2026-11-20; a snapshot costs what its alias costs. OpenAI, standard and flex:
# https://developers.openai.com/api/docs/pricing; priority: https://openai.com/api-priority-processing/. Anthropic:
# https://platform.claude.com/docs/en/about-claude/pricing
LLM_RATES: dict[tuple[str, str], Rates] = {
    ("gpt-5", "default"): Rates("1.25", "0.125", "10"),
    ("gpt-5", "flex"): Rates("0.625", "0.0625", "5"),
    ("gpt-5", "priority"): Rates("2.50", "0.25", "20"),
    ("gpt-5-mini", "default"): Rates("0.25", "0.025", "2"),
    ("gpt-5-mini", "flex"): Rates("0.125", "0.0125", "1"),
    ("gpt-5-mini", "priority"): Rates("0.45", "0.045", "3.60"),
    ("gpt-5-nano", "default"): Rates("0.05", "0.005", "0.40"),
    ("gpt-5-nano", "flex"): Rates("0.025", "0.0025", "0.20"),
    ("claude-sonnet-4-6", "standard"): Rates("3", "0.30", "15", "3.75", "6"),
}
SNAPSHOTS = {
    "gpt-5-2025-08-07": "gpt-5",
    "gpt-5-mini-2025-08-07": "gpt-5-mini",
    "gpt-5-nano-2025-08-07": "gpt-5-nano",
}

# The rates of prices.yaml, written a second time.
CPU_HOUR = Decimal("0.0425")
"""USD for one hour of one vCPU of the machines that the assistant runs on."""
FEATURE_READS_MILLION = Decimal("0.28")
"""USD per million feature values read."""
FEATURE_WRITES_MILLION = Decimal("1.25")
"""USD per million feature values written."""
STORAGE_READ_GB = Decimal("0.0125")
"""USD per 10^9 bytes read from the feature store or the model store."""


def charge(quantity: Decimal, rate: Decimal, per: Decimal) -> Decimal:
    """One charge, rounded once. The quotient is taken with digits to spare, so that it is rounded only here."""
    with localcontext() as context:
        context.prec = 60
        return (quantity * rate / per).quantize(STEP, rounding=ROUND_HALF_EVEN)


def served_calls(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def disjoint(usage: dict[str, int]) -> dict[str, int]:
    """Tokens of one call by kind, each in one kind only; kinds that did not occur are left out."""
    kinds = {
        "uncached": usage["input"] - usage["cached"] - usage["written_5m"] - usage["written_1h"],
        "cached": usage["cached"],
        "written_5m": usage["written_5m"],
        "written_1h": usage["written_1h"],
        "output": usage["output"] - usage["reasoning"],
        "reasoning": usage["reasoning"],
    }
    return {kind: count for kind, count in kinds.items() if count}


def printed_spans(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects that the console exporter printed one after the other, numbers kept as exact decimals."""
    decoder = json.JSONDecoder(parse_float=Decimal)
    text = path.read_text(encoding="utf-8")
    at = 0
    while (start := text.find("{", at)) >= 0:
        span, at = decoder.raw_decode(text, start)
        yield span


class Served(NamedTuple):
    """What the LLM calls of a run come to: `tally` says what each is."""

    cost: Decimal
    counts: dict[str, int]
    tokens: dict[str, int]
    by_model: dict[str, Decimal | None]


def tally_served(path: Path) -> Served:
    """Cost, counts and tokens of the calls in the LLM server's record."""
    total = Decimal(0)
    by_model: dict[str, Decimal | None] = {}
    tokens: dict[str, int] = {}
    counts = {"llm_calls": 0, "unpriced_inferences": 0, "refused": 0, "incomplete": 0}
    for call in served_calls(path):
        usage = call["usage"]
        if usage is None:
            counts["refused"] += 1
            continue
        if not call["complete"]:
            counts["incomplete"] += 1
            continue
        counts["llm_calls"] += 1
        kinds = disjoint(usage)
        for kind, count in kinds.items():
            tokens[kind] = tokens.get(kind, 0) + count
        model = SNAPSHOTS.get(call["model"], call["model"])
        rates = LLM_RATES.get((model, call["service_tier"] or "default"))
        if rates is None:
            counts["unpriced_inferences"] += 1
            by_model.setdefault(model, None)
            continue
        # Reasoning costs what other output costs, and is a charge of its own.
        rate_of = rates._asdict() | {"reasoning": rates.output}
        # A kind without a rate fails here: leaving it out would be pricing it at zero.
        cost = sum((charge(Decimal(n), Decimal(rate_of[kind]), MILLION) for kind, n in kinds.items()), Decimal(0))
        total += cost
        by_model[model] = (by_model.get(model) or Decimal(0)) + cost
    return Served(total, counts, dict(sorted(tokens.items())), dict(sorted(by_model.items())))


def tally(served: Path, spans: Path) -> dict[str, Any]:
    """See the module's text."""
    llm = tally_served(served)
    parts = {"llm": llm.cost, "compute": Decimal(0), "storage": Decimal(0)}
    printed = 0
    executions = 0
    traces = set()
    for span in printed_spans(spans):
        printed += 1
        traces.add(span["context"]["trace_id"])
        attributes = span["attributes"] or {}
        if attributes.get("tollspan.operation") == "inference":
            executions += 1
        if (seconds := attributes.get("tollspan.usage.cpu.seconds")) is not None:
            parts["compute"] += charge(Decimal(seconds), CPU_HOUR, Decimal(3600))
        if (reads := attributes.get("tollspan.usage.feature.reads")) is not None:
            parts["storage"] += charge(Decimal(reads), FEATURE_READS_MILLION, MILLION)
        if (writes := attributes.get("tollspan.usage.feature.writes")) is not None:
            parts["storage"] += charge(Decimal(writes), FEATURE_WRITES_MILLION, MILLION)
        if (size := attributes.get("tollspan.usage.storage.read.bytes")) is not None:
            parts["storage"] += charge(Decimal(size), STORAGE_READ_GB, Decimal(10) ** 9)

    return {
        "cost": format(sum(parts.values(), Decimal(0)), "f"),
        **{part: format(cost, "f") for part, cost in parts.items()},
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

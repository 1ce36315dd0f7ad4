"""What a price costs: one call and a million, beside genai-prices and litellm in the same run.

    python tests/benchmarks/pricing.py [--rounds 7] [--rows 200000] [--json]

Scalar: ``engine.price(...).cost`` of a call of a known model, with the selectors made anew for each, beside
genai-prices' ``calc_price`` (and litellm's ``cost_per_token``, where it is installed, from its local map). Columnar:
rows of five meters over two hundred models of the shipped catalogue, over a year; a span-price is one charge on one
row. The rate is by CPU time of one thread. The rounds of all variants take turns.

Loading: what it takes to import the package, and to compile every model of the catalogue, each in a process of its own.

Not a test: prints figures, and exits with 1 only when ours is not the fastest.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from tollspan.pricing import PriceEngine, Selectors, shipped_book

AT = datetime(2026, 11, 20, 12, tzinfo=UTC)
YEAR = 365 * 86_400 * 10**9
METERS = (
    "tokens.input.uncached",
    "tokens.input.cache_read",
    "tokens.input.cache_write",
    "tokens.output",
    "tokens.output.reasoning",
)
CALLS = 2000
LOADS = {
    "import of the pricing package, ms": "import tollspan.pricing; tollspan.pricing.PriceEngine",
    "import of genai-prices, ms": "import genai_prices, genai_prices.data",
    "import of litellm, ms": "import litellm",
}
COMPILE = """
import time
from genai_prices.data import providers
from tollspan.pricing.catalogue import compile_model
start = time.perf_counter()
for provider in providers:
    for model in provider.models:
        compile_model(provider, model)
print(time.perf_counter() - start)
"""


def scalars() -> dict[str, Callable[[], Any]]:
    """One call by each engine: two meters, and four with a cache and a tier."""
    engine = PriceEngine(shipped_book())
    small = {"tokens.input.uncached": 1200, "tokens.output": 100}
    large = {
        "tokens.input.uncached": 200_000,
        "tokens.input.cache_read": 100_000,
        "tokens.output": 800,
        "tokens.output.reasoning": 200,
    }

    def ours(usage: dict[str, int], model: str) -> Callable[[], Any]:
        return lambda: engine.price(usage, at=AT, selectors=Selectors(provider="openai", model=model)).cost

    from genai_prices import Usage, calc_price

    def theirs(usage: Any, model: str) -> Callable[[], Any]:
        return lambda: calc_price(usage, model_ref=model, provider_id="openai", genai_request_timestamp=AT).total_price

    found = {
        "tollspan, 2 meters": ours(small, "gpt-5-mini"),
        "genai-prices, 2 meters": theirs(Usage(input_tokens=1200, output_tokens=100), "gpt-5-mini"),
        "tollspan, 4 meters, a tier": ours(large, "gpt-5.4"),
        "genai-prices, 4 meters, a tier": theirs(
            Usage(input_tokens=300_000, cache_read_tokens=100_000, output_tokens=1000), "gpt-5.4"
        ),
    }
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    try:
        import litellm
    except ImportError:
        print("litellm is not installed; left out", file=sys.stderr)
    else:
        found["litellm, 2 meters"] = lambda: litellm.cost_per_token(
            model="gpt-5-mini", prompt_tokens=1200, completion_tokens=100, custom_llm_provider="openai"
        )
    return found


def columns(rows: int) -> Callable[[], Any]:
    """Rows of five meters over two hundred models."""
    from genai_prices.data import providers

    models = [
        (provider.id, model.id)
        for provider in providers
        if provider.id in ("openai", "anthropic", "google", "mistral", "groq", "x-ai", "deepseek", "cohere", "aws")
        for model in provider.models
    ][:200]
    assert len(models) == 200
    random = np.random.default_rng(1)
    pick = pa.array(random.integers(0, 200, rows), pa.int32())
    selectors = {
        "provider": pa.DictionaryArray.from_arrays(pick, pa.array([provider for provider, _ in models])),
        "model": pa.DictionaryArray.from_arrays(pick, pa.array([model for _, model in models])),
    }
    quantities = {meter: pa.array(random.integers(1, 100_000, rows)) for meter in METERS}
    at = int(AT.timestamp()) * 10**9 - random.integers(0, YEAR, rows)
    engine = PriceEngine(shipped_book())
    return lambda: engine.price_columns(at, selectors, quantities)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    arguments.add_argument("--rounds", type=int, default=7)
    arguments.add_argument("--rows", type=int, default=200_000)
    arguments.add_argument("--json", action="store_true")
    options = arguments.parse_args()

    pa.set_cpu_count(1)
    variants = scalars()
    batch = columns(options.rows)
    times: dict[str, list[float]] = {name: [] for name in (*variants, "columns")}
    for call in (*variants.values(), batch):
        call()  # finds the prices once
    for _ in range(options.rounds):
        for name, call in variants.items():
            start = time.thread_time()
            for _ in range(CALLS):
                call()
            times[name].append((time.thread_time() - start) / CALLS * 1e6)
        start = time.process_time()
        batch()
        times["columns"].append(time.process_time() - start)

    figures = {f"{name}, µs": round(statistics.median(times[name]), 2) for name in variants}
    for kind in ("2 meters", "4 meters, a tier"):
        ratio = figures[f"genai-prices, {kind}, µs"] / figures[f"tollspan, {kind}, µs"]
        figures[f"times faster than genai-prices, {kind}"] = round(ratio, 1)
    rate = options.rows * len(METERS) / statistics.median(times["columns"])
    figures["columnar, million span-prices a CPU-second"] = round(rate / 1e6, 2)
    figures["columnar, times genai-prices' rate a span"] = round(
        rate / len(METERS) * figures["genai-prices, 2 meters, µs"] / 1e6
    )
    compiled = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, check=True)
    figures["compiling the whole catalogue, s"] = round(float(compiled.stdout), 2)
    for name, code in LOADS.items():
        timed = f"import time; s = time.perf_counter()\n{code}\nprint((time.perf_counter() - s) * 1e3)"
        runs = [subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True) for _ in range(3)]
        if all(run.returncode == 0 for run in runs):
            figures[name] = round(min(float(run.stdout) for run in runs), 1)

    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        for name, figure in figures.items():
            print(f"{name:<48} {figure:>10}")
    if figures["times faster than genai-prices, 2 meters"] < 1:
        sys.exit("ours is not the fastest")


if __name__ == "__main__":
    main()

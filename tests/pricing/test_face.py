"""The package's face is light: no NumPy, no pyarrow and no price data at import, in under 100 ms."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import json, sys, time
began = time.perf_counter()
import tollspan.pricing
took = time.perf_counter() - began
from datetime import UTC, datetime
heavy = [name for name in ("numpy", "pyarrow", "genai_prices", "yaml", "pydantic") if name in sys.modules]
engine = tollspan.pricing.PriceEngine(tollspan.pricing.shipped_book())
charges = engine.price(
    {"tokens.output": 100},
    at=datetime(2026, 11, 20, tzinfo=UTC),
    selectors=tollspan.pricing.Selectors(provider="openai", model="gpt-5-mini"),
)
later = [name for name in ("numpy", "pyarrow") if name in sys.modules]
print(json.dumps({"took": took, "heavy": heavy, "later": later, "cost": str(charges.cost)}))
"""


def test_importing_pricing_is_light_and_pricing_a_call_needs_no_numpy() -> None:
    runs = [
        json.loads(subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert runs[0]["heavy"] == []
    assert runs[0]["later"] == []
    assert runs[0]["cost"] == "0.000200000000"
    assert min(run["took"] for run in runs) < 0.1

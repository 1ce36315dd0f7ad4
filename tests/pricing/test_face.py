"""The package's face is light: no NumPy, no pyarrow and no price data at import, in under 100 ms of CPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import tollspan.pricing

PROGRAM = """
import json, sys, time
began = time.process_time()
from tollspan.pricing import PriceEngine, Selectors, load_book, shipped_book
took = time.process_time() - began
from datetime import UTC, datetime
heavy = [name for name in ("numpy", "pyarrow", "genai_prices", "yaml", "pydantic") if name in sys.modules]
engine = PriceEngine(shipped_book())
charges = engine.price(
    {"tokens.output": 100},
    at=datetime(2026, 11, 20, tzinfo=UTC),
    selectors=Selectors(provider="openai", model="gpt-5-mini"),
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


def test_the_attribute_names_alone_load_nothing_else() -> None:
    program = "import sys, tollspan.pricing.attributes; print([n for n in sys.modules if n.startswith('tollspan')])"
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True).stdout
    assert shown.strip() == "['tollspan', 'tollspan.pricing', 'tollspan.pricing.attributes']"


def test_every_public_name_is_there() -> None:
    assert set(tollspan.pricing.__all__) <= set(dir(tollspan.pricing))
    for name in tollspan.pricing.__all__:
        assert getattr(tollspan.pricing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'PriceBok'"):
        _ = tollspan.pricing.PriceBok

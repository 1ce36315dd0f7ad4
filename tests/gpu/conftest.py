"""Tests that need an NVIDIA or AMD device, and leave their figures as evidence.

``pytest tests/gpu`` runs them where PyTorch has a device and skips them elsewhere. With ``TOLLSPAN_GPU_RESULTS=<file>``
the figures are written there as JSON, with the date, the device, its driver and PyTorch's version.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

try:
    import torch
except ImportError:  # the tests' own module is skipped then
    torch = None  # type: ignore[assignment]

Figures = dict[str, Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch is not None and torch.cuda.is_available():
        return
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.skip(reason="PyTorch has no CUDA or ROCm device here"))


def driver_version() -> str | None:
    try:
        return Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except OSError:
        return None


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    """What was measured: name → figure."""
    measured: Figures = {}
    yield measured
    path = os.environ.get("TOLLSPAN_GPU_RESULTS")
    if path and measured:
        about = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "device": torch.cuda.get_device_name(),
            "driver": driver_version(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            "hip": torch.version.hip,
        }
        Path(path).write_text(json.dumps({**about, "figures": measured}, indent=1) + "\n")

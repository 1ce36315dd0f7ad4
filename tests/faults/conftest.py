"""A world for each scenario, and the fault table of those that ran."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from world import Figures, World

    from tollspan.processor.store import Store

_results: list[Figures] = []


@pytest.fixture
def world(store: Store, tmp_path: Path) -> Iterator[World]:
    """A world whose ClickHouse is on the wire."""
    from world import World

    made = World(tmp_path, store)
    yield made
    made.close()


@pytest.fixture
def embedded_world(tmp_path: Path) -> Iterator[World]:
    """A world whose service runs its own engine."""
    from world import World

    made = World(tmp_path, None)
    yield made
    made.close()


@pytest.fixture
def record() -> Callable[[Figures], None]:
    """Takes a scenario's figures for the table, and fails where a promise did not hold."""

    def take(figures: Figures) -> None:
        _results.append(figures)
        print(figures)
        assert not figures.problems, "\n".join(figures.problems)

    return take


def pytest_sessionfinish() -> None:
    """Write the table where ``TOLLSPAN_FAULT_TABLE`` says."""
    path = os.environ.get("TOLLSPAN_FAULT_TABLE")
    if path and _results:
        from world import table

        Path(path).write_text(table(_results, datetime.now(UTC).date().isoformat()))

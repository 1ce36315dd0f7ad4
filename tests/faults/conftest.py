"""A world for each scenario, and the fault table of those that ran."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

sys.path.insert(0, str(Path(__file__).parent))

if TYPE_CHECKING:
    from world import Figures, Scenario, World

    from tollspan.processor.store import Store


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
def record() -> Callable[[Scenario, World, bool], None]:
    """Runs a scenario in its short form or its long one, takes its figures for the table, and fails where a promise
    did not hold."""

    def run(scenario: Scenario, world: World, long: bool) -> None:
        from world import Figures, named

        began = time.monotonic()
        figures = Figures(named(scenario), times=0, problems=["it did not come to its end"])
        try:
            figures = scenario(world, long)
        except Exception as error:
            figures.problems = [f"{type(error).__name__}: {error}"[:300]]
            for line in world.lines:
                ended = line.process.poll() if line.process is not None else "never begun"
                print(f"{line.folder.name}: exit code {ended} (None: it runs); it said last:\n{line.said()}")
            raise
        except pytest.skip.Exception as skipped:
            figures.problems, figures.not_run = [], str(skipped)
            raise
        finally:
            figures.scenario, figures.took_s = named(scenario), time.monotonic() - began
            tell(figures)
        assert not figures.problems, "\n".join(figures.problems)

    return run


def tell(figures: Figures) -> None:
    """Print them, and put them into the table where ``TOLLSPAN_FAULT_TABLE`` says: at once, for all takes hours."""
    from world import table

    print(figures)
    if path := os.environ.get("TOLLSPAN_FAULT_TABLE"):
        file = Path(path)
        before = file.read_text() if file.exists() else ""
        file.write_text(table([figures], datetime.now(UTC).date().isoformat(), before))

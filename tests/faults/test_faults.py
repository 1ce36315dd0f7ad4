"""Every fault, one oracle: acked ⊆ stored ⊆ sent, Σ cost to the last digit, refusals counted.

The short form of each scenario runs in `make test`, the long one in `make soak`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import scenarios_content as content
import scenarios_crash as crash
import scenarios_senders as senders
import scenarios_store as store_trouble
from world import Scenario, World, named

ON_THE_WIRE: list[Scenario] = [*crash.ALL, *store_trouble.ALL, *senders.ALL, *content.ALL]
EMBEDDED: list[Scenario] = [crash.kill_nine_with_its_store]
Record = Callable[[Scenario, World, bool], None]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", ON_THE_WIRE, ids=named)
def test_the_promises_hold(scenario: Scenario, world: World, record: Record) -> None:
    record(scenario, world, False)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("scenario", EMBEDDED, ids=named)
def test_the_promises_hold_embedded(scenario: Scenario, embedded_world: World, record: Record) -> None:
    record(scenario, embedded_world, False)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", [*ON_THE_WIRE, *store_trouble.EACH], ids=named)
def test_the_promises_hold_for_long(scenario: Scenario, world: World, record: Record) -> None:
    record(scenario, world, True)


@pytest.mark.soak
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("scenario", EMBEDDED, ids=named)
def test_the_promises_hold_for_long_embedded(scenario: Scenario, embedded_world: World, record: Record) -> None:
    record(scenario, embedded_world, True)

"""The budget holds: hour after hour, whatever comes, without swinging, and never at the cost of what is always kept."""

from __future__ import annotations

import logging
import math
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from service import chat
from virtual_line import Received

from tollspan.pricing import PriceEngine, load_book, shipped_book
from tollspan.processor.config import load, runtime_config
from tollspan.processor.counters import Counters
from tollspan.processor.errors import ConfigError
from tollspan.processor.journal import Journal
from tollspan.processor.pipeline import Pipeline, Settings
from tollspan.processor.queries import run
from tollspan.processor.runtime import Runtime, RuntimeConfig
from tollspan.processor.sample import budget as module
from tollspan.processor.sample.budget import AHEAD, Budget, BudgetSettings, read_limit
from tollspan.processor.sample.levels import Figure, Levels
from tollspan.processor.sample.policy import RulePolicy
from tollspan.processor.sample.rules import plain
from tollspan.processor.sample.steer import LEAST, WINDOW, Hour, Plan, Rates, steer
from tollspan.processor.sample.telemetry_cost import RETENTION_S
from tollspan.processor.store import Store
from tollspan.processor.write import Writer

from .otlp_factory import request

Series = npt.NDArray[np.float64]

BOOK = """
price_book: {id: mine, version: "1", currency: USD}
prices:
  - {id: telemetry/received, meter: telemetry.bytes, amount: "0.10", unit: GB}
  - {id: telemetry/stored, meter: telemetry.stored.byte_seconds, amount: "10", unit: GB-month}
"""


@pytest.fixture
def engine(tmp_path: Path) -> PriceEngine:
    path = tmp_path / "prices.yaml"
    path.write_text(BOOK, encoding="utf-8")
    return PriceEngine(load_book(path))


# -- what a person writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("2%", "share", Fraction(2, 100)),
        (" 0.5 % of cost", "share", Fraction(5, 1000)),
        ("2% of inference cost", "share", Fraction(2, 100)),
        ("5 USD/day", "money", Fraction(5 * 10**12, 1440)),
        ("$0.25/hour", "money", Fraction(25 * 10**10, 60)),
        ("100usd / month", "money", Fraction(10**14, 730 * 60)),
        ("10 GB/day", "bytes", Fraction(10 * 10**9, 1440)),
        ("1GiB/h", "bytes", Fraction(2**30, 60)),
        ("0%", "share", Fraction(0)),
    ],
)
def test_a_budget_is_read(text: str, kind: str, amount: Fraction) -> None:
    limit = read_limit(text)
    assert (limit.kind, limit.amount) == (kind, amount)


@pytest.mark.parametrize(
    "text", ["", "2", "-1%", "101%", "5 EUR/day", "5 USD", "10 GB/fortnight", "/day", "two %", "5/day"]
)
def test_what_is_no_budget_says_what_one_looks_like(text: str) -> None:
    with pytest.raises(ValueError, match="2%, 5 USD/day or 10 GB/day"):
        read_limit(text)


def test_settings_have_their_names(tmp_path: Path) -> None:
    file = tmp_path / "tollspan.yaml"
    file.write_text(
        "sampling:\n  budget: 2%\n  tenant_budgets: {acme: 1 GB/day, globex: $5/day}\n  surge: 4\n  retention: 7d\n",
        encoding="utf-8",
    )
    found = runtime_config(load(file, environment={})).budget
    assert found == BudgetSettings("2%", {"acme": "1 GB/day", "globex": "$5/day"}, 4.0, 7 * 86400.0)
    assert set(found.limits) == {"", "acme", "globex"}
    assert runtime_config(load(environment={"TOLLSPAN_SAMPLING_BUDGET": "3%"})).budget.budget == "3%"
    assert runtime_config(load(environment={})).budget.limits == {}


@pytest.mark.parametrize(
    ("setting", "value", "says"),
    [
        ("TOLLSPAN_SAMPLING_BUDGET", "2 percent", "no budget"),
        ("TOLLSPAN_SAMPLING_TENANT_BUDGETS", "acme=lots", "tenant acme"),
        ("TOLLSPAN_SAMPLING_SURGE", "0.5", "1 to 100"),
    ],
)
def test_settings_that_cannot_be_used(setting: str, value: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load(environment={setting: value})


# -- the law -----------------------------------------------------------------------------------------------------------


@dataclass
class World:
    """What comes in each of n minutes, in units a minute.

    Attributes:
        income: what the budget allows; received, certain: what nobody steers.
        structure, content: what the base rule would take at its full share.
    """

    income: Series
    received: Series
    certain: Series
    structure: Series
    content: Series

    @classmethod
    def of(
        cls,
        minutes: int,
        *,
        income: Any = 10,
        received: Any = 0.2,
        certain: Any = 0.2,
        structure: Any = 3,
        content: Any = 20,
    ) -> World:
        return cls(*(np.full(minutes, 1.0) * each for each in (income, received, certain, structure, content)))

    def scaled(self, name: str, factor: Any) -> World:
        return replace(self, **{name: getattr(self, name) * factor})


@dataclass
class Story:
    """What a controlled world did: spending, and the rates that were in force."""

    world: World
    spent: Series
    base: Series
    contents: Series

    def hours(self, skip: int = WINDOW) -> Series:
        """What each sliding hour behind the first took of what it allows, or of what nobody could avoid."""
        spent, income, fixed = (
            np.convolve(each[skip:], np.ones(WINDOW), "valid")
            for each in (self.spent, self.world.income, self.world.received + self.world.certain)
        )
        return np.asarray(spent / np.maximum(np.maximum(income, fixed), 1e-12))


def lived(world: World, plan: Plan | None = None, *, seen: float = 0.6) -> Story:
    """Let a world go by under the law; of the newest minute only a part has been decided when it is looked at."""
    plan = plan or Plan()
    minutes = len(world.income)
    base, contents, spent = np.ones(minutes + 10), np.ones(minutes + 10), np.zeros(minutes)
    held: int | None = None
    for now in range(minutes):
        stored = base[now] * (world.structure[now] + contents[now] * world.content[now])
        spent[now] = world.received[now] + world.certain[now] + stored
        first = max(now - WINDOW + 1, 0)

        def last(values: Series, newest: float = seen, first: int = first, now: int = now) -> Series:
            out = np.zeros(WINDOW)
            out[WINDOW - (now + 1 - first) :] = values[first : now + 1]
            out[-1] *= newest
            return out

        def rates(values: Series, first: int = first, now: int = now) -> Series:
            out = np.ones(WINDOW + plan.lag - 1)
            out[WINDOW - (now + 1 - first) :] = values[first : now + plan.lag]
            return out

        found = steer(
            Hour(
                last(world.income, 1.0),
                last(world.received),
                last(world.certain),
                last(spent - world.received - world.certain),
                last(world.structure + world.content),
                last(world.content),
                rates(base),
                rates(contents),
                WINDOW - (now + 1 - first),
                WINDOW + plan.lag - 1 if held is None else max(0, held - (now + 1 - WINDOW)),
            ),
            plan,
        )
        if found is not None:
            assert 0 <= found.base <= 1
            assert 0 <= found.content <= 1
            base[now + plan.lag :], contents[now + plan.lag :] = found.base, found.content
            held = now + plan.lag if held is None else held
    return Story(world, spent, base[:minutes], contents[:minutes])


def steps(minutes: int, at: int, factor: float, length: int | None = None) -> Series:
    out = np.ones(minutes)
    out[at : None if length is None else at + length] = factor
    return out


def test_what_fits_is_left_alone() -> None:
    story = lived(World.of(200, structure=1, content=3))
    assert (story.base == 1).all()
    assert (story.contents == 1).all()


def test_content_goes_before_structure() -> None:
    story = lived(World.of(200))
    assert (story.base == 1).all()
    assert 0 < story.contents[-1] < 0.3
    tight = lived(World.of(200, structure=30, content=200))
    assert tight.contents[-1] == 0
    assert 0 < tight.base[-1] < 0.3


@pytest.mark.parametrize("structure", [3, 30, 300])
def test_a_steady_world_is_held_steadily(structure: float) -> None:
    story = lived(World.of(400, structure=structure, content=7 * structure))
    assert np.ptp(story.base[30:]) == 0, "it does not swing"
    assert np.ptp(story.contents[30:]) == 0
    # As much of the budget is used as a surge leaves room for.
    assert story.hours() == pytest.approx(Plan().part, abs=0.03)
    bold = lived(World.of(400, structure=10 * structure, content=0), Plan(surge=1))
    assert bold.hours()[-1] == pytest.approx(0.97, abs=0.03)


@pytest.mark.parametrize("factor", [2, 5, 10, 0.5, 0.1])
@pytest.mark.parametrize("what", ["volume", "income", "certain", "burst"])
def test_a_step_breaks_no_hour_and_is_answered_once(what: str, factor: float) -> None:
    world = World.of(500)
    step = steps(500, 200, factor, 5 if what == "burst" else None)
    names = {"volume": ("received", "certain", "structure", "content")}.get(what, (what,))
    if what == "burst":
        names = ("received", "certain", "structure", "content")
    for name in names:
        world = world.scaled(name, step)
    story = lived(world)
    assert story.hours().max() <= 1
    # An hour later it is settled for good: what is still moved is nothing against the change.
    assert np.abs(np.diff(story.base[280:])).sum() + np.abs(np.diff(story.contents[280:])).sum() <= 0.35


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("tail", [0.5, 1.0, 1.5])
def test_noise_is_no_reason_to_keep_nothing(tail: float, shared: bool) -> None:
    """Twenty traces a minute, of which a few are many times as large as the others."""
    rng = np.random.default_rng(4)

    def noise(rate: int = 20) -> Series:
        sums = [rng.lognormal(-tail * tail / 2, tail, rng.poisson(rate)).sum() / rate for _ in range(400)]
        return np.array(sums)

    world = World.of(400, structure=30 * noise(), content=200 * noise(), received=0.2 * noise(), certain=0.2 * noise(4))
    story = lived(world.scaled("income", noise()) if shared else world)
    assert story.hours().max() <= 1
    assert 0.45 < story.hours().mean() < 0.9
    assert story.base[60:].min() > 0.02
    assert story.base[60:].mean() == pytest.approx(0.2, abs=0.07)


def test_more_of_everything_changes_nothing_for_a_share() -> None:
    world = World.of(400)
    for name in ("income", "received", "certain", "structure", "content"):
        world = world.scaled(name, steps(400, 200, 10))
    story = lived(world)
    assert story.hours().max() <= 1
    assert story.contents[-1] == pytest.approx(story.contents[190], rel=0.1)


def test_silence_is_waited_out() -> None:
    silence = steps(600, 200, 0, 200)
    for fixed in (True, False):
        world = World.of(600)
        for name in ("received", "certain", "structure", "content", *(() if fixed else ("income",))):
            world = world.scaled(name, silence)
        story = lived(world)
        assert story.hours().max() <= 1
        assert story.contents[-1] == pytest.approx(story.contents[190], rel=0.1)


def test_an_incident_that_is_always_kept_takes_the_base_away_and_gives_it_back() -> None:
    world = World.of(500).scaled("certain", steps(500, 200, 40, 20))
    story = lived(world)
    assert story.contents[206:215].max() == 0
    assert story.hours().max() <= 1
    assert story.contents[-1] == pytest.approx(story.contents[190], rel=0.1)


def test_what_cannot_be_met_is_said() -> None:
    none = np.zeros(WINDOW)
    one = np.ones(WINDOW)
    ahead = np.zeros(WINDOW + 1)
    found = steer(Hour(one, one, one * 2, none, one, none, ahead, ahead), Plan(lag=2))
    assert found == Rates(LEAST, 0.0, pytest.approx(3.0, rel=0.1), 120.0)


def test_nothing_known_is_nothing_said() -> None:
    none, one = np.zeros(WINDOW), np.ones(WINDOW)
    rates = np.ones(WINDOW + 1)
    assert steer(Hour(one, none, none, none, none, none, rates, rates), Plan(lag=2)) is None
    assert steer(Hour(one, one, one, one, one, one, rates, rates, WINDOW - 1), Plan(lag=2)) is None


jumps = st.lists(
    st.tuples(
        st.integers(60, 150), st.floats(-1, 1), st.integers(1, 120), st.sampled_from(["volume", "income", "certain"])
    ),
    max_size=4,
)


@settings(max_examples=60, deadline=None)
@given(
    jumps,
    st.booleans(),
    st.floats(0.01, 30),
    st.floats(0, 200),
    st.floats(0, 0.3),
    st.floats(0, 0.3),
    st.floats(0.3, 1),
)
def test_no_hour_behind_the_first_is_over_budget(
    found: list[tuple[int, float, int, str]],
    shared: bool,
    structure: float,
    content: float,
    received: float,
    certain: float,
    seen: float,
) -> None:
    """Jumps by up to ten in volume, in what telemetry costs against everything else, or in what is always kept; one an
    hour. Every sliding hour takes at most its budget, or what nobody could avoid."""
    minutes = 360
    factors = {name: np.ones(minutes) for name in ("volume", "income", "certain")}
    at = 0
    for pause, exponent, length, what in found:
        at += pause
        factors[what][at : at + length] *= 10**exponent
        at += length
    volume = factors["volume"]
    income = 10 * (factors["income"] * volume if shared else np.ones(minutes))
    world = World(
        income, received * volume, certain * volume * factors["certain"], structure * volume, content * volume
    )
    assert lived(world, seen=seen).hours().max() <= 1.05


# -- days under the real controller, by a fast clock -------------------------------------------------------------------

FIRST = int(time.time()) // 60 - 60
"""A minute of the last hour: the store forgets levels after days."""


class Day:
    """A store that tells what a day under the rates in force would have written.

    Attributes:
        cost: of the ledger, USD a minute by tenant.
        certain, offered: bytes a minute by tenant that rules keep, and that the base would keep.
        content: which part of these is content.
    """

    def __init__(self, minutes: int, levels: Levels, tenants: Mapping[str, float], seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.minutes, self.levels, self.tenants = minutes, levels, tenants
        wave = 1 + 0.8 * np.sin(np.arange(minutes) * 2 * np.pi / 1440)
        noise = {name: rng.gamma(30, 1 / 30, minutes) for name in tenants}
        self.cost = {name: size * wave * noise[name] for name, size in tenants.items()}
        self.offered = {name: 2e6 * size * wave * rng.gamma(30, 1 / 30, minutes) for name, size in tenants.items()}
        self.certain = {name: 2e4 * size * wave * rng.gamma(30, 1 / 30, minutes) for name, size in tenants.items()}
        self.content = 0.8
        self.received_price, self.stored_price = Decimal("0.0000000001"), Decimal(0)
        self.now = 0
        self.known: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.stored: dict[str, Series] = {name: np.zeros(minutes) for name in tenants}
        self.removed: dict[str, Series] = {name: np.zeros(minutes) for name in tenants}
        self.rng = rng

    def live(self, minute: int) -> None:
        """A minute goes by: traces of some kilobytes each are kept by lot."""
        for name in self.tenants:
            of = ("tenant", name)
            base, content = (
                next(
                    value
                    for value in (
                        self.levels.value(metric, *of, FIRST + minute),
                        self.levels.value(metric, "", "", FIRST + minute),
                        1.0,
                    )
                    if value is not None
                )
                for metric in ("base_rate", "content_rate")
            )
            traces = self.rng.poisson(self.offered[name][minute] * base / 5e3) * 5e3
            whole = self.rng.binomial(int(traces // 5e3), content) * 5e3
            self.removed[name][minute] = (traces - whole) * self.content
            self.stored[name][minute] = traces - self.removed[name][minute]
        self.now = minute

    def took(self, name: str) -> Series:
        """USD a minute."""
        received = (self.offered[name] * 10 + self.certain[name]) * float(self.received_price)
        return np.asarray(received + (self.stored[name] + self.certain[name]) * float(self.stored_price))

    def rows(self, sql: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
        since, until = (
            int(datetime.fromisoformat(f"{parameters[name]}+00:00").timestamp()) // 60 - FIRST
            for name in ("since", "until")
        )
        out: list[dict[str, Any]] = []
        for minute in range(max(0, since), min(until, self.now + 1)):
            known = self.known.get((sql, minute))
            if known is None:
                known = self._minute(sql, minute)
                if minute < self.now:
                    self.known[sql, minute] = known
            out += known
        return out

    def _minute(self, sql: str, minute: int) -> list[dict[str, Any]]:
        # Of the newest minute half is not decided yet.
        seen = 0.5 if minute == self.now else 1.0
        out: list[dict[str, Any]] = []
        for name in self.tenants:
            at = {"at": FIRST + minute, "tenant": name}
            offered, certain = (each[name][minute] * seen for each in (self.offered, self.certain))
            stored, removed = self.stored[name][minute] * seen, self.removed[name][minute] * seen
            if sql == module._RECEIVED:
                cost = Decimal(int(offered * 10 + certain)) * self.received_price
                out.append({**at, "cost": cost, "unpriced": 0})
            elif sql == module._COSTS:
                out.append({**at, "cost": Decimal(round(self.cost[name][minute] * 10**6)) / 10**6})
            elif sql == module._BY_RULE:
                cost = Decimal(int(certain)) * self.stored_price
                out.append({"tenant": name, "rule": "errors", "stored": int(certain), "cost": cost})
            else:
                kept = {"stored": int(stored), "removed": int(removed), "kept": int(stored + removed)}
                content = int((stored + removed) * self.content - removed)
                steered = {**kept, "content": content, "wanted": int(offered), "steered": True}
                always = {"stored": int(certain), "removed": 0, "kept": int(certain), "content": 0, "wanted": 0}
                out.append({**at, **steered, "cost": Decimal(int(stored)) * self.stored_price})
                out.append({**at, **always, "steered": False, "cost": Decimal(int(certain)) * self.stored_price})
        return out


def live(budget: Budget, day: Day) -> None:
    """A day by a fast clock: after each minute the controller publishes for the one after next."""
    price = budget._price(FIRST)
    assert price is not None
    day.stored_price = Decimal(price).scaleb(-12)
    for minute in range(day.minutes):
        day.live(minute)
        figures = budget.figures(day, FIRST + minute, day.levels)  # type: ignore[arg-type]
        assert {figure.minute for figure in figures} <= {FIRST + minute + AHEAD}
        day.levels._take_rates(figures)


def hours(values: Series) -> Series:
    return values[: len(values) // 60 * 60].reshape(-1, 60).sum(axis=1)


def test_every_hour_of_a_day_with_incidents_is_within_its_share(engine: PriceEngine) -> None:
    levels = Levels.by_hand()
    day = Day(1440, levels, {"acme": 3.0, "globex": 1.0})
    for name in day.tenants:
        day.certain[name][300:330] *= 30  # errors: all of them are kept
        day.offered[name][500:560] *= 8  # a retry storm: many calls that cost nothing
        day.cost[name][700:705] *= 20  # a runaway agent
        day.cost[name][900:1000] *= 6  # a new expensive model
        day.cost[name][1200:1260] = day.offered[name][1200:1260] = 0  # nobody there
    budget = Budget(BudgetSettings("2%"), lambda: engine)
    live(budget, day)
    took = sum(hours(day.took(name)) for name in day.tenants)
    cost = sum(hours(day.cost[name]) for name in day.tenants)
    assert isinstance(took, np.ndarray)
    busy = cost[1:] > 1
    share = took[1:][busy] / cost[1:][busy]
    assert share.max() <= 0.02, share
    # It is a budget to be used, not one to be hidden from.
    assert float(took.sum() / cost.sum()) > 0.009
    assert budget.trouble == ""


def test_dollars_and_bytes_and_tenants_of_their_own(engine: PriceEngine) -> None:
    levels = Levels.by_hand()
    day = Day(480, levels, {"acme": 3.0, "globex": 1.0, "initech": 1.0})
    given = BudgetSettings("60 USD/day", {"globex": "1 GB/day", "initech": "0.5%"})
    budget = Budget(given, lambda: engine)
    for name in ("acme", "globex"):
        day.offered[name][240:] *= 9
    day.received_price = Decimal("0.00000000001")
    live(budget, day)
    assert hours(day.took("acme"))[1:].max() <= 60 / 24
    kept = hours(day.stored["globex"] + day.certain["globex"])
    assert kept[1:].max() <= 10**9 / 24
    assert kept[2:].min() >= 0.4 * 10**9 / 24
    assert (hours(day.took("initech")) / hours(day.cost["initech"]))[1:].max() <= 0.005
    # The tenants' own are no part of the one for all.
    assert levels.value("base_rate", "tenant", "globex", FIRST + 470) != levels.value("base_rate", "", "", FIRST + 470)


def test_two_processors_say_the_same(engine: PriceEngine) -> None:
    levels = Levels.by_hand()
    day = Day(120, levels, {"acme": 3.0})
    budget, other = (Budget(BudgetSettings("1%"), lambda: engine) for _ in range(2))
    live(budget, day)
    day.now = 100
    fresh = Budget(BudgetSettings("1%"), lambda: engine)
    assert fresh.figures(day, FIRST + 100, levels) == other.figures(day, FIRST + 100, levels)  # type: ignore[arg-type]


def test_a_budget_that_cannot_be_met_names_what_is_in_the_way(
    engine: PriceEngine, caplog: pytest.LogCaptureFixture
) -> None:
    levels = Levels.by_hand()
    day = Day(260, levels, {"acme": 3.0})
    day.certain["acme"][100:160] *= 500
    counters = Counters()
    budget = Budget(BudgetSettings("2%"), lambda: engine, counters)
    well: list[bool] = []
    budget.watch_health(well.append)
    with caplog.at_level(logging.WARNING):
        live(budget, day)
    told = [record.getMessage() for record in caplog.records if "cannot be met" in record.getMessage()]
    assert len(told) == 1
    assert "sampling budget 2% cannot be met: the base rate is at its least" in told[0]
    assert "rule errors (" in told[0]
    assert told[0].index("rule errors (") < told[0].index("receiving (")
    assert counters.get("sampling.budget.unmet") == 1
    # It is over when the incident has left the hour.
    assert well == [True, False, True]
    assert budget.trouble == ""


def test_without_prices_it_says_which_rows_are_missing(caplog: pytest.LogCaptureFixture) -> None:
    levels = Levels.by_hand()
    day = Day(10, levels, {"acme": 3.0})
    day.live(9)
    budget = Budget(BudgetSettings("2%", {"acme": "1 GB/day"}), lambda: PriceEngine(shipped_book()))
    figures = budget.figures(day, FIRST + 9, levels)  # type: ignore[arg-type]
    assert budget.trouble == "", "bytes need no price, and nobody else is there"
    assert {figure.dimension for figure in figures} == {"tenant"}
    budget = Budget(BudgetSettings("2%"), lambda: PriceEngine(shipped_book()))
    with caplog.at_level(logging.WARNING):
        figures = budget.figures(day, FIRST + 9, levels)  # type: ignore[arg-type]
    assert "meter: telemetry.stored.byte_seconds, amount: '0.08', unit: GB-month" in budget.trouble
    assert figures == [], "what nobody can compute changes nothing"


def test_the_rows_that_it_asks_for_are_rows_of_a_book(tmp_path: Path) -> None:
    rows = module.unpriced(["telemetry.bytes", "telemetry.stored.byte_seconds"]).partition("nothing: ")[2]
    path = tmp_path / "book.yaml"
    listed = "\n".join(f"  - {row}" for row in rows.split("; "))
    path.write_text(f"price_book: {{id: mine, version: '1', currency: USD}}\nprices:\n{listed}\n", encoding="utf-8")
    assert Budget(BudgetSettings("2%"), lambda: PriceEngine(load_book(path)))._price(FIRST) is not None


# -- on a real store ---------------------------------------------------------------------------------------------------


def spans_of(minute: int, first: int, count: int, tenant: str, failed: bool = False) -> list[Any]:
    made = []
    for number in range(first, first + count):
        one = chat(number, **{"tollspan.tenant": tenant, "gen_ai.input.messages": "hello " * 500})
        one.trace_id = (number * 0x9E3779B97F4A7C15 % 2**127).to_bytes(16, "big")
        one.start_time_unix_nano = (FIRST + minute) * 60 * 10**9 + number
        one.end_time_unix_nano = one.start_time_unix_nano + 10**6
        if failed:
            one.status.code = 2
        made.append(one)
    return made


def test_the_controller_reads_what_the_line_wrote(store: Store, tmp_path: Path, engine: PriceEngine) -> None:
    counters = Counters()
    journal = Journal(tmp_path / "journal", counters=counters)
    levels = Levels.by_hand([Figure(FIRST, "base_rate", "", "", 0.5), Figure(FIRST, "content_rate", "", "", 0.0)])
    received = Received(journal)
    received.now_ns = (FIRST + 3) * 60 * 10**9
    line = Pipeline(
        received,  # type: ignore[arg-type]
        Writer(store, threading.Event(), counters, pause=lambda _: None),
        engine,
        Settings(keep=0.5, linger_s=0.0),
        counters,
    )
    line.sampler.use(RulePolicy(plain(0.5), levels, steered=True))
    sent = {"acme": 0, "globex": 0}
    for minute in range(4):
        for place, tenant in enumerate(sent):
            first = 1000 * minute + 500 * place + 1
            payload = request(
                spans_of(minute, first, 200, tenant) + spans_of(minute, first + 200, 5, tenant, failed=True)
            )
            sent[tenant] += len(payload)
            journal.append(payload).wait()
    stop = threading.Event()
    stop.set()
    line.run(stop)
    journal.close()

    budget = Budget(BudgetSettings("2%", {"globex": "10 GB/day"}), lambda: engine)
    reader = store.reader()
    taken = budget._read(reader, FIRST + 3)
    (ledger,) = reader.rows("SELECT sum(cost) AS cost FROM ledger FINAL WHERE tenant = 'acme'")
    assert taken[""].cost.sum() == pytest.approx(float(ledger["cost"]) * 1e12)
    assert taken[""].received.sum() == pytest.approx(sent["acme"] * 1e-10 * 1e12, rel=1e-2)
    assert taken[""].received.sum() + taken["globex"].received.sum() == pytest.approx(sum(sent.values()) * 100)
    assert taken[""].since == WINDOW - 4
    # Half of the base's traces without a budget, whatever the rates were.
    base = sent["globex"] * 200 / 205
    assert taken["globex"].wanted.sum() == pytest.approx(base / 2, rel=0.02)
    # A quarter of them was kept, and all errors; the base's without content, the errors with it.
    (kept,) = reader.rows(
        "SELECT count() AS n, countIf(Content = 'removed') AS bare FROM spans FINAL WHERE KeepReason = 'probability'"
    )
    assert 300 < kept["n"] < 500
    assert kept["bare"] == kept["n"]
    (errors,) = reader.rows(
        "SELECT count() AS n, countIf(Content = 'full') AS whole FROM spans FINAL WHERE KeepReason = 'error'"
    )
    assert (errors["n"], errors["whole"]) == (40, 40)
    of = taken["globex"]
    assert of.bytes[False].sum() > 20 * 3000 > of.bytes[False].sum() / 2
    assert of.content[True] / of.whole[True] == pytest.approx(0.75, abs=0.2)
    assert 0.5 < of.whole[True] / of.kept[True] < 2

    figures = budget.figures(reader, FIRST + 3, levels)
    assert {(f.minute, f.metric, f.dimension, f.key) for f in figures} >= {
        (FIRST + 3 + AHEAD, metric, dimension, key)
        for metric in ("base_rate", "content_rate")
        for dimension, key in (("", ""), ("tenant", "globex"))
    }
    # Ten gigabytes a day are plenty: the rates go up again, step by step.
    assert {f.metric: f.value for f in figures if f.key == "globex"}["base_rate"] > 0.5
    store.execute("TRUNCATE TABLE sampling_levels")
    writing = Levels(lambda: store)
    writing.publish(figures)
    (row,) = run(reader, "sampling-budget")
    assert row["stored_certain_cost"] > 0
    assert row["telemetry_cost"] == row["received_cost"] + row["stored_cost"]
    assert row["everything_else_cost"] == 2 * ledger["cost"]
    assert row["base_rate"] is not None
    assert row["unpriced_bytes"] == 0
    assert math.isclose(row["percent"], 100 * float(row["telemetry_cost"] / row["everything_else_cost"]), rel_tol=1e-3)
    reader.close()


def test_a_runtime_with_a_budget_steers_and_publishes(
    store_url: str, tmp_path: Path, engine: PriceEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RuntimeConfig(
        store=store_url,
        journal=tmp_path / "journal",
        prices=tmp_path / "prices.yaml",
        budget=BudgetSettings("0.001%", retention_s=RETENTION_S / 2),
        settings=Settings(keep=1.0, linger_s=0.0, decision_wait_s=0.0),
    )
    runtime = Runtime(config)
    monkeypatch.setattr(runtime.levels, "start", lambda: None)
    runtime.start()
    try:
        runtime.journal.append(request(spans_of(0, 1, 50, "acme"))).wait()
        deadline = threading.Event()
        reader = runtime.store.reader()
        for _ in range(300):
            if reader.rows("SELECT sum(spans) AS n FROM telemetry FINAL") == [{"n": 50}]:
                break
            deadline.wait(0.1)
        assert reader.rows("SELECT DISTINCT retention_s FROM telemetry FINAL") == [{"retention_s": RETENTION_S // 2}]
        # Three minutes later, by the levels' clock.
        runtime.levels._clock = lambda: (FIRST + 3) * 60 + 21.0
        runtime.levels.step()
        rows = reader.rows("SELECT metric, value FROM sampling_levels FINAL WHERE dimension = '' ORDER BY metric")
        found = {row["metric"]: row["value"] for row in rows}
        assert (found["base_rate"], found["content_rate"]) == (LEAST, 0.0)
        assert runtime.levels.value("base_rate", "", "", FIRST + 10) == LEAST
        assert "cannot be met" in runtime.budget.trouble
        assert "receiving (" in runtime.budget.trouble
        reader.close()
    finally:
        runtime.stop()

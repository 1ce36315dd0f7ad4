"""Estimates from kept bodies have no bias: over 200 draws of the traces' randomness Σ adjusted count comes out as the
exact ledger says, within the error that the thresholds themselves foretell, whatever the rules look at."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "end_to_end"))
from incident_day import Day, book_yaml, chance, make
from virtual_line import VirtualLine, arrived_of

from tollspan.pricing import load_book
from tollspan.processor.charge import plain
from tollspan.processor.queries import run
from tollspan.processor.sample import Pending, TailSampler, adjusted_count, explicit
from tollspan.processor.sample.conditions import Level
from tollspan.processor.sample.policy import BASE_RATE, CONTENT_RATE, RulePolicy
from tollspan.processor.sample.rules import Sampling, parse_sampling, read_sampling
from tollspan.processor.sample.rules import plain as without_file
from tollspan.processor.sample.spans_seen import picos
from tollspan.processor.sample.traces_seen import Table, Traces
from tollspan.processor.sample.types import Due, Policy, Signs, Verdicts
from tollspan.processor.store import Store

SEEDS = 200
BITS = 2**56
EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "sampling").glob("*.yaml"))

ROUTES = b"""
rules:
  - {name: errors, when: {error: true}, keep: always}
  - {name: storms, when: {loop: {same_request: 4}}, keep: 40%}
  - {name: growing, when: {loop: {growing: 10}}, keep: always}
  - {name: dear, when: {expensive: {above: p95, of: feature}}, keep: 60%}
  - {name: slow, when: {slow: {above: p90, of: route}}, keep: 30%}
  - {name: big, when: {tenant: tenant-2}, keep: 3%}
base: {keep: 8%}
"""
BY_COST = b"""
rules:
  - {name: errors, when: {error: true}, keep: always}
base: {keep: 10%, by: cost, floor: 1%}
"""
SETS: dict[str, Sampling] = {
    "no file": without_file(0.1),
    "a share alone": parse_sampling(b"base: {keep: 5%}", "share.yaml"),
    "rules with rates": parse_sampling(ROUTES, "rules.yaml"),
    "in proportion to cost": parse_sampling(BY_COST, "by_cost.yaml"),
    **{f"examples/{path.name}": read_sampling(path) for path in EXAMPLES},
}


class World(NamedTuple):
    """Two hours of traffic with all incidents in them, t traces, and what there is to estimate of each."""

    arrived: Any
    group: npt.NDArray[np.int64]
    measures: dict[str, npt.NDArray[np.float64]]

    @property
    def traces(self) -> int:
        return len(self.measures["traces"])


@cache
def world(folder: Path) -> World:
    path = folder / "book.yaml"
    path.write_text(book_yaml())
    arrived, _ = arrived_of([one for one in make(hours=2, per_minute=12, seed=3).payloads() if one], load_book(path))
    # Numbered by ids and not by keys, which are others in every process: the draws are the same in each run.
    _, group = np.unique(arrived.who.trace, axis=0, return_inverse=True)
    group = group.reshape(-1)
    t = int(group.max()) + 1
    rows = arrived.charged.rows
    cost = np.bincount(group[rows], picos(plain(arrived.charged.ledger["cost"])), t)
    tokens = np.zeros(len(group))
    for values in arrived.normalized.quantities.values():
        tokens += np.asarray(plain(values).fill_null(0))
    return World(
        arrived,
        group,
        {
            "traces": np.ones(t),
            "spans": np.bincount(group, minlength=t).astype(float),
            "tokens": np.bincount(group, tokens, t),
            "cost": cost,
        },
    )


class OfThePopulation:
    """Levels as the store would have them, made from all traces at once; they depend on nobody's randomness."""

    def __init__(self, due: Due, needed: tuple[Level, ...], base_rate: float = 1.0) -> None:
        self.base_rate = base_rate
        traces = Traces(due, {}, None)
        self.tables = {level: self._table(traces, level) for level in needed}

    def _table(self, traces: Traces, level: Level) -> Table:
        keys = traces.key(level.dimension) if level.dimension else np.zeros(len(traces), np.uint64)
        values = traces.duration if level.metric == "duration" else traces.cost if "cost" in level.metric else None
        known = np.unique(keys)
        found = []
        for key in known:
            mine = keys == key
            if values is None:
                found.append(int(mine.sum()))
            elif level.statistic == "scale":
                found.append(round(float(values.mean()) / level.parameters[0]))
            else:
                found.append(int(np.quantile(values[mine], 0.93)))
        return known, np.array(found, np.int64)

    def known(self) -> tuple[int, int]:
        return 0, 2**31

    def table(self, level: Level, minute: int) -> Table | None:
        return self.tables.get(level)

    def rates(self, metric: str, minute: int) -> dict[str, tuple[Any, Any]]:
        rate = {BASE_RATE: self.base_rate, CONTENT_RATE: 0.5}[metric]
        return {"": (np.zeros(1, np.uint64), np.array([rate]))}


def policy_of(sampling: Sampling, world: World, base_rate: float = 1.0) -> tuple[Policy, Signs]:
    bare = RulePolicy(sampling)
    due = Due(bare.look(world.arrived), world.group, world.traces, np.zeros(world.traces, np.uint64))
    levels = OfThePopulation(due, bare.levels_needed, base_rate) if bare.levels_needed or base_rate != 1 else None
    policy = RulePolicy(sampling, levels, steered=base_rate != 1)
    return policy, policy.look(world.arrived)


def draws(traces: int) -> Any:
    """Randomness of every trace, seed after seed."""
    for seed in range(SEEDS):
        yield np.random.default_rng(seed).integers(0, BITS, traces, dtype=np.uint64)


def check(world: World, policy: Policy, signs: Signs, incoming: npt.NDArray[np.uint64]) -> None:
    """Estimates of every measure over all seeds against what is exact."""
    # Drawn once, as the traces are what they are; what `never` drops can be estimated by nobody.
    certain = policy.decide(Due(signs, world.group, world.traces, np.full(world.traces, BITS - 1, np.uint64)))
    own = certain.threshold
    effective = np.maximum(own, incoming)
    chance = 1 - effective.astype(np.float64) / BITS
    possible = chance > 0
    weight = np.divide(1.0, chance, out=np.zeros(len(chance)), where=possible)
    estimates: dict[str, list[float]] = {name: [] for name in world.measures}
    inside = []
    for randomness in draws(world.traces):
        verdicts = policy.decide(Due(signs, world.group, world.traces, randomness))
        assert (verdicts.threshold == own).all(), "a threshold that looks at the randomness cannot be unbiased"
        kept = (verdicts.rule > 0) & (randomness >= incoming)
        assert not (kept & ~possible).any()
        for name, amounts in world.measures.items():
            estimates[name].append(float((weight * amounts)[kept].sum()))
        error = np.sqrt((weight * (weight - 1))[kept].sum())
        inside.append(abs(estimates["traces"][-1] - possible.sum()) <= 2 * error + 1e-9)
    for name, amounts in world.measures.items():
        exact = float(amounts[possible].sum())
        deviation = float(np.sqrt((amounts**2 * (weight - 1))[possible].sum()))
        off = float(np.mean(estimates[name])) - exact
        assert abs(off) <= 4 * deviation / np.sqrt(SEEDS) + 1e-9 * exact, (name, off, deviation / np.sqrt(SEEDS))
        if deviation and name in ("traces", "spans"):
            # The error itself is foretold, or "within its error" would say nothing. (Of costs a few traces are most of
            # the variance, and 200 draws say little of that.)
            assert 0.75 < np.std(estimates[name]) / deviation < 1.3, name
    assert np.mean(inside) >= 0.9, "two computed standard errors hold nineteen of twenty"


@pytest.fixture(scope="module")
def population(tmp_path_factory: pytest.TempPathFactory) -> World:
    return world(tmp_path_factory.mktemp("unbiased"))


@pytest.mark.parametrize("name", SETS)
def test_the_sum_of_adjusted_counts_is_what_the_ledger_says(population: World, name: str) -> None:
    policy, signs = policy_of(SETS[name], population)
    check(population, policy, signs, np.zeros(population.traces, np.uint64))


@pytest.mark.parametrize("name", ["no file", "rules with rates", "in proportion to cost"])
def test_a_sampler_before_this_one_adds_no_bias(population: World, name: str) -> None:
    """A third of the traces comes from services that sample a quarter at their head, and says so (``th``)."""
    policy, signs = policy_of(SETS[name], population)
    incoming = np.where(np.arange(population.traces) % 3 == 0, np.uint64(3 * 2**54), np.uint64(0))
    check(population, policy, signs, incoming)


@pytest.mark.parametrize("name", ["no file", "in proportion to cost"])
def test_a_budget_that_steers_adds_no_bias(population: World, name: str) -> None:
    policy, signs = policy_of(SETS[name], population, base_rate=0.37)
    check(population, policy, signs, np.zeros(population.traces, np.uint64))


def test_keeping_by_cost_estimates_cost_with_less_variance(population: World) -> None:
    """What `by: cost` is for: the same share of traces, a fraction of the error of the estimated bill."""
    errors, shares = {}, {}
    cost = population.measures["cost"]
    for name in ("a share alone", "in proportion to cost"):
        sampling = parse_sampling(b"base: {keep: 10%%%s}" % (b", by: cost" if "cost" in name else b""), "x.yaml")
        policy, signs = policy_of(sampling, population)
        verdicts = policy.decide(
            Due(signs, population.group, population.traces, np.full(population.traces, BITS - 1, np.uint64))
        )
        chance = 1 - verdicts.threshold.astype(np.float64) / BITS
        errors[name] = float(np.sqrt((cost**2 * (1 / chance - 1)).sum()))
        shares[name] = float(chance.mean())
    assert shares["in proportion to cost"] <= 1.1 * shares["a share alone"]
    assert errors["in proportion to cost"] < 0.5 * errors["a share alone"]


def test_a_subset_is_judged_as_the_whole_is(population: World) -> None:
    """The draws above decide all traces at once, also those that a head sampler would have left out."""
    policy, signs = policy_of(SETS["rules with rates"], population)
    randomness = next(draws(population.traces))
    whole = policy.decide(Due(signs, population.group, population.traces, randomness))
    chosen = np.flatnonzero(randomness >= np.uint64(3 * 2**54))
    number = np.full(population.traces, -1, np.int64)
    number[chosen] = np.arange(len(chosen))
    spans = np.flatnonzero(number[population.group] >= 0)
    part = policy.decide(Due(signs.select(spans), number[population.group[spans]], len(chosen), randomness[chosen]))
    assert (part.rule == whole.rule[chosen]).all()
    assert (part.threshold == whole.threshold[chosen]).all()


@dataclass
class Numbers:
    """Stands for bodies: numbers of spans."""

    ids: npt.NDArray[np.int64]
    nbytes: int = 1

    def select(self, rows: npt.NDArray[np.int64]) -> Numbers:
        return Numbers(self.ids[rows])


class ErrorsAlways:
    """Errors, and a share of 15 % of the rest; what it looks at are the errors themselves."""

    names = reasons = ("", "error", "probability")
    certain = np.array([False, True, False])
    steered = np.array([False, False, True])

    def look(self, batch: Any) -> Signs:
        return Signs({"error": batch}, len(batch))

    def decide(self, due: Due) -> Verdicts:
        error = self.fold(due)["error"]
        limits = np.where(error, np.uint64(0), np.uint64(0.85 * BITS))
        matched = np.where(error, 1, 2).astype(np.int16)
        rule = np.where(due.randomness >= limits, matched, 0).astype(np.int16)
        return Verdicts(rule, matched, limits, limits, np.zeros(due.traces, np.int8))

    def fold(self, due: Due) -> Signs:
        error = np.zeros(due.traces, bool)
        np.logical_or.at(error, due.group, due.signs["error"])
        return Signs({"error": error}, due.traces)


def test_late_errors_and_what_follows_them_add_no_bias() -> None:
    """A late span that a certain rule matches is kept whatever was decided, so it stands for itself alone, also where
    its trace had been kept by chance; and so does all that comes after it."""
    traces, batches = 300, 4
    late = np.arange(traces) % 3 == 0
    estimates = []
    for seed in range(SEEDS):
        sampler = TailSampler(ErrorsAlways(), wait_s=0.0, timeout_s=1.0)
        ids = np.random.default_rng(seed).integers(1, 2**63, (traces, 2), dtype=np.uint64)
        estimate = np.zeros(batches)
        for batch in range(batches):
            numbers = np.arange(traces) + batch * traces
            sampler.offer(
                Pending(
                    source=batch,
                    bodies=Numbers(numbers),
                    trace=ids[:, 0],
                    ids=ids,
                    span=numbers.astype(np.uint64),
                    randomness=explicit(ids[:, 1] & np.uint64(BITS - 1), ids),
                    root=np.full(traces, batch == 0),
                    signs=sampler.look(late & (batch == 2)),  # type: ignore[arg-type]
                    arrived=10.0 * batch,
                    nbytes=1,
                )
            )
            done = sampler.tick(10.0 * batch + 5.0)
            for each in done.decisions:
                kept = each.reason != 0
                weights = np.array([adjusted_count(int(t)) for t in done.fates.threshold])[each.group]
                of = each.bodies.ids[each.rows] // traces
                np.add.at(estimate, of[kept], weights[kept])
        sampler.close()
        estimates.append(estimate)
    found = np.array(estimates)
    chance = np.where(late[None, :] & (np.arange(batches) >= 2)[:, None], 1.0, 0.15)
    deviation = np.sqrt(((1 - chance) / chance).sum(axis=1))
    assert (np.abs(found.mean(axis=0) - traces) <= 4 * deviation / np.sqrt(SEEDS)).all(), found.mean(axis=0)


def test_the_line_writes_adjusted_counts_that_add_up(store: Store, tmp_path: Path) -> None:
    """Through the real line to the query: rules with rates, and behind a head sampler for some of the traffic."""
    day = make(hours=2, per_minute=14, seed=11)
    head = 3 * 2**54
    for one in day.sent:
        if one.trace[0] % 3 == 0:
            one.span.trace_state = "ot=th:c"
    sent = [one for one in day.sent if one.trace[0] % 3 or chance(one.trace) >= head]
    (tmp_path / "book.yaml").write_text(book_yaml())
    line = VirtualLine(store, tmp_path / "journal", load_book(tmp_path / "book.yaml"))
    rules = b"""
    rules:
      - {name: errors, when: {error: true}, keep: always}
      - {name: chats, when: {feature: chat}, keep: 40%}
    base: {keep: 15%}
    """
    line.sample_by(parse_sampling(rules, "rules.yaml"))
    for payload in filter(None, Day(day.hours, sent).payloads()):
        line.send(payload)
    line.work()
    line.end()
    line.close()
    found = {row["measure"]: row for row in run(store, "sampling-estimates")}
    truth = {
        "traces": day.traces,
        "spans": len(day.sent),
        "inferences": sum(one.cost is not None for one in day.sent),
        "cost": float(day.bill),
    }
    for name, exact in truth.items():
        row = found[name]
        assert row["standard_error"] > 0
        assert abs(row["estimate"] - exact) < 4 * row["standard_error"], (row, exact)
    # Which is not what came: the head sampler's own share is in the adjusted counts.
    assert float(found["spans"]["exact"]) == len(sent) < 0.8 * len(day.sent)

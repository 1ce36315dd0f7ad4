"""Policies in use: the one by which traces are judged that begin now, and those of traces that began before.

A trace is judged by the policy that held when its first span came. After a change both see what arrives, until the
older one has no trace left. Whatever is wrong with a policy, spans go on: it is logged and counted, and what it touched
is kept, for nobody knows which were wanted.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tollspan.processor.counters import Counters
from tollspan.processor.identity import U64, Mask, ascending
from tollspan.processor.sample.names import DROPPED, ground
from tollspan.processor.sample.plain import Plain
from tollspan.processor.sample.rounds import Codes, Fates
from tollspan.processor.sample.types import Arrived, Due, Policy, Signs, Verdicts
from tollspan.processor.sample.waiting import Part

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _InUse:
    """A policy, grounds of its rules by number, how many open traces it has to judge, and whether `look` failed."""

    policy: Policy
    grounds: Codes
    open: int = 0
    broken: bool = False


class PoliciesInUse:
    """See above.

    Args:
        policy: the first.
        counters: counts ``sampling.faults``.

    Attributes:
        current: number of the policy for what begins now.
    """

    def __init__(self, policy: Policy, counters: Counters) -> None:
        self.counters = counters
        self.current = -1
        self._coming: Policy | None = None
        self._policies: dict[int, _InUse] = {}
        self._take(policy)

    def __len__(self) -> int:
        return len(self._policies)

    @property
    def policy(self) -> Policy:
        """By which traces that begin now are judged."""
        return self._coming or self._policies[self.current].policy

    def use(self, policy: Policy) -> None:
        """Judge traces that begin from now on by another one; may be called from any thread."""
        self._coming = policy

    def opened(self, traces: int) -> None:
        """So many traces began."""
        self._policies[self.current].open += traces

    def closed(self, numbers: npt.NDArray[np.int16]) -> None:
        """Traces of these policies are over."""
        for number in ascending(numbers).tolist():
            self._policies[number].open -= int(np.count_nonzero(numbers == number))

    def look(self, batch: Arrived) -> dict[int, Signs]:
        """What each policy sees in a batch."""
        coming, self._coming = self._coming, None
        if coming is not None:
            self._take(coming)
        signs = {}
        for number, each in self._policies.items():
            if (each.open or number == self.current) and not each.broken:
                seen = self._looked(each, batch)
                if seen is not None:
                    signs[number] = seen
        if self.current not in signs:
            self._take(Plain(1.0))
            signs[self.current] = self._policies[self.current].policy.look(batch)
        return signs

    def judge(
        self, policies: npt.NDArray[np.int16], parts: list[Part], randomness: U64, stepping: Mask
    ) -> tuple[Fates, Mask, Signs | None]:
        """Ask policies for their verdicts on t traces.

        Args:
            policies: number of each trace's policy, shape (t,).
            parts: their spans.
            randomness: of each, shape (t,).
            stepping: which go on; all of the current policy.

        Returns:
            Fates; which are kept with certainty, shape (t,); what is folded of those that go on.
        """
        traces = len(policies)
        fates, certain = Fates.alike(traces, DROPPED, 0), np.zeros(traces, np.bool_)
        folded: Signs | None = None
        signs = [part.batch.signs for part in parts]
        for number in ascending(policies).tolist():
            mine, each = policies == number, self._policies[number]
            due = _due(mine, parts, [seen.get(number) for seen in signs], randomness)
            verdicts = self._verdicts(each.policy, due)
            if verdicts is None:
                fates.reason[mine] = fates.matched[mine] = ground("fault", "")
                certain[mine] = True
                continue
            fates.reason[mine], fates.matched[mine] = each.grounds[verdicts.rule], each.grounds[verdicts.matched]
            fates.threshold[mine], fates.full[mine] = verdicts.threshold, verdicts.full
            fates.content[mine] = verdicts.content
            fates.steered[mine] = each.policy.steered[verdicts.matched]
            certain[mine] = each.policy.certain[verdicts.rule] & (verdicts.rule != 0)
            if stepping[mine].any():
                folded = self._folded(each.policy, _some_of(due, stepping[mine]))
        return fates, certain, folded

    def _take(self, policy: Policy) -> None:
        for number in [n for n, each in self._policies.items() if not each.open]:
            del self._policies[number]
        number = (self.current + 1) % (1 << 15)
        while number in self._policies:
            number = (number + 1) % (1 << 15)
        grounds = [DROPPED, *map(ground, policy.reasons[1:], policy.names[1:])]
        self.current, self._policies[number] = number, _InUse(policy, np.array(grounds, np.int16))

    def _looked(self, in_use: _InUse, batch: Arrived) -> Signs | None:
        try:
            return in_use.policy.look(batch)
        except Exception:
            log.exception("the sampling rules fail; until they are changed everything is kept")
            self.counters.add("sampling.faults")
            in_use.broken = True
            return None

    def _verdicts(self, policy: Policy, due: Due) -> Verdicts | None:
        try:
            return policy.decide(due)
        except Exception:
            log.exception("the sampling rules fail; %d traces are kept", due.traces)
            self.counters.add("sampling.faults")
            return None

    def _folded(self, policy: Policy, due: Due) -> Signs | None:
        try:
            return policy.fold(due)
        except Exception:
            log.exception("the sampling rules fail; %d traces are judged by their later spans alone", due.traces)
            self.counters.add("sampling.faults")
            return None


def _due(mine: Mask, parts: list[Part], seen: list[Signs | None], randomness: U64) -> Due:
    """What a policy has to decide on, of some of the traces."""
    everyone = bool(mine.all())
    place = np.cumsum(mine) - 1
    signs, groups = [], []
    for part, all_ in zip(parts, seen, strict=True):
        if all_ is None:
            # It came while the policy failed.
            continue
        some, group = part.select(all_), part.group
        if not everyone:
            chosen = mine[group]
            some, group = some.select(np.flatnonzero(chosen)), place[group[chosen]]
        signs.append(some)
        groups.append(group)
    chance = randomness if everyone else randomness[mine]
    if not signs:
        return Due(Signs({}, 0), np.zeros(0, np.int64), len(chance), chance)
    return Due(Signs.concat(signs), np.concatenate(groups), len(chance), chance)


def _some_of(due: Due, some: Mask) -> Due:
    """Only some of the traces."""
    if some.all():
        return due
    chosen = some[due.group]
    place = np.cumsum(some) - 1
    signs = due.signs.select(np.flatnonzero(chosen))
    return Due(signs, place[due.group[chosen]], int(np.count_nonzero(some)), due.randomness[some])

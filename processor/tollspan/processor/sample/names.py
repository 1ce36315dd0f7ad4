"""Why spans are kept, as numbers: a reason (kind of rule) and the rule's name, interned for the life of the process.

Rules have numbers of their own in each policy, and policies come and go while decisions are remembered; a ground's
number stays. It is an int16, as many as fit into `Decision.reason`.
"""

from __future__ import annotations

import logging
from typing import Final

log = logging.getLogger(__name__)

REASONS: Final[list[str]] = ["", "error", "probability"]
"""Reason of each ground. It grows, in place."""

RULES: Final[list[str]] = ["", "error", "probability"]
"""Rule of each ground."""

DROPPED, ERROR, PROBABILITY = range(3)
"""Grounds that there are without any rules."""

MOST: Final = 32_000

_numbers: Final[dict[tuple[str, str], int]] = {
    pair: number for number, pair in enumerate(zip(REASONS, RULES, strict=True))
}


def ground(reason: str, rule: str) -> int:
    """The number of a reason and a rule's name; the same one whenever it is asked for again."""
    number = _numbers.get((reason, rule))
    if number is None:
        if len(REASONS) >= MOST and rule:
            # Somebody makes names up all day; their reasons are few.
            log.warning("there are too many names of rules; %r is kept as its reason alone", rule)
            return ground(reason, "")
        number = _numbers[reason, rule] = len(REASONS)
        REASONS.append(reason)
        RULES.append(rule)
    return number

"""What the stub's two providers have in common: the answer to one request, and how many tokens it comes to."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Json = dict[str, Any]

SENTENCES = (
    "Thank you for writing to us.",
    "I am sorry that this has not gone as it should.",
    "I looked at your order and our records show that it left the warehouse on time.",
    "The carrier has scanned the parcel, so it is on its way to you.",
    "You can return the item within thirty days, and the refund is paid within five working days after it arrives.",
    "If anything is damaged, a photo is enough and we send you a new one.",
    "I have opened a trace with the carrier and you will hear from us within two working days.",
    "You find the details in your account under orders.",
    "Please use the newest link in your inbox, the older ones have expired.",
    "Your plan includes free returns, so there is nothing to pay for the label.",
    "Is there anything else that I can do for you?",
)


@dataclass(frozen=True, slots=True)
class Served:
    """What one request is answered with, decided from the seed and the request alone.

    ``input_tokens`` is all of the input: also what was read from the prompt cache and what was written to it, for five
    minutes or for an hour. ``output_tokens`` includes reasoning. ``details``: whether the server tells kinds apart.
    """

    id: str
    model: str
    tier: str | None
    text: str
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    reasoning_tokens: int = 0
    written_5m_tokens: int = 0
    written_1h_tokens: int = 0
    details: bool = True

    @property
    def tally(self) -> Json:
        return {
            "input": self.input_tokens,
            "cached": self.cached_tokens,
            "written_5m": self.written_5m_tokens,
            "written_1h": self.written_1h_tokens,
            "output": self.output_tokens,
            "reasoning": self.reasoning_tokens,
        }


def tokens(text: str) -> int:
    """About four characters a token."""
    return -(-len(text) // 4)


def letter(rng: random.Random) -> str:
    """An answer to a customer."""
    return " ".join([SENTENCES[0], *rng.sample(SENTENCES[1:-1], rng.randrange(2, 6)), SENTENCES[-1]])


def pieces(text: str) -> Iterator[str]:
    """The text in deltas of three words."""
    split = text.split(" ")
    for at in range(0, len(split), 3):
        yield (" " if at else "") + " ".join(split[at : at + 3])

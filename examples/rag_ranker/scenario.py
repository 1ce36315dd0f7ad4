"""The world of the help centre: who reads, what they ask, and the passages that an answer is made of.

Nothing here calls anything. `requests_for` gives the same questions for the same seed, which makes a run repeatable up
to the time it takes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

TENANTS = ("acme-cloud", "globex-bank", "initech-hr")
"""Three software companies whose help centres the same team runs; each pays for its own readers."""

FEATURES = ("answer-box", "assistant")
"""``answer-box``: three sentences above the search results. ``assistant``: a chat, answered by a larger model."""

VARIANTS = {"narrow": 8, "wide": 32}
"""Arm of the experiment → passages that are fetched and ranked. Is the wide net worth what it costs?"""

READERS = tuple(range(2001, 2061))

PRODUCTS = ("Console", "Ledger", "Payroll", "Calendar", "Vault", "Mailer", "Insights", "Directory", "Forms", "Archive")

TOPICS: dict[str, tuple[str, str]] = {
    "sign-in": (
        "why can I not sign in to {product} with single sign-on",
        "Sign in to {product} with single sign-on: the identity provider sends the e-mail address, which has to be the "
        "one of the seat. A seat that was moved signs in again after an hour.",
    ),
    "invite": (
        "how do I invite a colleague to {product} and give them a role",
        "To invite a colleague to {product} open People, enter the address and choose a role. The invitation is valid "
        "for seven days; an administrator can send it again.",
    ),
    "export": (
        "can I export all my data from {product} as a spreadsheet",
        "{product} exports data as CSV or as a spreadsheet from Settings, Export. Large exports are prepared in the "
        "background and a link comes by e-mail within an hour.",
    ),
    "limits": (
        "what is the limit of requests a minute of the {product} API",
        "The API of {product} takes six hundred requests a minute for each key. Beyond that it answers 429 and says "
        "when to try again; a higher limit is part of the business plan.",
    ),
    "webhook": (
        "the webhook of {product} does not arrive, how do I see what failed",
        "Webhooks of {product} are tried eight times over a day. What failed is listed under Developers, Deliveries, "
        "with the answer of your server, and can be sent again by hand.",
    ),
    "restore": (
        "somebody deleted a project in {product}, can it be restored",
        "What is deleted in {product} stays in the bin for thirty days, from where an owner can restore it with all "
        "its history. After that it is gone for good.",
    ),
    "billing": (
        "how do I change the card and the address on the invoice for {product}",
        "Card and invoice address of {product} are changed by a billing administrator under Plan and billing. The "
        "next invoice shows them; an old one is not made again.",
    ),
    "region": (
        "in which region is the data of {product} stored",
        "Data of {product} is stored in the region that was chosen with the account, and stays there, backups "
        "included. A move to another region is done by support within two weeks.",
    ),
    "mobile": (
        "does {product} work offline on a phone",
        "The mobile app of {product} keeps the last thirty days on the phone and works offline. What was changed is "
        "sent when there is a connection; conflicts are shown, never overwritten.",
    ),
    "audit": (
        "where is the audit log of {product} and how long is it kept",
        "The audit log of {product} records every change with its author for two years. Owners find it under "
        "Security, and can stream it to a system of their own.",
    ),
    "plan": (
        "what happens to our seats when we change the plan of {product}",
        "Changing the plan of {product} keeps all seats. A smaller plan takes effect at the end of the month, a "
        "larger one at once, and the difference is billed by the day.",
    ),
    "language": (
        "can I change the language of {product} for one person only",
        "Everybody chooses the language of {product} in the profile; what an administrator sets is only the first one "
        "for new people.",
    ),
}
"""Topic → question and passage."""

PASSAGES: tuple[str, ...] = tuple(text.format(product=product) for product in PRODUCTS for _, text in TOPICS.values())
"""The help centre, by passage id."""

STYLE = (
    "You answer questions of a software company's readers from the passages that are given, and from nothing else. "
    "Answer in the language of the question, in plain words, and name the number of each passage that you used. If "
    "the passages do not answer the question, say so and suggest whom to ask."
)


@dataclass(frozen=True, slots=True)
class Question:
    """One question of one reader, and the arm of the experiment it fell into."""

    number: int
    tenant: str
    feature: str
    variant: str
    reader_id: int
    text: str


def requests_for(count: int, seed: int) -> Iterator[Question]:
    """The first ``count`` questions of the world with this ``seed``; a longer run begins with the shorter one."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        question, _ = TOPICS[rng.choice(tuple(TOPICS))]
        yield Question(
            number=number,
            tenant=rng.choices(TENANTS, weights=(5, 3, 2))[0],
            feature=rng.choices(FEATURES, weights=(3, 2))[0],
            variant=rng.choice(tuple(VARIANTS)),
            reader_id=rng.choice(READERS),
            text=question.format(product=rng.choice(PRODUCTS)),
        )

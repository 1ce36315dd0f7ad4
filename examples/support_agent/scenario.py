"""The world of the support assistant: who asks, what they ask, and what the shops' handbook answers.

Nothing here calls anything. `requests_for` gives the same requests for the same seed, which makes a run repeatable up
to the time it takes; `KNOWLEDGE_BASE` and `EXAMPLE_QUESTIONS` are what the re-ranker and the intent model are made of.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

TENANTS = ("acme-outdoor", "globex-home", "northwind-foods")
"""Three shops that buy their support from the same team; each pays for its own customers."""

FEATURES = ("chat", "email_draft")
"""``chat``: a customer waits in the chat window. ``email_draft``: an agent gets a draft and may take longer."""

VARIANTS = ("A", "B")
"""``A`` answers with OpenAI's small model, ``B`` with Claude: the experiment whose price we want to know."""

CUSTOMERS = tuple(range(1001, 1061))

INTENTS = ("order_status", "refund", "product_question", "account")

EXAMPLE_QUESTIONS: dict[str, tuple[str, ...]] = {
    "order_status": (
        "where is my order {order}, it was due on monday",
        "order {order} has not arrived yet and the tracking has not moved for three days",
        "can you tell me when the parcel for order {order} will be delivered",
        "the tracking page says order {order} is delivered but nothing arrived",
    ),
    "refund": (
        "I sent the {item} from order {order} back two weeks ago and want my money back",
        "how do I return the {item}, it does not fit and I would like a refund for order {order}",
        "I was charged twice for order {order}, please refund one of the payments",
        "the {item} arrived broken, can I return it and get a refund",
    ),
    "product_question": (
        "is the {item} suitable for children under six years",
        "what is the difference between the two sizes of the {item}",
        "does the {item} come with a warranty and spare parts",
        "which material is the {item} made of and how do I clean it",
    ),
    "account": (
        "I can not log in to my account since I changed my e-mail address",
        "please change the delivery address of my account before order {order} ships",
        "how do I cancel my membership and delete my account",
        "the password reset link for my account has expired twice",
    ),
}

ITEMS = {
    "acme-outdoor": ("two-person tent", "trekking backpack", "camping stove", "rain jacket"),
    "globex-home": ("espresso machine", "floor lamp", "cordless vacuum cleaner", "wool carpet"),
    "northwind-foods": ("olive oil gift box", "coffee subscription", "chocolate hamper", "spice set"),
}

KNOWLEDGE_BASE: tuple[tuple[str, str], ...] = (
    ("shipping-times", "Orders leave the warehouse within one working day. Delivery takes two to four working days."),
    ("tracking-stuck", "If the tracking has not moved for three days we open a trace with the carrier for the parcel."),
    (
        "delivered-missing",
        "When a parcel is marked delivered but is missing, ask neighbours, then we resend or refund.",
    ),
    ("return-window", "Items can be returned within thirty days, unused and in their packaging, for a full refund."),
    ("refund-time", "A refund is paid to the original payment method within five working days of the return."),
    ("double-charge", "Charged twice: the second payment is a reservation, otherwise we refund it at once."),
    ("broken-item", "If an item arrived broken we replace it or refund it; a photo of the damage is enough."),
    ("warranty", "All products have a warranty of two years. Spare parts are kept for five years."),
    ("sizes", "The sizes and the difference between the models are listed in the table on every product page."),
    ("materials", "Materials and how to clean each item are printed on the label and on the product page."),
    ("children", "The suitable age for children is printed on the box; toys are tested for children over three years."),
    ("login", "After a change of e-mail address log in once with the old address, then confirm the new one."),
    ("password-reset", "A password reset link for an account expires after one hour; only the newest link works."),
    ("address-change", "The delivery address can be changed in the account until the order ships."),
    ("cancel-account", "A membership can be cancelled and an account deleted in the settings or by an agent."),
)
"""Article id and text."""

HANDBOOK = "\n".join(
    [
        "You are the support assistant of a retail shop. You answer in the language of the customer, in a warm and "
        "plain tone, in at most six sentences, and you never promise what the policies below do not promise.",
        *(
            f"Policy {number}, {title.replace('-', ' ')}: "
            f"{text} Explain the policy in your own words. If the customer is upset, say once that you are sorry, "
            "then say what happens next and when. Never ask for a password, a full card number or an identity "
            "document. If an order number is given, repeat it, so that the customer sees that it was understood. "
            "If the facts about the customer contradict what the customer says, trust the facts, and say politely "
            "what our records show. If the question is about something else, hand over to a person."
            for number, (title, text) in enumerate(KNOWLEDGE_BASE, start=1)
        ),
    ]
)
"""The long, constant head of every prompt: what a provider's prompt cache lives from."""


@dataclass(frozen=True, slots=True)
class SupportRequest:
    """One question of one customer of one shop, and the arm of the experiment it fell into."""

    number: int
    tenant: str
    feature: str
    variant: str
    customer_id: int
    intent: str
    question: str

    @property
    def pilot(self) -> bool:
        """Half of northwind's e-mail drafts of variant B try the house model."""
        return (self.tenant, self.feature, self.variant) == ("northwind-foods", "email_draft", "B") and (
            self.customer_id % 2 == 0
        )


def requests_for(count: int, seed: int) -> Iterator[SupportRequest]:
    """The first ``count`` requests of the world with this ``seed``; a longer run begins with the shorter one."""
    rng = random.Random(seed)
    for number in range(1, count + 1):
        tenant = rng.choices(TENANTS, weights=(5, 3, 2))[0]
        feature = rng.choices(FEATURES, weights=(3, 2))[0]
        intent = rng.choices(INTENTS, weights=(4, 3, 2, 1))[0]
        question = rng.choice(EXAMPLE_QUESTIONS[intent]).format(
            order=f"{tenant[:2].upper()}-{rng.randrange(10_000, 100_000)}", item=rng.choice(ITEMS[tenant])
        )
        yield SupportRequest(
            number=number,
            tenant=tenant,
            feature=feature,
            variant=rng.choice(VARIANTS),
            customer_id=rng.choice(CUSTOMERS),
            intent=intent,
            question=question,
        )

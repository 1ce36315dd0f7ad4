"""The one error that pricing raises for what a person wrote: a price book that cannot be used as it stands."""

from __future__ import annotations


class BookError(ValueError):
    """A price book that cannot be used, in one line.

    Args:
        message: where and what: ``prices.yaml:12: prices[3].amount: '1,32' is not a decimal number``.
        hint: what the reader can do about it.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        message = message.replace("\n", " ")  # of a name in the book
        super().__init__(f"{message} {hint}".strip())
        self.message = message
        self.hint = hint

"""What is asked of names again and again, batch after batch: answers are remembered by name.

In: an array of distinct names, as every batch has some dozens of them, and a question about such an array. Out: the
answers. A regular expression takes ten times as long as looking up what it said the last time, and so does every other
question to Arrow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

import numpy as np

from tollspan.processor.identity import Mask

MOST: Final = 512
"""Names in one array up to which they are looked up one by one; of more each is asked."""
REMEMBERED: Final = 10_000
"""Names that are remembered; when there are more, all are forgotten."""
LONGEST: Final = 256
"""Characters or bytes of a name that is remembered."""

Answer = TypeVar("Answer")


class Remembered(Generic[Answer]):
    """A question with its answers so far; may be asked by several threads.

    Args:
        ask: from an array of names to their answers, each of which is a function of that name alone, and not None.
    """

    def __init__(self, ask: Callable[[Any], list[Answer]]) -> None:
        self._ask = ask
        self._known: dict[str | bytes, Answer] = {}

    def __call__(self, names: Any) -> list[Answer]:
        """The answers to n names (a string or binary array without nulls)."""
        if not 0 < len(names) <= MOST:
            return self._ask(names)
        known = self._known
        texts = names.to_pylist()
        found = [known.get(text) for text in texts]
        if None not in found:
            return found  # type: ignore[return-value]
        answers = self._ask(names)
        if len(known) > REMEMBERED:
            known = self._known = {}
        known.update((text, answer) for text, answer in zip(texts, answers, strict=True) if len(text) <= LONGEST)
        return answers


class Judged:
    """The same for a question that is answered by yes or no.

    Args:
        ask: from an array of names to a mask; each name's answer is a function of that name alone.
    """

    def __init__(self, ask: Callable[[Any], Mask]) -> None:
        self._answers = Remembered[bool](lambda names: ask(names).tolist())

    def __call__(self, names: Any) -> Mask:
        """The answers to n names (a string array without nulls)."""
        return np.array(self._answers(names), np.bool_)

"""Tokens that no provider counted, estimated from the text, where the user has asked for that.

In: ``TOLLSPAN_ESTIMATE_USAGE`` (``true``, or ``package.module:function``) and the `Transcript` of a call whose span
says nothing of its input, its output or both: a stream without usage, one that was left early, a server that does not
count.
Out: ``gen_ai.usage.input_tokens`` and ``gen_ai.usage.output_tokens``, and ``tollspan.usage_estimated`` beside them, so
that every figure made of them can say so. What the provider did count is left as it is.

Only what can be estimated is: an input with anything but text in it, or one that the provider has kept from earlier
calls, has no estimate, and nor has a call that failed before there was an answer. Hidden reasoning is not in the text;
with such models the output is too low, and the input where an answer is to follow a schema.

The estimate of ``true`` reads no vocabulary and asks no network: it counts words, numbers and signs as today's
tokenizers divide them. Against the four vocabularies that it was tried on it is within an eighth for English prose,
code and JSON; for other languages it can be off by a third, and for other alphabets by more with older vocabularies. A
function of the user's own is called as
``function(text, model)``, with ``model`` a string or None, and returns the number of tokens.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any, Final

from tollspan.instrumentation.calls import Call
from tollspan.instrumentation.content import Message, Part, Transcript
from tollspan.pricing import attributes as names

Count = Callable[[str, str | None], int]
"""``(text, model) -> tokens``."""

_LETTERS: Final = 6
"""Letters of a word that are one token, and of the rest of a longer one."""
_DIGITS: Final = 3
_SIGNS: Final = 3
_LETTER: Final = 0.4
"""Tokens of a letter outside ASCII."""
_IDEOGRAPH: Final = 0.7
"""Tokens of a character that is a syllable or a word: those from `_IDEOGRAPHS` on."""
_IDEOGRAPHS: Final = "\u2e80"
_MESSAGE: Final = 4
"""Tokens by which the role and the bounds of a message are told."""

_PIECE: Final = re.compile(r"[A-Za-z]+|[0-9]+|\n\s*|[^\S\n]+|[^\x00-\x7f]+|[\x00-\x08\x0e-\x1f!-/:-@\[-`{-\x7f]+")

_TEXTS: Final[dict[str, tuple[str, ...]]] = {
    "text": ("content",),
    "reasoning": ("content",),
    "tool_call": ("name", "arguments"),
    "tool_call_response": ("response",),
    "json": ("content",),  # in a tool's response
}
"""Type of a part → its fields that the model reads or writes."""

_TWO_SIDED: Final = frozenset({"chat", "text_completion", "generate_content", "responses"})
"""Operations that take tokens in and give tokens out. Sound may be billed by its length, and what is fetched or handed
on was billed by another call."""

_NO_CALL: Final = frozenset({names.USAGE_INVALID, names.USAGE_DEFERRED})


def tokens(text: str, model: str | None = None) -> int:
    """Estimated number of tokens of ``text``, for any model."""
    total = 0.0
    for piece in _PIECE.findall(text):
        first, length = piece[0], len(piece)
        if first > "\x7f":
            total += max(1.0, sum(_IDEOGRAPH if character >= _IDEOGRAPHS else _LETTER for character in piece))
        elif first.isalpha():
            total += 1 + max(0, length - _LETTERS) / _LETTERS
        elif first.isdigit():
            total += -(-length // _DIGITS)
        elif first == "\n" or (first.isspace() and length > 1):
            total += 1
        elif not first.isspace():  # a single blank belongs to the word behind it
            total += -(-length // _SIGNS)
    return math.ceil(total)


class Estimates:
    """Estimates of one instrumentation.

    Args:
        said: value of the switch: a word for yes, or ``package.module:function``.
    """

    def __init__(self, said: str) -> None:
        self._said = said
        self._count: Count | None = None if ":" in said else tokens

    def finish(self, call: Call) -> None:
        """Put estimates in the place of the counts that are missing. For the end of a call, before it is priced."""
        transcript: Transcript | None = call.content
        attributes = call.attributes
        operation = attributes.get(names.OPERATION_NAME) or call.opened.get(names.OPERATION_NAME)
        if transcript is None or operation not in _TWO_SIDED or not _NO_CALL.isdisjoint(attributes):
            return
        wanted = [name for name in (names.USAGE_INPUT_TOKENS, names.USAGE_OUTPUT_TOKENS) if name not in attributes]
        if not wanted:
            return
        said = transcript.output()
        if not said:
            return  # it failed, or what came cannot be read
        model = attributes.get(names.RESPONSE_MODEL) or call.opened.get(names.REQUEST_MODEL)
        for name in wanted:
            estimate = (
                self._messages(said, model) if name == names.USAGE_OUTPUT_TOKENS else self._input(transcript, model)
            )
            if estimate is not None:
                attributes[name] = estimate
                attributes[names.USAGE_ESTIMATED] = True

    def _input(self, transcript: Transcript, model: str | None) -> int | None:
        if not transcript.whole or not (transcript.messages or transcript.system):
            return None
        told = self._messages([*transcript.messages, {"parts": transcript.system}], model)
        if told is None:
            return None
        tools = sum(self._of(_json(tool), model) for tool in transcript.tools)
        return told + tools + _MESSAGE * len(transcript.messages)

    def _messages(self, messages: Iterable[Message], model: str | None) -> int | None:
        """Tokens of all parts; None where there is one that is no text."""
        return self._parts((part for message in messages for part in message["parts"]), model)

    def _parts(self, parts: Iterable[Part], model: str | None) -> int | None:
        total = 0
        for part in parts:
            fields = _TEXTS.get(part.get("type", ""))
            if fields is None:
                return None
            for value in (part[field] for field in fields if part.get(field) is not None):
                told = self._parts(value, model) if _in_parts(value) else self._of(_json(value), model)
                if told is None:
                    return None
                total += told
        return total

    def _of(self, text: str, model: str | None) -> int:
        count = self._count
        if count is None:
            module, _, function = self._said.partition(":")
            count = self._count = getattr(import_module(module), function)
        counted = count(text, model)
        if type(counted) is not int or counted < 0:
            raise ValueError(f"{self._said} returned {counted!r} for a number of tokens")
        return counted


def _in_parts(value: Any) -> bool:
    """Whether what a tool gave is told in parts, of which one may be a picture."""
    return isinstance(value, list) and all(isinstance(item, dict) and "type" in item for item in value)


def _json(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

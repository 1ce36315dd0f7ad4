"""Names of models: what a span calls a model, and which entry of genai-prices it is.

In: the name that a span gives, in lower case. Out: the entry, and how the name led to it; nothing for a name that only
looks like one. genai-prices matches many names by how they begin or what they contain, so ``gemini-1.5-flash-8b`` gets
the price of Gemini 1.5 Flash and ``gemini-3.8-flash-cyber``, which costs twice as much, that of Gemini 3.8 Flash. Here
such a match counts only if the rest of the name cannot change what is charged: a date, a version, ``-latest``,
``-preview``, and in front of it the cloud's own prefixes.

Wrappings that are taken off first (`unwrapped`):

- Bedrock ARNs of foundation models and of inference profiles. ARNs of application inference profiles, provisioned,
  custom and imported models name no model at all: they are unknown until the user's book gives them an alias. So are
  those of AWS's partitions with prices of their own (GovCloud, China);
- Vertex AI's ``projects/.../publishers/anthropic/models/...`` and Gemini's ``models/...``;
- the provider's own name in front (``openai/gpt-5``, ``vertex_ai/...``) and, on Bedrock, a region in front;
- the owner and the id behind a fine-tuned model: ``ft:gpt-4o-2024-08-06:acme::id``.

An Azure deployment has whatever name its owner gave it. It is known where it is called as the model is, and else
through an alias of the user's book.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import date
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tollspan.pricing.book import MatchKind
from tollspan.pricing.selectors import provider_of

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, Provider

_ARN: Final = re.compile(r"arn:(aws[\w-]*):bedrock:[\w-]*:\d*:([\w-]+)/(.+)")
_NAMING_RESOURCES: Final = frozenset({"foundation-model", "inference-profile"})
"""Resources of Bedrock whose id is the model's name; ids of all others are the account's own."""
_PATH: Final = re.compile(r"(?:projects/[^/]+/locations/[^/]+/)?(?:publishers/[^/]+/)?models/([^/]+)")
_REGION: Final = re.compile(r"[a-z]{2}-(?!gov)[a-z]+-\d/(.+)")
_FINE_TUNED: Final = re.compile(r"(ft:[^:]+):.*")
_AZURE_FINE_TUNED: Final = re.compile(r"(.+\.ft-)[0-9a-z-]+")
_COMPACT_DATE: Final = re.compile(r"-(20\d\d)(\d\d)(\d\d)(?=-|:|$)")

_GEOGRAPHIES: Final = "us|eu|apac|jp|au|ca|in|global"
_PROFILE: Final = re.compile(rf"(?:{_GEOGRAPHIES})\.(.+)")
_VENDORS: Final = (
    "ai21|amazon|anthropic|cohere|deepseek|google|meta|minimax|mistral|moonshotai|nvidia|openai|qwen|writer|zai"
)
_BEFORE: Final = re.compile(rf"(?:(?:{_GEOGRAPHIES})\.)?(?:(?:{_VENDORS})[./])?")
"""What may stand in front of a matched part: where Bedrock runs it, and who made it."""
_AFTER: Final = re.compile(
    r"""(?:[-@](?:
        20\d\d-?\d\d-?\d\d | \d\d-20\d\d | \d\d-\d\d | \d{3,4}  # dates, and versions that look like 001, 0613, 2509
      | latest | default | preview | exp | experimental | beta | v1 | v\d+:\d+
    ))* (?::\d+)? (?::\d+k)?""",
    re.VERBOSE,
)
"""What may stand behind a matched part."""
_BEGUN: Final = re.compile(r"(?:[-@:.]|-(?:20\d*(?:-\d*)*|0\d*))$")
"""How a clause's text ends when it stops inside a date or version, which is then judged with what follows."""


class Found(NamedTuple):
    """What a name leads to.

    Attributes:
        owner: the provider that lists the model.
        model: its entry.
        kind: how the name led there.
        spelling: the name as it matched, without what `unwrapped` took off if that was needed.
    """

    owner: Provider
    model: ModelInfo
    kind: MatchKind
    spelling: str


def find(provider: Provider, name: str, providers: list[Provider]) -> Found | None:
    """The entry that a name stands for; None = unknown.

    Args:
        provider: whose model the span names.
        name: lower case.
        providers: all of them, for models that one provider offers under another's list.
    """
    owners = [provider]
    for other in provider.fallback_model_providers or ():
        owners.extend(candidate for candidate in providers if candidate.id == other)
    for spelling in spellings(provider.id, name):
        for owner in owners:
            for model in owner.models:
                kind = matched(model, spelling)
                if kind is not None:
                    return Found(owner, model, kind if spelling == name or kind == "pattern" else "alias", spelling)
    return None


def spellings(provider: str, name: str) -> Iterator[str]:
    """The name, the name without its wrapping, and both with a compact date (``-20251211``) written with dashes."""
    bare = unwrapped(provider, name)
    if bare is None:
        return
    # Some of genai-prices' own entries are matched with the slash of the ARN in front.
    found = dict.fromkeys((name, bare, f"/{bare}") if provider == "aws" else (name, bare))
    yield from found
    yield from dict.fromkeys(spelling for spelling in map(_dashed, found) if spelling not in found)


def known_spellings(provider: str, name: str, matched: str | None) -> Iterator[str]:
    """Spellings of a name up to the one that was matched; what comes after would be another model."""
    for spelling in spellings(provider, name):
        yield spelling
        if spelling == matched:
            return


def without_geography(provider: str, name: str) -> str | None:
    """The model behind a cross-region profile of Bedrock (``us.``, ``eu.``); None where the name is none."""
    found = _PROFILE.fullmatch(name) if provider == "aws" else None
    return None if found is None else found[1]


def unwrapped(provider: str, name: str) -> str | None:
    """The name without what a cloud, a gateway or an account puts around it; None where it names no model.

    Args:
        provider: genai-prices' id of it.
        name: lower case.
    """
    arn = _ARN.fullmatch(name)
    if arn is not None:
        return arn[3] if arn[1] == "aws" and arn[2] in _NAMING_RESOURCES else None
    path = _PATH.fullmatch(name)
    if path is not None:
        return path[1]
    owner, slash, rest = name.partition("/")
    if slash and provider_of(owner) == provider:
        name = rest
    region = _REGION.fullmatch(name) if provider == "aws" else None
    if region is not None:
        name = region[1]
    for tuned in (_FINE_TUNED, _AZURE_FINE_TUNED):
        found = tuned.fullmatch(name)
        if found is not None:
            return found[1]
    return name


def matched(model: ModelInfo, name: str) -> MatchKind | None:
    """How the entry's own rule accepts the name, None where it does not or accepts too much."""
    if model.id.lower() == name and model.is_match(name):
        return "exact"
    return _accepted(model.match, name) if model.is_match(name) else None


def listed(clause: Any) -> set[str]:
    """Names that a match rule spells out in full."""
    if hasattr(clause, "equals"):
        return {clause.equals.lower()}
    inner = getattr(clause, "or_", None) or ()
    return {name for part in inner for name in listed(part)}


def _accepted(clause: Any, name: str) -> MatchKind | None:
    """How a clause that is true of the name accepts it, judged by the part of the name that it looks at."""
    if not clause.is_match(name):
        return None
    if hasattr(clause, "or_"):
        kinds = {_accepted(part, name) for part in clause.or_} - {None}
        return None if not kinds else "alias" if "alias" in kinds else "pattern"
    if hasattr(clause, "and_"):
        return "pattern" if any(_accepted(part, name) for part in clause.and_) else None
    if hasattr(clause, "equals"):
        return "alias"
    if hasattr(clause, "regex"):
        # A regular expression that fixes both ends says itself what may follow; other ones only exclude names.
        fixed = clause.regex.startswith("^") and clause.regex.endswith("$") and "?!" not in clause.regex
        return "pattern" if fixed or _leaves_little(name, re.search(clause.regex, name)) else None
    if hasattr(clause, "starts_with"):
        places = [(0, len(clause.starts_with))]
    elif hasattr(clause, "ends_with"):
        places = [(len(name) - len(clause.ends_with), len(name))]
    else:
        text = clause.contains.lower()
        places = [(found.start(), found.start() + len(text)) for found in re.finditer(re.escape(text), name)]
    return "pattern" if any(_harmless(name, start, end) for start, end in places) else None


def _leaves_little(name: str, found: re.Match[str] | None) -> bool:
    return found is not None and found.end() > found.start() and _harmless(name, *found.span())


def _harmless(name: str, start: int, end: int) -> bool:
    """Whether what stands around a part of a name cannot change the price."""
    if _BEFORE.fullmatch(name, 0, start) is None:
        return False
    if _AFTER.fullmatch(name, end):
        return True
    begun = _BEGUN.search(name, start, end)
    return begun is not None and _AFTER.fullmatch(name, begun.start()) is not None


def _dashed(name: str) -> str:
    def dashes(found: re.Match[str]) -> str:
        year, month, day = (int(part) for part in found.groups())
        try:
            return f"-{date(year, month, day).isoformat()}"
        except ValueError:
            return found[0]

    return _COMPACT_DATE.sub(dashes, name)

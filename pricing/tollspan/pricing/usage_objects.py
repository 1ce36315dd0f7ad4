"""Usage objects: what a provider says a call used, to disjoint quantities.

In: the usage object of a response as its JSON or its SDK gives it (``usage``, ``usageMetadata``, ``meta``,
``usage_info``), and the response around it where there is one. Out: a `UsageReading`. What stands where, and by which
convention it is counted, is data in `usage_shapes` and `conventions`; `usage_fields` and `usage_counts` walk those
tables, once for objects of one structure (`usage_plans`). Nothing heavy is imported: the instrumentation reads usage in
the user's process.

Nothing here raises, clamps or guesses. A count that cannot be right makes the whole reading invalid with the reason;
what was not given is absent; a number that looks like a count and that no table knows is named in ``unknown``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

from tollspan.pricing.conventions import disjoint
from tollspan.pricing.selectors import provider_of
from tollspan.pricing.usage_counts import (
    SCALES,
    Reader,
    Wrong,
    exact,
    is_no_count,
    known_names,
    shape_of,
    steps_of,
)
from tollspan.pricing.usage_fields import fields_of, flat_of, is_number, several
from tollspan.pricing.usage_plans import Known, known
from tollspan.pricing.usage_shapes import (
    CONVENTIONS_OF,
    METER_PATHS,
    METERS_WITHOUT_TOKENS,
    SEARCHES_BILLED_BY_PROMPT,
    TIERS,
    TOTAL_COSTS,
)

_LARGEST_COST: Final = 10**15
_COST_DECIMALS: Final = 60
"""More than any cost has; a number finer than that takes forever to write out."""
_NO_SEARCHES: Final = ("open_page", "find_in_page", "find")
"""Actions of OpenAI's ``web_search_call`` that read a page: ``search`` alone is said to incur the cost of a call
(developers.openai.com/api/docs/guides/tools-web-search, as quoted in community.openai.com/t/1365861, read
2026-11-21)."""
_TELLING: Final = frozenset({"output", "tool_usage", "candidates", "data"})
"""Fields of a response that tell of usage."""
_NOTHING: Final[Mapping[Any, Any]] = {}
_BY_PROMPT: Final = re.compile(SEARCHES_BILLED_BY_PROMPT)


@dataclass(frozen=True, slots=True)
class UsageReading:
    """What a usage object says.

    Attributes:
        quantities: meter → base steps of the meter (`meters.py`), disjoint. Empty when ``invalid``.
        convention: convention by which the tokens were counted, a key of `conventions.CONVENTIONS`; None where the
            object tells no tokens.
        invalid: why the usage cannot be right, one of the reasons of the ledger; None when it can.
        reported_cost: what the provider itself says the call cost, USD, exactly as it wrote it; None where it does not
            say, or says what cannot be a cost.
        service_tier: tier as served, in lower case; ``fast`` in Anthropic's fast mode. None where it is not told.
        unknown: names of numbers above zero that look like counts and that no table knows, sorted: usage that may be
            billed and is not in ``quantities``.
        residency: where the provider says that it processed the call, in lower case; None where it does not say.
    """

    quantities: dict[str, int] = field(default_factory=dict)
    convention: str | None = None
    invalid: str | None = None
    reported_cost: Decimal | None = None
    service_tier: str | None = None
    unknown: tuple[str, ...] = ()
    residency: str | None = None


def read_usage(
    provider: str | None, usage: Any, *, model: str | None = None, response: Any = None, form: str | None = None
) -> UsageReading:
    """Read one call's usage.

    Args:
        provider: who served the call, in any spelling of `selectors.PROVIDERS`; it decides only what the object leaves
            open. None where that is not known.
        usage: the usage object: a mapping as JSON gives it (its numbers int, float or Decimal), or an object of an SDK
            (``model_dump``, protobuf or plain attributes). None where the response has none.
        model: model as served; it decides whether Google bills searches by the query or by the prompt.
        response: the response around the usage, in the same forms. What providers tell only there is read from it: the
            service tier, searches, file searches, sandboxes, images.
        form: the provider in whose form usage is written, in any spelling, where that is not who served the call: an
            object of Anthropic's protocol that another provider speaks. It decides the layout of the barest objects.

    Returns:
        The reading. No input raises.
    """
    owner = provider_of(provider.strip().lower()) if isinstance(provider, str) else None
    maker = owner if form is None else provider_of(form)
    around = _NOTHING if response is None else fields_of(response)
    found = known(owner, maker, usage)
    if found is not None:
        try:
            return _by_plan(found, owner, model, around)
        except Wrong:
            pass  # what is wrong, and what that leaves, is told in full
    return _in_full(owner, maker, usage, model, around)


def _in_full(
    owner: str | None, maker: str | None, usage: Any, model: str | None, around: Mapping[Any, Any]
) -> UsageReading:
    """The reading of any object, name by name."""
    flat = flat_of(usage)
    shape = shape_of(flat, maker)
    reader = Reader(flat)
    counts = reader.all(dict.fromkeys(shape.counts, 1), shape.counts) if shape else {}
    told = bool(counts) or reader.invalid is not None
    quantities = reader.all(SCALES, METER_PATHS)
    if not told:
        quantities = reader.all(SCALES, METERS_WITHOUT_TOKENS) | quantities
    for meter, value in _from_response(around, model, told):
        steps = reader.steps([value], SCALES[meter])
        if steps is not None:
            quantities.setdefault(meter, steps)

    convention, invalid = None, reader.invalid
    if shape is not None and told:
        conventions = CONVENTIONS_OF.get((shape.name, owner), shape.conventions)
        convention, tokens, reason = _counted(conventions, counts, Reader(flat).first(shape.total, 1))
        invalid = invalid or reason
        quantities |= tokens
    return UsageReading(
        quantities={} if invalid else quantities,
        convention=convention,
        invalid=invalid,
        reported_cost=_cost(flat, owner),
        service_tier=_tier(flat, around),
        unknown=tuple(sorted((*_unknown(flat, known_names(shape)), *_unknown(_tool_tokens(around), frozenset())))),
        residency=_word(flat.get("inference_geo")),
    )


def _by_plan(found: Known, owner: str | None, model: str | None, around: Mapping[Any, Any]) -> UsageReading:
    """The same of an object whose structure was seen before, and in which all is right; else raises `Wrong`."""
    plan = found.plan
    quantities = found.meters()
    telling = bool(around) and not _TELLING.isdisjoint(around)
    if telling:
        for meter, value in _from_response(around, model, plan.told):
            quantities.setdefault(meter, steps_of([value], SCALES[meter]))
    convention = None
    if plan.told:
        convention, tokens = found.tokens()
        quantities |= tokens
    beside = found.beside() if plan.beside else _NOTHING
    unknown = found.unknown() if plan.unknown else ()
    if telling:
        unknown = (*unknown, *_unknown(_tool_tokens(around), frozenset()))
    return UsageReading(
        quantities,
        convention,
        None,
        _cost(beside, owner) if beside else None,
        _tier(beside, around) if beside or around else None,
        tuple(sorted(unknown)) if unknown else (),
        _word(beside.get("inference_geo")),
    )


def _counted(
    conventions: tuple[str, ...], counts: Mapping[str, int], total: int | None
) -> tuple[str, dict[str, int], str | None]:
    """The convention that holds, and what `disjoint` makes of the counts by it."""
    first = (conventions[0], *disjoint(conventions[0], counts))
    if total is None or sum(first[1].values()) == total:
        return first
    others = ((convention, *disjoint(convention, counts)) for convention in conventions[1:])
    return next((reading for reading in others if reading[1] and sum(reading[1].values()) == total), first)


# -- beside the counts -------------------------------------------------------------------------------------------------


def response_tools(response: Mapping[Any, Any]) -> Iterator[tuple[str, Any]]:
    """Meters of the provider's own tools that a response of OpenAI's Responses API tells, and their quantities as it
    gives them: what it sums up itself, else what its output lists."""
    items = [fields_of(item) for item in _items(response.get("output"))]
    searches = fields_of(fields_of(response.get("tool_usage")).get("web_search")).get("num_requests")
    if searches is None:
        calls = (item for item in items if item.get("type") == "web_search_call")
        searches = sum(fields_of(item.get("action")).get("type") not in _NO_SEARCHES for item in calls) or None
    if searches is not None:
        yield "web_searches", searches  # the billable ones
    done = [item for item in items if item.get("type") == "file_search_call"]
    if done:
        yield "file_searches", len(done)
    # A sandbox is billed once, however often it is called.
    containers = [item.get("container_id") for item in items if item.get("type") == "code_interpreter_call"]
    sandboxes = {container if isinstance(container, str) else None for container in containers}
    if sandboxes:
        yield "code_interpreter.sessions", len(sandboxes)


def _from_response(around: Mapping[Any, Any], model: str | None, tokens: bool) -> Iterator[tuple[str, Any]]:
    """Meters that only the response tells, and their quantities as it gives them."""
    yield from response_tools(around)
    # A query counts once, and an empty one not at all (ai.google.dev/gemini-api/docs/google-search, as quoted in
    # discuss.ai.google.dev/t/168136, read 2026-11-21).
    grounded = [_grounding(fields_of(item)) for item in _items(around.get("candidates"))]
    queries = {query for grounding in grounded for query in _queries(grounding) if query}
    if queries:
        yield "web_searches", 1 if model and _BY_PROMPT.search(model.lower()) else len(queries)
    # Maps are billed where one of their places came back (ai.google.dev/gemini-api/docs/maps-grounding). How often they
    # were asked is told nowhere, so that this is the least where each query is billed.
    if any(_is_of_maps(grounding) for grounding in grounded):
        yield "maps_searches", 1
    if not tokens:
        made = [fields_of(item) for item in _items(around.get("data"))]
        if images := sum(1 for item in made if item.get("url") or item.get("b64_json")):
            yield "images", images


def _grounding(candidate: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return fields_of(candidate.get("groundingMetadata") or candidate.get("grounding_metadata"))


def _is_of_maps(grounding: Mapping[Any, Any]) -> bool:
    """Whether a source of the answer is a place on Google Maps."""
    chunks = _items(grounding.get("groundingChunks") or grounding.get("grounding_chunks"))
    return any(fields_of(chunk).get("maps") is not None for chunk in chunks)


def _queries(grounding: Mapping[Any, Any]) -> Iterator[str]:
    for query in _items(grounding.get("webSearchQueries") or grounding.get("web_search_queries")):
        if isinstance(query, str):
            yield query


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _cost(flat: Mapping[str, Any], owner: str | None) -> Decimal | None:
    for name, per_dollar, providers in TOTAL_COSTS:
        value = flat.get(name)
        if is_number(value) and (providers is None or owner in providers):
            amount = exact(value)
            fine = amount.is_finite() and -int(amount.as_tuple().exponent) > _COST_DECIMALS
            if amount.is_finite() and not fine and 0 <= amount < _LARGEST_COST * per_dollar:
                return amount if per_dollar == 1 else amount / per_dollar
    return None


def _tier(flat: Mapping[str, Any], around: Mapping[Any, Any]) -> str | None:
    """Service tier as served."""
    if _word(flat.get("speed")) == "fast":
        return "fast"
    of_response = around.get("service_tier") or around.get("serviceTier")
    if not isinstance(of_response, str):  # Bedrock: {"type": "flex"}
        of_response = fields_of(of_response).get("type")
    for value in (flat.get("service_tier"), flat.get("traffic_type"), of_response):
        word = _word(value)
        if word and (tier := TIERS.get(word, word)):
            return tier
    return None


def _word(value: Any) -> str | None:
    return value.strip().lower() or None if isinstance(value, str) else None


def _tool_tokens(around: Mapping[Any, Any]) -> dict[str, Any]:
    """Tokens of OpenAI's image tool: another model's, which the response does not name."""
    return flat_of({"tool_usage": {"image_gen": fields_of(around.get("tool_usage")).get("image_gen")}})


def _unknown(flat: Mapping[str, Any], known: frozenset[str]) -> Iterator[str]:
    for name, value in flat.items():
        if name not in known and any(is_number(one) and one for one in several(value)) and not is_no_count(name):
            yield name

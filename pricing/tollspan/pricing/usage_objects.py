"""Usage objects: what a provider says a call used, to disjoint quantities.

In: the usage object of a response as its JSON or its SDK gives it (``usage``, ``usageMetadata``, ``meta``,
``usage_info``), and the response around it where there is one. Out: a `UsageReading`. What stands where, and by which
convention it is counted, is data in `usage_shapes` and `conventions`; this module only walks those tables. It imports
nothing heavy: the instrumentation reads usage in the user's process.

Nothing here raises, clamps or guesses. A count that cannot be right makes the whole reading invalid with the reason;
what was not given is absent; a number that looks like a count and that no table knows is named in ``unknown``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from typing import Any, Final

from tollspan.pricing.conventions import LARGEST_COUNT, disjoint
from tollspan.pricing.meters import METERS
from tollspan.pricing.selectors import provider_of
from tollspan.pricing.usage_shapes import (
    BARE,
    CONVENTIONS_OF,
    METER_PATHS,
    METERS_WITHOUT_TOKENS,
    NO_COUNTS,
    SEARCHES_BILLED_BY_PROMPT,
    SHAPES,
    TIERS,
    TOTAL_COSTS,
    Shape,
)

NOT_A_NUMBER: Final = "usage_not_a_number"
FRACTIONAL: Final = "usage_fractional"
NEGATIVE: Final = "usage_negative"
TOO_LARGE: Final = "usage_too_large"

DEEPEST: Final = 6
"""Levels of a usage object that are looked at."""

_LARGEST_STEPS: Final = 2**63 - 1
_LARGEST_COST: Final = 10**15
_COST_DECIMALS: Final = 60
"""More than any cost has; a number finer than that takes forever to write out."""
_NO_SCALAR: Final = object()
"""Stands in flat names for what is a list or a mapping: where a count is expected, it is none."""
_NO_SEARCHES: Final = ("open_page", "find_in_page", "find")
"""Actions of OpenAI's ``web_search_call`` that read a page: ``search`` alone is said to incur the cost of a call
(developers.openai.com/api/docs/guides/tools-web-search, as quoted in community.openai.com/t/1365861, read
2026-11-21)."""
_TAGS: Final = ("modality", "ttl", "type")
"""Fields by which the items of a list are told apart."""
_HUMP: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_NO_COUNT: Final = re.compile(NO_COUNTS)
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


def read_usage(provider: str | None, usage: Any, *, model: str | None = None, response: Any = None) -> UsageReading:
    """Read one call's usage.

    Args:
        provider: who served the call, in any spelling of `selectors.PROVIDERS`; it decides only what the object leaves
            open. None where that is not known.
        usage: the usage object: a mapping as JSON gives it (its numbers int, float or Decimal), or an object of an SDK
            (``model_dump``, protobuf or plain attributes). None where the response has none.
        model: model as served; it decides whether Google bills searches by the query or by the prompt.
        response: the response around the usage, in the same forms. What providers tell only there is read from it: the
            service tier, searches, file searches, sandboxes, images.

    Returns:
        The reading. No input raises.
    """
    owner = provider_of(provider.strip().lower()) if isinstance(provider, str) else None
    flat = _flat(usage)
    around = _fields(response)
    shape = _shape(flat, owner)
    reader = _Reader(flat)
    counts = reader.all(dict.fromkeys(shape.counts, 1), shape.counts) if shape else {}
    told = bool(counts) or reader.invalid is not None
    quantities = reader.all(_SCALES, METER_PATHS)
    if not told:
        quantities = reader.all(_SCALES, METERS_WITHOUT_TOKENS) | quantities
    for meter, value in _from_response(around, model, told):
        steps = reader.steps([value], _SCALES[meter])
        if steps is not None:
            quantities.setdefault(meter, steps)

    convention, invalid = None, reader.invalid
    if shape is not None and told:
        conventions = CONVENTIONS_OF.get((shape.name, owner), shape.conventions)
        convention, tokens, reason = _counted(conventions, counts, _Reader(flat).first(shape.total, 1))
        invalid = invalid or reason
        quantities |= tokens
    return UsageReading(
        quantities={} if invalid else quantities,
        convention=convention,
        invalid=invalid,
        reported_cost=_cost(flat, owner),
        service_tier=_tier(flat, around),
        unknown=tuple(sorted((*_unknown(flat, _known(shape)), *_unknown(_tool_tokens(around), frozenset())))),
        residency=_word(flat.get("inference_geo")),
    )


# -- from an object to flat names --------------------------------------------------------------------------------------


def _flat(usage: Any) -> dict[str, Any]:
    """Scalars of an object by flat name (`usage_shapes` says how names are made); what stands under one name several
    times, in a list, is a tuple. Where the object has no scalar, and in lists whose items nothing tells apart, there is
    `_NO_SCALAR` before what was found: a count that is read there cannot be right."""
    out: dict[str, Any] = {}
    _flatten(_fields(usage), "", out, DEEPEST)
    return out


def _flatten(fields: Mapping[Any, Any], prefix: str, out: dict[str, Any], levels: int) -> None:
    for key, value in fields.items():
        if value is None or not isinstance(key, str) or key.startswith("_"):
            continue
        name = prefix + _snake(key)
        if isinstance(value, (int, float, str, Decimal)):
            out.setdefault(name, value)
        elif not levels:
            continue
        elif isinstance(value, (list, tuple)):
            out.setdefault(name, _NO_SCALAR)
            for item in value:
                more = _flat_item(item, name, levels - 1)
                for below, found in more.items():
                    out[below] = (*_several(out[below]), *_several(found)) if below in out else found
        else:
            out.setdefault(name, _NO_SCALAR)
            _flatten(_fields(value), f"{name}.", out, levels - 1)


def _flat_item(item: Any, name: str, levels: int) -> dict[str, Any]:
    """An item of a list under its tag; one without a tag, or without fields, behind `_NO_SCALAR`."""
    fields = _fields(item)
    tag = next((fields[tag] for tag in _TAGS if isinstance(fields.get(tag), str)), None)
    more: dict[str, Any] = {}
    if tag is not None:
        _flatten(fields, f"{name}.{tag.lower()}.", more, levels)
        return more
    _flatten(fields, f"{name}.", more, levels)
    if _is_number(item):
        more[name] = item
    return {below: (_NO_SCALAR, *_several(found)) for below, found in more.items()}


def _fields(value: Any) -> Mapping[Any, Any]:
    """Fields of a mapping or of an SDK's object, one level deep; what has none, or raises when asked, has no fields."""
    if isinstance(value, dict):
        return value
    if value is None or isinstance(value, (str, bytes, int, float, list, tuple, type)):
        return {}
    try:
        return _fields_of(value)
    except Exception:  # noqa: BLE001  (it is the code of another: whatever it raises must not end the user's call)
        return {}


def _fields_of(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return dict(value)
    # The instance dict is read directly: dumping a whole response would copy its text.
    own = getattr(value, "__dict__", None)
    if isinstance(own, dict):
        more = own.get("__pydantic_extra__") or getattr(value, "__pydantic_extra__", None)
        return own | more if isinstance(more, dict) else own
    if callable(dump := getattr(value, "model_dump", None)):
        made = dump()
    else:  # protobuf, as xAI's SDK has it
        made = {known.name: getattr(value, known.name) for known in value.DESCRIPTOR.fields}
    return made if isinstance(made, Mapping) else {}


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


@lru_cache(maxsize=4096)
def _snake(key: str) -> str:
    return _HUMP.sub("_", key).lower()


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, Decimal)) and not isinstance(value, bool)


# -- counts ------------------------------------------------------------------------------------------------------------

_SCALES: Final = {name: meter.scale for name, meter in METERS.items()}


class _Wrong(Exception):
    """A value that cannot be a quantity; its argument is the reason."""


class _Reader:
    """Reads quantities by path, and remembers the first reason why one cannot be right.

    Attributes:
        invalid: that reason.
    """

    __slots__ = ("_flat", "invalid")

    def __init__(self, flat: Mapping[str, Any]) -> None:
        self._flat = flat
        self.invalid: str | None = None

    def all(self, scales: Mapping[str, int], table: Mapping[str, tuple[str, ...]]) -> dict[str, int]:
        """Quantities in base steps by name, only what is given and right."""
        found = ((name, self.first(paths, scales[name])) for name, paths in table.items())
        return {name: steps for name, steps in found if steps is not None}

    def first(self, paths: Iterable[str], scale: int) -> int | None:
        """Quantity at the first path of which anything is given."""
        for path in paths:
            if given := [self._flat[name] for name in _summands(path) if name in self._flat]:
                return self.steps([value for some in given for value in _several(some)], scale)
        return None

    def steps(self, values: list[Any], scale: int) -> int | None:
        """Sum of values in base steps; None, and a reason, where it cannot be right."""
        try:
            total = sum(_steps(value, scale) for value in values)
            if total > (LARGEST_COUNT if scale == 1 else _LARGEST_STEPS):
                raise _Wrong(TOO_LARGE)
        except _Wrong as wrong:
            self.invalid = self.invalid or str(wrong)
            return None
        return total


def _steps(value: Any, scale: int) -> int:
    """A value in base steps, rounded half to even below a step; a count has to be whole."""
    if type(value) is int:
        if value < 0:
            raise _Wrong(NEGATIVE)
        return value * scale
    if not _is_number(value) or _exact(value).is_nan():
        raise _Wrong(NOT_A_NUMBER)
    if value < 0:
        raise _Wrong(NEGATIVE)
    if value > _LARGEST_STEPS:
        raise _Wrong(TOO_LARGE)
    if scale == 1 and value != int(value):
        raise _Wrong(FRACTIONAL)
    return round(_exact(value) * scale)


def _exact(value: Any) -> Decimal:
    """A number as it was written: a float by its shortest form."""
    return Decimal(float.__repr__(value) if isinstance(value, float) else value)


@lru_cache(maxsize=1024)
def _summands(path: str) -> tuple[str, ...]:
    return tuple(path.split(" + "))


def _shape(flat: Mapping[str, Any], owner: str | None) -> Shape | None:
    """The first shape of which the object has a mark; the barest have that of their provider. None: no tokens."""
    there = {name.partition(".")[0] for name in flat} | flat.keys()
    for shape in SHAPES:
        if not there.isdisjoint(shape.marks):
            return shape
    if there.isdisjoint(("input_tokens", "output_tokens")):
        return None
    return next((shape for shape in SHAPES if owner in shape.bare), BARE)


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
    items = [_fields(item) for item in _items(response.get("output"))]
    searches = _fields(_fields(response.get("tool_usage")).get("web_search")).get("num_requests")
    if searches is None:
        calls = (item for item in items if item.get("type") == "web_search_call")
        searches = sum(_fields(item.get("action")).get("type") not in _NO_SEARCHES for item in calls) or None
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
    grounded = [_grounding(_fields(item)) for item in _items(around.get("candidates"))]
    queries = {query for grounding in grounded for query in _queries(grounding) if query}
    if queries:
        yield "web_searches", 1 if model and _BY_PROMPT.search(model.lower()) else len(queries)
    # Maps are billed where one of their places came back (ai.google.dev/gemini-api/docs/maps-grounding). How often they
    # were asked is told nowhere, so that this is the least where each query is billed.
    if any(_is_of_maps(grounding) for grounding in grounded):
        yield "maps_searches", 1
    if not tokens:
        made = [_fields(item) for item in _items(around.get("data"))]
        if images := sum(1 for item in made if item.get("url") or item.get("b64_json")):
            yield "images", images


def _grounding(candidate: Mapping[Any, Any]) -> Mapping[Any, Any]:
    return _fields(candidate.get("groundingMetadata") or candidate.get("grounding_metadata"))


def _is_of_maps(grounding: Mapping[Any, Any]) -> bool:
    """Whether a source of the answer is a place on Google Maps."""
    chunks = _items(grounding.get("groundingChunks") or grounding.get("grounding_chunks"))
    return any(_fields(chunk).get("maps") is not None for chunk in chunks)


def _queries(grounding: Mapping[Any, Any]) -> Iterator[str]:
    for query in _items(grounding.get("webSearchQueries") or grounding.get("web_search_queries")):
        if isinstance(query, str):
            yield query


def _items(value: Any) -> Iterable[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _cost(flat: Mapping[str, Any], owner: str | None) -> Decimal | None:
    for name, per_dollar, providers in TOTAL_COSTS:
        value = flat.get(name)
        if _is_number(value) and (providers is None or owner in providers):
            amount = _exact(value)
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
        of_response = _fields(of_response).get("type")
    for value in (flat.get("service_tier"), flat.get("traffic_type"), of_response):
        word = _word(value)
        if word and (tier := TIERS.get(word, word)):
            return tier
    return None


def _word(value: Any) -> str | None:
    return value.strip().lower() or None if isinstance(value, str) else None


def _tool_tokens(around: Mapping[Any, Any]) -> dict[str, Any]:
    """Tokens of OpenAI's image tool: another model's, which the response does not name."""
    return _flat({"tool_usage": {"image_gen": _fields(around.get("tool_usage")).get("image_gen")}})


def _unknown(flat: Mapping[str, Any], known: frozenset[str]) -> Iterator[str]:
    for name, value in flat.items():
        if name not in known and any(_is_number(one) and one for one in _several(value)) and not _is_no_count(name):
            yield name


@lru_cache(maxsize=4096)
def _is_no_count(name: str) -> bool:
    return _NO_COUNT.search(name) is not None


@lru_cache(maxsize=64)
def _known(shape: Shape | None) -> frozenset[str]:
    """Every name that is looked at in an object of this shape."""
    tables = (*((shape.counts,) if shape else ()), METER_PATHS, METERS_WITHOUT_TOKENS)
    return frozenset(n for table in tables for paths in table.values() for path in paths for n in _summands(path))

"""Plans: what is where in usage objects of one structure, found once.

In: a usage object, and who served it. Out: for a structure that was seen before, its counts, meters and whatever else
is read, by a walk over its fields and a few look-ups: no names are made and no table is searched. The usage objects of
a client have a handful of structures: which fields are given, and which items are in a list.

A plan is the tables of `usage_shapes` and `conventions` applied to positions in place of values, by the functions that
apply them to values. It knows only what is right: whatever raises `Wrong` here is for `usage_objects` to read in full.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from tollspan.pricing.conventions import CONVENTIONS, LARGEST_COUNT, WHOLES
from tollspan.pricing.usage_counts import SCALES, Wrong, is_no_count, known_names, shape_of, steps_of, summands
from tollspan.pricing.usage_fields import Place, fields_of, is_number, placed, several, walk
from tollspan.pricing.usage_shapes import CONVENTIONS_OF, METER_PATHS, METERS_WITHOUT_TOKENS, TOTAL_COSTS

MOST_PLANS: Final = 256
"""Plans that are kept. When there are more, all are let go: then structures come from somebody who makes them up."""
MOST_FIELDS: Final = 256
"""Fields, and marks between them, of the largest structure that is kept."""
MOST_LETTERS: Final = 8192
"""Letters of all its names."""

BESIDE: Final = ("speed", "service_tier", "traffic_type", "inference_geo", *(name for name, _, _ in TOTAL_COSTS))
"""Names that are looked at beside the counts."""

Positions = tuple[int, ...]
"""Where the summands of a quantity are."""


class Sums(NamedTuple):
    """Meters of tokens by one convention.

    Attributes:
        convention: its name.
        meters: meter, the count that it is named after, and the signed counts that are added to it.
    """

    convention: str
    meters: tuple[tuple[str, str, tuple[tuple[int, str], ...]], ...]


class Plan(NamedTuple):
    """What is where in objects of one structure.

    Attributes:
        told: tokens are told.
        counts: count of `conventions.COUNTS` → positions.
        total: positions of the number of all tokens; none where it is not told.
        wholes: counts that are the sum of others here.
        sums: conventions that it may be counted by.
        meters: meter, its scale, positions.
        beside: name of `BESIDE` → position.
        unknown: name that no table knows → positions.
    """

    told: bool
    counts: tuple[tuple[str, Positions], ...]
    total: Positions
    wholes: tuple[tuple[str, tuple[str, ...]], ...]
    sums: tuple[Sums, ...]
    meters: tuple[tuple[str, int, Positions], ...]
    beside: tuple[tuple[str, int], ...]
    unknown: tuple[tuple[str, Positions], ...]


class Known(NamedTuple):
    """A usage object, and the plan of its structure.

    Attributes:
        plan: the plan.
        scalars: the object's scalars, by position.
    """

    plan: Plan
    scalars: list[Any]

    def meters(self) -> dict[str, int]:
        """Quantities that are no tokens, by meter. Raises `Wrong`."""
        scalars = self.scalars
        quantities: dict[str, int] = {}
        for name, scale, places in self.plan.meters:
            value = scalars[places[0]]
            if scale > 1 or len(places) > 1 or type(value) is not int or not 0 <= value <= LARGEST_COUNT:
                value = steps_of([scalars[at] for at in places], scale)
            quantities[name] = value
        return quantities

    def tokens(self) -> tuple[str, dict[str, int]]:
        """Convention, and quantities of tokens by meter. Raises `Wrong`."""
        scalars = self.scalars
        plan = self.plan
        counts: dict[str, int] = {}
        for name, places in plan.counts:
            value = scalars[places[0]]
            if len(places) > 1 or type(value) is not int or not 0 <= value <= LARGEST_COUNT:
                value = steps_of([scalars[at] for at in places], 1)
            counts[name] = value
        for whole, parts in plan.wholes:
            counts[whole] = sum([counts[part] for part in parts])
        sums = plan.sums[0]
        first = _summed(sums, counts)
        if first is None:
            raise Wrong  # inconsistent
        if plan.total:
            try:
                total = steps_of([scalars[at] for at in plan.total], 1)
            except Wrong:
                return sums.convention, first
            if sum(first.values()) != total:
                for other in plan.sums[1:]:
                    tokens = _summed(other, counts)
                    if tokens and sum(tokens.values()) == total:
                        return other.convention, tokens
        return sums.convention, first

    def beside(self) -> dict[str, Any]:
        """Scalars by name that are looked at beside the counts."""
        scalars = self.scalars
        return {name: scalars[at] for name, at in self.plan.beside}

    def unknown(self) -> list[str]:
        """Names of numbers above zero that no table knows."""
        scalars = self.scalars
        names: list[str] = []
        for name, places in self.plan.unknown:
            for at in places:
                value = scalars[at]
                if value and type(value) is not str and is_number(value):
                    names.append(name)
                    break
        return names


_plans: Final[dict[tuple[Any, ...], Plan | None]] = {}
"""Who served it, whose form it has, and a structure → its plan; None: nothing of it is right."""


def known(owner: str | None, maker: str | None, usage: Any) -> Known | None:
    """A usage object with its plan. None where it has none, and has to be read in full.

    Args:
        owner: who served the call, by the name that prices stand under.
        maker: whose form the barest objects have, by the same name.
        usage: the object.
    """
    fields = fields_of(usage)
    structure: list[Any] = [owner, maker]
    scalars: list[Any] = []
    walk(fields, structure, scalars)
    key = tuple(structure)
    plan = _plans.get(key, _plans)
    if plan is _plans:
        if len(key) > MOST_FIELDS or sum(len(part) for part in key if isinstance(part, str)) > MOST_LETTERS:
            return None
        if len(_plans) >= MOST_PLANS:
            _plans.clear()
        plan = _plans[key] = _made(owner, maker, fields)
    return None if plan is None else Known(plan, scalars)  # type: ignore[arg-type]


class _NoPlan(Exception):
    """Something that can only be wrong stands where a quantity is looked for."""


def _made(owner: str | None, maker: str | None, fields: Mapping[Any, Any]) -> Plan | None:
    names = placed(fields)
    shape = shape_of(names, maker)
    try:
        counts = tuple(_found(names, shape.counts)) if shape else ()
        told = bool(counts)
        tables = (METER_PATHS,) if told else (METERS_WITHOUT_TOKENS, METER_PATHS)
        meters = {name: places for table in tables for name, places in _found(names, table)}
    except _NoPlan:
        return None
    total: Positions = ()
    conventions: tuple[str, ...] = ()
    if shape is not None and told:
        try:
            total = next((places for _, places in _found(names, {"total": shape.total})), ())
        except _NoPlan:
            pass  # a total that is none decides nothing
        conventions = CONVENTIONS_OF.get((shape.name, owner), shape.conventions)
    given = {name for name, _ in counts}
    wholes = tuple(_wholes(given))
    beside = tuple((name, place.at) for name in BESIDE if isinstance(place := names.get(name), Place))
    unknown = tuple(_unread(names, known_names(shape)))
    return Plan(
        told,
        counts,
        total,
        wholes,
        tuple(Sums(convention, _sums(convention, given)) for convention in conventions),
        tuple((name, SCALES[name], places) for name, places in meters.items()),
        beside,
        unknown,
    )


def _found(names: Mapping[str, Any], table: Mapping[str, tuple[str, ...]]) -> Iterator[tuple[str, Positions]]:
    """Rows of a table of which anything is given, with the positions at the first path of which it is."""
    for name, paths in table.items():
        for path in paths:
            if given := [names[part] for part in summands(path) if part in names]:
                places = [place for some in given for place in several(some)]
                if not all(isinstance(place, Place) for place in places):
                    raise _NoPlan
                yield name, tuple(place.at for place in places)
                break


def _wholes(given: set[str]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Counts that are not given and whose parts are; they are added to those that are given."""
    for whole, parts in WHOLES.items():
        if whole not in given and (told := tuple(part for part in parts if part in given)):
            given.add(whole)
            yield whole, told


def _sums(convention: str, given: set[str]) -> tuple[tuple[str, str, tuple[tuple[int, str], ...]], ...]:
    """Meters that are given when these counts are; the first term of each is added once."""
    return tuple(
        (meter, terms[0][1], tuple((sign, name) for sign, name in terms[1:] if name in given))
        for meter, terms in CONVENTIONS[convention].items()
        if terms[0][1] in given
    )


def _summed(sums: Sums, counts: Mapping[str, int]) -> dict[str, int] | None:
    """What `conventions.disjoint` gives; None where it says that the counts are inconsistent."""
    quantities: dict[str, int] = {}
    for meter, first, more in sums.meters:
        quantity = counts[first]
        for sign, name in more:
            quantity += sign * counts[name]
        if quantity < 0:
            return None
        quantities[meter] = quantity
    return quantities


def _unread(names: Mapping[str, Any], read: frozenset[str]) -> Iterator[tuple[str, Positions]]:
    for name, found in names.items():
        places = tuple(place.at for place in several(found) if isinstance(place, Place))
        if places and name not in read and not is_no_count(name):
            yield name, places

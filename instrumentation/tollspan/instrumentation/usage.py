"""From a provider's usage object to the attributes of a span: the one place where instrumentations say what was used.

In: the usage object of a response, as the client or the wire gives it. Out: attributes in `Call.attributes`. What the
object says is read by `tollspan.pricing.usage_objects`; here its disjoint meters become the inclusive counts of the
GenAI conventions, and what has no name there becomes ``tollspan.usage.<meter>``. The processor takes the same meters
apart again: what it finds on the span is what was read here, meter by meter.

Assigned, never added: a later object of the same call takes the place of what an earlier one said. Unknown is absent: a
whole whose main part was not told is not put together from the parts that were.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterable
from typing import Any, Final

from tollspan.instrumentation.calls import Call
from tollspan.pricing import attributes as names

__all__ = ["put_usage"]

_log: Final = logging.getLogger(__name__)

_named: Final[set[str]] = set()
"""Unknown counts that the log has named."""
_MOST_NAMED: Final = 200


def put_usage(
    call: Call, provider: str, usage: Any, *, model: str | None = None, response: Any = None, form: str | None = None
) -> None:
    """Put what a call used on its span.

    Args:
        call: the open call; its attributes are assigned to.
        provider: who served and bills it, ``gen_ai.provider.name``.
        usage: usage object, as `tollspan.pricing.usage_objects.read_usage` takes it; None where there is none, and then
            only what ``response`` tells is put.
        model: model as served, where it is known.
        response: the response around the usage.
        form: provider whose protocol the client speaks, where who bills may be another.

    May raise only what a hostile object raises; called within a guard.
    """
    tables = _tables()
    reading = tables.read_usage(provider, usage, model=model, response=response, form=form)
    attributes = call.attributes
    if reading.invalid is not None:
        for key in tables.COUNTS.intersection(attributes):
            del attributes[key]
    else:
        attributes.pop(names.USAGE_INVALID, None)
    attributes.update(tables.usage_attributes(reading, provider))
    if reading.unknown:
        _tell_unknown(provider, reading.unknown)


@functools.cache
def _tables() -> Any:
    # Imported by the first call that tells of usage: importing a client is not to pay for it.
    from tollspan.instrumentation import usage_attributes

    return usage_attributes


def _tell_unknown(provider: str, unknown: Iterable[str]) -> None:
    new = [name for name in unknown if name not in _named]
    if new and len(_named) < _MOST_NAMED:
        _named.update(new)
        _log.warning(
            "tollspan: %s reports usage that no meter counts, and that its bill may contain: %s",
            provider,
            ", ".join(new),
        )

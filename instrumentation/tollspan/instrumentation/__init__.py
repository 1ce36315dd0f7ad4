"""OpenTelemetry instrumentation that says what every inference used, and for whom.

This package runs in the user's process. `tag`, `feature_read` and `cache_lookup` are what a program calls; everything
else is switched on by ``opentelemetry-instrument`` through entry points, or by each instrumentor's ``instrument()``.
"""

from typing import TYPE_CHECKING, Any

from tollspan.instrumentation.guard import faults
from tollspan.instrumentation.tags import TagsInstrumentor, current_tags, tag

if TYPE_CHECKING:
    from tollspan.instrumentation.data_reads import CacheLookup, FeatureRead, cache_lookup, feature_read

__all__ = [
    "CacheLookup",
    "FeatureRead",
    "TagsInstrumentor",
    "cache_lookup",
    "current_tags",
    "faults",
    "feature_read",
    "tag",
]

_LATER = frozenset({"CacheLookup", "FeatureRead", "cache_lookup", "feature_read"})
"""Names of `data_reads`, which is imported by the program that asks for one: the launcher's every program imports us."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tollspan.instrumentation import data_reads

    return getattr(data_reads, name)

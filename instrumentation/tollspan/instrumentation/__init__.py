"""OpenTelemetry instrumentation that says what every inference used, and for whom.

This package runs in the user's process. `tag`, `observe`, `feature_read`, `cache_lookup`, `keep_trace` and `drop_trace`
are what a program calls; everything else is switched on by ``opentelemetry-instrument`` through entry points, or by
each instrumentor's ``instrument()``.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tollspan.instrumentation.guard import faults
from tollspan.instrumentation.tags import TagsInstrumentor, current_tags, tag

if TYPE_CHECKING:
    from tollspan.instrumentation.data_reads import CacheLookup, FeatureRead, cache_lookup, feature_read
    from tollspan.instrumentation.keep import drop_trace, keep_trace
    from tollspan.instrumentation.sampler import TollspanSampler
    from tollspan.instrumentation.torch_observe import observe
    from tollspan.instrumentation.torch_shares import Request

__all__ = [
    "CacheLookup",
    "FeatureRead",
    "Request",
    "TagsInstrumentor",
    "TollspanSampler",
    "cache_lookup",
    "current_tags",
    "drop_trace",
    "faults",
    "feature_read",
    "keep_trace",
    "observe",
    "tag",
]

_LATER = {
    **dict.fromkeys(("CacheLookup", "FeatureRead", "cache_lookup", "feature_read"), "data_reads"),
    **dict.fromkeys(("drop_trace", "keep_trace"), "keep"),
    "TollspanSampler": "sampler",
    "observe": "torch_observe",
    "Request": "torch_shares",
}
"""Name → its module, imported by the program that asks for one: every program that is launched imports us."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_LATER[name]}"), name)

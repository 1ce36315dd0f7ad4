"""OpenTelemetry instrumentation that says what every inference used, and for whom.

This package runs in the user's process. `tag` is what a program calls; everything else is switched on by
``opentelemetry-instrument`` through entry points, or by each instrumentor's ``instrument()``.
"""

from tollspan.instrumentation.guard import faults
from tollspan.instrumentation.tags import TagsInstrumentor, current_tags, tag

__all__ = ["TagsInstrumentor", "current_tags", "faults", "tag"]

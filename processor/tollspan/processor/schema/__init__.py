"""The store's schema: numbered SQL files that a person can read in order, and the tables as Arrow schemas."""

from __future__ import annotations

from tollspan.processor.schema.migrate import Migration, ddl, migrate, migrations, plan, spread
from tollspan.processor.schema.tables import LEDGER, SCHEMAS, SPANS, TRACES

__all__ = ["LEDGER", "SCHEMAS", "SPANS", "TRACES", "Migration", "ddl", "migrate", "migrations", "plan", "spread"]

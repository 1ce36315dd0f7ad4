"""FOCUS's metadata of an export: who made it and the schema of its columns, as the specification asks for."""

from __future__ import annotations

import json
import uuid
from typing import Any, Final

from tollspan.processor.focus.columns import DECIMALS, Column, columns_of

CREATED: Final = "2026-11-21T00:00:00Z"
"""When the columns were last changed; it changes with them."""
GENERATOR: Final = "Tollspan"

_DIGITS: Final = 38
_TYPES: Final = {"instant": "DATETIME", "nanoseconds": "DATETIME", "flag": "BOOLEAN"}
_JSON: Final = frozenset({"Tags", "SkuPriceDetails"})


def metadata(version: str) -> dict[str, Any]:
    """Data generator and schema of an export of that version; equal columns have an equal SchemaId."""
    columns = [_defined(column) for column in columns_of(version)]
    identity = uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([version, columns]))
    schema = {"SchemaId": str(identity), "FocusVersion": version, "CreationDate": CREATED, "ColumnDefinition": columns}
    return {"DataGenerator": GENERATOR, "Schema": schema}


def _defined(column: Column) -> dict[str, Any]:
    if column.kind in DECIMALS:
        return {
            "ColumnName": column.name,
            "DataType": "DECIMAL",
            "NumericPrecision": _DIGITS,
            "NumberScale": DECIMALS[column.kind],
        }
    if column.kind in _TYPES:
        return {"ColumnName": column.name, "DataType": _TYPES[column.kind]}
    kind = "JSON" if column.name in _JSON else "STRING"
    return {"ColumnName": column.name, "DataType": kind, "StringEncoding": "UTF-8"}

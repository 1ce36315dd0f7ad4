"""Feast definitions: what is known about a customer before a question is answered."""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String


def definitions(data: Path) -> list[object]:
    """Entity, view and service over the parquet file ``data``."""
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    profile = FeatureView(
        name="customer_profile",
        entities=[customer],
        ttl=timedelta(days=3650),
        schema=[
            Field(name="customer_id", dtype=Int64),
            Field(name="plan", dtype=String),
            Field(name="open_orders", dtype=Int64),
            Field(name="tickets_90d", dtype=Int64),
            Field(name="lifetime_value", dtype=Float64),
        ],
        online=True,
        source=FileSource(path=str(data), timestamp_field="event_timestamp"),
    )
    return [customer, profile, FeatureService(name="support_profile", features=[profile])]

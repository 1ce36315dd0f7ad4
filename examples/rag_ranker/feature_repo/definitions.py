"""Feast definitions: what is known about a reader and about a passage when a question is answered."""

from datetime import timedelta
from pathlib import Path

from feast import Entity, FeatureService, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Int64


def definitions(readers: Path, passages: Path) -> list[object]:
    """Entities, views and services over two parquet files."""
    reader = Entity(name="reader", join_keys=["reader_id"], value_type=ValueType.INT64)
    passage = Entity(name="passage", join_keys=["passage_id"], value_type=ValueType.INT64)
    profile = FeatureView(
        name="reader_profile",
        entities=[reader],
        ttl=timedelta(days=3650),
        schema=[
            Field(name="reader_id", dtype=Int64),
            Field(name="is_admin", dtype=Int64),
            Field(name="questions_30d", dtype=Int64),
            Field(name="seniority_years", dtype=Float32),
        ],
        online=True,
        source=FileSource(path=str(readers), timestamp_field="event_timestamp"),
    )
    stats = FeatureView(
        name="passage_stats",
        entities=[passage],
        ttl=timedelta(days=3650),
        schema=[
            Field(name="passage_id", dtype=Int64),
            Field(name="clicks_30d", dtype=Int64),
            Field(name="helpful_share", dtype=Float32),
        ],
        online=True,
        source=FileSource(path=str(passages), timestamp_field="event_timestamp"),
    )
    return [
        reader,
        passage,
        profile,
        stats,
        FeatureService(name="reader_facts", features=[profile]),
        FeatureService(name="passage_facts", features=[stats]),
    ]

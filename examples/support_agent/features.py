"""The feature store: a real Feast repository with a sqlite online store, made in a folder at start."""

from __future__ import annotations

import random
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scenario import CUSTOMERS

FEATURE_SERVICE = "support_profile"


def make_store(folder: Path, seed: int) -> Any:
    """Apply the repository of ``feature_repo`` in ``folder``, fill its online store, and return the FeatureStore."""
    import pandas as pd
    from feast import FeatureStore
    from feature_repo.definitions import definitions

    rng = random.Random(seed)
    rows = pd.DataFrame(
        [
            {
                "customer_id": customer,
                "event_timestamp": datetime(2026, 1, 1, tzinfo=UTC),
                "plan": rng.choice(["free", "plus", "business"]),
                "open_orders": rng.randrange(4),
                "tickets_90d": rng.randrange(6),
                "lifetime_value": round(rng.uniform(20, 4000), 2),
            }
            for customer in CUSTOMERS
        ]
    )
    data = folder / "customers.parquet"
    rows.to_parquet(data)
    shutil.copy(Path(__file__).parent / "feature_repo" / "feature_store.yaml", folder / "feature_store.yaml")
    store = FeatureStore(repo_path=str(folder))
    store.apply(definitions(data))
    store.write_to_online_store("customer_profile", rows)
    return store

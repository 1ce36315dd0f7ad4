"""The feature store: a real Feast repository with a sqlite online store, made in a folder at start."""

from __future__ import annotations

import random
import shutil
import threading
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from scenario import PASSAGES, READERS

FOLDER = Path(__file__).parent / "feature_repo"


class Features:
    """Reads what is known of a reader and of passages, for all threads."""

    def __init__(self, folder: Path, seed: int) -> None:
        self._store = make_store(folder, seed)
        self._readers = self._store.get_feature_service("reader_facts")
        self._passages = self._store.get_feature_service("passage_facts")
        # Feast's sqlite online store has one connection, which only one thread may use at a time.
        self._one_reader = threading.Lock()

    def facts(self, reader_id: int, passage_ids: Sequence[int]) -> np.ndarray:
        """What the ranker knows, float32 of shape (passages, 5), from two reads: one reader's row, a row a passage."""
        reader = self._read(self._readers, [{"reader_id": reader_id}])
        passages = self._read(self._passages, [{"passage_id": number} for number in passage_ids])
        rows = [
            [reader[name][0] for name in ("is_admin", "questions_30d", "seniority_years")] * len(passage_ids),
            [value for pair in zip(passages["clicks_30d"], passages["helpful_share"], strict=True) for value in pair],
        ]
        scaled = [np.asarray(values, np.float32).reshape(len(passage_ids), -1) for values in rows]
        return np.hstack(scaled) / np.array([1, 10, 10, 100, 1], np.float32)

    def _read(self, service: Any, rows: list[dict[str, int]]) -> dict[str, list[Any]]:
        with self._one_reader:
            answer = self._store.get_online_features(features=service, entity_rows=rows)
        found: dict[str, list[Any]] = answer.to_dict()
        return found


def make_store(folder: Path, seed: int) -> Any:
    """Apply the repository of ``feature_repo`` in ``folder``, fill its online store, and return the FeatureStore."""
    import pandas as pd
    from feast import FeatureStore
    from feature_repo.definitions import definitions

    rng = random.Random(seed)
    known = datetime(2026, 1, 1, tzinfo=UTC)
    readers = pd.DataFrame(
        [
            {
                "reader_id": reader,
                "event_timestamp": known,
                "is_admin": rng.randrange(2),
                "questions_30d": rng.randrange(12),
                "seniority_years": round(rng.uniform(0, 9), 1),
            }
            for reader in READERS
        ]
    ).astype({"seniority_years": "float32"})
    passages = pd.DataFrame(
        [
            {
                "passage_id": passage,
                "event_timestamp": known,
                "clicks_30d": rng.randrange(400),
                "helpful_share": round(rng.random(), 3),
            }
            for passage in range(len(PASSAGES))
        ]
    ).astype({"helpful_share": "float32"})
    files = folder / "readers.parquet", folder / "passages.parquet"
    for rows, file in zip((readers, passages), files, strict=True):
        rows.to_parquet(file)
    shutil.copy(FOLDER / "feature_store.yaml", folder / "feature_store.yaml")
    store = FeatureStore(repo_path=str(folder))
    store.apply(definitions(*files))
    store.write_to_online_store("reader_profile", readers)
    store.write_to_online_store("passage_stats", passages)
    return store

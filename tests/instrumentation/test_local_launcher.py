"""An unchanged program under the real ``opentelemetry-instrument``: features read, a model loaded and run, a re-ranker.

No processor of ours takes part: spans come out of OpenTelemetry's own console exporter.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """
    import sys
    from datetime import datetime, timedelta, timezone
    from pathlib import Path

    assert not {"torch", "onnxruntime", "feast"} & set(sys.modules), "the launcher imported what we may not use"

    import numpy as np
    import onnx
    import onnxruntime
    import pandas as pd
    import torch
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig
    from feast.types import Int64
    from onnx import TensorProto, helper

    from tollspan.instrumentation.tags import tag

    folder = Path(sys.argv[1])
    now = datetime.now(timezone.utc)
    rows = pd.DataFrame({"customer_id": [1], "orders": [3], "event_timestamp": [now]})
    rows.to_parquet(folder / "rows.parquet")
    customer = Entity(name="customer", join_keys=["customer_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="stats",
        entities=[customer],
        ttl=timedelta(days=1),
        schema=[Field(name="customer_id", dtype=Int64), Field(name="orders", dtype=Int64)],
        source=FileSource(path=str(folder / "rows.parquet"), timestamp_field="event_timestamp"),
    )
    store = FeatureStore(
        config=RepoConfig(
            project="shop",
            provider="local",
            registry=str(folder / "registry.db"),
            online_store=SqliteOnlineStoreConfig(path=str(folder / "online.db")),
            entity_key_serialization_version=3,
        )
    )
    store.apply([customer, view])
    store.write_to_online_store("stats", rows)

    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "intent", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    onnx.save(model, folder / "intent.onnx")

    with tag(tenant="acme", feature="answers"):
        features = store.get_online_features(["stats:orders"], [{"customer_id": 1}]).to_dict()
        session = onnxruntime.InferenceSession(folder / "intent.onnx")
        scores = session.run(None, {"x": np.array([[features["orders"][0]]], np.float32)})[0]
        with torch.no_grad():
            torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.ReLU()).eval()(torch.from_numpy(scores))
"""


def spans_in(output: str) -> list[dict[str, Any]]:
    """The JSON objects that the console exporter prints one after the other, whatever else is printed between."""
    decoder, found, at = json.JSONDecoder(), [], 0
    while (at := output.find("{", at)) >= 0:
        try:
            span, at = decoder.raw_decode(output, at)
        except json.JSONDecodeError:
            at += 1
        else:
            found.append(span)
    return found


@pytest.mark.timeout(180)
def test_the_launcher_sees_all_three_in_an_unchanged_program(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(textwrap.dedent(PROGRAM))
    environment = {
        **os.environ,
        "FEAST_USAGE": "False",
        "OTEL_TRACES_EXPORTER": "console",
        "OTEL_METRICS_EXPORTER": "none",
        "OTEL_LOGS_EXPORTER": "none",
        "OTEL_SERVICE_NAME": "support",
    }
    launcher = Path(sys.executable).with_name("opentelemetry-instrument")
    done = subprocess.run(
        [launcher, sys.executable, program, tmp_path],
        capture_output=True,
        text=True,
        timeout=170,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr

    spans = {span["name"]: span["attributes"] for span in spans_in(done.stdout) if "attributes" in span}
    expected = ["feature_read shop", "model_load intent", "inference intent", "inference Sequential"]
    assert [name for name in spans if name in expected] == expected
    for name in expected:
        assert spans[name]["tollspan.tenant"] == "acme"
        assert spans[name]["tollspan.feature"] == "answers"
    assert spans["feature_read shop"]["tollspan.usage.feature.reads"] == 1
    assert spans["model_load intent"]["tollspan.usage.storage.read.bytes"] == (tmp_path / "intent.onnx").stat().st_size
    assert spans["inference intent"]["tollspan.batch.size"] == 1
    assert spans["inference Sequential"]["tollspan.usage.cpu.seconds"] > 0

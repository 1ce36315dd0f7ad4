"""What a load says of its model: where it came from, in which format, how many bytes, and of which files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from tollspan.instrumentation.onnxruntime import OnnxRuntimeInstrumentor
from tollspan.instrumentation.onnxruntime.model_files import Outline, outline, outline_of_file
from tollspan.pricing import attributes

from .conftest import Telemetry
from .test_onnxruntime import model_bytes

STORAGE_BYTES = attributes.usage("storage.read.bytes")


@pytest.fixture
def onnx_spans(telemetry: Telemetry) -> Iterator[Telemetry]:
    OnnxRuntimeInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OnnxRuntimeInstrumentor().uninstrument()


def weighted(weights: int = 2, kind: Any = np.float32) -> onnx.ModelProto:
    """A model that adds ``weights`` tensors of 1000 elements to its input."""
    onnx_kind = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    x, y = (helper.make_tensor_value_info(name, onnx_kind, ["batch", 1000]) for name in "xy")
    names = ["x", *(f"sum{n}" for n in range(weights - 1)), "y"]
    nodes = [helper.make_node("Add", [names[n], f"w{n}"], [names[n + 1]]) for n in range(weights)]
    tensors = [numpy_helper.from_array(np.full((1, 1000), n, kind), f"w{n}") for n in range(weights)]
    model = helper.make_model(
        helper.make_graph(nodes, "ranker", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 17)]
    )
    model.ir_version = 10
    return model


def with_external_data(folder: Path, one_file: bool) -> Path:
    path = folder / "ranker.onnx"
    onnx.save_model(
        weighted(),
        str(path),
        save_as_external_data=True,
        all_tensors_to_one_file=one_file,
        location="weights.bin" if one_file else None,
        size_threshold=0,
    )
    return path


@pytest.mark.parametrize("one_file", [True, False])
def test_external_data_are_part_of_what_was_read(onnx_spans: Telemetry, tmp_path: Path, one_file: bool) -> None:
    path = with_external_data(tmp_path, one_file)
    onnxruntime.InferenceSession(path)
    about = onnx_spans.attributes()
    assert about[attributes.MODEL_FORMAT] == "onnx"
    assert about[STORAGE_BYTES] == about[attributes.MODEL_SIZE] == path.stat().st_size + 8000


def test_a_buffer_with_external_data_read_only_these(
    onnx_spans: Telemetry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = with_external_data(tmp_path, one_file=True)
    monkeypatch.chdir(tmp_path)
    onnxruntime.InferenceSession(path.read_bytes())
    about = onnx_spans.attributes()
    assert about[attributes.MODEL_SOURCE] == "buffer"
    assert about[STORAGE_BYTES] == 8000
    assert about[attributes.MODEL_SIZE] == path.stat().st_size + 8000


def test_a_buffer_may_have_its_external_data_where_the_program_says(onnx_spans: Telemetry, tmp_path: Path) -> None:
    path = with_external_data(tmp_path, one_file=True)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(tmp_path))
    onnxruntime.InferenceSession(path.read_bytes(), options)
    assert onnx_spans.attributes()[STORAGE_BYTES] == 8000


@pytest.mark.skipif(
    not hasattr(onnxruntime.SessionOptions, "add_external_initializers_from_files_in_memory"),
    reason="newer versions of the library",
)
def test_external_data_that_the_program_handed_over_were_not_read(onnx_spans: Telemetry, tmp_path: Path) -> None:
    path = with_external_data(tmp_path, one_file=True)
    weights = (tmp_path / "weights.bin").read_bytes()
    (tmp_path / "weights.bin").unlink()
    options = onnxruntime.SessionOptions()
    options.add_external_initializers_from_files_in_memory(["weights.bin"], [weights], [len(weights)])
    onnxruntime.InferenceSession(path, options)
    about = onnx_spans.attributes()
    assert about[STORAGE_BYTES] == path.stat().st_size
    assert about[attributes.MODEL_SIZE] == path.stat().st_size + 8000


def test_a_model_in_onnx_runtimes_own_format(onnx_spans: Telemetry, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "model.ort")
    options.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(model_bytes(), options)
    onnx_spans.exporter.clear()

    onnxruntime.InferenceSession(tmp_path / "model.ort").run(None, {"x": np.zeros((2, 4), np.float32)})
    load = dict(onnx_spans.spans()[0].attributes or {})
    assert load[attributes.MODEL_FORMAT] == "ort"
    assert load[STORAGE_BYTES] == (tmp_path / "model.ort").stat().st_size


@pytest.mark.parametrize(("kind", "told"), [(np.float32, "float32"), (np.float64, "float64"), (np.int64, None)])
def test_the_element_type_is_of_the_first_floating_point_tensor(
    onnx_spans: Telemetry, kind: Any, told: str | None
) -> None:
    session = onnxruntime.InferenceSession(weighted(kind=kind).SerializeToString())
    session.run(None, {"x": np.zeros((2, 1000), kind)})
    assert [dict(s.attributes or {}).get(attributes.MODEL_DTYPE) for s in onnx_spans.spans()] == [told, told]


def test_providers_that_were_asked_for_and_those_that_came(onnx_spans: Telemetry) -> None:
    with pytest.warns(UserWarning, match="CUDAExecutionProvider"):
        onnxruntime.InferenceSession(
            model_bytes(), providers=[("CUDAExecutionProvider", {"device_id": 0}), "CPUExecutionProvider"]
        )
    about = onnx_spans.attributes()
    assert about[attributes.EXECUTION_PROVIDERS_ASKED] == ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert about[attributes.EXECUTION_PROVIDERS] == ("CPUExecutionProvider",)
    assert about[attributes.DEVICE_TYPE] == "cpu"


def test_a_fallback_inside_a_construction_is_one_load(onnx_spans: Telemetry, tmp_path: Path) -> None:
    # A provider's options that are refused make the library try again with what it falls back to.
    with pytest.raises(ValueError, match="same length"):
        onnxruntime.InferenceSession(
            model_bytes(), providers=["CPUExecutionProvider"], provider_options=[], enable_fallback=0
        )
    onnxruntime.InferenceSession(model_bytes(), providers=["CPUExecutionProvider"], provider_options=[])
    assert [span.name for span in onnx_spans.spans()] == ["model_load", "model_load intent"]


def test_sessions_of_one_model_are_loads_of_their_own_and_bear_its_name(onnx_spans: Telemetry) -> None:
    for _ in range(3):
        onnxruntime.InferenceSession(model_bytes()).run(None, {"x": np.zeros((2, 4), np.float32)})
    spans = onnx_spans.spans()
    assert [span.name for span in spans] == ["model_load intent", "inference intent"] * 3
    assert all((span.attributes or {})[attributes.COLD_START] for span in spans[1::2])


# -- the outline -------------------------------------------------------------------------------------------------------


def compiled(embedded: int, **more: Any) -> bytes:
    node = helper.make_node("EPContext", ["x"], ["y"], domain="com.microsoft", **more, embed_mode=embedded)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 4]) for name in "xy")
    model = helper.make_model(
        helper.make_graph([helper.make_node("Relu", ["x"], ["z"], name="EPContext"), node], "compiled", [x], [y]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)],
    )
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (lambda: model_bytes(), Outline("onnx", {})),
        (lambda: weighted().SerializeToString(), Outline("onnx", {})),
        (lambda: compiled(1, ep_cache_context=b"\x00\x01"), Outline("ep_context", {})),
        (lambda: compiled(0, ep_cache_context="part.bin"), Outline("ep_context", {"part.bin": None})),
        (lambda: compiled(0, main_context=0), Outline("ep_context", {})),
        (lambda: model_bytes(graph="EPContext"), Outline("onnx", {})),
    ],
)
def test_the_outline_of_a_model(model: Callable[[], bytes], said: Outline) -> None:
    assert outline(model()) == said


def test_a_piece_that_two_initializers_share_is_one(tmp_path: Path) -> None:
    path = with_external_data(tmp_path, one_file=True)
    model = onnx.load_model(str(path), load_external_data=False)
    model.graph.initializer[1].CopyFrom(model.graph.initializer[0])
    assert outline(model.SerializeToString()).parts == {"weights.bin": 4000}
    assert outline_of_file(path).parts == {"weights.bin": 8000}


@given(st.binary(max_size=200))
def test_what_is_no_model_is_refused_and_never_read_for_ever(garbage: bytes) -> None:
    try:
        outline(garbage)
    except ValueError:
        pass


@given(st.data())
def test_a_cut_model_is_refused_or_said_for_what_is_there(data: Any) -> None:
    whole = weighted().SerializeToString()
    try:
        outline(whole[: data.draw(st.integers(0, len(whole)))])
    except ValueError:
        pass

"""Loads of PyTorch's models: one span each, with what was read, mapped and fetched; none for what is no model."""

from __future__ import annotations

import contextlib
import inspect
import io
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.utils import suppress_instrumentation
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.trace import StatusCode

from tollspan.instrumentation import tags
from tollspan.instrumentation.cpu_clock import CPU
from tollspan.instrumentation.model_loads import LOADS, ModelLoadInstrumentor, is_model
from tollspan.instrumentation.model_loads.asked import of_url
from tollspan.instrumentation.model_loads.load import File, Load
from tollspan.instrumentation.model_loads.transfers import has_models
from tollspan.pricing import attributes

from .conftest import Telemetry
from .hub_server import COMMIT, Hub, serving

torch = pytest.importorskip("torch")

STORAGE = attributes.usage("storage.read.bytes")
CPU_SECONDS = attributes.usage("cpu.seconds")
INTERNET = attributes.usage("network.ingress.internet.bytes")


class Ranker(torch.nn.Module):  # type: ignore[misc, name-defined]
    """At the top of a module, so that it can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@pytest.fixture
def loads(telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    """Spans of the loads of this test, made by a process in a region of a cloud whose network has prices."""
    monkeypatch.setenv("TOLLSPAN_PLACES", "127.0.0.1=internet,localhost=internet")
    telemetry.provider = TracerProvider(resource=Resource({"cloud.provider": "aws", "cloud.region": "us-east-1"}))
    telemetry.provider.add_span_processor(SimpleSpanProcessor(telemetry.exporter))
    ModelLoadInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    ModelLoadInstrumentor().uninstrument()
    assert CPU.in_flight == 0


@pytest.fixture
def state(tmp_path: Path) -> Path:
    path = tmp_path / "ranker.pt"
    torch.save(Ranker().state_dict(), path)
    return path


def about(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def test_what_a_load_says(loads: Telemetry, state: Path) -> None:
    with tags.tag(tenant="acme"):
        torch.load(state)
    values = loads.attributes()
    assert values.pop(CPU_SECONDS) > 0
    assert values == {
        attributes.OPERATION: "model_load",
        attributes.PROVIDER: "pytorch",
        attributes.MODEL: "ranker",
        attributes.MODEL_SOURCE: "file",
        attributes.MODEL_FORMAT: "pytorch",
        attributes.MODEL_SIZE: state.stat().st_size,
        STORAGE: state.stat().st_size,
        attributes.MODEL_DTYPE: "float32",
        attributes.DEVICE_TYPE: "cpu",
        attributes.CPU_TIME_SOURCE: "process",
        attributes.TENANT: "acme",
    }
    assert loads.only().name == "model_load ranker"


def test_a_whole_module_has_the_name_of_its_inferences(loads: Telemetry, tmp_path: Path) -> None:
    torch.save(Ranker().half(), tmp_path / "v3.pt")
    torch.load(tmp_path / "v3.pt", weights_only=False)
    assert loads.only().name == "model_load Ranker"
    assert loads.attributes()[attributes.MODEL_DTYPE] == "float16"


def test_of_a_mapped_file_nobody_knows_what_was_read(loads: Telemetry, state: Path) -> None:
    torch.load(state, mmap=True)
    values = loads.attributes()
    assert values[attributes.MODEL_MAPPED] == values[attributes.MODEL_SIZE] == state.stat().st_size
    assert STORAGE not in values


def test_an_open_file_is_not_moved_and_counted_from_where_it_stands(loads: Telemetry, tmp_path: Path) -> None:
    path = tmp_path / "two.pt"
    with path.open("wb") as file:
        file.write(b"x" * 100)
        torch.save(Ranker().state_dict(), file, _use_new_zipfile_serialization=False)
    with path.open("rb") as file:
        file.seek(100)
        torch.load(file)
    values = loads.attributes()
    assert values[attributes.MODEL] == "two"
    assert values[STORAGE] == path.stat().st_size - 100


def test_a_buffer_is_not_read_from_storage(loads: Telemetry, state: Path) -> None:
    torch.load(io.BytesIO(state.read_bytes()))
    values = loads.attributes()
    assert (values[attributes.MODEL_SOURCE], values[attributes.MODEL_SIZE]) == ("buffer", state.stat().st_size)
    assert STORAGE not in values
    assert attributes.MODEL not in values


def test_a_file_of_the_programs_own_making_has_no_size(loads: Telemetry, state: Path) -> None:
    class Own:
        def __init__(self) -> None:
            self._file = io.BytesIO(state.read_bytes())

        def __getattr__(self, name: str) -> Any:
            if name in ("read", "readline", "readinto", "seek", "tell"):
                return getattr(self._file, name)
            raise AttributeError(name)

    torch.load(Own())
    values = loads.attributes()
    assert not values.keys() & {attributes.MODEL_SIZE, STORAGE, attributes.MODEL_SOURCE}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (lambda: torch.zeros(3), False),
        (lambda: {"image": torch.zeros(3), "label": 1}, False),
        (lambda: [torch.zeros(3)], False),
        (lambda: {"epoch": 3}, False),
        (lambda: Ranker().state_dict(), True),
        (lambda: {"layer.weight": torch.zeros(3)}, True),
        (lambda: {"model": Ranker().state_dict(), "epoch": 3}, True),
    ],
)
def test_what_is_no_model_is_no_load(loads: Telemetry, tmp_path: Path, value: Callable[[], Any], told: bool) -> None:
    torch.save(value(), tmp_path / "some.pt")
    loaded = torch.load(tmp_path / "some.pt")
    assert is_model(loaded) is told
    assert len(loads.spans()) == told


def test_a_load_that_fails_keeps_its_error_and_says_nothing_of_bytes(loads: Telemetry, tmp_path: Path) -> None:
    (tmp_path / "broken.pt").write_bytes(b"no model at all")
    with pytest.raises(Exception, match=r".") as seen:
        torch.load(tmp_path / "broken.pt")
    assert seen.value.__cause__ is None or isinstance(seen.value.__cause__, Exception)
    span = loads.only()
    assert span.status.status_code is StatusCode.ERROR
    assert about(span)[attributes.ERROR_TYPE].endswith(type(seen.value).__name__)
    assert not about(span).keys() & {attributes.MODEL_SIZE, STORAGE}


def test_a_script_is_one_load_by_either_way(loads: Telemetry, tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.script(Ranker()), path)
    torch.jit.load(path)
    torch.load(path, weights_only=False)
    with path.open("rb") as file:
        torch.jit.load(file)
    for span in loads.spans():
        assert span.name == "model_load Ranker"
        assert about(span)[attributes.MODEL_FORMAT] == "torchscript"
        assert about(span)[attributes.MODEL_SIZE] == about(span)[STORAGE] == path.stat().st_size
    assert len(loads.spans()) == 3


def test_an_exported_program(loads: Telemetry, tmp_path: Path) -> None:
    path = tmp_path / "ranker.pt2"
    torch.export.save(torch.export.export(Ranker(), (torch.zeros(2, 16),)), path)
    loads.exporter.clear()
    torch.export.load(path)
    values = loads.attributes()
    assert (values[attributes.MODEL], values[attributes.MODEL_FORMAT]) == ("ranker", "pt2")
    assert values[attributes.MODEL_SIZE] == values[STORAGE] == path.stat().st_size


def test_torch_hub_and_what_its_entry_point_loads_is_one(loads: Telemetry, state: Path, tmp_path: Path) -> None:
    (tmp_path / "hubconf.py").write_text(
        "import torch\n"
        "def tiny(path):\n"
        "    model = torch.nn.Sequential()\n"
        "    model.layer = torch.nn.Linear(16, 16)\n"
        "    model.load_state_dict(torch.load(path))\n"
        "    return model\n"
    )
    torch.hub.load(str(tmp_path), "tiny", str(state), source="local")
    values = loads.attributes()
    assert (values[attributes.MODEL], values[attributes.MODEL_SOURCE]) == ("Sequential", "file")
    assert values[STORAGE] == state.stat().st_size


def test_loads_on_several_threads_are_loads_of_their_own(loads: Telemetry, state: Path) -> None:
    threads = [threading.Thread(target=torch.load, args=(state,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spans = loads.spans()
    assert len(spans) == 4
    assert all(about(span)[STORAGE] == state.stat().st_size for span in spans)


def test_suppression_is_respected(loads: Telemetry, state: Path) -> None:
    with suppress_instrumentation():
        torch.load(state)
    assert loads.spans() == []


def test_a_span_that_is_not_sampled_costs_no_result(state: Path) -> None:
    from opentelemetry.sdk.trace.sampling import ALWAYS_OFF

    ModelLoadInstrumentor().instrument(tracer_provider=TracerProvider(sampler=ALWAYS_OFF))
    try:
        assert torch.load(state).keys() == Ranker().state_dict().keys()
        assert CPU.in_flight == 0
    finally:
        ModelLoadInstrumentor().uninstrument()


def test_uninstrument_puts_back_the_same_objects_and_a_function_of_two_names_stays_one() -> None:
    import huggingface_hub.file_download as hub

    def all_of_them() -> list[Any]:
        return [
            *(torch.load, torch.serialization.load, torch.jit.load, torch.hub.load, torch.hub.download_url_to_file),
            *(torch.export.load, torch.hub.load_state_dict_from_url),
            *(hub.hf_hub_download, hub.xet_get),
        ]

    before = all_of_them()
    ModelLoadInstrumentor().instrument()
    during = all_of_them()
    assert torch.load is torch.serialization.load
    assert all(a is not b for a, b in zip(before, during, strict=True))
    ModelLoadInstrumentor().uninstrument()
    assert all(a is b for a, b in zip(before, all_of_them(), strict=True))


def test_targets_are_named_once() -> None:
    assert len({target.function for target in LOADS}) == len(LOADS)


@pytest.mark.parametrize(
    ("on", "read"), [("cpu", False), ("meta", False), (None, False), ("cuda", True), ("mps", True)]
)
def test_what_went_to_another_device_was_read_mapped_or_not(on: str | None, read: bool) -> None:
    load = Load()
    load.read(File("/a.safetensors", 10, "safetensors", mapped=True))
    load.read(File("/b.bin", 5, "pytorch", mapped=True))
    load.read(File("/b.bin", 5, "pytorch"))
    told = load.told(on)
    assert told[attributes.MODEL_SIZE] == 15
    assert told[attributes.MODEL_FORMAT] == "safetensors"
    assert told[STORAGE] == (15 if read else 5)
    assert told.get(attributes.MODEL_MAPPED) == (None if read else 10)


def test_a_url_is_told_without_its_secrets() -> None:
    assert of_url("https://user:pass@models.example/a/b.pt?token=s#f") == "https://models.example/a/b.pt"


@pytest.mark.parametrize(
    ("patterns", "told"),
    [
        (None, True),
        ("*.safetensors", True),
        (["*.json", "unet/*"], True),
        (["*.json", "tokenizer.model"], False),
        ([], False),
    ],
)
def test_which_snapshots_may_have_a_model(patterns: Any, told: bool) -> None:
    assert has_models(patterns) is told


# -- the hub -----------------------------------------------------------------------------------------------------------

hub_client = pytest.importorskip("huggingface_hub")
pytest.importorskip("huggingface_hub.file_download")
WEIGHTS = os.urandom(200_000)
FILES = {"model.safetensors": WEIGHTS, "config.json": b'{"hidden": 16} ' * 100, "tokenizer.txt": b"word\n" * 100}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr(hub_client.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub_client.constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serving(Hub(dict(FILES), f"acme/r{os.urandom(4).hex()}")) as hub:
        monkeypatch.setattr(hub_client.constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        for module in (hub_client.constants, hub_client.file_download):
            monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)
        yield hub


def test_a_download_says_what_came_and_a_second_one_what_was_there(loads: Telemetry, hub: Hub) -> None:
    hub_client.hf_hub_download(hub.repository, "model.safetensors")
    sent = hub.sent
    hub_client.hf_hub_download(hub.repository, "model.safetensors")
    first, second = (about(span) for span in loads.spans())
    assert loads.spans()[0].name == f"model_load {hub.repository}"
    assert first[attributes.MODEL_SOURCE] == f"hub:{hub.repository}@main"
    assert first[attributes.MODEL_VERSION] == COMMIT
    assert first[attributes.MODEL_FORMAT] == "safetensors"
    assert first[attributes.PROVIDER] == "huggingface_hub"
    assert first[attributes.MODEL_SIZE] == second[attributes.MODEL_SIZE] == len(WEIGHTS)
    assert first[INTERNET] == first[attributes.MODEL_DOWNLOADED] == sent == hub.sent == len(WEIGHTS)
    assert first[attributes.MODEL_CACHED] == second[attributes.MODEL_DOWNLOADED] == 0
    assert second[attributes.MODEL_CACHED] == len(WEIGHTS)
    assert INTERNET not in second
    assert STORAGE not in first


def test_all_files_of_a_snapshot_are_one_load_on_whatever_threads_they_come(loads: Telemetry, hub: Hub) -> None:
    hub_client.snapshot_download(hub.repository)
    values = loads.attributes()
    assert values[attributes.MODEL_DOWNLOADED] == values[INTERNET] == hub.sent
    # Small files may come compressed, and are counted so.
    assert len(WEIGHTS) < hub.sent <= sum(map(len, FILES.values()))
    assert values[attributes.MODEL_SIZE] == len(WEIGHTS)
    loads.exporter.clear()
    hub_client.snapshot_download(hub.repository)
    assert loads.attributes()[attributes.MODEL_CACHED] == sum(map(len, FILES.values()))


def test_a_download_that_breaks_off_and_goes_on_counts_what_came(loads: Telemetry, hub: Hub) -> None:
    hub.broken = 1
    with contextlib.suppress(Exception):  # before its version 1 the client gives up
        hub_client.hf_hub_download(hub.repository, "model.safetensors")
    assert loads.attributes()[INTERNET] == hub.sent


def test_what_came_for_a_download_that_failed_came_all_the_same(
    loads: Telemetry, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import file_download

    def full(*_: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(file_download, "_chmod_and_move", full)
    with pytest.raises(OSError, match="no space"):
        hub_client.hf_hub_download(hub.repository, "model.safetensors")
    values = loads.attributes()
    assert values[INTERNET] == values[attributes.MODEL_DOWNLOADED] == len(WEIGHTS)
    assert attributes.MODEL_SIZE not in values


def test_a_hub_that_does_not_know_the_file(loads: Telemetry, hub: Hub) -> None:
    with pytest.raises(hub_client.errors.EntryNotFoundError):
        hub_client.hf_hub_download(hub.repository, "other.bin")
    assert loads.attributes()[attributes.HTTP_STATUS] == 404
    assert loads.only().status.status_code is StatusCode.ERROR


def test_what_is_no_model_of_a_hub_is_no_load(loads: Telemetry, hub: Hub) -> None:
    hub_client.hf_hub_download(hub.repository, "config.json")
    hub_client.snapshot_download(hub.repository, allow_patterns=["*.json"])
    if "dry_run" in inspect.signature(hub_client.hf_hub_download).parameters:
        hub_client.hf_hub_download(hub.repository, "model.safetensors", dry_run=True)
    assert loads.spans() == []


@pytest.mark.parametrize(
    ("switch", "cloud", "usage"),
    [
        ("off", "aws", None),
        ("auto", None, None),
        ("on", None, "network.ingress.bytes"),
        ("on", "aws", "network.ingress.internet.bytes"),
    ],
)
def test_bytes_are_a_usage_where_those_of_calls_are(
    telemetry: Telemetry,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    switch: str,
    cloud: str | None,
    usage: str | None,
) -> None:
    monkeypatch.setenv("TOLLSPAN_NETWORK", switch)
    monkeypatch.setenv("TOLLSPAN_PLACES", "localhost=internet")
    resource = Resource({"cloud.provider": cloud, "cloud.region": "us-east-1"} if cloud else {})
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(SimpleSpanProcessor(telemetry.exporter))
    ModelLoadInstrumentor().instrument(tracer_provider=provider)
    try:
        hub_client.hf_hub_download(hub.repository, "model.safetensors")
    finally:
        ModelLoadInstrumentor().uninstrument()
    values = telemetry.attributes()
    assert values[attributes.MODEL_DOWNLOADED] == len(WEIGHTS)
    told = {name for name in values if name.startswith("tollspan.usage.network.")}
    assert told == ({attributes.usage(usage)} if usage else set())


def test_a_load_from_the_hubs_cache_says_which_model_it_is(loads: Telemetry, hub: Hub) -> None:
    hub.files["pytorch_model.bin"] = _saved(Ranker().state_dict())
    path = hub_client.hf_hub_download(hub.repository, "pytorch_model.bin")
    torch.load(path)
    values = about(loads.spans()[-1])
    assert values[attributes.MODEL] == hub.repository
    assert values[attributes.MODEL_SOURCE] == f"hub:{hub.repository}@{COMMIT}"
    assert values[STORAGE] == values[attributes.MODEL_CACHED] == os.stat(path).st_size
    assert values[attributes.MODEL_DOWNLOADED] == 0


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def test_what_torch_hub_fetches_is_counted(loads: Telemetry, hub: Hub, tmp_path: Path) -> None:
    hub.files["weights-1.pt"] = data = _saved(Ranker().state_dict())
    for _ in range(2):
        torch.hub.load_state_dict_from_url(
            f"{hub.storage}/storage/weights-1.pt?token=secret", model_dir=str(tmp_path), progress=False
        )
    first, second = (about(span) for span in loads.spans())
    assert first[attributes.MODEL_SOURCE] == f"{hub.storage}/storage/weights-1.pt"
    assert first[INTERNET] == first[attributes.MODEL_DOWNLOADED] == first[STORAGE] == len(data)
    assert second[attributes.MODEL_DOWNLOADED] == 0
    assert second[STORAGE] == len(data)
    assert INTERNET not in second


def test_bytes_of_xet_are_what_its_client_says(loads: Telemetry, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    # The storage itself speaks no protocol that could be served here: its own reporter is told by hand.
    from huggingface_hub import file_download
    from huggingface_hub.utils import _xet_progress_reporting as reporting

    if not hasattr(reporting, "XetDownloadProgressReporter"):
        pytest.skip("a version whose client does not say it")

    class Report:
        total_bytes = total_bytes_completed = len(WEIGHTS)
        total_transfer_bytes_completed = 1234
        total_bytes_completion_rate = total_transfer_bytes_completion_rate = None

    def transfer(told: bool) -> Any:
        def xet_get(**_: Any) -> None:
            if told:
                reporter = reporting.XetDownloadProgressReporter(
                    reconstruction_desc="", total=len(WEIGHTS), log_level=0, name="huggingface_hub.xet_get"
                )
                with reporter as progress:
                    progress.update_progress(Report())

        return xet_get

    for told in (True, False):
        ModelLoadInstrumentor().uninstrument()
        monkeypatch.setattr(file_download, "xet_get", transfer(told))
        monkeypatch.setattr(file_download, "http_get", lambda *_, **__: file_download.xet_get())
        ModelLoadInstrumentor().instrument(tracer_provider=loads.provider)
        hub_client.hf_hub_download(hub.repository, "model.safetensors", force_download=True)
    known, unknown = (about(span) for span in loads.spans())
    assert known[attributes.MODEL_DOWNLOADED] == known[INTERNET] == 1234
    assert not unknown.keys() & {attributes.MODEL_DOWNLOADED, INTERNET}
    ModelLoadInstrumentor().uninstrument()
    monkeypatch.undo()


# -- libraries on top --------------------------------------------------------------------------------------------------


def tiny_bert(folder: Path, **saving: Any) -> dict[str, bytes]:
    """Files of a model of transformers."""
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16, vocab_size=7
    )
    transformers.BertModel(config).save_pretrained(folder, **saving)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_of(files: dict[str, bytes]) -> int:
    return sum(len(data) for name, data in files.items() if name.endswith((".safetensors", ".bin")))


@pytest.mark.parametrize("saving", [{}, {"max_shard_size": "5KB"}])
def test_from_pretrained_is_one_load_with_its_files_and_downloads(
    loads: Telemetry, hub: Hub, tmp_path: Path, saving: dict[str, Any]
) -> None:
    hub.files = files = tiny_bert(tmp_path / "made", **saving)
    import transformers

    loads.exporter.clear()
    transformers.AutoModel.from_pretrained(hub.repository, cache_dir=tmp_path / "cache")
    transformers.BertModel.from_pretrained(hub.repository, cache_dir=tmp_path / "cache", output_loading_info=True)
    first, second = (about(span) for span in loads.spans())
    for values in (first, second):
        assert values[attributes.MODEL] == hub.repository
        assert values[attributes.MODEL_SOURCE] == f"hub:{hub.repository}@main"
        assert values[attributes.MODEL_VERSION] == COMMIT
        assert values[attributes.MODEL_SIZE] == values[attributes.MODEL_MAPPED] == weights_of(files)
        assert values[attributes.MODEL_FORMAT] == "safetensors"
    assert weights_of(files) <= first[INTERNET] == first[attributes.MODEL_DOWNLOADED] <= hub.sent
    assert second[attributes.MODEL_DOWNLOADED] == 0
    assert second[attributes.MODEL_CACHED] >= weights_of(files)


def test_from_pretrained_of_a_folder_and_of_nothing(loads: Telemetry, tmp_path: Path) -> None:
    files = tiny_bert(tmp_path / "bert")
    import transformers

    loads.exporter.clear()
    model = transformers.BertModel.from_pretrained(tmp_path / "bert")
    values = loads.attributes()
    assert type(model) is transformers.BertModel
    assert (values[attributes.MODEL], values[attributes.MODEL_SOURCE]) == ("bert", "file")
    assert values[attributes.MODEL_SIZE] == weights_of(files)
    loads.exporter.clear()
    transformers.BertModel.from_pretrained(None, config=model.config, state_dict=model.state_dict())
    assert attributes.MODEL_SIZE not in loads.attributes()


def test_a_subclass_is_what_from_pretrained_makes_and_restored_it_is_the_same(tmp_path: Path) -> None:
    tiny_bert(tmp_path / "bert")
    import transformers

    before = vars(transformers.PreTrainedModel)["from_pretrained"]
    ModelLoadInstrumentor().instrument()
    assert isinstance(vars(transformers.PreTrainedModel)["from_pretrained"], classmethod)
    ModelLoadInstrumentor().uninstrument()
    assert vars(transformers.PreTrainedModel)["from_pretrained"] is before


def test_safetensors(loads: Telemetry, tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    path = tmp_path / "ranker.safetensors"
    model = Ranker()
    safetensors.save_file(model.state_dict(), path)
    size = path.stat().st_size
    safetensors.load_file(path)
    safetensors.load(path.read_bytes())
    safetensors.load_model(model, path)
    mapped, buffer, copied = (about(span) for span in loads.spans())
    assert (mapped[attributes.MODEL], mapped[attributes.MODEL_MAPPED]) == ("ranker", size)
    assert STORAGE not in mapped
    assert (buffer[attributes.MODEL_SOURCE], buffer[attributes.MODEL_SIZE]) == ("buffer", size)
    assert (copied[attributes.MODEL], copied[STORAGE]) == ("Ranker", size)
    assert attributes.MODEL_MAPPED not in copied


def test_sentence_transformers_are_one_load(loads: Telemetry, tmp_path: Path) -> None:
    sentences = pytest.importorskip("sentence_transformers")
    import transformers

    folder = tmp_path / "sentences"
    files = tiny_bert(folder)
    (folder / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "b")))
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    loads.exporter.clear()
    model = sentences.SentenceTransformer(str(folder), device="cpu")
    values = loads.attributes()
    assert (values[attributes.MODEL], values[attributes.MODEL_SOURCE]) == ("sentences", "file")
    assert values[attributes.MODEL_SIZE] == weights_of(files)
    loads.exporter.clear()
    sentences.SentenceTransformer(modules=list(model), device="cpu")
    assert loads.spans() == []


def test_a_pipeline_of_diffusers_is_one_load(loads: Telemetry, tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8,),
        layers_per_block=1,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        norm_num_groups=4,
    )
    diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler()).save_pretrained(tmp_path / "pictures")
    loads.exporter.clear()
    diffusers.DDPMPipeline.from_pretrained(tmp_path / "pictures")
    values = loads.attributes()
    weights = tmp_path / "pictures/unet/diffusion_pytorch_model.safetensors"
    assert (values[attributes.MODEL], values[attributes.MODEL_SIZE]) == ("pictures", weights.stat().st_size)


# -- in a fresh process ------------------------------------------------------------------------------------------------

PROGRAM = """
    import sys
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import ConsoleSpanExporter, SimpleSpanProcessor
    from tollspan.instrumentation.launch import ModelLoadInstrumentor, TorchInstrumentor

    trace.set_tracer_provider(TracerProvider())
    trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(ConsoleSpanExporter()))
    for instrumentor in (ModelLoadInstrumentor(), TorchInstrumentor()):
        instrumentor.instrument(skip_dep_check=True)
    assert not {"torch", "huggingface_hub", "safetensors", "transformers"} & set(sys.modules)
    import torch

    assert not {"huggingface_hub", "safetensors", "transformers"} & set(sys.modules)
    with torch.no_grad():
        model = torch.nn.Sequential(torch.nn.Linear(4, 4)).eval()
        model.load_state_dict(torch.load(sys.argv[1]))
        model(torch.zeros(1, 4))
        torch.nn.Sequential(model).eval()(torch.zeros(1, 4))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the age of a process is not known")
def test_a_process_says_once_how_long_it_took_to_its_first_inference(tmp_path: Path) -> None:
    from .test_local_launcher import spans_in

    path = tmp_path / "ranker.pt"
    torch.save(torch.nn.Sequential(torch.nn.Linear(4, 4)).state_dict(), path)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    load, first, second = spans_in(done.stdout)
    assert load["name"] == "model_load ranker"
    assert load["attributes"][STORAGE] == path.stat().st_size
    assert first["attributes"][attributes.COLD_START] is second["attributes"][attributes.COLD_START] is True
    assert 0.1 < first["attributes"][attributes.COLD_START_SECONDS] < 120
    assert attributes.COLD_START_SECONDS not in second["attributes"]

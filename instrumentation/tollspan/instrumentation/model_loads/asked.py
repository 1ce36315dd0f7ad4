"""What a load was asked for: the model's name and where it comes from, by the function that the program called.

In: the arguments of the call. Out: what its span begins with. Where it stands: beside `files`, which says what is read.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit

from tollspan.instrumentation.calls import Opening
from tollspan.instrumentation.model_loads.files import first, format_of, hub_cache, stem
from tollspan.instrumentation.model_loads.load import BUFFER, FILE, Load
from tollspan.instrumentation.model_loads.transfers import has_models
from tollspan.instrumentation.torch_execution import PROVIDER as PYTORCH
from tollspan.instrumentation.torch_models import shown
from tollspan.pricing import attributes

Asked = Callable[[tuple[Any, ...], dict[str, Any]], Opening | None]

HUB: Final = "huggingface_hub"
"""Provider of a load that is a download alone: nothing has run it yet."""
_MAIN: Final = "main"


def named(model: str | None) -> str:
    """Name of the span of a load."""
    return attributes.OPERATION_MODEL_LOAD + (f" {model}" if model else "")


def _opening(model: str | None, source: str | None, *, provider: str = PYTORCH, load: Load | None = None) -> Opening:
    about: dict[str, Any] = {attributes.OPERATION: attributes.OPERATION_MODEL_LOAD, attributes.PROVIDER: provider}
    if model:
        about[attributes.MODEL] = model
    if source is not None:
        about[attributes.MODEL_SOURCE] = source
    load = load or Load()
    load.remote = source is not None and ":" in source
    return Opening(named(model), about, load)


def of_hub(name: Any, revision: Any) -> str:
    """Source of a model of the Hugging Face hub."""
    return f"hub:{name}@{revision or _MAIN}"


def of_url(url: str) -> str:
    """Source of what comes from a URL: without what may be a secret in it."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def read(args: tuple[Any, ...], kwargs: dict[str, Any], at: int = 0, load: Load | None = None) -> Opening:
    """A function whose argument is a path, an open file or a buffer."""
    source = first(args, kwargs, "f", "filename", "data", "checkpoint", "checkpoint_file", at=at)
    if isinstance(source, (str, os.PathLike)):
        path = os.fsdecode(source)
        cached = hub_cache(os.path.abspath(path))
        if cached is not None:
            return _opening(cached[0], of_hub(*cached), load=load)
        return _opening(stem(path), FILE, load=load)
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return _opening(stem(name), FILE, load=load)
    # Of what is read in some way of the program's own, nobody knows where it comes from.
    known = isinstance(source, (bytes, bytearray, memoryview)) or hasattr(source, "getbuffer")
    return _opening(None, BUFFER if known else None, load=load)


def read_into(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """A function whose first argument is a model, and whose second is a path."""
    return read(args, kwargs, at=1, load=Load(first(args, kwargs, "model")))


def pretrained(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``Class.from_pretrained(name_or_path, ..., revision="main")`` of transformers and diffusers."""
    names = ("pretrained_model_name_or_path", "pretrained_model_or_path", "pretrained_model_link_or_path_or_dict")
    return _by_name(first(args, kwargs, *names, "pretrained_model_link_or_path", at=1), kwargs.get("revision"))


def constructed(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``SentenceTransformer(model_name_or_path=None, *, modules=None, ...)`` and its sisters; of modules that the
    program has nothing is loaded."""
    name = first(args, kwargs, "model_name_or_path", "model_name", at=1)
    return None if name is None else _by_name(name, kwargs.get("revision"), load=Load(args[0], named=True))


def _by_name(name: Any, revision: Any, load: Load | None = None) -> Opening:
    if not isinstance(name, (str, os.PathLike)):
        return _opening(None, BUFFER if isinstance(name, dict) else None, load=load)
    text = os.fsdecode(name)
    if text.startswith(("http://", "https://")):
        return _opening(stem(urlsplit(text).path), of_url(text), load=load)
    cached = hub_cache(os.path.abspath(text))
    if cached is not None:
        return _opening(cached[0], of_hub(*cached), load=load)
    return _opening(shown(text), FILE if os.path.exists(text) else of_hub(text, revision), load=load)


def downloaded(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``hf_hub_download(repo_id, filename, ...)``, where the file may be a model's."""
    name = first(args, kwargs, "filename", at=1)
    return _of_repository(args, kwargs) if isinstance(name, str) and format_of(name) is not None else None


def snapshot(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    """``snapshot_download(repo_id, ..., allow_patterns=None)``, where there may be a model among the files."""
    return _of_repository(args, kwargs) if has_models(kwargs.get("allow_patterns")) else None


def _of_repository(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening | None:
    name = first(args, kwargs, "repo_id")
    if kwargs.get("repo_type") not in (None, "model") or kwargs.get("dry_run") or not isinstance(name, str):
        return None
    return _opening(name, of_hub(name, kwargs.get("revision")), provider=HUB)


def entry_point(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``torch.hub.load(repo_or_dir, model, *args, source="github", ...)``"""
    place, model = first(args, kwargs, "repo_or_dir"), first(args, kwargs, "model", at=1)
    if kwargs.get("source", "github").lower() != "github":
        return _opening(str(model), FILE)
    name, _, branch = str(place).partition(":")
    return _opening(str(model), f"github:{name}" + (f"@{branch}" if branch else ""))


def fetched(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``torch.hub.load_state_dict_from_url(url, ...)``"""
    url = str(first(args, kwargs, "url"))
    return _opening(stem(urlsplit(url).path), of_url(url))

"""Hopsworks: reads of feature vectors from its online store.

In: ``get_feature_vector`` and ``get_feature_vectors`` of a `FeatureView`, and their asynchronous twins. Out: spans
``feature_read {feature view}``, in the words that Feast's have. Serving keys that a vector repeats are not counted as
features. Bytes are those of the answer of RonDB's REST server, and not told where the client asks by SQL. Values that
were found are counted where vectors are lists; of the others Hopsworks does not say whether they are null or missing.
Batches of the offline store are not seen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any, Final

from tollspan.instrumentation.calls import Call, CallInstrumentor, Opening, WrapPoint, open_call
from tollspan.instrumentation.data_reads import LAYER, FeatureRead
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.wrapping import Patches
from tollspan.pricing import attributes as names

PROVIDER: Final = "hopsworks"
STORE: Final = "rondb"

_BYTES: Final = guard("hopsworks.bytes")

_VIEW: Final = "hsfs.feature_view:FeatureView."
_ANSWERED: Final = "hsfs.core.online_store_rest_client_api:OnlineStoreRestClientApi._handle_rdrs_feature_store_response"


class Vectors(FeatureRead):
    """State of a read.

    Attributes:
        many: it asks for a list of vectors.
        view: that is read; None once it was.
    """

    __slots__ = ("many", "view")

    def __init__(self, view: Any, many: bool, entries: Any) -> None:
        super().__init__()
        self.view = view
        self.many = many
        if isinstance(entries, list):
            self.keys = [entry for entry in entries if isinstance(entry, Mapping)]


def _request(many: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    """``get_feature_vector(self, serving_keys, ...)``; ``entry`` is its older name."""
    view = args[0]
    asked = args[1] if len(args) > 1 else kwargs.get("serving_keys") or kwargs.get("entry")
    entries = asked if many else [asked]
    about: dict[str, Any] = {
        names.OPERATION: names.OPERATION_FEATURE_READ,
        names.PROVIDER: PROVIDER,
        names.FEATURE_STORE: STORE,
        names.FEATURE_ACCESS: "online",
    }
    if entries and isinstance(entries[0], Mapping) and entries[0]:
        about[names.FEATURE_ENTITIES] = sorted(map(str, entries[0]))
    state = Vectors(view, many, entries)
    name = view.name
    if not isinstance(name, str) or not name:
        return Opening(names.OPERATION_FEATURE_READ, about, state)
    about[names.MODEL] = name
    about[names.FEATURE_VIEWS] = [name]
    if view.version is not None:
        about[names.MODEL_VERSION] = str(view.version)
    return Opening(f"{names.OPERATION_FEATURE_READ} {name}", about, state)


def _response(call: Call, result: Any) -> None:
    """A vector or a list of them; or an array or frame of either."""
    read: Vectors = call.state
    view, read.view = read.view, None
    keys: Any = read.keys or ()
    rows = result if read.many else [result]
    shape = getattr(result, "shape", None)
    if shape is not None:
        read.rows, width = (shape[0] if read.many or len(shape) > 1 else 1), shape[-1]
    else:
        read.rows, width = len(rows), len(rows[0]) if rows else 0
    read.features = width - _repeated(view, keys, width) if read.rows else None
    if shape is None and read.features is not None:
        read.hits = max(
            0, sum(value is not None for row in rows for value in row) - read.rows * (width - read.features)
        )
    read.put(call.attributes)


def _repeated(view: Any, keys: Any, width: int) -> int:
    """How many values of a vector are its keys."""
    features = [feature.name for feature in getattr(view, "_features", ()) if not feature.label]
    return sum(name in keys[0] for name in features) if keys and len(features) == width else 0


def _point(method: str, many: bool, asynchronous: bool) -> WrapPoint:
    return WrapPoint(
        target=_VIEW + method,
        request=functools.partial(_request, many),
        response=_response,
        asynchronous=asynchronous,
        layer=LAYER,
    )


class HopsworksInstrumentor(CallInstrumentor):
    """Spans for Hopsworks. Does not import it: it waits until the program does."""

    scope = __name__
    requires = ("hopsworks >= 5.0",)
    points = (
        _point("get_feature_vector", False, False),
        _point("get_feature_vectors", True, False),
        _point("get_feature_vector_async", False, True),
        _point("get_feature_vectors_async", True, True),
    )

    def patch(self, patches: Patches) -> None:
        patches.add(_ANSWERED, functools.partial(_weighed, patches))


def _weighed(patches: Patches, original: Callable[..., Any]) -> Callable[..., Any]:
    """Note how large an answer of the REST server was."""

    @functools.wraps(original)
    def handle(*args: Any, **kwargs: Any) -> Any:
        if patches.active:
            with _BYTES:
                call = open_call(LAYER)
                if call is not None and type(call.state) is Vectors:
                    response = args[1] if len(args) > 1 else kwargs["response"]
                    call.state.bytes = (call.state.bytes or 0) + len(response.content)
        return original(*args, **kwargs)

    return handle

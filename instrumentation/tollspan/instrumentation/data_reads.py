"""What an inference pulls before it runs: feature stores and caches of the program's own, and what all readers share.

In: blocks and functions of the program, marked with `feature_read` and `cache_lookup`. Out: spans ``feature_read
{view}`` and ``cache_lookup {cache}`` on the global tracer provider, with what the block said of itself. Where it
stands: beside `feast` and `vectors`, which tell the same of the stores that they know, and take `LAYER`, `Keys` and
`ages` from here.

    with feature_read(store="redis", view="user_profile", features=12) as read:
        profiles = connection.mget(keys)
        read.rows = len(profiles)
        read.keys = keys

    @cache_lookup(cache="answers", kind="semantic")
    def cached_answer(question: str) -> str | None: ...

A read inside a read is part of it: round a client that has an instrumentation of its own (Feast) neither is needed, and
the outermost is the one that counts. A cache is apart: what it reads of a vector store is a query of its own.

Repeated reads are found by `READ_KEYS`, which is there where ``TOLLSPAN_FINGERPRINT_KEY`` is set: equal hashes in spans
of one trace, of one provider and the same views, are the same row read again. In the processor's tables::

    SELECT TraceId, SpanAttributes['tollspan.provider'] AS store, SpanAttributes['tollspan.feature.views'] AS views,
           key, count() AS reads
    FROM spans ARRAY JOIN JSONExtract(SpanAttributes['tollspan.read.keys'], 'Array(String)') AS key
    GROUP BY TraceId, store, views, key HAVING reads > 1

Reads for each inference are in the ledger without any of this: rows by trace whose ``operation`` is ``feature_read`` or
``vector_query``, beside those whose ``kind`` is ``inference``. ``tollspan query chattiness`` counts both.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal
from itertools import islice
from time import time
from types import TracebackType
from typing import Any, ClassVar, Final, Literal, TypeVar, cast

from opentelemetry import trace

from tollspan.instrumentation.calls import Call, Opening, WrapPoint, begin
from tollspan.instrumentation.guard import guard
from tollspan.instrumentation.switches import FINGERPRINT_KEY, text
from tollspan.pricing import attributes as names

__all__ = ["CacheLookup", "FeatureRead", "cache_lookup", "feature_read"]

LAYER: Final = "data"
"""Feature stores and vector stores: a query of one that stands on the other is one read."""
CACHE_LAYER: Final = "cache"

READS: Final = names.usage("feature.reads")
READ_BYTES: Final = names.usage("storage.read.bytes")

MOST_KEYS: Final = 256
"""Keys of one read that are hashed: the first ones."""

_log: Final = logging.getLogger(__name__)
_MEASURE: Final = guard("data_reads.measure")
_KEYS: Final = guard("data_reads.keys")

_F = TypeVar("_F", bound=Callable[..., Any])


class Keys:
    """Keyed hashes of what was asked for.

    Args:
        secret: the deployment's, as for fingerprints.
    """

    def __init__(self, secret: str) -> None:
        from tollspan.instrumentation.fingerprint import Fingerprints

        self._of = Fingerprints(secret).of

    def hashed(self, keys: Iterable[Any]) -> tuple[str, ...]:
        """A hash of 16 hexadecimal digits for each of the first `MOST_KEYS` keys, without repeats.

        Args:
            keys: strings, numbers, bytes, or rows as mappings of names to such.
        """
        return tuple(dict.fromkeys(self._of(_form(key))[:16] for key in islice(keys, MOST_KEYS)))


def _form(key: Any) -> str:
    # Numbers of every library and their text are one key: what reads them from JSON or a frame gets either.
    if isinstance(key, Mapping):
        return json.dumps({str(name): str(value) for name, value in key.items()}, sort_keys=True)
    return str(key)


@functools.lru_cache(maxsize=4)
def _keys(secret: str) -> Keys:
    return Keys(secret)


def hashes() -> Keys | None:
    """The hashes of this deployment; None where it has no key, and then nothing is to be hashed."""
    secret = text(FINGERPRINT_KEY)
    return _keys(secret) if secret else None


def ages(times: Iterable[float], now: float) -> dict[str, float]:
    """Attributes of how old values are.

    Args:
        times: event times, seconds since the epoch; 0 is none.
        now: seconds since the epoch.
    """
    old = sorted(max(0.0, now - time) for time in times if time)
    if not old:
        return {}
    middle = (old[(len(old) - 1) // 2] + old[len(old) // 2]) / 2
    return {names.FEATURE_AGE_OLDEST: old[-1], names.FEATURE_AGE_MEDIAN: middle}


def count(value: Any) -> int | None:
    """A count that a program gave, also as another library's integer; None for what is none."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        return None
    number = int(value.__index__())
    return number if number >= 0 else None


class _Block:
    """A block or function of the program that is a span: what `feature_read` and `cache_lookup` have in common."""

    point: ClassVar[WrapPoint]

    def __init__(self, opening: Opening, measure: Callable[[Any, Any], None] | None) -> None:
        self._opening = opening
        self._measure = measure
        self._call: Call | None = None
        self._told: Any = None

    def _handle(self) -> Any:
        raise NotImplementedError

    def _result(self, told: Any, result: Any) -> None:
        """What a decorated function returned."""
        if self._measure is not None:
            self._measure(told, result)

    def _enter(self) -> Any:
        self._told = told = self._handle()
        name, attributes, _ = self._opening
        self._call = begin(self.point, _tracer(trace.get_tracer_provider()), Opening(name, dict(attributes), told))
        return told

    def _exit(self, error: BaseException | None) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        if error is None:
            call.returned(None)
            return
        if call.recording:
            with _MEASURE:
                _told(call, None)
        call.raised(error)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._exit(error)

    def _returned(self, told: Any, result: Any) -> None:
        if self._call is not None and self._call.recording:
            with _MEASURE:
                self._result(told, result)
        self._exit(None)

    def _fresh(self) -> _Block:
        fresh = object.__new__(type(self))
        fresh.__dict__.update(self.__dict__)
        return fresh

    def __call__(self, function: _F) -> _F:
        """Make every call of a function, or coroutine function, such a block."""
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError(f"{type(self).__name__} does not decorate generators: use it inside, as a context manager")
        wrapper: Callable[..., Any]
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                block = self._fresh()
                told = block._enter()
                try:
                    result = await function(*args, **kwargs)
                except BaseException as error:
                    block._exit(error)
                    raise
                block._returned(told, result)
                return result

        else:

            @functools.wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                block = self._fresh()
                told = block._enter()
                try:
                    result = function(*args, **kwargs)
                except BaseException as error:
                    block._exit(error)
                    raise
                block._returned(told, result)
                return result

        return cast("_F", wrapper)


_last: tuple[trace.TracerProvider, trace.Tracer] | None = None
"""The provider of the last read, and its tracer."""


def _tracer(provider: trace.TracerProvider) -> trace.Tracer:
    global _last
    last = _last
    # By identity: a provider need not be hashable.
    if last is None or last[0] is not provider:
        _last = last = provider, trace.get_tracer(__name__, tracer_provider=provider)
    return last[1]


def _told(call: Call, result: Any) -> None:
    call.state.put(call.attributes)


class FeatureRead:
    """What a read says of itself. Assign while the block runs; None, the default, says that it is not known.

    Attributes:
        rows: entity rows asked for.
        features: features asked for of each row. ``feature.reads`` is rows × features.
        bytes: size of the answer, bytes.
        hits: values that were found, of rows × features.
        nulls: values that were found to be null.
        misses: values that were not found.
        times: event times of the values found, seconds since the epoch, of any number: how fresh they are.
        keys: the rows' keys, strings, numbers or mappings; only their keyed hashes leave the process, and only where
            ``TOLLSPAN_FINGERPRINT_KEY`` is set.
    """

    __slots__ = ("bytes", "features", "hits", "keys", "misses", "nulls", "rows", "times")

    def __init__(self, features: int | None = None) -> None:
        self.rows: int | None = None
        self.features = features
        self.bytes: int | None = None
        self.hits: int | None = None
        self.nulls: int | None = None
        self.misses: int | None = None
        self.times: Iterable[float] | None = None
        self.keys: Iterable[Any] | None = None

    def put(self, attributes: dict[str, Any]) -> None:
        """Put what is known into the attributes of the span."""
        rows, features = count(self.rows), count(self.features)
        known = {
            names.FEATURE_ROWS: rows,
            names.FEATURE_COUNT: features,
            READS: rows * features if rows is not None and features is not None else None,
            READ_BYTES: count(self.bytes),
            names.FEATURE_HITS: count(self.hits),
            names.FEATURE_NULLS: count(self.nulls),
            names.FEATURE_MISSES: count(self.misses),
        }
        attributes.update({name: value for name, value in known.items() if value is not None})
        if self.times is not None:
            attributes.update(ages(self.times, time()))
        if self.keys is not None:
            put_keys(attributes, self.keys)


def put_keys(attributes: dict[str, Any], keys: Iterable[Any]) -> None:
    """Put the hashes of a read's keys into the attributes of its span, where there is a key to hash them with."""
    hashed = hashes()
    if hashed is None:
        return
    with _KEYS:
        if found := hashed.hashed(keys):
            attributes[names.READ_KEYS] = found


def _opened(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Opening:
    opening: Opening = args[0]
    return opening


class feature_read(_Block):
    """Makes a span of a read from a feature store of your own: a context manager and a decorator.

    ``with``, ``async with``, or on a function or coroutine function. One instance serves one block at a time; as a
    decorator it serves any number of calls at once.

    Args:
        store: kind of store, ``redis``, ``dynamodb``, ``postgres`` ...: what its reads are priced by, as ``provider``.
        view: feature view, table or key space; the span's ``tollspan.model``, a list of them its views.
        features: how many features of each row are read, where that is always the same.
        entities: names of what rows are asked for by.
        measure: for a decorator: ``(read, result)``, called with the `FeatureRead` and what the function returned. What
            it raises is logged, once.

    The block gets a `FeatureRead`, and what it raises is the caller's own.
    """

    point = WrapPoint(target="tollspan:feature_read", request=_opened, response=_told, layer=LAYER)

    def __init__(
        self,
        *,
        store: str,
        view: str | Sequence[str] | None = None,
        features: int | None = None,
        entities: Iterable[str] = (),
        measure: Callable[[FeatureRead, Any], None] | None = None,
    ) -> None:
        views = sorted({view} if isinstance(view, str) else set(view or ()))
        about: dict[str, Any] = {
            names.OPERATION: names.OPERATION_FEATURE_READ,
            names.PROVIDER: store,
            names.FEATURE_STORE: store,
            names.FEATURE_ACCESS: "online",
        }
        if views:
            about[names.FEATURE_VIEWS] = views
        if len(views) == 1:
            about[names.MODEL] = views[0]
        if entities := sorted(set(entities)):
            about[names.FEATURE_ENTITIES] = entities
        name = names.OPERATION_FEATURE_READ + (f" {views[0]}" if len(views) == 1 else f" {store}")
        super().__init__(Opening(name, about), measure)
        self._features = features

    def _handle(self) -> FeatureRead:
        return FeatureRead(self._features)

    def __enter__(self) -> FeatureRead:
        return cast("FeatureRead", self._enter())

    async def __aenter__(self) -> FeatureRead:
        return cast("FeatureRead", self._enter())


class CacheLookup:
    """What a lookup says of itself. Without `hit` or `miss` its result stays unknown.

    Attributes:
        bytes: size of what was found, bytes.
        keys: what was looked up; only its keyed hash leaves the process, as for `FeatureRead.keys`.
    """

    __slots__ = ("_said", "bytes", "keys")

    def __init__(self) -> None:
        self._said: dict[str, Any] = {}
        self.bytes: int | None = None
        self.keys: Iterable[Any] | None = None

    def miss(self, *, similarity: float | None = None) -> None:
        """Nothing was found; ``similarity`` is that of the nearest entry, if there was one."""
        self._said = {names.CACHE_RESULT: "miss", names.CACHE_SIMILARITY: similarity}

    def hit(
        self,
        *,
        saved_cost: Decimal | int | str | None = None,
        saved_input_tokens: int | None = None,
        saved_output_tokens: int | None = None,
        model: str | None = None,
        similarity: float | None = None,
    ) -> None:
        """Something was found, and a call was made needless.

        Args:
            saved_cost: what that call would have cost, USD, never a float: what is written is exact.
            saved_input_tokens, saved_output_tokens: what it would have used, all of the input and all of the output.
            model: model that would have been asked.
            similarity: of a semantic cache's entry to what was looked up, in the cache's own measure.
        """
        self._said = {
            names.CACHE_RESULT: "hit",
            names.CACHE_SAVED_COST: saved_cost,
            names.CACHE_SAVED_INPUT_TOKENS: saved_input_tokens,
            names.CACHE_SAVED_OUTPUT_TOKENS: saved_output_tokens,
            names.CACHE_SAVED_MODEL: model,
            names.CACHE_SIMILARITY: similarity,
        }

    @property
    def told(self) -> bool:
        """Whether it was a hit or a miss is known."""
        return names.CACHE_RESULT in self._said

    def put(self, attributes: dict[str, Any]) -> None:
        """Put what is known into the attributes of the span."""
        for name, value in (*self._said.items(), (READ_BYTES, self.bytes)):
            known = None if value is None else _FORMS.get(name, str)(value)
            if known is not None:
                attributes[name] = known
        if self.keys is not None:
            put_keys(attributes, self.keys)


def _money(amount: Any) -> str | None:
    try:
        value = Decimal("NaN") if isinstance(amount, float) else Decimal(amount)
    except (ArithmeticError, TypeError, ValueError):
        value = Decimal("NaN")
    if value.is_finite() and value >= 0:
        return format(value, "f")
    _log.warning("tollspan: a cache's saved_cost is left out: it has to be a Decimal, a string or an int, of USD")
    return None


_FORMS: Final[Mapping[str, Callable[[Any], Any]]] = {
    names.CACHE_SAVED_COST: _money,
    names.CACHE_SAVED_INPUT_TOKENS: count,
    names.CACHE_SAVED_OUTPUT_TOKENS: count,
    names.CACHE_SIMILARITY: float,
    READ_BYTES: count,
}
"""Attribute of a lookup → what makes its value of what the program gave; a string by default."""


class cache_lookup(_Block):
    """Makes a span of a lookup in a cache of answers: a context manager and a decorator, as `feature_read` is.

    Args:
        cache: its name, the span's ``tollspan.model``.
        kind: ``exact``, or ``semantic`` where a similar question is good enough.
        store: kind of store behind it, the span's ``tollspan.provider``.
        measure: for a decorator: ``(lookup, result)``. Without one, a function that returns None missed, and one that
            returns anything else hit.

    The block gets a `CacheLookup`.
    """

    point = WrapPoint(target="tollspan:cache_lookup", request=_opened, response=_told, layer=CACHE_LAYER)

    def __init__(
        self,
        *,
        cache: str,
        kind: Literal["exact", "semantic"] = "exact",
        store: str | None = None,
        measure: Callable[[CacheLookup, Any], None] | None = None,
    ) -> None:
        if kind not in ("exact", "semantic"):
            raise ValueError(f"kind must be 'exact' or 'semantic', not {kind!r}")
        about: dict[str, Any] = {
            names.OPERATION: names.OPERATION_CACHE_LOOKUP,
            names.MODEL: cache,
            names.CACHE_KIND: kind,
        }
        if store is not None:
            about[names.PROVIDER] = store
        super().__init__(Opening(f"{names.OPERATION_CACHE_LOOKUP} {cache}", about), measure)

    def _handle(self) -> CacheLookup:
        return CacheLookup()

    def _result(self, told: Any, result: Any) -> None:
        super()._result(told, result)
        if self._measure is not None or told.told:
            return
        if result is None:
            told.miss()
        else:
            told.hit()

    def __enter__(self) -> CacheLookup:
        return cast("CacheLookup", self._enter())

    async def __aenter__(self) -> CacheLookup:
        return cast("CacheLookup", self._enter())

"""A stand-in has what the object has, and nothing more."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections import abc
from collections.abc import Iterator
from types import MappingProxyType
from typing import Any

import pytest

from tollspan.instrumentation.proxies import Proxy, stand_in


class Closer(Proxy):
    """One method is other than the object's, and two special ones."""

    __slots__ = ()
    special = MappingProxyType({"__enter__": lambda self: "ours", "__next__": lambda self: "ours"})

    def close(self) -> str:
        return "ours"


class Sized:
    """A sized one."""

    size = 3

    def __len__(self) -> int:
        return self.size

    def __enter__(self) -> str:
        return "its own"

    def close(self) -> str:
        return "its own"


def generator() -> Iterator[int]:
    yield 1


def test_it_is_an_instance_of_the_objects_class_and_looks_like_it() -> None:
    subject = Sized()
    proxy = stand_in(Closer, subject)
    assert isinstance(proxy, Sized)
    assert (repr(proxy), str(proxy), dir(proxy), proxy.__doc__) == (
        *(repr(subject), str(subject), dir(subject), subject.__doc__),
    )
    assert proxy == subject
    assert proxy == proxy
    assert hash(proxy) == hash(subject)


def test_special_methods_are_those_that_the_object_has() -> None:
    proxy = stand_in(Closer, Sized())
    assert len(proxy) == 3
    assert proxy.__enter__() == "ours"
    assert not hasattr(proxy, "__next__")
    assert not isinstance(proxy, abc.Iterator)
    of_generator = stand_in(Closer, generator())
    assert not isinstance(of_generator, abc.Sized)
    assert not hasattr(of_generator, "__enter__")
    assert next(of_generator) == "ours"
    assert isinstance(of_generator, abc.Generator)


def test_attributes_are_the_objects() -> None:
    subject = Sized()
    proxy = stand_in(Closer, subject)
    proxy.size = 5
    assert (len(subject), vars(subject)) == (5, {"size": 5})
    del proxy.size
    assert subject.size == 3
    assert proxy.close() == "ours"
    with pytest.raises(AttributeError, match="'Sized' object has no attribute 'other'"):
        _ = proxy.other


def test_what_is_copied_and_pickled_is_the_object() -> None:
    proxy = stand_in(Closer, Sized())
    for made in (copy.copy(proxy), copy.deepcopy(proxy), pickle.loads(pickle.dumps(proxy))):
        assert type(made) is Sized
    with pytest.raises(TypeError, match="cannot pickle 'generator' object"):
        pickle.dumps(stand_in(Closer, generator()))


def test_neither_the_object_nor_its_class_is_kept() -> None:
    def alive() -> list[weakref.ref[Any]]:
        class Local(Sized):
            pass

        subject = Local()
        stand_in(Closer, subject)
        return [weakref.ref(subject), weakref.ref(Local)]

    references = alive()
    assert references[0]() is None
    gc.collect()
    assert references[1]() is None

"""Fingerprints: equal requests have equal ones, others do not, and nothing can be told or tried out from them."""

from __future__ import annotations

import enum
import io
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tollspan.instrumentation.content_parts import plain
from tollspan.instrumentation.fingerprint import NOT_THE_REQUEST, Fingerprints, canonical
from tollspan.instrumentation.openai import OpenAIInstrumentor
from tollspan.pricing import attributes as names

METHOD = "library:Client.ask"
FUNCTION = "library:ask"
ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "My name is Ada."}], "temperature": 0.2}


def form(*args: Any, target: str = METHOD, opened: Any = None, **kwargs: Any) -> str | None:
    return canonical(target, args, kwargs, opened or {})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=4), JSON, max_size=4))
def test_the_order_of_arguments_does_not_matter(request: dict[str, Any]) -> None:
    asked = {name: value for name, value in request.items() if name not in ("target", "opened")}
    backwards = dict(reversed(asked.items()))
    assert canonical(METHOD, (object(),), asked, {}) == canonical(METHOD, (object(),), backwards, {}) is not None


@given(st.text(), st.text())
def test_every_letter_of_what_is_asked_for_matters(one: str, other: str) -> None:
    assert (form(0, messages=[{"content": one}]) == form(0, messages=[{"content": other}])) == (one == other)
    assert (form(0, messages=[one, other]) == form(0, messages=[one + other])) is False


@pytest.mark.parametrize("name", sorted(NOT_THE_REQUEST))
def test_what_is_not_the_request_does_not_matter(name: str) -> None:
    assert form(0, **ASK, **{name: "anything"}) == form(0, **ASK)


def test_an_instance_is_not_part_of_the_request_and_an_argument_is() -> None:
    assert form(object(), "a", target=METHOD) == form(object(), "a", target=METHOD)
    assert form("a", target=FUNCTION) != form("b", target=FUNCTION)
    assert form(0, "a") != form(0, "b")


def test_provider_and_operation_matter() -> None:
    opened = {names.PROVIDER_NAME: "openai", names.OPERATION_NAME: "chat"}
    assert form(0, opened=opened) != form(0, opened={**opened, names.PROVIDER_NAME: "groq"})
    assert form(0, opened=opened) != form(0, opened={**opened, names.OPERATION_NAME: "embeddings"})


class Message(pydantic.BaseModel):
    role: str
    content: str
    name: str | None = None


class Omit:
    """A client's sentinel."""


class Size(enum.Enum):
    SMALL = "small"


def test_the_same_request_in_other_types_is_the_same() -> None:
    plain = form(0, messages=[{"role": "user", "content": "hello"}])
    assert form(0, messages=[Message(role="user", content="hello")]) == plain
    assert form(0, messages=({"role": "user", "content": "hello"},), temperature=Omit(), tools=None) == plain
    assert form(0, size=Size.SMALL) == form(0, size="small")
    assert form(0, stop={"b", "a"}) == form(0, stop=["a", "b"])
    assert form(0, response_format=Message) != form(0, response_format=Size)
    assert form(0, image=b"abc") == form(0, image=bytearray(b"abc")) != form(0, image=b"abd")


def test_a_model_that_holds_what_its_class_does_not_expect_warns_nobody() -> None:
    odd = Message.model_construct(role="user", content=5)  # as clients make them of whatever a server sent
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert form(0, messages=[odd]) == form(0, messages=[{"role": "user", "content": 5}])
        assert plain(odd) == {"role": "user", "content": 5}


def test_what_has_no_form_has_no_fingerprint_and_is_not_read() -> None:
    pages = iter(["a", "b"])
    assert form(0, messages=pages) is None
    assert list(pages) == ["a", "b"]
    file = io.BytesIO(b"audio")
    assert form(0, file=file) is None
    assert file.tell() == 0
    assert form(0, file=b"x" * (1 << 21)) is None
    cycle: list[Any] = []
    cycle.append(cycle)
    assert form(0, messages=cycle) is None
    assert form(0, messages={1: "a", "b": "c"}) is None  # keys that cannot be sorted


def test_the_key_decides_and_nothing_is_told() -> None:
    text = form(0, **ASK)
    assert text is not None
    one, same, other = Fingerprints("secret").of(text), Fingerprints("secret").of(text), Fingerprints("other").of(text)
    assert one == same != other
    assert re.fullmatch("[0-9a-f]{32}", one)
    assert Fingerprints("k" * 1000).of(text) != Fingerprints("k" * 1001).of(text)
    assert Fingerprints("secret").of("\ud800")  # half of a pair is a string, too


@pytest.fixture
def keyed(monkeypatch: pytest.MonkeyPatch, telemetry: Any) -> Iterator[Any]:
    monkeypatch.setenv("TOLLSPAN_FINGERPRINT_KEY", "secret of the tests")
    OpenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    OpenAIInstrumentor().uninstrument()


async def test_equal_requests_are_found_across_the_ways_of_asking(keyed: Any, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    wire.client().chat.completions.with_raw_response.create(**ASK, timeout=3)
    async with wire.async_client() as client:
        await client.chat.completions.create(**ASK, metadata={"request": "7"})
    wire.client().chat.completions.create(**{**ASK, "temperature": 0.3})
    found = [span.attributes[names.REQUEST_FINGERPRINT] for span in keyed.spans()]
    assert len(found) == 4
    assert len(set(found[:3])) == 1
    assert found[3] != found[0]
    assert not [value for span in keyed.spans() for value in span.attributes.values() if "Ada" in str(value)]


def test_without_a_key_there_is_none(openai_spans: Any, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    assert names.REQUEST_FINGERPRINT not in openai_spans.attributes()

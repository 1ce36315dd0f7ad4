"""A call that failed before anything was sent says so; where that is not certain nothing is said."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import openai
import pytest

from tollspan.instrumentation.openai.retries import RETRIES
from tollspan.pricing.attributes import CALL_SENT, ERROR_TYPE, USAGE_INPUT_TOKENS

from .http_library import httpx2

ASK: Any = {"model": "gpt-5-mini", "messages": [{"role": "user", "content": "hello"}]}


def test_a_missing_argument_is_a_call_of_which_nothing_was_sent(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(TypeError, match="model"):
        wire.client().chat.completions.create(messages=[])
    attributes = openai_spans.attributes()
    assert attributes[CALL_SENT] is False
    assert attributes[ERROR_TYPE] == "TypeError"
    assert wire.requests == []


async def test_a_missing_argument_of_an_asynchronous_call_too(openai_spans: Any, wire: Any) -> None:
    async with wire.async_client() as client:
        with pytest.raises(TypeError, match="model"):
            await client.chat.completions.create(messages=[])
    assert openai_spans.attributes()[CALL_SENT] is False


def test_a_body_that_cannot_be_encoded_was_not_sent(openai_spans: Any, wire: Any) -> None:
    with pytest.raises(TypeError):
        wire.client().chat.completions.create(model="gpt-5-mini", messages=[{"role": "user", "content": object()}])
    assert openai_spans.attributes()[CALL_SENT] is False
    assert wire.requests == []


def test_azures_client_tells_too(openai_spans: Any, wire: Any) -> None:
    http = httpx2.Client(transport=httpx2.MockTransport(wire._answer))
    azure = openai.AzureOpenAI(
        api_key="k", api_version="1", azure_endpoint="https://a.openai.azure.com", http_client=http
    )
    with pytest.raises(TypeError):
        azure.chat.completions.create(messages=[])
    assert openai_spans.attributes()[CALL_SENT] is False


@pytest.mark.parametrize("status", [400, 404, 500])
def test_of_a_refused_call_it_is_not_said(openai_spans: Any, wire: Any, status: int) -> None:
    with pytest.raises(openai.APIStatusError):
        wire.error(status).client(max_retries=0).chat.completions.create(**ASK)
    assert CALL_SENT not in openai_spans.attributes()


@pytest.mark.parametrize("error", [httpx2.ReadTimeout("slow"), httpx2.ConnectError("no")])
def test_of_a_call_that_broke_on_the_way_it_is_not_said(openai_spans: Any, wire: Any, error: Exception) -> None:
    with pytest.raises(openai.APIConnectionError):
        wire.raises(error).client(max_retries=0).chat.completions.create(**ASK)
    assert CALL_SENT not in openai_spans.attributes()


async def test_of_a_call_cancelled_under_way_it_is_not_said(openai_spans: Any, wire: Any) -> None:
    under_way = asyncio.Event()

    async def never(request: httpx2.Request) -> httpx2.Response:
        under_way.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with wire.async_client(http_client=httpx2.AsyncClient(transport=httpx2.MockTransport(never))) as client:
        task = asyncio.create_task(client.chat.completions.create(**ASK))
        await under_way.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    attributes = openai_spans.attributes()
    assert attributes[ERROR_TYPE] == "asyncio.exceptions.CancelledError"
    assert CALL_SENT not in attributes


def test_of_a_second_attempt_that_fails_before_it_is_sent_it_is_not_said(openai_spans: Any, wire: Any) -> None:
    class Once(openai.OpenAI):
        prepared = 0

        def _prepare_options(self, options: Any) -> Any:
            self.prepared += 1
            if self.prepared == 2:
                raise ValueError("no token any more")
            return options

    http = httpx2.Client(transport=httpx2.MockTransport(wire.error(503)._answer))
    with pytest.raises(ValueError, match="no token"):
        Once(api_key="k", http_client=http, max_retries=1).chat.completions.create(**ASK)
    assert len(wire.requests) == 1
    assert CALL_SENT not in openai_spans.attributes()


def test_of_a_stream_that_breaks_off_it_is_not_said(openai_spans: Any, wire: Any) -> None:
    stream = wire.stream(wire.completion_chunks(), httpx2.ReadError("cut")).client()
    # Version 2 hands on the transport's own error.
    with pytest.raises(httpx2.ReadError if openai.__version__ < "3" else openai.APIConnectionError):
        list(stream.chat.completions.create(**ASK, stream=True))
    assert ERROR_TYPE in openai_spans.attributes()
    assert CALL_SENT not in openai_spans.attributes()


def test_a_call_that_succeeds_says_nothing_of_it(openai_spans: Any, wire: Any) -> None:
    wire.json(wire.completion()).client().chat.completions.create(**ASK)
    attributes = openai_spans.attributes()
    assert attributes[USAGE_INPUT_TOKENS] == 100
    assert CALL_SENT not in attributes


def test_of_a_client_that_sends_in_its_own_way_it_is_not_said(openai_spans: Any, wire: Any) -> None:
    """Its request is made in a thread of its own, where nothing says which call it belongs to."""

    class Threaded(openai.OpenAI):
        def request(self, *args: Any, **kwargs: Any) -> Any:
            errors: list[BaseException] = []

            def work() -> None:
                try:
                    super(Threaded, self).request(*args, **kwargs)
                except openai.APIError as error:
                    errors.append(error)

            thread = threading.Thread(target=work)
            thread.start()
            thread.join()
            raise errors[0]

    http = httpx2.Client(transport=httpx2.MockTransport(wire.raises(httpx2.ConnectError("no"))._answer))
    with pytest.raises(openai.APIConnectionError):
        Threaded(api_key="k", http_client=http, max_retries=0).chat.completions.create(**ASK)
    assert len(wire.requests) == 1
    assert CALL_SENT not in openai_spans.attributes()


def test_of_a_client_whose_post_was_replaced_it_is_not_said(openai_spans: Any, wire: Any) -> None:
    client = wire.client()

    def post(*args: Any, **kwargs: Any) -> Any:
        raise OSError("sent in another way, and lost")

    client.post = post
    with pytest.raises(OSError, match="another way"):
        client.chat.completions.create(**ASK)
    assert CALL_SENT not in openai_spans.attributes()


def test_without_the_hook_it_is_not_said(openai_spans: Any, wire: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RETRIES, "hooked", set())
    with pytest.raises(TypeError):
        wire.client().chat.completions.create(messages=[])
    assert CALL_SENT not in openai_spans.attributes()

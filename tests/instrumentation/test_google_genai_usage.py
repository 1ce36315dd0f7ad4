"""Truth table of the google-genai client: usage in, meters out through the processor, and the price by hand; and the
kinds of call that are billed in ways of their own."""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from google.genai import errors, types
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from tollspan.instrumentation.google_genai import GoogleGenAIInstrumentor, interactions, live, readers
from tollspan.instrumentation.google_genai.interactions import older_usage
from tollspan.instrumentation.google_genai.live import added
from tollspan.instrumentation.google_genai.readers import short_model, tier_of, whole_usage
from tollspan.pricing import PriceEngine, Selectors, shipped_book
from tollspan.pricing import attributes as names
from tollspan.processor.decode import decode
from tollspan.processor.normalize import normalize

sys.path.insert(0, str(Path(__file__).parent))

from google_stub import MODEL, USAGE, GoogleStub, chunks, content

ASK: dict[str, Any] = {"model": MODEL, "contents": "hello"}
AT = datetime(2026, 11, 20, tzinfo=UTC)


@pytest.fixture
def google() -> Iterator[GoogleStub]:
    """A Google service that nobody has told what to say yet."""
    stub = GoogleStub()
    yield stub
    stub.close()


@pytest.fixture
def google_spans(telemetry: Any) -> Iterator[Any]:
    """The google-genai client instrumented for this test."""
    GoogleGenAIInstrumentor().instrument(tracer_provider=telemetry.provider)
    yield telemetry
    GoogleGenAIInstrumentor().uninstrument()


def meters(telemetry: Any) -> list[dict[str, int]]:
    """Meters above 0 that the processor takes from each span, in base steps."""
    payload = encode_spans(telemetry.spans()).SerializeToString()
    normalized = normalize(decode([payload]), received_ns=time.time_ns())
    assert normalized.table["invalid"].to_pylist() == [None] * normalized.table.num_rows
    columns = {meter: column.to_pylist() for meter, column in normalized.quantities.items()}
    return [
        {meter: column[row] for meter, column in columns.items() if column[row]}
        for row in range(normalized.table.num_rows)
    ]


def price(quantities: dict[str, int], **selectors: Any) -> Decimal | None:
    """What the shipped prices make of it."""
    engine = PriceEngine(shipped_book())
    return engine.price(quantities, at=AT, selectors=Selectors(provider="gcp.gemini", **selectors)).cost


WHOLE = {
    # 1000 in the prompt, 400 of them cached, 100 audio, 20 of those cached; 30 for tools, beside the prompt
    "tokens.input.uncached": 1000 + 30 - 380 - 20 - 80,
    "tokens.input.cache_read": 380,
    "tokens.input.audio": 80,
    "tokens.input.audio.cache_read": 20,
    # 200 in the candidates, and 50 thoughts beside them
    "tokens.output": 200,
    "tokens.output.reasoning": 50,
}

TRUTH: list[tuple[str, dict[str, Any] | None, dict[str, int]]] = [
    ("everything", USAGE, WHOLE),
    ("nothing", None, {}),
    (
        "plain",
        {"promptTokenCount": 100, "candidatesTokenCount": 20, "totalTokenCount": 120},
        {"tokens.input.uncached": 100, "tokens.output": 20},
    ),
    (
        "thoughts alone",
        {"promptTokenCount": 100, "thoughtsTokenCount": 40, "totalTokenCount": 140},
        {"tokens.input.uncached": 100, "tokens.output.reasoning": 40},
    ),
    (
        "an image in and out",
        {
            "promptTokenCount": 300,
            "candidatesTokenCount": 1310,
            "totalTokenCount": 1610,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 42},
                {"modality": "IMAGE", "tokenCount": 258},
            ],
            "candidatesTokensDetails": [
                {"modality": "TEXT", "tokenCount": 20},
                {"modality": "IMAGE", "tokenCount": 1290},
            ],
        },
        {
            "tokens.input.uncached": 42,
            "tokens.input.image": 258,
            "tokens.output": 20,
            "tokens.output.image": 1290,
        },
    ),
    (
        "video and a document",
        {
            "promptTokenCount": 1000,
            "candidatesTokenCount": 1,
            "totalTokenCount": 1001,
            "promptTokensDetails": [
                {"modality": "TEXT", "tokenCount": 100},
                {"modality": "VIDEO", "tokenCount": 600},
                {"modality": "DOCUMENT", "tokenCount": 300},
            ],
        },
        {
            "tokens.input.uncached": 100,
            "tokens.input.video": 600,
            "tokens.input.image": 300,
            "tokens.output": 1,
        },
    ),
]


@pytest.mark.parametrize(("name", "usage", "expected"), TRUTH, ids=[row[0] for row in TRUTH])
@pytest.mark.parametrize("kind", ["whole", "stream", "raw", "vertex"])
def test_generation(google_spans: Any, google: GoogleStub, name: str, usage: Any, expected: Any, kind: str) -> None:
    client = google.vertex() if kind == "vertex" else google.client()
    if kind == "stream":
        events = chunks(usage)
        if usage is None:
            for event in events:
                event.pop("usageMetadata", None)
        google.stream(events)
        list(client.models.generate_content_stream(**ASK))
    else:
        google.json(content(usage))
        config = {"should_return_http_response": True} if kind == "raw" else None
        client.models.generate_content(**ASK, config=config)
    assert meters(google_spans) == [expected]


def test_the_price_by_hand(google_spans: Any, google: GoogleStub) -> None:
    google.json(content()).client().models.generate_content(**ASK)
    (quantities,) = meters(google_spans)
    # Dollars for a million tokens of gemini-2.5-flash: 0.30 in, 1.00 of audio, 0.03 cached, 0.10 of cached audio, and
    # 2.50 out, thoughts too.
    by_hand = (
        Decimal("0.30") * 550
        + Decimal("1.00") * 80
        + Decimal("0.03") * 380
        + Decimal("0.10") * 20
        + Decimal("2.50") * (200 + 50)
    ) / 1_000_000
    assert price(quantities, model=MODEL) == by_hand


def test_a_tier_has_its_price(google_spans: Any, google: GoogleStub) -> None:
    usage = {"promptTokenCount": 1_000_000, "candidatesTokenCount": 1_000_000, "totalTokenCount": 2_000_000}
    google.json(content(usage, modelVersion="gemini-3.8-flash"), x_gemini_service_tier="flex")
    google.client().models.generate_content(model="gemini-3.8-flash", contents="hello")
    tier = google_spans.attributes()[names.OPENAI_RESPONSE_SERVICE_TIER]
    assert price(meters(google_spans)[0], model="gemini-3.8-flash", service_tier=tier) == Decimal("2.25")


# -- what an answer tells beside its counts --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "header", "traffic", "expected"),
    [
        (None, None, None, None),
        (None, "standard", None, "standard"),
        ("priority", "standard", None, "standard"),  # what was served is what is billed
        ("flex", None, None, None),
        (None, None, "ON_DEMAND", "on_demand"),
        (None, None, "ON_DEMAND_FLEX", "flex"),
        (None, None, "ON_DEMAND_PRIORITY", "priority"),
        (None, None, "PROVISIONED_THROUGHPUT", "provisioned_throughput"),
        (None, None, "TRAFFIC_TYPE_UNSPECIFIED", None),
    ],
)
def test_the_tier_as_served(
    google_spans: Any, google: GoogleStub, asked: Any, header: Any, traffic: Any, expected: Any
) -> None:
    usage = {**USAGE, **({"trafficType": traffic} if traffic else {})}
    google.json(content(usage), **({"X_Gemini_Service_Tier": header} if header else {}))
    client = google.vertex() if traffic else google.client()
    client.models.generate_content(**ASK, config={"service_tier": asked} if asked else None)
    attributes = google_spans.attributes()
    assert attributes.get(names.OPENAI_RESPONSE_SERVICE_TIER) == expected
    assert attributes.get(names.OPENAI_REQUEST_SERVICE_TIER) == asked


def test_the_tier_of_a_stream(google_spans: Any, google: GoogleStub) -> None:
    google.stream(chunks(), X_Gemini_Service_Tier="priority")
    list(google.client().models.generate_content_stream(**ASK))
    assert google_spans.attributes()[names.OPENAI_RESPONSE_SERVICE_TIER] == "priority"


@pytest.mark.parametrize(("model", "searches"), [("gemini-2.5-flash", 1), ("gemini-3.8-flash", 2)])
@pytest.mark.parametrize("kind", ["whole", "stream", "raw"])
def test_searches_of_the_web(google_spans: Any, google: GoogleStub, model: str, searches: int, kind: str) -> None:
    grounded = content(modelVersion=model)
    grounded["candidates"][0]["groundingMetadata"] = {"webSearchQueries": ["a", "b", "a", ""]}
    client = google.client()
    if kind == "stream":
        # The searches come in one chunk, the last usage in a later one.
        google.stream([{**grounded, "usageMetadata": {"promptTokenCount": 1000}}, content(modelVersion=model)])
        list(client.models.generate_content_stream(model=model, contents="hello"))
    else:
        google.json(grounded)
        config = {"should_return_http_response": True} if kind == "raw" else None
        client.models.generate_content(model=model, contents="hello", config=config)
    assert meters(google_spans) == [{**WHOLE, "web_searches": searches}]


@pytest.mark.parametrize("kind", ["whole", "stream", "raw"])
def test_searches_of_maps(google_spans: Any, google: GoogleStub, kind: str) -> None:
    grounded = content()
    place = {"maps": {"uri": "https://maps.google.com/?cid=1", "title": "A place", "placeId": "places/1"}}
    grounded["candidates"][0]["groundingMetadata"] = {"groundingChunks": [place, place]}
    client = google.client()
    if kind == "stream":
        google.stream([{**grounded, "usageMetadata": {"promptTokenCount": 1000}}, content()])
        list(client.models.generate_content_stream(**ASK))
    else:
        google.json(grounded)
        config = {"should_return_http_response": True} if kind == "raw" else None
        client.models.generate_content(**ASK, config=config)
    assert meters(google_spans) == [{**WHOLE, "maps_searches": 1}]


def test_a_prompt_that_was_blocked(google_spans: Any, google: GoogleStub) -> None:
    usage = {"promptTokenCount": 12, "totalTokenCount": 12}
    google.json({"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": usage, "modelVersion": MODEL})
    google.client().models.generate_content(**ASK)
    attributes = google_spans.attributes()
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("safety",)
    assert (attributes[names.USAGE_INPUT_TOKENS], attributes[names.USAGE_OUTPUT_TOKENS]) == (12, 0)


def test_several_candidates(google_spans: Any, google: GoogleStub) -> None:
    body = content()
    body["candidates"] = [{"index": 1, "finishReason": "MAX_TOKENS"}, {"index": 0, "finishReason": "STOP"}]
    google.json(body).client().models.generate_content(**ASK, config={"candidate_count": 2})
    assert google_spans.attributes()[names.RESPONSE_FINISH_REASONS] == ("stop", "max_tokens")


def test_request_parameters(google_spans: Any, google: GoogleStub) -> None:
    config = types.GenerateContentConfig(temperature=0, top_p=0.5, max_output_tokens=7)
    google.json(content()).client().models.generate_content(model=f"models/{MODEL}", contents="x", config=config)
    attributes = google_spans.attributes()
    asked = {name: value for name, value in attributes.items() if ".request." in name}
    assert asked == {
        names.REQUEST_MODEL: MODEL,
        names.REQUEST_TEMPERATURE: 0.0,
        names.REQUEST_TOP_P: 0.5,
        names.REQUEST_MAX_TOKENS: 7,
    }


def test_an_address_for_one_request(google_spans: Any, google: GoogleStub) -> None:
    url = google.url.replace("127.0.0.1", "localhost")
    config = {"http_options": {"base_url": url}}
    google.json(content()).client().models.generate_content(**ASK, config=config)
    assert google_spans.attributes()[names.SERVER_ADDRESS] == "localhost"


@pytest.mark.parametrize(
    ("model", "short"),
    [
        ("gemini-3.8-flash", "gemini-3.8-flash"),
        ("models/gemini-3.8-flash", "gemini-3.8-flash"),
        ("publishers/google/models/gemini-3.8-flash", "gemini-3.8-flash"),
        ("projects/p/locations/l/publishers/google/models/gemini-3.8-flash", "gemini-3.8-flash"),
        ("tunedModels/my-model", "tunedModels/my-model"),
        ("projects/p/locations/l/endpoints/7", "projects/p/locations/l/endpoints/7"),
        ("publishers/meta/models/llama-4", "publishers/meta/models/llama-4"),
        ("", None),
        (None, None),
    ],
)
def test_a_models_name(model: Any, short: str | None) -> None:
    assert short_model(model) == short


@pytest.mark.parametrize(
    ("value", "tier"),
    [
        (types.ServiceTier.FLEX, "flex"),
        ("SERVICE_TIER_PRIORITY", "priority"),
        ("unspecified", None),
        (None, None),
        (7, None),
    ],
)
def test_a_tiers_name(value: Any, tier: str | None) -> None:
    assert tier_of(value) == tier


@pytest.mark.parametrize(
    ("usage", "output"),
    [
        ({"prompt_token_count": 5, "total_token_count": 5}, 0),
        ({"prompt_token_count": 5, "thoughts_token_count": 3, "total_token_count": 8}, 0),
        ({"prompt_token_count": 5, "total_token_count": 9}, None),
        ({"prompt_token_count": 5}, None),
        ({"prompt_token_count": 5, "candidates_token_count": 4, "total_token_count": 9}, 4),
    ],
)
def test_a_count_that_is_left_out_is_0_only_where_the_total_says_so(usage: Any, output: int | None) -> None:
    whole = whole_usage(usage)
    assert whole is not None
    assert whole.get("candidates_token_count") == output


# -- embeddings, images ----------------------------------------------------------------------------------------------


@pytest.mark.skipif(
    "usage_metadata" not in types.EmbedContentResponse.model_fields, reason="this version drops the usage"
)
def test_embeddings(google_spans: Any, google: GoogleStub) -> None:
    usage = {"promptTokenCount": 1_000_000, "totalTokenCount": 1_000_000}
    google.json({"embeddings": [{"values": [1.0]}], "usageMetadata": usage})
    google.client().models.embed_content(model="gemini-embedding-001", contents=["a"])
    assert google_spans.only().name == "embeddings gemini-embedding-001"
    assert names.USAGE_OUTPUT_TOKENS not in google_spans.attributes()
    (quantities,) = meters(google_spans)
    assert quantities == {"tokens.input.uncached": 1_000_000}
    assert price(quantities, model="gemini-embedding-001") == Decimal("0.15")


def test_embeddings_without_usage_are_not_guessed(google_spans: Any, google: GoogleStub) -> None:
    google.json({"embeddings": [{"values": [1.0]}]})
    google.client().models.embed_content(model="gemini-embedding-001", contents=["a"])
    assert meters(google_spans) == [{}]


def test_embeddings_of_vertex_count_by_the_embedding(google_spans: Any, google: GoogleStub) -> None:
    one = {"embeddings": {"values": [1.0], "statistics": {"token_count": 4, "truncated": False}}}
    google.json({"predictions": [one, one], "metadata": {"billableCharacterCount": 12}})
    google.vertex().models.embed_content(model="text-embedding-005", contents=["a", "b"])
    assert meters(google_spans) == [{"tokens.input.uncached": 8}]


PICTURE = {"mimeType": "image/png", "bytesBase64Encoded": "aGk="}


@pytest.mark.filterwarnings("ignore")
def test_images_that_came(google_spans: Any, google: GoogleStub) -> None:
    google.json({"predictions": [PICTURE, {"raiFilteredReason": "no"}, PICTURE]})
    google.vertex().models.generate_images(model="imagen-4.0-generate-001", prompt="x")
    assert google_spans.only().name == "image_generation imagen-4.0-generate-001"
    assert meters(google_spans) == [{"images": 2}]


@pytest.mark.filterwarnings("ignore")
def test_images_changed(google_spans: Any, google: GoogleStub) -> None:
    models = google.json({"predictions": [PICTURE]}).vertex().models
    image = types.Image(image_bytes=b"hi", mime_type="image/png")
    models.upscale_image(model="imagen-4.0-upscale-preview", image=image, upscale_factor="x2")
    reference = types.RawReferenceImage(reference_id=1, reference_image=image)
    models.edit_image(model="imagen-3.0-capability-001", prompt="x", reference_images=[reference])
    source = types.RecontextImageSource(person_image=image, product_images=[types.ProductImage(product_image=image)])
    models.recontext_image(model="virtual-try-on-001", source=source)
    assert meters(google_spans) == [{"images": 1}] * 3


# -- interactions ----------------------------------------------------------------------------------------------------

INTERACTION_USAGE = {
    "total_input_tokens": 1000,
    "total_cached_tokens": 400,
    "total_output_tokens": 200,
    "total_thought_tokens": 50,
    "total_tool_use_tokens": 30,
    "total_tokens": 1280,
    "input_tokens_by_modality": [{"modality": "text", "tokens": 900}, {"modality": "audio", "tokens": 100}],
    "cached_tokens_by_modality": [{"modality": "text", "tokens": 380}, {"modality": "audio", "tokens": 20}],
    "output_tokens_by_modality": [{"modality": "text", "tokens": 200}],
    "grounding_tool_count": [{"type": "google_search", "count": 3}, {"type": "google_maps", "count": 1}],
}
SEARCHED = {**WHOLE, "web_searches": 3, "maps_searches": 1}


def interaction(**changed: Any) -> dict[str, Any]:
    return {
        "id": "int-7",
        "object": "interaction",
        "status": "completed",
        "model": MODEL,
        "service_tier": "flex",
        "steps": [],
        "usage": INTERACTION_USAGE,
        **changed,
    }


def events(**changed: Any) -> list[Any]:
    begun = interaction(status="in_progress", usage=None)
    return [
        {"event_type": "interaction.created", "interaction": begun},
        {"event_type": "step.delta", "index": 0, "delta": {"type": "text", "text": "Hello."}},
        {"event_type": "interaction.completed", "interaction": interaction(**changed)},
        "[DONE]",
    ]


INTERACT: dict[str, Any] = {"model": MODEL, "input": "hello"}
CONTINUED = {"status": "requires_continuation", "continuation_token": "t"}


def test_an_interaction(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(interaction()).client()
    assert client.interactions.create(**INTERACT).id == "int-7"
    assert client.interactions.with_raw_response.create(**INTERACT).parse().id == "int-7"
    assert meters(google_spans) == [SEARCHED] * 2
    attributes = google_spans.spans()[0].attributes
    assert attributes[names.OPENAI_RESPONSE_SERVICE_TIER] == "flex"
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("completed",)
    assert attributes[names.PROVIDER_NAME] == "gcp.gemini"


def test_an_interaction_on_vertex(google_spans: Any, google: GoogleStub) -> None:
    google.json(interaction()).vertex().interactions.create(**INTERACT)
    assert google_spans.attributes()[names.PROVIDER_NAME] == "gcp.vertex_ai"


async def test_an_interaction_async(google_spans: Any, google: GoogleStub) -> None:
    client = google.json(interaction()).client()
    assert (await client.aio.interactions.create(**INTERACT)).id == "int-7"
    google.replies.clear()
    google.stream(events())
    stream = await client.aio.interactions.create(**INTERACT, stream=True)
    assert [event.event_type async for event in stream][-1] == "interaction.completed"
    assert meters(google_spans) == [SEARCHED] * 2


def test_a_streamed_interaction_is_the_clients_own_object(google_spans: Any, google: GoogleStub) -> None:
    try:
        from google.genai._gaos.utils.eventstreaming import Stream
    except ImportError:
        from google.genai._interactions import Stream

    stream = google.stream(events()).client().interactions.create(**INTERACT, stream=True)
    assert isinstance(stream, Stream)
    assert len(list(stream)) == 3
    assert meters(google_spans) == [SEARCHED]
    assert google_spans.attributes()[names.RESPONSE_TIME_TO_FIRST_CHUNK] > 0


def test_a_streamed_interaction_left_early(google_spans: Any, google: GoogleStub) -> None:
    with google.stream(events()).client().interactions.create(**INTERACT, stream=True) as stream:
        next(stream)
    assert google_spans.attributes()[names.STREAM_ABANDONED] is True
    assert meters(google_spans) == [{}]


@pytest.mark.skipif(
    find_spec("google.genai._interactions_continuation") is None, reason="this version continues no answers"
)
@pytest.mark.parametrize("streamed", [False, True])
def test_every_request_of_a_continued_interaction_is_billed(
    google_spans: Any, google: GoogleStub, streamed: bool
) -> None:
    client = google.client()
    if streamed:
        google.stream(events(**CONTINUED)).stream(events())
        assert len(list(client.interactions.create(**INTERACT, stream=True))) == 6
    else:
        google.json(interaction(**CONTINUED)).json(interaction())
        assert client.interactions.create(**INTERACT).usage.total_tokens == 2560
    assert meters(google_spans) == [SEARCHED] * 2


def test_a_raw_streamed_interaction(google_spans: Any, google: GoogleStub) -> None:
    client = google.stream(events()).client()
    raw = client.interactions.with_raw_response.create(**INTERACT, stream=True)
    assert google_spans.spans() == []
    assert len(list(raw.parse())) == 3
    with client.interactions.with_streaming_response.create(**INTERACT, stream=True) as response:
        assert len(list(response.parse())) == 3
    assert meters(google_spans) == [SEARCHED] * 2


@pytest.mark.parametrize("take", ["parse", "json", "nothing"])
def test_a_streaming_response_of_an_interaction(google_spans: Any, google: GoogleStub, take: str) -> None:
    client = google.json(interaction()).client()
    with client.interactions.with_streaming_response.create(**INTERACT) as response:
        if take != "nothing":
            getattr(response, take)()
    del response
    gc.collect()
    assert meters(google_spans) == [{} if take == "nothing" else SEARCHED]


async def test_a_raw_streamed_interaction_async(google_spans: Any, google: GoogleStub) -> None:
    client = google.stream(events()).client()
    raw = await client.aio.interactions.with_raw_response.create(**INTERACT, stream=True)
    assert len([event async for event in await raw.parse()]) == 3
    assert meters(google_spans) == [SEARCHED]


def test_an_interaction_that_was_refused(google_spans: Any, google: GoogleStub) -> None:
    with pytest.raises(Exception, match="no: 400"):
        google.error(400).client().interactions.create(**INTERACT)
    attributes = google_spans.attributes()
    assert attributes[names.HTTP_STATUS] == 400
    assert names.CALL_SENT not in attributes


def test_an_interactions_usage_reads_as_the_older_apis() -> None:
    assert older_usage({"total_input_tokens": 5, "total_output_tokens": None}) == {"prompt_token_count": 5}
    assert older_usage({}) == {}


# -- live sessions ---------------------------------------------------------------------------------------------------

LIVE = "gemini-3.8-live"
TURN = {
    "promptTokenCount": 522,
    "candidatesTokenCount": 42,
    "thoughtsTokenCount": 136,
    "totalTokenCount": 564,
    "promptTokensDetails": [{"modality": "TEXT", "tokenCount": 332}, {"modality": "AUDIO", "tokenCount": 190}],
    "candidatesTokensDetails": [{"modality": "AUDIO", "tokenCount": 42}],
}
SPOKEN = {
    "tokens.input.uncached": 332,
    "tokens.input.audio": 190,
    "tokens.output.audio": 42,
    "tokens.output.reasoning": 136,
}
SAYS = {"serverContent": {"modelTurn": {"role": "model", "parts": [{"text": "Hel"}]}}}
DONE = {"serverContent": {"turnComplete": True}, "usageMetadata": TURN}


class LiveStub:
    """A live service: it answers each turn of the client with the messages that it was given."""

    def __init__(self, turns: list[list[Any]]) -> None:
        from websockets.sync.server import serve

        self.setup: Any = None

        def talk(socket: Any) -> None:
            self.setup = json.loads(socket.recv())
            socket.send(json.dumps({"setupComplete": {}}))
            for turn in turns:
                socket.recv()
                for message in turn:
                    socket.send(json.dumps(message))

        self.server = serve(talk, "127.0.0.1", 0)
        self.port = self.server.socket.getsockname()[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def client(self, monkeypatch: pytest.MonkeyPatch) -> Any:
        from google import genai

        for name in ("GOOGLE_API_KEY", "GEMINI_API_KEY", "GOOGLE_CLOUD_PROJECT"):
            monkeypatch.delenv(name, raising=False)
        # A gateway of the user's own is the one address to which the client does not insist on TLS.
        client = genai.Client(vertexai=True, http_options={"base_url": f"ws://127.0.0.1:{self.port}"})
        client._api_client._websocket_ssl_ctx = {}
        return client

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(5)


async def talk(stub: LiveStub, monkeypatch: pytest.MonkeyPatch, turns: int) -> list[int]:
    """Messages of each turn."""
    client = stub.client(monkeypatch)
    counts = []
    async with client.aio.live.connect(model=LIVE, config={"response_modalities": ["AUDIO"]}) as session:
        for _ in range(turns):
            await session.send_client_content(turns=types.Content(role="user", parts=[types.Part(text="hi")]))
            counts.append(len([message async for message in session.receive()]))
    return counts


async def test_turns_of_a_live_session(google_spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = LiveStub([[SAYS, SAYS, DONE], [SAYS, DONE]])
    try:
        assert await talk(stub, monkeypatch, 2) == [3, 2]
    finally:
        await asyncio.to_thread(stub.close)
    assert [span.name for span in google_spans.spans()] == [f"generate_content {LIVE}"] * 2
    assert meters(google_spans) == [SPOKEN] * 2
    attributes = google_spans.spans()[0].attributes
    assert attributes[names.PROVIDER_NAME] == "gcp.vertex_ai"
    assert attributes[names.RESPONSE_FINISH_REASONS] == ("stop",)
    assert names.CALL_SENT not in attributes


async def test_a_turn_with_a_tool_is_two_generations(google_spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    early = {"promptTokenCount": 100, "candidatesTokenCount": 3, "totalTokenCount": 103}
    late = {"promptTokenCount": 100, "candidatesTokenCount": 5, "totalTokenCount": 105}
    after = {"promptTokenCount": 130, "candidatesTokenCount": 7, "totalTokenCount": 137}
    stub = LiveStub(
        [[{**SAYS, "usageMetadata": early}, {**SAYS, "usageMetadata": late}, {**DONE, "usageMetadata": after}]]
    )
    try:
        await talk(stub, monkeypatch, 1)
    finally:
        await asyncio.to_thread(stub.close)
    assert meters(google_spans) == [{"tokens.input.uncached": 230, "tokens.output": 12}]


async def test_a_session_that_is_closed_while_one_listens(google_spans: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = LiveStub([[]])
    try:
        with pytest.raises(errors.APIError):
            await talk(stub, monkeypatch, 1)
    finally:
        await asyncio.to_thread(stub.close)
    attributes = google_spans.attributes()
    assert attributes[names.CALL_SENT] is False
    assert names.HTTP_STATUS not in attributes


def test_generations_of_one_turn_are_added_by_their_last_counts() -> None:
    first = {"prompt_token_count": 1, "traffic_type": "ON_DEMAND", "prompt_tokens_details": [{"token_count": 1}]}
    second = {"prompt_token_count": 2, "traffic_type": "ON_DEMAND", "prompt_tokens_details": [{"token_count": 2}]}
    assert added([first, second]) == {
        "prompt_token_count": 3,
        "traffic_type": "ON_DEMAND",
        "prompt_tokens_details": [{"token_count": 1}, {"token_count": 2}],
    }
    assert added([first]) is first


def test_a_stream_that_every_chunk_counts_is_not_added_up(google_spans: Any, google: GoogleStub) -> None:
    counting = [
        content({"promptTokenCount": 10, "candidatesTokenCount": number, "totalTokenCount": 10 + number}, "x", None)
        for number in range(1, 5)
    ]
    google.stream([*counting, content({"promptTokenCount": 10, "candidatesTokenCount": 5, "totalTokenCount": 15})])
    list(google.client().models.generate_content_stream(**ASK))
    assert meters(google_spans) == [{"tokens.input.uncached": 10, "tokens.output": 5}]


def test_a_stream_left_early_is_incomplete_to_the_processor(google_spans: Any, google: GoogleStub) -> None:
    next(google.stream(chunks()).client().models.generate_content_stream(**ASK))
    payload = encode_spans(google_spans.spans()).SerializeToString()
    normalized = normalize(decode([payload]), received_ns=time.time_ns())
    assert normalized.table["incomplete"].to_pylist() == [True]


def test_usage_that_cannot_be_right_is_said_to_be_so(google_spans: Any, google: GoogleStub) -> None:
    google.json(content({"promptTokenCount": 10, "candidatesTokenCount": -1, "totalTokenCount": 9}))
    google.client().models.generate_content(**ASK)
    attributes = google_spans.attributes()
    assert attributes[names.USAGE_INVALID] == "usage_negative"
    assert names.USAGE_INPUT_TOKENS not in attributes


@pytest.mark.parametrize(
    ("module", "name"),
    [(interactions, "_note"), (interactions, "older_usage"), (interactions, "fields"), (interactions, "address")],
)
def test_a_fault_in_reading_interactions_never_reaches_the_program(
    faulty_telemetry: Any, google: GoogleStub, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    monkeypatch.setattr(module, name, broken)
    try:
        client = google.json(interaction()).client()
        assert client.interactions.create(**INTERACT).id == "int-7"
        google.replies.clear()
        google.stream(events())
        assert len(list(client.interactions.create(**INTERACT, stream=True))) == 3
        assert len(list(client.interactions.with_raw_response.create(**INTERACT, stream=True).parse())) == 3
    finally:
        GoogleGenAIInstrumentor().uninstrument()


@pytest.mark.parametrize("name", ["fields", "added", "told", "short_model"])
async def test_a_fault_in_reading_live_sessions_never_reaches_the_program(
    faulty_telemetry: Any, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("a fault of ours")

    GoogleGenAIInstrumentor().instrument(tracer_provider=faulty_telemetry.provider)
    monkeypatch.setattr(live, name, broken)
    stub = LiveStub([[SAYS, SAYS, DONE]])
    try:
        assert await talk(stub, monkeypatch, 1) == [3]
    finally:
        await asyncio.to_thread(stub.close)
        GoogleGenAIInstrumentor().uninstrument()
    assert len(faulty_telemetry.spans()) == 1


def test_the_tables_name_fields_that_the_client_has() -> None:
    known = types.GenerateContentResponseUsageMetadata.model_fields.keys() | types.UsageMetadata.model_fields.keys()
    assert known >= readers.OUTPUT_FIELDS

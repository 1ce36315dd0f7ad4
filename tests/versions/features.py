"""What old versions of the clients lack, as a table: tests of a feature that is not there are skipped, and say so.

A pytest plugin, loaded by `oldest.py`. In: the collected tests. Out: a skip for those whose feature the installed
client has not. Told by the feature and not by the version, so that a test which could run does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import requires
from importlib.util import find_spec
from typing import NamedTuple

import pytest


class Feature(NamedTuple):
    """A feature of a client.

    Attributes:
        reason: what a version without it lacks.
        there: whether the installed version has it.
        tests: regular expression for the ids of its tests, from the file's name on.
    """

    reason: str
    there: Callable[[], bool]
    tests: str


def sends_in_one_place() -> bool:
    import openai

    return hasattr(openai.OpenAI, "_send_request")


def connects_without_tls() -> bool:
    import inspect

    from openai.resources.realtime import realtime

    return 'copy_with(scheme="wss")' not in inspect.getsource(realtime)


def makes_videos() -> bool:
    return find_spec("openai.resources.videos") is not None


def stands_on_httpx2() -> bool:
    return any(line.startswith("httpx2") for line in requires("openai") or ())


def tells_lifetimes() -> bool:
    import botocore.session

    service = botocore.session.Session().get_service_model("bedrock-runtime")
    return "cacheDetails" in service.shape_for("TokenUsage").members


def serves_googles_content() -> bool:
    return find_spec("fastapi") is not None


def names_its_events() -> bool:
    try:
        from mistralai.models import RealtimeTranscriptionSessionCreated as Created
    except ImportError:  # from version 2 on, and 1 without the extra
        return True
    return "type" in Created.model_fields


FEATURES = (
    Feature(
        "openai: all requests leave through one function",
        sends_in_one_place,
        r"test_openai_sent\.py::test_(a_missing_argument|a_body_that_cannot|azures_client_tells)",
    ),
    Feature(
        "openai: websockets without TLS, which a local server speaks",
        connects_without_tls,
        r"test_openai_realtime\.py::|test_content_clients\.py::test_turns_of_a_realtime_connection",
    ),
    Feature(
        "openai: all that the newest of its line has",
        makes_videos,
        r"test_openai_versions\.py::test_everything_wrapped_is_there",
    ),
    Feature(
        "openai: responses that no cycle keeps",
        stands_on_httpx2,
        r"test_openai_batches\.py::test_a_response_that_nobody_reads_is_not_kept",
    ),
    Feature(
        "botocore: lifetimes of what is written to a cache",
        tells_lifetimes,
        r"test_bedrock_usage\.py::test_converse\[.*usage[2-5]",
    ),
    Feature(
        "litellm: Google's content without the packages of its proxy",
        serves_googles_content,
        r"test_litellm\.py::test_googles_content",
    ),
    Feature(
        "mistralai: types of realtime events by their name",
        names_its_events,
        r"test_mistral_realtime\.py::test_(a_transcription|speech|a_session_that_is_left)",
    ),
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests of what is not there."""
    for feature in FEATURES:
        tests = re.compile(feature.tests)
        concerned = [item for item in items if tests.search(item.nodeid)]
        if concerned and not feature.there():
            for item in concerned:
                item.add_marker(pytest.mark.skip(reason=f"this version lacks {feature.reason}"))

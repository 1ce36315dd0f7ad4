"""A support assistant for three shops: looks the customer up, classifies the question, plans, re-ranks, answers.

    python support_agent.py [--requests 300] [--workers 4] [--seed 0]

One request is: online features of the customer from Feast, the intent from an ONNX model, a plan from a small LLM, the
best articles from a torch re-ranker, and an answer from the model that the experiment's arm names: one of OpenAI's or
Anthropic's Claude. It needs ``OPENAI_API_KEY`` and ``ANTHROPIC_API_KEY``, and ``OPENAI_BASE_URL`` and
``ANTHROPIC_BASE_URL`` where they are not the providers themselves (the local `llm_stub`, a gateway).

The program is an ordinary one. All it knows of telemetry is its own root span for each request and the tags that say
for whom the request was worked on; run without ``opentelemetry-instrument`` both cost next to nothing. It writes what
it does to stderr, one line for each request, and nothing to stdout.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from models import IntentClassifier, make_intent_model, make_reranker
from opentelemetry import trace
from scenario import HANDBOOK, KNOWLEDGE_BASE, SupportRequest, requests_for

from tollspan.instrumentation import tag

PLAN_MODEL = "gpt-5-nano"
ANSWER_MODEL = "gpt-5-mini"
CLAUDE_MODEL = "claude-sonnet-4-6"
"""Answers in arm ``B`` of the experiment."""
HOUSE_MODEL = "northwind-support-8b"
"""Northwind's own fine-tune, served by a gateway and in no price list: what it costs is not known yet."""

ARTICLES = dict(KNOWLEDGE_BASE)
tracer = trace.get_tracer("support_agent")
log = logging.getLogger("support_agent")


class Assistant:
    """Everything a request needs, made once: clients, models, feature store. Shared by all worker threads."""

    def __init__(self, folder: Path, seed: int) -> None:
        from anthropic import Anthropic
        from features import FEATURE_SERVICE, make_store
        from openai import OpenAI

        self._llm = OpenAI(max_retries=2, timeout=60)
        self._claude = Anthropic(max_retries=2, timeout=60)
        # A house model exists only behind a gateway; with OpenAI itself the pilot is answered like the rest of its arm.
        self._pilot = bool(os.environ.get("OPENAI_BASE_URL"))
        make_intent_model(folder / "intent-classifier.onnx")
        self._intent = IntentClassifier(folder / "intent-classifier.onnx")
        self._rerank: Callable[[str, int], list[str]] = make_reranker(seed)
        self._features = make_store(folder, seed)
        # Feast's sqlite online store has one connection, which only one thread may use at a time.
        self._one_reader = threading.Lock()
        self._profile = self._features.get_feature_service(FEATURE_SERVICE)

    def handle(self, request: SupportRequest) -> str:
        """Answer one request; raises what the provider's client raises when it gives up."""
        with (
            tag(
                tenant=request.tenant,
                team="support",
                feature=request.feature,
                workflow="answer-customer",
                variant=request.variant,
            ),
            tracer.start_as_current_span("support request", attributes={"support.request": request.number}) as span,
        ):
            profile = self._customer(request.customer_id)
            intent, _ = self._intent(request.question)
            span.set_attribute("support.intent", intent)
            plan = self._plan(request, intent)
            articles = self._rerank(request.question, int(plan.get("articles", 3)))
            return self._answer(request, profile, articles, str(plan.get("tone", "warm")))

    def _customer(self, customer_id: int) -> dict[str, Any]:
        with self._one_reader:
            response = self._features.get_online_features(
                features=self._profile, entity_rows=[{"customer_id": customer_id}]
            )
        return {name: values[0] for name, values in response.to_dict().items()}

    def _plan(self, request: SupportRequest, intent: str) -> dict[str, Any]:
        """How to answer: number of articles to read and the tone. One cheap call, not streamed."""
        completion = self._llm.chat.completions.create(
            model=PLAN_MODEL,
            messages=[
                {"role": "system", "content": HANDBOOK},
                {
                    "role": "user",
                    "content": f"Plan the answer to this {intent} question as a JSON object with the number of "
                    f'"articles" to read (2 to 4) and the "tone" (warm, brief or formal): {request.question}',
                },
            ],
            response_format={"type": "json_object"},
        )
        try:
            plan = json.loads(completion.choices[0].message.content or "{}")
        except ValueError:
            plan = {}
        return plan if isinstance(plan, dict) else {}

    def _answer(self, request: SupportRequest, profile: dict[str, Any], articles: list[str], tone: str) -> str:
        facts = ", ".join(f"{name}: {value}" for name, value in sorted(profile.items()))
        sources = "\n".join(f"[{article}] {ARTICLES[article]}" for article in articles)
        question = f"Customer ({facts}) asks: {request.question}\n\nSources:\n{sources}\n\nTone: {tone}"
        if request.pilot and self._pilot:
            return self._draft_email(HOUSE_MODEL, question)
        if request.variant == "B":
            return self._claude_in_chat(question) if request.feature == "chat" else self._claude_email(question)
        if request.feature == "chat":
            return self._answer_in_chat(ANSWER_MODEL, question, urgent=request.tenant == "acme-outdoor")
        return self._draft_email(ANSWER_MODEL, question)

    def _answer_in_chat(self, model: str, question: str, *, urgent: bool) -> str:
        """Responses API, streamed: somebody waits. One tenant has paid for the fast lane."""
        with self._llm.responses.create(
            model=model,
            instructions=HANDBOOK,
            input=question,
            service_tier="priority" if urgent else "auto",
            stream=True,
        ) as events:
            return "".join(event.delta for event in events if event.type == "response.output_text.delta")

    def _draft_email(self, model: str, question: str) -> str:
        """Chat Completions, streamed, on the cheap tier: a draft may wait."""
        with self._llm.chat.completions.create(
            model=model,
            messages=[{"role": "system", "content": HANDBOOK}, {"role": "user", "content": question}],
            service_tier="flex",
            stream=True,
            stream_options={"include_usage": True},
        ) as chunks:
            # The last chunk carries the usage and has no choices.
            return "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)

    def _claude_in_chat(self, question: str) -> str:
        """Messages API, streamed. Chats come in quick succession, so the handbook is cached for five minutes."""
        with self._claude.messages.stream(
            model=CLAUDE_MODEL,
            max_tokens=1024,
            system=[{"type": "text", "text": HANDBOOK, "cache_control": {"type": "ephemeral"}}],
            messages=[{"role": "user", "content": question}],
        ) as stream:
            return "".join(stream.text_stream)

    def _claude_email(self, question: str) -> str:
        """Messages API, in one piece. Drafts are rarer, so the handbook is cached for an hour, which costs more."""
        message = self._claude.messages.create(
            model=CLAUDE_MODEL,
            max_tokens=1024,
            system=[{"type": "text", "text": HANDBOOK, "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
            messages=[{"role": "user", "content": question}],
        )
        return "".join(block.text for block in message.content if block.type == "text")


def run(assistant: Assistant, count: int, workers: int, seed: int) -> tuple[int, int]:
    """Work through ``count`` requests, ``workers`` at a time.

    Returns:
        Requests answered and requests that failed. A failed one is logged; the others go on.
    """
    import anthropic
    import openai

    def one(request: SupportRequest) -> bool:
        began = time.perf_counter()
        try:
            answer = assistant.handle(request)
        except (openai.APIError, anthropic.APIError) as error:
            outcome, ok = f"failed: {type(error).__name__}", False
        else:
            outcome, ok = f"answered in {len(answer)} characters", True
        log.info(
            "request %d of %d: %s, %s, variant %s, %s, %.2f s",
            request.number,
            count,
            request.tenant,
            request.feature,
            request.variant,
            outcome,
            time.perf_counter() - began,
        )
        return ok

    with ThreadPoolExecutor(workers, thread_name_prefix="agent") as pool:
        outcomes = list(pool.map(one, requests_for(count, seed)))
    return sum(outcomes), len(outcomes) - sum(outcomes)


def positive(text: str) -> int:
    """Argument type: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="A support assistant for three shops.")
    parser.add_argument("--requests", type=positive, default=300)
    parser.add_argument("--workers", type=positive, default=4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    log.setLevel(logging.INFO)

    missing = [key for key in ("OPENAI_API_KEY", "ANTHROPIC_API_KEY") if not os.environ.get(key)]
    if missing:
        print(
            f"support_agent: not set: {', '.join(missing)}. Set it, or start the local stand-in with "
            "`python llm_stub.py` and set the four variables that it prints.",
            file=sys.stderr,
        )
        return 2
    with tempfile.TemporaryDirectory(prefix="support-agent-") as folder:
        log.info("making the models and the feature store")
        assistant = Assistant(Path(folder), args.seed)
        answered, failed = run(assistant, args.requests, args.workers, args.seed)
    log.info("answered %d, failed %d", answered, failed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A help centre that answers from its own passages: features, vector search, two models of its own, and an LLM.

    python rag_ranker.py [--requests 200] [--workers 4] [--seed 0]

One request is: the question's embedding from an ONNX model, the nearest passages from Qdrant, what is known of reader
and passages from Feast, their order from a torch ranker, all candidates in one batch, and an answer from an LLM that
is given the best of them. Before the first request both models are loaded from their files and the passages are
indexed. It needs ``OPENAI_API_KEY``, and ``OPENAI_BASE_URL`` where that is not OpenAI (the local stub of
``support_agent``, a gateway).

The program is an ordinary one. All it knows of telemetry is its own root span for each request, the tags that say for
whom the request was worked on, and one figure that no library can know: how many bytes went out to the reader. It
writes what it does to stderr, one line for each request, and nothing to stdout.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from opentelemetry import trace
from scenario import PASSAGES, STYLE, VARIANTS, Question, requests_for

from tollspan.instrumentation import tag

BOX_MODEL = "gpt-5-nano"
ASSISTANT_MODEL = "gpt-5-mini"
PASSAGES_READ = 4
"""Passages that the LLM is given."""
INDEX_BATCH = 16
"""Passages that are embedded at once."""
EGRESS = "tollspan.usage.network.egress.internet.bytes"

tracer = trace.get_tracer("rag_ranker")
log = logging.getLogger("rag_ranker")


class HelpCentre:
    """Everything a request needs, made once: clients, models, stores. Shared by all worker threads."""

    def __init__(self, folder: Path, seed: int) -> None:
        from features import Features
        from models import EMBEDDER, RANKER, WIDTH, Embedder, Ranker, make_models
        from openai import OpenAI
        from qdrant_client import QdrantClient
        from qdrant_client.models import Distance, VectorParams

        self._llm = OpenAI(max_retries=2, timeout=60)
        make_models(folder, seed)
        self._embed = Embedder(folder / EMBEDDER)
        self._rank = Ranker(folder / RANKER)
        self._features = Features(folder, seed)
        self._vectors = QdrantClient(":memory:")
        self._vectors.create_collection("passages", VectorParams(size=WIDTH, distance=Distance.COSINE))
        with tag(team="help-centre", workflow="index"), tracer.start_as_current_span("index passages"):
            self._index()

    def _index(self) -> None:
        from qdrant_client.models import PointStruct

        for first in range(0, len(PASSAGES), INDEX_BATCH):
            texts = PASSAGES[first : first + INDEX_BATCH]
            self._vectors.upsert(
                "passages",
                [PointStruct(id=first + at, vector=row.tolist()) for at, row in enumerate(self._embed(texts))],
            )

    def handle(self, question: Question) -> str:
        """Answer one question; raises what the provider's client raises when it gives up."""
        with (
            tag(
                tenant=question.tenant,
                team="help-centre",
                feature=question.feature,
                workflow="answer",
                variant=question.variant,
            ),
            tracer.start_as_current_span("help request", attributes={"help.request": question.number}) as span,
        ):
            (embedding,) = self._embed([question.text])
            passages = self._best(question, embedding)
            answer = self._answer(question, passages)
            span.set_attribute(EGRESS, len(answer.encode()))
            return answer

    def _best(self, question: Question, embedding: np.ndarray) -> list[int]:
        """Ids of the passages that the LLM shall read."""
        near = self._vectors.query_points(
            "passages", query=embedding.tolist(), limit=VARIANTS[question.variant], with_vectors=True
        ).points
        ids = [int(point.id) for point in near]
        vectors = np.array([point.vector for point in near], np.float32)
        facts = self._features.facts(question.reader_id, ids)
        return [ids[row] for row in self._rank(embedding, vectors, facts, PASSAGES_READ)]

    def _answer(self, question: Question, passages: list[int]) -> str:
        sources = "\n".join(f"[{number}] {PASSAGES[number]}" for number in passages)
        ask = f"Passages:\n{sources}\n\nQuestion: {question.text}"
        if question.feature == "assistant":
            # Somebody waits: streamed.
            with self._llm.responses.create(
                model=ASSISTANT_MODEL, instructions=STYLE, input=ask, stream=True
            ) as events:
                return "".join(event.delta for event in events if event.type == "response.output_text.delta")
        completion = self._llm.chat.completions.create(
            model=BOX_MODEL,
            messages=[{"role": "system", "content": STYLE}, {"role": "user", "content": ask}],
        )
        return completion.choices[0].message.content or ""


def run(centre: HelpCentre, count: int, workers: int, seed: int) -> tuple[int, int]:
    """Work through ``count`` questions, ``workers`` at a time.

    Returns:
        Questions answered and questions that failed. A failed one is logged; the others go on.
    """
    import openai

    def one(question: Question) -> bool:
        began = time.perf_counter()
        try:
            outcome, ok = f"answered in {len(centre.handle(question))} characters", True
        except openai.APIError as error:
            outcome, ok = f"failed: {type(error).__name__}", False
        log.info(
            "request %d of %d: %s, %s, %s, %s, %.2f s",
            question.number,
            count,
            question.tenant,
            question.feature,
            question.variant,
            outcome,
            time.perf_counter() - began,
        )
        return ok

    with ThreadPoolExecutor(workers, thread_name_prefix="help") as pool:
        outcomes = list(pool.map(one, requests_for(count, seed)))
    return sum(outcomes), len(outcomes) - sum(outcomes)


def positive(text: str) -> int:
    """Argument type: a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
    return int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description="Answer questions of help centres' readers.")
    parser.add_argument("--requests", type=positive, default=200, help="questions to work through")
    parser.add_argument("--workers", type=positive, default=4, help="questions worked on at once")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(message)s")
    log.setLevel(logging.INFO)

    if not os.environ.get("OPENAI_API_KEY"):
        print(
            "rag_ranker: not set: OPENAI_API_KEY. Set it, or start the local stand-in with "
            "`python ../support_agent/llm_stub.py` and set the variables that it prints.",
            file=sys.stderr,
        )
        return 2
    try:
        import qdrant_client  # noqa: F401
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        print(f"rag_ranker: {error.name} is missing: pip install 'tollspan[rag]'", file=sys.stderr)
        return 2

    with tempfile.TemporaryDirectory(prefix="rag-ranker-") as folder:
        log.info("loading the models, filling the stores, indexing the passages")
        centre = HelpCentre(Path(folder), args.seed)
        answered, failed = run(centre, args.requests, args.workers, args.seed)
    log.info("answered %d, failed %d", answered, failed)
    return 0


if __name__ == "__main__":
    sys.exit(main())

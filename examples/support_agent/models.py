"""The assistant's own two models: an ONNX intent classifier and a torch re-ranker, both over hashed words.

Both are made at start, in milliseconds, from the texts in `scenario`; nothing is downloaded. They are small but they
work: the classifier tells the four intents apart, the re-ranker finds the articles that share words with a question.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from scenario import EXAMPLE_QUESTIONS, INTENTS, KNOWLEDGE_BASE

BUCKETS = 512
"""Width of the hashed bag of words."""


def words(text: str) -> list[int]:
    """Bucket of every word; crc32 and not ``hash``, which differs from process to process."""
    return [zlib.crc32(word.encode()) % BUCKETS for word in text.lower().replace(",", " ").split() if "{" not in word]


def bag(text: str) -> np.ndarray:
    """Counts of hashed words, float32 of shape (1, BUCKETS)."""
    return np.bincount(words(text), minlength=BUCKETS).astype(np.float32)[np.newaxis, :]


def make_intent_model(path: Path) -> None:
    """Write the intent classifier: naive Bayes over hashed words, as one matrix product and a softmax."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    counts = np.stack([sum(bag(q)[0] for q in EXAMPLE_QUESTIONS[intent]) for intent in INTENTS]) + np.float32(0.1)
    weights = np.log(counts / counts.sum(axis=1, keepdims=True)).T.astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["words", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
        ],
        "intent-classifier",
        [helper.make_tensor_value_info("words", TensorProto.FLOAT, ["batch", BUCKETS])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(INTENTS)])],
        [numpy_helper.from_array(weights, "weights")],
    )
    # An opset and IR version that every ONNX Runtime of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


class IntentClassifier:
    """Runs the ONNX model; one session for all threads, as ONNX Runtime allows."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, question: str) -> tuple[str, float]:
        """Intent and its probability."""
        (probabilities,) = self._session.run(["probabilities"], {"words": bag(question)})
        best = int(np.argmax(probabilities[0]))
        return INTENTS[best], float(probabilities[0, best])


class WordOverlap:
    """Stands in for the re-ranker where torch is not installed: counts the words an article shares with a question."""

    def __call__(self, question: str, keep: int) -> list[str]:
        """Ids of the ``keep`` best articles, best first."""
        asked = set(words(question))
        scores = [len(asked & set(words(text))) for _, text in KNOWLEDGE_BASE]
        order = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
        return [KNOWLEDGE_BASE[i][0] for i in order[:keep]]


def make_reranker(seed: int) -> Any:
    """The torch re-ranker, or `WordOverlap` where torch is not installed.

    Question and article are sums of fixed random word vectors; the products of such sums are, up to noise, the number
    of shared words, so the model ranks without having been trained.
    """
    try:
        import torch
    except ModuleNotFoundError:
        return WordOverlap()

    torch.set_num_threads(1)  # the program has its own threads; a pool in each call would only fight them

    class Reranker(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            generator = torch.Generator().manual_seed(seed)
            vectors = torch.randn(BUCKETS, 64, generator=generator) / 8.0
            self.words = torch.nn.EmbeddingBag.from_pretrained(vectors, mode="sum")

        def forward(self, question: torch.Tensor, articles: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
            """Scores of shape (articles,), from word buckets and the offset of each article's first word."""
            return torch.nn.functional.cosine_similarity(self.words(question), self.words(articles, offsets))

    article_words = [words(text) for _, text in KNOWLEDGE_BASE]
    offsets = torch.tensor(np.cumsum([0, *map(len, article_words[:-1])]))
    articles = torch.tensor([bucket for article in article_words for bucket in article])
    model = Reranker().eval()

    def rerank(question: str, keep: int) -> list[str]:
        with torch.inference_mode():
            scores = model(torch.tensor([words(question)]), articles, offsets)
        return [KNOWLEDGE_BASE[i][0] for i in torch.topk(scores, keep).indices.tolist()]

    return rerank

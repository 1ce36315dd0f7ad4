"""The two models of our own: an ONNX embedder and a torch ranker, written to files and loaded from there.

`make_models` writes both in milliseconds, as a training job would have done; nothing is downloaded. They are small but
they work: texts that share rare words have near embeddings, and the ranker puts the nearest first.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from scenario import PASSAGES

BUCKETS = 512
"""Width of the hashed bag of words."""
WIDTH = 64
"""Width of an embedding."""
FACTS = 5
"""What the ranker knows of a reader and a passage beside their embeddings: `features.facts`."""

EMBEDDER = "embedder.onnx"
RANKER = "ranker.pt"


def make_models(folder: Path, seed: int) -> None:
    """Write `EMBEDDER` and `RANKER` into ``folder``."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    # A random direction for each word, and the longer the fewer passages have the word; one that none has says nothing.
    passages_with = np.count_nonzero(bags(PASSAGES), axis=0)
    weights = np.where(passages_with, np.log((1 + len(PASSAGES)) / np.maximum(passages_with, 1)), 0)
    vectors = np.random.default_rng(seed).standard_normal((BUCKETS, WIDTH)) * weights[:, np.newaxis]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["words", "vectors"], ["sums"]),
            helper.make_node("LpNormalization", ["sums"], ["embeddings"], axis=1, p=2),
        ],
        "embedder",
        [helper.make_tensor_value_info("words", TensorProto.FLOAT, ["batch", BUCKETS])],
        [helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", WIDTH])],
        [numpy_helper.from_array(vectors.astype(np.float32), "vectors")],
    )
    # An opset and IR version that every ONNX Runtime of the last years reads.
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    onnx.save(model, str(folder / EMBEDDER))
    torch.manual_seed(seed)
    torch.save(PassageRanker().state_dict(), folder / RANKER)


def bags(texts: Sequence[str]) -> np.ndarray:
    """Counts of hashed words, float32 of shape (texts, BUCKETS); crc32, since ``hash`` differs between processes."""
    counts = np.zeros((len(texts), BUCKETS), np.float32)
    for row, text in zip(counts, texts, strict=True):
        for word in text.lower().replace(",", " ").replace(".", " ").split():
            row[zlib.crc32(word.encode()) % BUCKETS] += 1
    return counts


class Embedder:
    """Runs the ONNX model; one session for all threads, as ONNX Runtime allows."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1, float32 of shape (texts, WIDTH)."""
        (embeddings,) = self._session.run(["embeddings"], {"words": bags(texts)})
        return embeddings


class PassageRanker(torch.nn.Module):
    """Scores the candidates of one question, all in one batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = torch.nn.Linear(3 * WIDTH + FACTS, 128)
        self.score = torch.nn.Linear(128, 1)

    def forward(self, passages: torch.Tensor, question: torch.Tensor, facts: torch.Tensor) -> torch.Tensor:
        """Scores of shape (n,), of ``passages`` (n, WIDTH), one ``question`` (WIDTH,) and ``facts`` (n, FACTS)."""
        asked = question.expand_as(passages)
        product = passages * asked
        hidden = torch.relu(self.hidden(torch.cat([passages, asked, product, facts], dim=1)))
        # Untrained weights decide only between passages that are about as near.
        return product.sum(dim=1) + 0.02 * self.score(hidden).squeeze(1)


class Ranker:
    """The loaded `PassageRanker`, for all threads."""

    def __init__(self, path: Path) -> None:
        torch.set_num_threads(1)  # the program has its own threads; a pool in each call would only fight them
        self._model = PassageRanker()
        self._model.load_state_dict(torch.load(path, weights_only=True))
        self._model.eval()

    def __call__(self, question: np.ndarray, passages: np.ndarray, facts: np.ndarray, keep: int) -> list[int]:
        """Rows of the ``keep`` best of ``passages`` (n, WIDTH), best first."""
        with torch.inference_mode():
            scores = self._model(torch.from_numpy(passages), torch.from_numpy(question), torch.from_numpy(facts))
        best: list[int] = torch.topk(scores, min(keep, len(passages))).indices.tolist()
        return best

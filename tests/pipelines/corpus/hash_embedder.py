"""A small real embedder: sums of word vectors drawn from hashes. It needs no weights, and knows what it encoded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.corpus.embedding import Embedder
from pipelines.corpus.tokens import TokenCounter
from pipelines.models import BUNDLED, model_folder

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors


class HashEmbedder(Embedder):
    def __init__(self, revision: str = "1") -> None:
        self.revision = revision
        self.encoded: list[str] = []

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"model": "hash", "revision": self.revision, "dimension": self.dimension}

    @property
    def dimension(self) -> int:
        return 64

    @property
    def max_tokens(self) -> int:
        return 512

    @cached_property
    def counter(self) -> TokenCounter:
        return TokenCounter.of_model(model_folder(BUNDLED, None))

    def encode(self, texts: Sequence[str]) -> Vectors:
        self.encoded += texts
        return self.encode_questions(texts)

    def encode_question(self, question: str) -> Vectors:
        return self._vector(question)

    def encode_questions(self, questions: Sequence[str]) -> Vectors:
        return np.stack([self._vector(text) for text in questions]) if questions else np.empty((0, 64), np.float32)

    def _vector(self, text: str) -> Vectors:
        total = np.full(self.dimension, 1e-3)
        for word in re.findall(r"\w+", text.lower()):
            seed = int.from_bytes(hashlib.sha256(f"{self.revision} {word}".encode()).digest()[:8])
            total += np.random.default_rng(seed).normal(size=self.dimension)
        return (total / np.linalg.norm(total)).astype(np.float32)

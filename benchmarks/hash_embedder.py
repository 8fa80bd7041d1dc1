"""Vectors drawn from hashes: no weights, next to no time. For what a benchmark measures beside the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from pipelines.corpus.embedding import Embedder
from pipelines.corpus.tokens import TokenCounter
from pipelines.models import BUNDLED, model_folder

if TYPE_CHECKING:
    from pipelines.corpus.embedding import Vectors


class HashEmbedder(Embedder):
    """As many components as MiniLM, and its tokenizer, so that documents are cut alike."""

    @property
    def identity(self) -> Mapping[str, Any]:
        """Never that of a real embedder."""
        return {"model": "hash", "dimension": self.dimension}

    @property
    def dimension(self) -> int:
        """MiniLM's."""
        return 384

    @property
    def max_tokens(self) -> int:
        """MiniLM's."""
        return 256

    @cached_property
    def counter(self) -> TokenCounter:
        """MiniLM's."""
        return TokenCounter.of_model(model_folder(BUNDLED, None))

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Equal text, equal vector."""
        import numpy as np

        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for number, text in enumerate(texts):
            seed = int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big")
            drawn = np.random.default_rng(seed).standard_normal(self.dimension, dtype=np.float32)
            vectors[number] = drawn / np.linalg.norm(drawn)
        return vectors

    def encode_question(self, question: str) -> Vectors:
        """As a text."""
        vector: Vectors = self.encode([question])[0]
        return vector

    def encode_questions(self, questions: Sequence[str]) -> Vectors:
        """As texts."""
        return self.encode(questions)

"""What an embedder is, and which embedders' vectors may meet."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pipelines.corpus.tokens import TokenCounter

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Vectors = npt.NDArray[np.float32]
else:
    Vectors = Any  # numpy is not imported for an annotation

Backend = Literal["openvino", "torch"]
Precision = Literal["float32", "bfloat16", "float16"]

EXACT = 0.999
"""Least cosine between a text's vectors by two backends or precisions of one model."""


class Embedder(ABC):
    """Turns texts into vectors of unit length."""

    @property
    @abstractmethod
    def identity(self) -> Mapping[str, Any]:
        """What decides the vectors, as JSON; vectors of equal identities may be mixed."""

    @property
    @abstractmethod
    def dimension(self) -> int:
        """Components of a vector."""

    @property
    @abstractmethod
    def max_tokens(self) -> int:
        """Most tokens of a text, special tokens included; what is longer would be cut off."""

    @property
    @abstractmethod
    def counter(self) -> TokenCounter:
        """Counts tokens as the model does."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Vectors:
        """Vectors of document texts: float32 of shape (n, dimension), each of length 1."""

    @abstractmethod
    def encode_question(self, question: str) -> Vectors:
        """Vector of a question: float32 of shape (dimension,), of length 1; as soon as can be."""

    @abstractmethod
    def encode_questions(self, questions: Sequence[str]) -> Vectors:
        """Vectors of questions: float32 of shape (n, dimension), each of length 1; as many in a second as can be."""


def comparable(built: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether a question embedded by ``own`` may be asked of vectors that ``built`` made: both are identities.

    They may differ in backend and precision, as when another machine built the index: their vectors of one text have a
    cosine of at least ``EXACT``. Only vectors of equal identities are mixed in a collection.
    """
    return _weights(built) == _weights(own)


def _weights(identity: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in identity.items() if name not in ("backend", "precision")}


def by_budget(lengths: Sequence[int], budget: int) -> list[list[int]]:
    """Positions of texts in batches, longest first: each at most ``budget`` tokens once padded, or one text."""
    batches: list[list[int]] = []
    for position in sorted(range(len(lengths)), key=lambda each: -lengths[each]):
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= budget:
            batches[-1].append(position)
        else:
            batches.append([position])
    return batches


def unit(vectors: Vectors) -> Vectors:
    """Each row at length 1."""
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    normalised: Vectors = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return normalised

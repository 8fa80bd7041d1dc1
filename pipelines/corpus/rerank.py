"""A cross-encoder, which reads question and chunk together: slower than vectors, and better at the order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, cached_property
from typing import TYPE_CHECKING

from pipelines.environment import available_cores
from pipelines.errors import ConfigError
from pipelines.models import model_folder

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

_BATCH = 16


class Reranker:
    """A sentence-transformers cross-encoder with one score; on CUDA where there is one.

    Nogueira and Cho, "Passage Re-ranking with BERT", 2019.
    """

    def __init__(self, model: str, revision: str | None) -> None:
        self._model = model
        self._folder = model_folder(model, revision)

    def load(self) -> None:
        """Now rather than at the first question.

        Raises:
            ConfigError: it has more than one score.
        """
        self._encoder  # noqa: B018 a cached property

    def scores(self, question: str, texts: Sequence[str]) -> list[float]:
        """How well each text answers ``question``, as the model's own activation puts it: higher is better."""
        pairs = [(question, text) for text in texts]
        if not pairs:
            return []
        return [float(score) for score in self._encoder.predict(pairs, batch_size=_BATCH, show_progress_bar=False)]

    @cached_property
    def _encoder(self) -> CrossEncoder:
        import torch
        from sentence_transformers import CrossEncoder

        torch.set_num_threads(available_cores())
        encoder: CrossEncoder = CrossEncoder(
            str(self._folder),
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"use_safetensors": True},
        )
        if encoder.num_labels != 1:
            raise ConfigError(
                f"reranker {self._model!r} has {encoder.num_labels} outputs: choose a cross-encoder with one score"
            )
        return encoder


@cache
def open_reranker(model: str, revision: str | None) -> Reranker:
    """The reranker that the settings name, loaded at its first use.

    Raises:
        ConfigError: it is not there, not pinned, or has no safetensors.
    """
    return Reranker(model, revision)

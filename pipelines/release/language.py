"""A GGUF language model run by llama.cpp in this process, on the CPU: the logits that a comparison needs."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from weakref import finalize

from pipelines.environment import available_cores
from pipelines.errors import ArtifactError
from pipelines.release.llama import load_llama
from pipelines.release.tokens import encode

if TYPE_CHECKING:
    from pipelines.release.llama import Floats


class GgufLanguageModel:
    """One file and one context: token ids to next-token logits."""

    def __init__(self, path: Path, maximum_tokens: int) -> None:
        """Load ``path`` for texts of up to ``maximum_tokens``.

        Raises:
            ArtifactError: llama.cpp cannot load it.
        """
        self.path, self.maximum_tokens = path, maximum_tokens
        self._llama, self._model = load_llama(self, path)
        llama = self._llama
        self._vocabulary = llama.llama_model_get_vocab(self._model)
        self.size = int(llama.llama_vocab_n_tokens(self._vocabulary))
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = maximum_tokens
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = available_cores()
        # In 16 bits the cache alone would cost more exactness than an F16 file does.
        parameters.type_k = parameters.type_v = 0  # GGML_TYPE_F32
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.op_offload = False
        self._context = llama.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise ArtifactError(f"llama.cpp cannot make a context of {maximum_tokens} tokens for {path}")
        self._batch = llama.llama_batch_init(maximum_tokens, 0, 1)
        finalize(self, llama.llama_batch_free, self._batch)
        finalize(self, llama.llama_free, self._context)

    def tokens(self, text: str) -> list[int]:
        """Token ids of ``text``, with what the tokenizer puts around it."""
        return encode(self._llama, self._vocabulary, text)

    def ends(self, token: int) -> bool:
        """Whether generation stops at ``token``."""
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token))

    def logits(self, ids: Sequence[int]) -> Floats:
        """Float32 (tokens, vocabulary): the scores of what follows each of ``ids``."""
        import numpy as np

        if not 0 < len(ids) <= self.maximum_tokens:
            raise ArtifactError(f"{self.path} was opened for 1 to {self.maximum_tokens} tokens, not {len(ids)}")
        llama, batch = self._llama, self._batch
        llama.llama_memory_clear(llama.llama_get_memory(self._context), True)
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = 1
        status = llama.llama_decode(self._context, batch)
        values = llama.llama_get_logits(self._context) if status == 0 else None
        if not values:
            raise ArtifactError(f"llama.cpp could not read {len(ids)} tokens with {self.path}: {status}")
        pointer = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(len(ids), self.size)).copy()

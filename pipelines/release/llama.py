"""llama.cpp in this process: one GGUF classification model, run on the CPU."""

from __future__ import annotations

import ctypes
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import finalize

from pipelines.environment import available_cores
from pipelines.errors import ArtifactError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


logger = logging.getLogger(__name__)

LEVELS = {3: logging.INFO, 4: logging.ERROR}
"""ggml's warnings and errors; its information is noise here, and so are most warnings."""


@cache
def llama_library() -> Any:
    """llama-cpp-python's bindings, initialised; errors of llama.cpp go to this module's logger."""
    import llama_cpp

    # The binding's own callback prints to standard error, and takes warnings for errors and errors for noise.
    llama_cpp.llama_log_set(_log_callback(llama_cpp), ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    return llama_cpp


@cache
def _log_callback(llama: Any) -> Any:
    """The callback, kept alive for as long as llama.cpp may call it."""

    def log(level: int, text: bytes, _data: object) -> None:
        logger.log(LEVELS.get(level, logging.DEBUG), text.decode("utf-8", "replace").rstrip())

    return llama.llama_log_callback(log)


def load_llama(owner: object, path: Path, *, vocab_only: bool = False) -> tuple[Any, Any]:
    """The bindings and the model in ``path``, which is freed with ``owner``.

    Raises:
        ArtifactError: llama.cpp cannot load it.
    """
    llama = llama_library()
    parameters = llama.llama_model_default_params()
    parameters.n_gpu_layers = 0
    parameters.vocab_only = vocab_only
    # Weights repacked for AMX crash the process (ggml-org/llama.cpp#20824), and every CPU computes alike without.
    parameters.use_extra_bufts = False
    model = llama.llama_model_load_from_file(os.fsencode(path), parameters)
    if not model:
        raise ArtifactError(f"llama.cpp cannot load {path}; export it again")
    finalize(owner, llama.llama_model_free, model)
    return llama, model


class GgufModel:
    """A GGUF file with a classification head: text to token ids, token ids to logits.

    Every text is computed alone, so that its logits do not depend on what is scored with it: a batch of sequences
    would attend over the tokens of all and mask most of that, which is slower on CPUs. Several texts go to several
    contexts of one thread each: threads that share one text wait for the slowest at every layer, and on a busy machine
    that takes ten times as long.
    """

    def __init__(self, path: Path, maximum_tokens: int) -> None:
        """Load ``path``; longer texts are cut to ``maximum_tokens``.

        Raises:
            ArtifactError: llama.cpp cannot load it, it has no labels, or its context is shorter.
        """
        self.path = path
        self.maximum_tokens = maximum_tokens
        self._llama, self._model = load_llama(self, path)
        llama = self._llama
        self._vocabulary = llama.llama_model_get_vocab(self._model)
        self._end = llama.llama_vocab_sep(self._vocabulary)
        context = llama.llama_model_n_ctx_train(self._model)
        names = [
            llama.llama_model_cls_label(self._model, index) for index in range(llama.llama_model_n_cls_out(self._model))
        ]
        if None in names or maximum_tokens > context:
            raise ArtifactError(
                f"{path} names {len([name for name in names if name])} labels and reads up to {context} tokens; "
                f"a classifier of up to {maximum_tokens} tokens was expected: export it again"
            )
        self.labels = tuple(name.decode("utf-8") for name in names)
        self._workers = available_cores()
        self._free: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        for _ in range(self._workers):
            self._free.put(self._new_context())

    def _new_context(self) -> tuple[Any, Any]:
        """A context of one thread, and its batch of one text."""
        llama = self._llama
        parameters = llama.llama_context_default_params()
        # An encoder reads a text in one go: the physical batch must hold all of it.
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = self.maximum_tokens
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = 1
        parameters.embeddings = True
        parameters.pooling_type = llama.LLAMA_POOLING_TYPE_RANK
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.op_offload = False
        context = llama.llama_init_from_model(self._model, parameters)
        if not context:
            raise ArtifactError(f"llama.cpp cannot make a context of {self.maximum_tokens} tokens for {self.path}")
        finalize(self, llama.llama_free, context)
        batch = llama.llama_batch_init(self.maximum_tokens, 0, 1)
        finalize(self, llama.llama_batch_free, batch)
        return context, batch

    def metadata(self, key: str) -> str | None:
        """A value that the file holds under ``key``."""
        buffer = ctypes.create_string_buffer(512)
        length = self._llama.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return None if length < 0 else buffer.value.decode("utf-8")

    def tokens(self, text: str) -> list[int]:
        """Token ids of the whole ``text``; special tokens written in it count as such, as in training."""
        encoded = text.encode("utf-8", "replace")
        size = len(encoded) + 8  # a token covers a byte at least
        ids = (self._llama.llama_token * size)()
        count = self._llama.llama_tokenize(self._vocabulary, encoded, len(encoded), ids, size, True, True)
        if count < 0:
            raise ArtifactError(f"llama.cpp needs {-count} tokens for {len(encoded)} bytes of text; export again")
        return list(ids[:count])

    def cut(self, ids: Sequence[int]) -> list[int]:
        """Token ids as training cut them: the first ones, and the end token."""
        return list(ids) if len(ids) <= self.maximum_tokens else [*ids[: self.maximum_tokens - 1], self._end]

    def logits(self, texts: Sequence[str]) -> Floats:
        """Float32 (texts, labels)."""
        import numpy as np

        if not texts:
            return np.zeros((0, len(self.labels)), dtype=np.float32)
        with ThreadPoolExecutor(min(len(texts), self._workers)) as pool:
            return np.stack(list(pool.map(lambda text: self._score(self.cut(self.tokens(text))), texts)))

    def _score(self, ids: Sequence[int]) -> Floats:
        context, batch = taken = self._free.get()
        try:
            return self._computed(context, batch, ids)
        finally:
            self._free.put(taken)

    def _computed(self, context: Any, batch: Any, ids: Sequence[int]) -> Floats:
        import numpy as np

        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index] = token
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = 1
        status = self._llama.llama_encode(context, batch)
        values = self._llama.llama_get_embeddings_seq(context, 0) if status == 0 else None
        if not values:
            raise ArtifactError(f"llama.cpp could not score a text of {len(ids)} tokens with {self.path}: {status}")
        # As many values as labels: the binding's own ``embed`` reads as many as the model is wide.
        pointer = ctypes.cast(values, ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(pointer, shape=(len(self.labels),)).copy()

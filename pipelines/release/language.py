"""A GGUF language model run by llama.cpp in this process, on the CPU: what a comparison needs of it."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any
from weakref import finalize

from pipelines.environment import available_cores
from pipelines.errors import ArtifactError
from pipelines.release.llama import load_llama
from pipelines.release.tokens import encode

if TYPE_CHECKING:
    from pipelines.release.llama import Floats

TOKENS_AT_ONCE = 512
"""Of a prompt: room for the logits of each is made whether they are asked for or not, 150,000 a token."""


class GgufLanguageModel:
    """One file: token ids to next-token logits, and to greedy answers."""

    def __init__(self, path: Path, maximum_tokens: int, *, texts_at_once: int = 1) -> None:
        """Load ``path`` for texts of up to ``maximum_tokens``, answers counted.

        ``texts_at_once`` divides the cores among so many contexts; each holds keys and values of its own.

        Raises:
            ArtifactError: llama.cpp cannot load it.
        """
        self.path, self.maximum_tokens = path, maximum_tokens
        self._llama, self._model = load_llama(self, path)
        llama = self._llama
        self._vocabulary = llama.llama_model_get_vocab(self._model)
        self.size = int(llama.llama_vocab_n_tokens(self._vocabulary))
        self.parameters = int(llama.llama_model_n_params(self._model))
        self._texts_at_once = max(1, min(texts_at_once, available_cores()))
        self._free: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
        for _ in range(self._texts_at_once):
            self._free.put(self._new_context())

    def _new_context(self) -> tuple[Any, Any]:
        """A context and its batch."""
        llama = self._llama
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = self.maximum_tokens
        parameters.n_ubatch = min(self.maximum_tokens, TOKENS_AT_ONCE)
        parameters.n_seq_max = 1
        parameters.n_threads = parameters.n_threads_batch = max(1, available_cores() // self._texts_at_once)
        # In 16 bits the cache alone would cost more exactness than an F16 file does.
        parameters.type_k = parameters.type_v = 0  # GGML_TYPE_F32
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        parameters.op_offload = False
        context = llama.llama_init_from_model(self._model, parameters)
        if not context:
            raise ArtifactError(f"llama.cpp cannot make a context of {self.maximum_tokens} tokens for {self.path}")
        finalize(self, llama.llama_free, context)
        batch = llama.llama_batch_init(self.maximum_tokens, 0, 1)
        finalize(self, llama.llama_batch_free, batch)
        return context, batch

    def tokens(self, text: str) -> list[int]:
        """Token ids of ``text``, with what the tokenizer puts around it."""
        return encode(self._llama, self._vocabulary, text)

    def prompt_tokens(self, rendered: str) -> list[int]:
        """Token ids of a rendered chat as llama.cpp's servers read it: the file's BOS, not the template's as well."""
        llama, vocabulary = self._llama, self._vocabulary
        if llama.llama_vocab_get_add_bos(vocabulary):
            text = llama.llama_vocab_get_text(vocabulary, llama.llama_vocab_bos(vocabulary))
            rendered = rendered.removeprefix((text or b"").decode("utf-8", "replace"))
        return self.tokens(rendered)

    def ends(self, token: int) -> bool:
        """Whether generation stops at ``token``."""
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token))

    def logits(self, ids: Sequence[int], *, first: int = 0) -> Floats:
        """Float32 (tokens from ``first``, vocabulary): the scores of what follows each of ``ids``."""
        import numpy as np

        with self._context() as (context, batch):
            self._read(context, batch, ids, at=0, first=first)
            pointer = ctypes.cast(self._llama.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
            return np.ctypeslib.as_array(pointer, shape=(len(ids) - first, self.size)).copy()

    def answer(self, ids: Sequence[int], maximum: int) -> tuple[list[int], bool]:
        """Greedy tokens after ``ids``, at most ``maximum``, the end token counted, and whether they end with one."""
        import numpy as np

        maximum = min(maximum, self.maximum_tokens - len(ids))
        if maximum < 1:
            return [], False
        said: list[int] = []
        with self._context() as (context, batch):
            at, new = 0, list(ids)
            while True:
                self._read(context, batch, new, at=at, first=len(new) - 1)
                pointer = ctypes.cast(self._llama.llama_get_logits(context), ctypes.POINTER(ctypes.c_float))
                said.append(int(np.ctypeslib.as_array(pointer, shape=(self.size,)).argmax()))
                if self.ends(said[-1]) or len(said) == maximum:
                    return said, self.ends(said[-1])
                at, new = at + len(new), said[-1:]

    def answers(
        self, prompts: Sequence[Sequence[int]], maximum: int, *, finished: Callable[[int], None] = lambda _tokens: None
    ) -> list[tuple[list[int], bool]]:
        """``answer`` to each prompt; ``finished`` is told the number of tokens of each as it ends."""

        def one(ids: Sequence[int]) -> tuple[list[int], bool]:
            found = self.answer(ids, maximum)
            finished(len(found[0]))
            return found

        with ThreadPoolExecutor(self._texts_at_once) as pool:
            return list(pool.map(one, prompts))

    @contextmanager
    def _context(self) -> Iterator[tuple[Any, Any]]:
        """A context that nobody else uses, with nothing in it, and its batch."""
        taken = self._free.get()
        try:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(taken[0]), True)
            yield taken
        finally:
            self._free.put(taken)

    def _read(self, context: Any, batch: Any, ids: Sequence[int], *, at: int, first: int) -> None:
        """Read ``ids`` behind the ``at`` tokens before, for the logits from ``first`` on."""
        if not 0 < at + len(ids) <= self.maximum_tokens:
            raise ArtifactError(f"{self.path} was opened for 1 to {self.maximum_tokens} tokens, not {at + len(ids)}")
        batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            batch.token[index], batch.pos[index] = token, at + index
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            batch.logits[index] = index >= first
        status = self._llama.llama_decode(context, batch)
        if status != 0 or not self._llama.llama_get_logits(context):
            raise ArtifactError(f"llama.cpp could not read {len(ids)} tokens with {self.path}: {status}")

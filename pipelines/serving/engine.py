"""One GGUF model that answers several at once: continuous batching over llama.cpp, on the CPU.

A worker thread owns the context. Each of its steps is one ``llama_decode`` of the next token of every answer under way
and a part of the prompts that are still being read, so that a long prompt holds up nobody (continuous batching: Yu et
al., "Orca", OSDI 2022).
"""

from __future__ import annotations

import codecs
import ctypes
import math
import secrets
import threading
from collections import deque
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field
from itertools import count, takewhile
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import finalize

from pipelines.environment import available_cores
from pipelines.errors import ArtifactError, ConfigError, FreshetError, ServerUnavailableError
from pipelines.release.llama import load_llama
from pipelines.release.tokens import encode

if TYPE_CHECKING:
    from types import TracebackType

PROMPT_TOKENS_AT_ONCE = 256
"""Of all prompts in a step: enough for the matrix products to pay, and answers under way wait no longer than that."""

MOST_SLOTS = 256
"""llama.cpp's own limit of sequences in a context."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer is drawn."""

    maximum_tokens: int
    """Most new tokens."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    """Draw from the likeliest tokens that make up this share, after the temperature (Holtzman et al., 2020)."""
    seed: int | None = None
    """The same seed draws the same answer; None draws another one each time."""
    stops: tuple[str, ...] = ()
    """Texts, or control tokens by name, that end the answer and are no part of it."""
    grammar: str | None = None
    """GBNF that the answer follows, from its rule ``root``."""

    def __post_init__(self) -> None:
        if self.maximum_tokens < 1:
            raise ConfigError(f"maximum_tokens is {self.maximum_tokens}; an answer has at least 1")
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise ConfigError(f"temperature is {self.temperature}; allowed is 0 (greedy) and above")
        if not 0 <= self.top_p <= 1:
            raise ConfigError(f"top_p is {self.top_p}; allowed is 0 to 1")
        if "" in self.stops:
            raise ConfigError("a stop is an empty text, which would end every answer at once; leave it out")


@dataclass(frozen=True, slots=True)
class Piece:
    """The next part of an answer."""

    text: str
    """Whole characters, and nothing that may be the beginning of a stop."""
    finish: Literal["stop", "length"] | None = None
    """Why the answer ends here; None where it goes on."""


class Engine:
    """A GGUF language model in memory, for up to ``slots`` answers at a time; others wait in order.

    What a slot read last stays in its cache: a prompt takes the free slot that begins most like it, and reads the rest.
    """

    def __init__(self, path: Path, *, context_tokens: int, slots: int = 4, threads: int | None = None) -> None:
        """Load ``path``.

        Args:
            path: the GGUF file.
            context_tokens: most tokens of a prompt with its answer.
            slots: answers written at the same time; each holds ``context_tokens`` of keys and values in 32 bits.
            threads: for computing; default: all cores of this process.

        Raises:
            ConfigError: ``slots``, ``threads`` or ``context_tokens`` are not possible.
            ArtifactError: llama.cpp cannot load the file, or it is no language model.
        """
        self.path, self.context_tokens = path, context_tokens
        self._worker = _Worker(path, context_tokens, slots, available_cores() if threads is None else threads)
        # Last registered, first called: at the end of the process the thread ends before its memory is freed.
        finalize(self, self._worker.end, drain=False)

    def tokens(self, text: str) -> list[int]:
        """Token ids of ``text``: special tokens written in it count as such, none is added."""
        return self._worker.tokens(text)

    def count(self, text: str) -> int:
        """Number of tokens of ``text``."""
        return len(self.tokens(text))

    def generate(self, prompt: str, sampling: Sampling) -> Generator[Piece]:
        """The answer to a rendered ``prompt``, piece by piece; the last one says why it ends.

        The request is in line when this returns. Closing the generator, or dropping it, ends the request.

        Raises:
            ConfigError: prompt and answer are longer than the context, or the grammar is not valid GBNF or allows none
                of the model's tokens at some place.
            ServerUnavailableError: the engine is closed, or llama.cpp failed, from which it does not recover.
        """
        ids = self.tokens(prompt)
        if not ids:
            raise ConfigError(f"the prompt {prompt!r} has no tokens; there is nothing to answer")
        if len(ids) + sampling.maximum_tokens > self.context_tokens:
            raise ConfigError(
                f"a prompt of {len(ids)} tokens and an answer of up to {sampling.maximum_tokens} are longer than the "
                f"context of {self.context_tokens}; shorten the prompt or ask for a shorter answer"
            )
        pieces = self._pieces(self._worker.request(ids, sampling))
        next(pieces)  # begun, so that dropping it ends the request even if nothing was read of it
        return pieces

    def _pieces(self, request: _Request) -> Generator[Piece]:
        self._worker.submit(request)
        try:
            yield Piece("")
            while True:
                piece = request.pieces.get()
                if isinstance(piece, FreshetError):
                    raise piece
                yield piece
                if piece.finish:
                    return
        finally:
            self._worker.cancel(request)

    @property
    def busy(self) -> int:
        """Requests that are answered or wait."""
        return self._worker.busy

    @property
    def evaluated(self) -> int:
        """Tokens that llama.cpp has read since loading; those found in a slot's cache do not count."""
        return self._worker.evaluated

    def close(self) -> None:
        """Finish what runs and waits, refuse what comes, and free the caches; tokens can still be counted."""
        self._worker.end(drain=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Text:
    """Bytes of tokens to text that may be shown."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""

    def add(self, piece: bytes) -> tuple[str, bool]:
        """What may be shown now, and whether a stop ends it."""
        held = self._held + self._decoder.decode(piece)
        ends = [at for at in map(held.find, self._stops) if at >= 0]
        if ends:
            self._held = ""
            return held[: min(ends)], True
        kept = len(held) - max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[kept:]
        return held[:kept], False

    def rest(self) -> str:
        """What was held back, as nothing follows; an unfinished character is left out."""
        return self._held


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of ``text`` that ``stop`` begins with."""
    return next((size for size in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:size])), 0)


@dataclass(slots=True, weakref_slot=True, eq=False)
class _Request:
    sequence: list[int]
    """Tokens of the prompt and, as they are drawn, of the answer."""
    sampling: Sampling
    stop_tokens: frozenset[int]
    sampler: Any
    grammar: Any
    text: _Text
    drawn: int = 0
    cancelled: bool = False
    pieces: SimpleQueue[Piece | FreshetError] = field(default_factory=SimpleQueue)


@dataclass(slots=True, eq=False)
class _Slot:
    number: int
    """llama.cpp's number of the sequence."""
    read: list[int] = field(default_factory=list)
    """Tokens whose keys and values are in its cache."""
    request: _Request | None = None
    taken: int = 0
    """Rises with every request."""


class _Worker:
    """The model, the context and the thread that computes.

    Knows nothing of its ``Engine``, which may so be collected, and ends it, while the thread waits.
    """

    def __init__(self, path: Path, context_tokens: int, slots: int, threads: int) -> None:
        if not 1 <= slots <= MOST_SLOTS:
            raise ConfigError(f"slots is {slots}; allowed is 1 to {MOST_SLOTS}")
        if threads < 1:
            raise ConfigError(f"threads is {threads}; at least 1 is needed")
        self._path = path
        self._llama, model = load_llama(self, path)
        llama = self._llama
        longest = llama.llama_model_n_ctx_train(model)
        if not 2 <= context_tokens <= longest:
            raise ConfigError(f"context_tokens is {context_tokens}; {path} allows 2 to {longest}")
        self._vocabulary = llama.llama_model_get_vocab(model)
        self._size = int(llama.llama_vocab_n_tokens(self._vocabulary))
        parameters = llama.llama_context_default_params()
        parameters.n_seq_max = parameters.n_outputs_max = slots
        parameters.n_ctx = slots * context_tokens
        parameters.n_batch = parameters.n_ubatch = PROMPT_TOKENS_AT_ONCE + slots
        parameters.n_threads = parameters.n_threads_batch = threads
        # As in the comparison after export: in 16 bits the cache alone would cost more exactness than an F16 file does.
        parameters.type_k = parameters.type_v = 0  # GGML_TYPE_F32
        parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        # Each slot attends over its own tokens only: as fast as it would be alone, and with the same rounding.
        parameters.kv_unified = False
        parameters.swa_full = True  # what a sliding window forgets cannot be reused
        parameters.op_offload = False
        context = llama.llama_init_from_model(model, parameters)
        if not context:
            raise ArtifactError(
                f"llama.cpp cannot make a context of {slots} times {context_tokens} tokens for {path}; "
                "serve it with fewer slots"
            )
        self._free_context = finalize(self, llama.llama_free, context)
        self._context, self._memory = context, llama.llama_get_memory(context)
        if not self._memory or llama.llama_model_cls_label(model, 0):
            raise ArtifactError(f"{path} writes no text; it is another kind of model")
        if llama.llama_n_ctx_seq(context) < context_tokens:
            raise ArtifactError(
                f"llama.cpp gives each of {slots} slots {llama.llama_n_ctx_seq(context)} tokens with {path}; "
                f"{context_tokens} are needed"
            )
        self._batch = llama.llama_batch_init(parameters.n_batch, 0, 1)
        self._free_batch = finalize(self, llama.llama_batch_free, self._batch)
        self._slots = [_Slot(number) for number in range(slots)]
        self._waiting: deque[_Request] = deque()
        self._changed = threading.Condition()
        self._order = count(1)
        self._ending: Literal["drain", "now"] | None = None
        self._failure: Exception | None = None
        self.evaluated = 0
        self._thread = threading.Thread(target=self._run, name=f"llama {path.name}", daemon=True)
        self._thread.start()

    def tokens(self, text: str) -> list[int]:
        return encode(self._llama, self._vocabulary, text, whole=False)

    @property
    def busy(self) -> int:
        with self._changed:
            return len(self._waiting) + sum(slot.request is not None for slot in self._slots)

    def request(self, ids: list[int], sampling: Sampling) -> _Request:
        llama = self._llama
        controls = {
            stop[0]
            for stop in map(self.tokens, sampling.stops)
            if len(stop) == 1 and llama.llama_vocab_is_control(self._vocabulary, stop[0])
        }
        grammar = None
        if sampling.grammar is not None:
            grammar = llama.llama_sampler_init_grammar(self._vocabulary, sampling.grammar.encode(), b"root")
            if not grammar:
                raise ConfigError(
                    f"llama.cpp cannot read the grammar {sampling.grammar[:200]!r}: it needs GBNF with a rule root"
                )
        sampler = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
        if sampling.temperature == 0:
            llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_greedy())
        else:
            # 2**32 - 1 would mean a random one.
            seed = (secrets.randbits(32) if sampling.seed is None else sampling.seed) % llama.LLAMA_DEFAULT_SEED
            llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_temp(sampling.temperature))
            llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_top_p(sampling.top_p, 1))
            llama.llama_sampler_chain_add(sampler, llama.llama_sampler_init_dist(seed))
        request = _Request(ids, sampling, frozenset(controls), sampler, grammar, _Text(sampling.stops))
        for owned in (sampler, grammar):
            if owned:
                # Not at the end of the process, when the thread may still draw with it.
                finalize(request, llama.llama_sampler_free, owned).atexit = False
        return request

    def submit(self, request: _Request) -> None:
        with self._changed:
            if self._failure is not None:
                raise self._gone()
            if self._ending is not None:
                raise ServerUnavailableError(f"{self._path.name} is being taken out of service; ask again")
            self._waiting.append(request)
            self._changed.notify()

    def cancel(self, request: _Request) -> None:
        with self._changed:
            request.cancelled = True
            self._changed.notify()

    def end(self, *, drain: bool) -> None:
        with self._changed:
            if self._ending is None or not drain:
                self._ending = "drain" if drain else "now"
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _gone(self) -> ServerUnavailableError:
        """What those hear who get no answer, or not all of it."""
        if self._failure is not None:
            return ServerUnavailableError(
                f"llama.cpp failed with {self._path} and has to be started again: {self._failure}"
            )
        return ServerUnavailableError(f"{self._path.name} was taken out of service before the answer was whole")

    def _run(self) -> None:
        try:
            while self._next():
                self._step()
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait have to hear of it
            self._failure = error
        with self._changed:
            self._ending = self._ending or "now"
            left = [*self._waiting, *(slot.request for slot in self._slots if slot.request is not None)]
            self._waiting.clear()
            for slot in self._slots:
                slot.request = None
        for request in left:
            request.pieces.put(self._gone())
        self._free_batch()
        self._free_context()

    def _next(self) -> bool:
        """Wait for something to compute, and give free slots to those who wait; False when all is done."""
        with self._changed:
            while True:
                self._waiting = deque(request for request in self._waiting if not request.cancelled)
                for slot in self._slots:
                    if slot.request is not None and slot.request.cancelled:
                        slot.request = None
                free = [slot for slot in self._slots if slot.request is None]
                if self._ending == "now":
                    return False
                if self._waiting or len(free) < len(self._slots):
                    break
                if self._ending == "drain":
                    return False
                self._changed.wait()
            while free and self._waiting:
                free.remove(self._take(self._waiting.popleft(), free))
            return True

    def _take(self, request: _Request, free: Sequence[_Slot]) -> _Slot:
        """Give ``request`` the slot that begins most like it, of those the one unused for longest."""
        llama, ids = self._llama, request.sequence
        shared, slot = max(((_shared(slot.read, ids), slot) for slot in free), key=lambda one: (one[0], -one[1].taken))
        slot.request, slot.taken = request, next(self._order)
        shared = min(shared, len(ids) - 1)  # the scores behind the last token are needed again
        whole = llama.llama_memory_seq_rm(self._memory, slot.number, shared, -1)
        # Recurrent models cannot forget a part, and some caches forget the beginning.
        if not whole or (shared and llama.llama_memory_seq_pos_min(self._memory, slot.number) != 0):
            llama.llama_memory_seq_rm(self._memory, slot.number, -1, -1)
            shared = 0
        slot.read = ids[:shared]
        return slot

    def _step(self) -> None:
        """One batch: the next token of every answer, and parts of prompts, each its share of the room."""
        llama, batch = self._llama, self._batch
        batch.n_tokens, outputs = 0, []
        running = [(slot, slot.request) for slot in self._slots if slot.request is not None]
        running.sort(key=lambda each: len(each[1].sequence) - len(each[0].read))
        room, prompts = PROMPT_TOKENS_AT_ONCE, sum(len(each.sequence) - len(slot.read) > 1 for slot, each in running)
        for slot, request in running:
            new = request.sequence[len(slot.read) :]
            if len(new) > 1:
                new = new[: room // prompts]
                room, prompts = room - len(new), prompts - 1
            for token in new:
                at = batch.n_tokens
                batch.token[at], batch.pos[at] = token, len(slot.read)
                batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot.number
                slot.read.append(token)
                batch.logits[at] = len(slot.read) == len(request.sequence)
                batch.n_tokens += 1
            if len(slot.read) == len(request.sequence):
                outputs.append((slot, request, batch.n_tokens - 1))
        status = llama.llama_decode(self._context, batch)
        if status != 0:
            raise ArtifactError(f"it could not read {batch.n_tokens} tokens: {status}")
        self.evaluated += batch.n_tokens
        for slot, request, at in outputs:
            if not request.cancelled and (piece := self._draw(request, at)) is not None:
                if isinstance(piece, FreshetError) or piece.finish:
                    with self._changed:  # free before its last piece is read
                        slot.request = None
                request.pieces.put(piece)

    def _draw(self, request: _Request, at: int) -> Piece | FreshetError | None:
        """Draw the next token of ``request`` from the scores at ``at``; what can be shown of the answer now."""
        llama = self._llama
        token: int | None = int(llama.llama_sampler_sample(request.sampler, self._context, at))
        if request.grammar and not self._allows(request.grammar, token):
            token = self._bound(request, at)
        if token is None:
            return ConfigError(f"the grammar allows none of the model's tokens after {request.drawn}; widen it")
        request.drawn += 1
        if llama.llama_vocab_is_eog(self._vocabulary, token) or token in request.stop_tokens:
            return Piece(request.text.rest(), "stop")
        if request.grammar:
            llama.llama_sampler_accept(request.grammar, token)
        request.sequence.append(token)
        text, stopped = request.text.add(self._bytes(token))
        if stopped:
            return Piece(text, "stop")
        if request.drawn == request.sampling.maximum_tokens:
            return Piece(text + request.text.rest(), "length")
        return Piece(text) if text else None

    def _allows(self, grammar: Any, token: int | None) -> bool:
        """Whether ``grammar`` goes on with ``token``: asked of one token first, for a whole vocabulary takes long."""
        llama = self._llama
        one = (llama.llama_token_data * 1)(llama.llama_token_data(token, 0.0, 0.0))
        llama.llama_sampler_apply(grammar, ctypes.byref(llama.llama_token_data_array(one, 1, -1, False)))
        return bool(one[0].logit > -math.inf)

    def _bound(self, request: _Request, at: int) -> int | None:
        """A token drawn from those that the grammar allows; None where it allows none.

        llama.cpp ends the process when a token is accepted that its grammar does not allow.
        """
        import numpy as np

        llama = self._llama
        scores = ctypes.cast(llama.llama_get_logits_ith(self._context, at), ctypes.POINTER(ctypes.c_float))
        data = np.zeros(self._size, dtype=[("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        data["id"], data["logit"] = np.arange(self._size), np.ctypeslib.as_array(scores, shape=(self._size,))
        pointer = ctypes.cast(data.ctypes.data, llama.llama_token_data_p)
        candidates = llama.llama_token_data_array(pointer, self._size, -1, False)
        llama.llama_sampler_apply(request.grammar, ctypes.byref(candidates))
        if not np.isfinite(data["logit"]).any():
            return None
        llama.llama_sampler_apply(request.sampler, ctypes.byref(candidates))
        return int(candidates.data[candidates.selected].id)

    def _bytes(self, token: int) -> bytes:
        """What ``token`` adds to the text; control tokens add nothing."""
        size = 64
        while True:
            buffer = ctypes.create_string_buffer(size)
            length = int(self._llama.llama_token_to_piece(self._vocabulary, token, buffer, size, 0, False))
            if length >= 0:
                return buffer.raw[:length]
            size = -length


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """Tokens that both begin with."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))

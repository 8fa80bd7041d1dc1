"""What inputs of each weight matter on training texts, for quantising: llama.cpp's importance matrix.

As ``llama-imatrix`` computes it: the mean square of every column of what a matrix is multiplied with.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

from pipelines.environment import available_cores
from pipelines.errors import ExportError
from pipelines.release.llama import load_llama
from pipelines.release.tokens import encode

if TYPE_CHECKING:
    from pipelines.release.llama import Floats

TOKENS_AT_ONCE = 512
"""Longer texts are read in parts."""

ENOUGH_TOKENS = 50_000
"""More hardly change the means."""


@dataclass(frozen=True, slots=True)
class ImportanceMatrix:
    """Of one model."""

    values: Mapping[str, Floats]
    """Float32 (columns,), by the tensor's name in the file. Experts of a mixture are not among them."""
    tokens: int
    """Read for it."""


class _Tensor(ctypes.Structure):
    """ggml.h's ``struct ggml_tensor``."""


_Tensor._fields_ = [
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32),
    ("src", ctypes.POINTER(_Tensor) * 10), ("view_src", ctypes.c_void_p), ("view_offs", ctypes.c_size_t),
    ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64), ("extra", ctypes.c_void_p), ("padding", ctypes.c_char * 8),
]  # fmt: skip

OBJECT_SIZE = 32
"""What ggml puts before a tensor."""


@cache
def _ggml() -> Any:
    """The library of tensors beside llama.cpp's.

    Raises:
        ExportError: its tensors are laid out otherwise than here.
    """
    import llama_cpp

    (path,) = (Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.*[ob]")
    library = ctypes.CDLL(str(path))
    library.ggml_tensor_overhead.restype = ctypes.c_size_t
    library.ggml_op_name.restype = library.ggml_get_name.restype = ctypes.c_char_p
    library.ggml_get_name.argtypes = [ctypes.POINTER(_Tensor)]
    if library.ggml_tensor_overhead() != OBJECT_SIZE + ctypes.sizeof(_Tensor):
        raise ExportError(
            f"this llama.cpp's tensors take {library.ggml_tensor_overhead()} bytes, not "
            f"{OBJECT_SIZE + ctypes.sizeof(_Tensor)}: set release.importance_matrix to false"
        )
    return library


def importance(
    gguf: Path, texts: Sequence[str], *, progress: Callable[[str], None], encoder: bool = False
) -> ImportanceMatrix:
    """Read ``texts`` with the 16-bit file ``gguf``, up to ``ENOUGH_TOKENS``, and see what its matrices are given.

    Raises:
        ExportError: no text has a token, or llama.cpp fails or is laid out otherwise.
        ArtifactError: llama.cpp cannot load the file.
    """
    import numpy as np

    ggml = _ggml()
    sums: dict[str, Any] = {}
    counts: dict[str, int] = {}
    failed: list[str] = []
    multiplied = next(number for number in range(200) if ggml.ggml_op_name(number) == b"MUL_MAT")

    def seen(pointer: Any, ask: bool, _data: object) -> bool:
        tensor = ctypes.cast(pointer, ctypes.POINTER(_Tensor)).contents
        if tensor.op != multiplied:
            return not ask  # neither wanted, nor a reason to stop
        weight, given = tensor.src[0].contents, tensor.src[1].contents
        name = weight.name.decode("utf-8", "replace")
        if not (name.endswith(".weight") and name.startswith(("blk.", "output"))) or ask:
            return True
        width, rows = given.ne[0], given.ne[1] * given.ne[2] * given.ne[3]
        if given.type != 0 or given.nb[1] != 4 * width or ggml.ggml_get_name(tensor.src[0]) != weight.name:
            failed.append(name)
            return False
        data = np.ctypeslib.as_array(ctypes.cast(given.data, ctypes.POINTER(ctypes.c_float)), shape=(rows, width))
        sums[name] = sums.get(name, 0) + np.square(data, dtype=np.float64).sum(0)
        counts[name] = counts.get(name, 0) + rows
        return True

    owner = _Owner()
    llama, model = load_llama(owner, gguf)
    vocabulary = llama.llama_model_get_vocab(model)
    callback = llama.ggml_backend_sched_eval_callback(seen)
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = min(
        TOKENS_AT_ONCE, llama.llama_model_n_ctx_train(model)
    )
    parameters.n_seq_max = 1
    parameters.n_threads = parameters.n_threads_batch = available_cores()
    parameters.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.op_offload = False
    parameters.cb_eval = callback
    if encoder:
        parameters.embeddings, parameters.pooling_type = True, llama.LLAMA_POOLING_TYPE_RANK
    context = llama.llama_init_from_model(model, parameters)
    if not context:
        raise ExportError(f"llama.cpp cannot make a context for {gguf}")
    finalize(owner, llama.llama_free, context)
    batch = llama.llama_batch_init(parameters.n_batch, 0, 1)
    finalize(owner, llama.llama_batch_free, batch)
    read = 0
    for number, text in enumerate(texts):
        ids = encode(llama, vocabulary, text)
        for first in range(0, len(ids), parameters.n_batch):
            part = ids[first : first + parameters.n_batch]
            batch.n_tokens = len(part)
            for index, token in enumerate(part):
                batch.token[index], batch.pos[index], batch.logits[index] = token, index, 1
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, 0
            if not encoder:
                llama.llama_memory_clear(llama.llama_get_memory(context), True)
            status = (llama.llama_encode if encoder else llama.llama_decode)(context, batch)
            llama.llama_synchronize(context)
            if status != 0 or failed:
                raise ExportError(
                    f"llama.cpp could not read a text of {len(part)} tokens with {gguf} (status {status}, "
                    f"{failed[:1]}): set release.importance_matrix to false"
                )
            read += len(part)
        if number % 100 == 0:
            progress(f"importance matrix: {read} tokens read")
        if read >= ENOUGH_TOKENS:
            break
    if not sums:
        raise ExportError(f"an importance matrix needs texts; {len(texts)} with {read} tokens were given")
    values = {}
    for name, total in sums.items():
        mean = total / counts[name]
        # A column that was never used may be one day: it keeps a little weight, and the arithmetic a number.
        values[name] = np.maximum(mean, 1e-6 * mean.mean() + 1e-12).astype(np.float32)
    del owner
    return ImportanceMatrix(values, read)


class _Owner:
    """What llama.cpp's memory is freed with."""

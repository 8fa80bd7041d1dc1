"""``python -m pipelines.release.conversion ROOT < JOB``: one model to GGUF by llama.cpp's own converter.

A process of its own: the converter puts a top-level package ``conversion`` on the path, configures logging, and its
memory goes back when it ends. ``ROOT`` holds that package. ``JOB`` is a pickled dict from the process that started
this one: checkpoint (its configuration and tokenizer, and its weights unless ``merge`` is an opened ``Merge``), output,
file_type, architecture, name, metadata, tokenizer (what the vocabulary has to say; none for a classifier), and
``alone`` (its alpha) where the adapter is written without the model.

Matching an adapter with its base takes transformers' modelling code, whose import alone takes seconds: who starts this
process has done it, and here nothing imports that code.
"""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from pipelines.errors import ExportError

if TYPE_CHECKING:
    from pipelines.release.merge import Merge

REFUSED = 2
"""Exit status when the converter cannot do it; the reason is the last line on standard error."""


def main(root: str) -> int:
    """Convert as the job on standard input says; 0 when done, 2 when this model cannot be converted."""
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    sys.path.insert(0, root)
    conversion = importlib.import_module("conversion")
    for needed in ("pipelines.release.merge", "transformers.models.auto.tokenization_auto"):
        importlib.import_module(needed)  # seconds, while the job is put together
    job = pickle.load(sys.stdin.buffer)  # noqa: S301 - written by the process that started this one
    try:
        convert(conversion, job)
    except (NotImplementedError, ExportError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201 the parent reads it
        return REFUSED
    return 0


class Streamed:
    """What the writer asks of an array: its size, and to be written."""

    def __init__(self, merge: Merge, name: str, nbytes: int) -> None:
        """The tensor ``name`` of ``merge``, which takes ``nbytes`` in the file."""
        self.merge, self.name, self.nbytes = merge, name, nbytes

    def tofile(self, file: BinaryIO) -> None:
        """Write it."""
        began = file.tell()
        file.writelines(self.merge.parts(self.name))
        if file.tell() != began + self.nbytes:
            raise ExportError(f"{self.name} became {file.tell() - began} bytes long, not {self.nbytes}")


def convert(conversion: Any, job: dict[str, Any]) -> None:
    """Write the file that ``job`` asks for."""
    import gguf
    import torch

    from pipelines.environment import available_cores

    torch.set_num_threads(available_cores())
    merge: Any = job["merge"]  # a Merge, or None
    for tensor in merge.tensors.values() if merge and job["file_type"] == "F16" else ():
        if tensor.update is not None and not tensor.update.transposed:
            tensor.dtype = "F16"  # what it becomes in the file anyway, sooner than numpy rounds it
    base: Any = conversion.get_model_class(job["architecture"])
    lazily: Any = conversion.LazyTorchTensor
    tokenizer = job["tokenizer"]
    straight: dict[str, str] = {}

    class Converted(base):  # type: ignore[misc]
        """The converter's model, with its head, our merged weights, and what is known of its tokenizer."""

        model_arch = base.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
            """Weights merged when they are asked for, so that no merged checkpoint lies on the disk."""
            if not merge:
                return dict(super().index_tensors(remote_hf_model_id))
            tensors: dict[str, Callable[[], Any]] = {}
            for name in merge.tensors:

                def lazy(name: str = name) -> Any:
                    meta = lazily.meta_with_dtype_and_shape(merge.dtype(name), merge.shape(name))
                    return lazily(meta=meta, args=(name,), func=merge.read)

                if kept := self.filter_tensors((name, lazy)):
                    tensors[kept[0]] = kept[1]
            return tensors

        @classmethod
        def filter_tensors(cls, item: tuple[str, Any]) -> Any:
            """Keep BERT's pooler: llama.cpp applies ``classifier.dense`` and tanh before the output layer."""
            name, tensor = item
            kept = super().filter_tensors((name.replace("bert.pooler.dense.", "classifier.dense."), tensor))
            if kept is None and tokenizer is not None:
                raise NotImplementedError(f"llama.cpp has no place for {name}")
            return kept

        def modify_tensors(self, data_torch: Any, name: str, bid: int | None) -> Iterable[tuple[str, Any]]:
            """Everything has a place in the file; experts are gathered first."""
            parts = list(super().modify_tensors(data_torch, name, bid))
            if merge and len(parts) == 1 and parts[0][1] is data_torch and name in merge.tensors:
                straight[parts[0][0]] = name
            if not parts and tokenizer is not None and ".experts." not in name:
                raise NotImplementedError(f"llama.cpp has no place for {name}")
            return parts

        def prepare_tensors(self) -> None:
            """Lazily; what the converter leaves as it is goes from the merge into the file, some rows at a time."""
            super().prepare_tensors()
            for new_name, found in self.gguf_writer.tensors[0].items():
                if new_name in straight and found.dtype.name in {"F16", "BF16", "F32"}:
                    merge.tensors[straight[new_name]].dtype = found.dtype.name
                    found.tensor = Streamed(merge, straight[new_name], found.nbytes)

        def get_vocab_base_pre(self, tokenizer_: Any) -> str:
            """By hash as the converter knows it, else by structure."""
            try:
                return str(super().get_vocab_base_pre(tokenizer_))
            except NotImplementedError:
                if tokenizer is None or tokenizer["pre"] is None:
                    raise
                return str(tokenizer["pre"])

        def set_vocab(self) -> None:
            """Also say where texts and turns begin and end, which the converter guesses."""
            super().set_vocab()
            held, kinds = self.gguf_writer.kv_data[0], gguf.GGUFValueType
            for key, value in (tokenizer or {}).get("fields", {}).items():
                held.pop(key, None)
                if value is not None:
                    kind = kinds.BOOL if isinstance(value, bool) else kinds.UINT32
                    self.gguf_writer.add_key_value(key, value, kind)

        def set_gguf_parameters(self) -> None:
            """Say what the model was made from, and of a classifier that it scores labels."""
            super().set_gguf_parameters()
            if tokenizer is None:
                self.gguf_writer.add_pooling_type(gguf.PoolingType.RANK)
            for key, value in job["metadata"].items():
                self.gguf_writer.add_string(key, value)

    class Alone(Converted):
        """The adapter's updates, without the model that they belong to."""

        model_arch = base.model_arch

        def index_tensors(self, remote_hf_model_id: str | None = None) -> dict[str, Callable[[], Any]]:
            """None of the model's."""
            del remote_hf_model_id
            return {}

        def set_vocab(self) -> None:
            """The base has it."""

        def set_type(self) -> None:
            """As llama.cpp knows adapters."""
            self.gguf_writer.add_type(gguf.GGUFType.ADAPTER)
            self.gguf_writer.add_string(gguf.Keys.Adapter.TYPE, "lora")

        def set_gguf_parameters(self) -> None:
            """What the adapter was made from, instead of the model's sizes."""
            self.gguf_writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, job["alone"]["alpha"])
            self.gguf_writer.add_file_type(self.ftype)
            for key, value in job["metadata"].items():
                self.gguf_writer.add_string(key, value)

        def prepare_tensors(self) -> None:
            """A and B of every update."""
            for name, tensor in merge.tensors.items():
                if tensor.update is not None:
                    for new_name, a, b in self._update(name, tensor.update):
                        self.gguf_writer.add_tensor(f"{new_name}.lora_a", a)
                        self.gguf_writer.add_tensor(f"{new_name}.lora_b", b)

        def _update(self, name: str, update: Any) -> Iterable[tuple[str, Any, Any]]:
            """Names in the file, A (rank, in) and B (out, rank), permuted or split as the converter does weights."""
            a, b = update.a.read().float(), update.b.read().float()
            b *= update.scale * a.shape[0] / job["alone"]["alpha"]
            kept = self.filter_tensors((name, None))
            bid = next((int(part) for part in name.split(".") if part.isdecimal()), None)

            def converted(weight: Any) -> list[tuple[str, Any]]:
                return list(self.modify_tensors(weight.T if update.transposed else weight, kept[0], bid))

            parts, whole = (converted(b), converted(b @ a)) if kept else ([], [])
            for (new_name, part), (_, expected) in zip(parts, whole, strict=True):
                if not (new_name.startswith("blk.") or new_name == "output.weight"):
                    raise NotImplementedError(f"GGUF adapters cannot update {name}: only linear layers")
                # The converter may do to rows what it likes, but nothing that A's side would have to know of.
                same = part.shape == (expected.shape[0], a.shape[0]) and torch.allclose(
                    part @ a, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max())
                )
                pair = a.half(), part.half()
                if not same or not all(torch.isfinite(half).all() for half in pair):
                    raise NotImplementedError(f"the update of {name} does not survive the way to GGUF")
                yield new_name, *(half.contiguous().numpy() for half in pair)
            if not parts:
                raise NotImplementedError(f"llama.cpp has no place for {name}")

    checkpoint = Path(job["checkpoint"])
    hparams = conversion.ModelBase.load_hparams(checkpoint, False)
    if "n_positions" in hparams:
        hparams.setdefault("n_ctx", hparams["n_positions"])  # transformers no longer writes it
    file_type = getattr(gguf.LlamaFileType, f"MOSTLY_{job['file_type']}")
    kind = Alone if job.get("alone") else Converted
    model = kind(checkpoint, file_type, Path(job["output"]), model_name=job["name"], hparams=hparams)
    model.dir_model_card = Path(job["name"])  # the converter takes facts from the name of a folder, here a passing one
    model.write()
    if merge and not job.get("alone"):
        merge.check()


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)  # the file is closed: taking down torch and transformers would hold up the parent for a second

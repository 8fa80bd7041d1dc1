"""Convert a sentence-transformers model, and compare a backend with float32: ``python -m`` this, in its own process.

Only here torch is loaded to embed with OpenVINO, and its memory goes with the process.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any, cast

from pipelines.corpus.embedding.interface import EXACT, Backend, Embedder, Precision
from pipelines.corpus.embedding.model import ModelFiles
from pipelines.corpus.embedding.openvino_ir import OpenVinoEmbedder, import_openvino
from pipelines.corpus.embedding.sentence_transformer import SentenceTransformerEmbedder
from pipelines.errors import ExportError
from pipelines.fingerprint import file_sha256, write_json_atomically

CONVERTER_VERSION = 1
"""Raised when the same model is converted otherwise."""

PROBES = (
    "",
    "x",
    "How do I replace the filter of the pump?",
    "Die Prüfung der Rückgabe dauert höchstens ZEHN Tage; danach gilt § 4.",
    "水箱的容量是多少？ Температура не выше 40 °C. كم يزن الجهاز؟",
    "def area(width: float, height: float) -> float:\n\treturn width * height  # m² 🙂",
    '| part | price |\n| --- | --- |\n| valve 3/4" | 12.50 € |',
    "The tank holds forty litres and is emptied by the valve at its foot. " * 6,
)
"""Texts whose vectors decide; a longer one than the model takes comes with them."""

_MODULES = ("Transformer", "Pooling", "Dense", "Normalize")


def main(folder: str, backend: str, precision: str, target: str) -> None:
    """Write into ``target`` what was converted, and ``record.json``: whether it is exact enough, or why not."""
    warnings.simplefilter("ignore")
    files = ModelFiles(folder, None)
    reference = SentenceTransformerEmbedder(files, "float32")
    record: dict[str, Any] = {}
    try:
        tried = _embedder(
            files, reference, cast("Backend", backend), cast("Precision", precision), Path(target), record
        )
        record["cosine"] = least_cosine(tried, reference, files.limit)
        record["accepted"] = record["cosine"] >= EXACT
        record["reason"] = "" if record["accepted"] else f"cosine {record['cosine']:.5f} to float32, below {EXACT}"
    except Exception as error:  # noqa: BLE001 whatever a converter raises, the model goes to the next backend
        record |= {"accepted": False, "reason": f"{type(error).__name__}: {str(error)[:500]}"}
    if not record["accepted"]:
        for path in Path(target).glob("model.*"):
            path.unlink()
    record["files"] = {path.name: file_sha256(path) for path in sorted(Path(target).glob("model.*"))}
    write_json_atomically(Path(target) / "record.json", record)


def least_cosine(tried: Embedder, reference: Embedder, limit: int) -> float:
    """The least cosine between two embedders' vectors of the probes, as documents and as questions."""
    import numpy as np

    probes = [*PROBES, "overlong and cut " * min(limit, 512)]
    ours, theirs = tried.encode(probes), reference.encode(probes)
    if ours.shape != theirs.shape or not np.isfinite(ours).all():
        raise ExportError(f"vectors of shape {ours.shape}, not {theirs.shape}, or not finite")
    cosines = [float(cosine) for cosine in np.sum(ours * theirs, axis=1)]
    cosines += [float(tried.encode_question(each) @ reference.encode_question(each)) for each in PROBES[1:4]]
    return min(cosines)


def _embedder(
    files: ModelFiles,
    reference: SentenceTransformerEmbedder,
    backend: Backend,
    precision: Precision,
    target: Path,
    record: dict[str, Any],
) -> Embedder:
    if backend == "torch":
        return SentenceTransformerEmbedder(files, precision)
    record |= convert(reference._model, target)  # noqa: SLF001 the model that is compared is the one converted
    write_json_atomically(target / "record.json", record)
    return OpenVinoEmbedder(files, precision, target)


def convert(model: Any, target: Path) -> dict[str, Any]:
    """Write a SentenceTransformer's ``model.xml`` and ``model.bin`` into ``target``, float32, of any batch and length.

    Returns:
        ``inputs``, the names of its inputs, and ``pad_id``, what fills ``input_ids`` up.

    Raises:
        ExportError: a module that is not known to be a function of ids and mask alone.
    """
    import torch

    openvino = import_openvino()
    kinds = [type(module).__name__ for module in model]
    if kinds[:2] != ["Transformer", "Pooling"] or not set(kinds) <= set(_MODULES):
        raise ExportError(f"modules {kinds}: only a Transformer, a Pooling, then Dense and Normalize are converted")
    if not model[1].include_prompt or model.truncate_dim is not None:
        raise ExportError("pooling without the prompt, and truncated vectors, are not converted")
    if any(
        getattr(model[0], name, None) is not None for name in ("query_length", "document_length", "query_expansion")
    ):
        raise ExportError("a Transformer that cuts or fills up questions and documents differently is not converted")

    class Pipeline(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.modules_in_order = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            features = self.modules_in_order(dict(zip(inputs, tensors, strict=True)))
            return cast("torch.Tensor", features["sentence_embedding"])

    features = model.preprocess([PROBES[2], PROBES[3]])
    inputs = [name for name, value in features.items() if isinstance(value, torch.Tensor)]
    if not {"input_ids", "attention_mask"} <= set(inputs) <= {"input_ids", "attention_mask", "token_type_ids"}:
        raise ExportError(f"inputs {inputs}: only ids, mask and token types are known")
    graph = openvino.convert_model(Pipeline().eval(), example_input=tuple(features[name] for name in inputs))
    for name, port in zip(inputs, graph.inputs, strict=True):
        port.get_tensor().set_names({name})
    graph.reshape({name: [-1, -1] for name in inputs})
    openvino.save_model(graph, str(target / "model.xml"), compress_to_fp16=False)
    return {"inputs": inputs, "pad_id": int(model.tokenizer.pad_token_id or 0)}


if __name__ == "__main__":
    main(*sys.argv[1:])

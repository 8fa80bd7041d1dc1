"""GGUF files: converted by llama.cpp's own converter, quantised by llama.cpp, and believed only by their headers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipelines.environment import REPOSITORY, Environment, available_cores
from pipelines.errors import ConfigError, ExportError
from pipelines.release.conversion import REFUSED
from pipelines.release.llama import llama_library
from pipelines.release.settings import Quantisation

ARCHITECTURES = ("BertForSequenceClassification",)
"""Whose classification head llama.cpp computes as transformers does: dense, tanh, output."""

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
"""What llama.cpp computes in BERT's feed-forward layers, up to the approximation."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    file_type: str
    """As llama.cpp names it: F16, Q8_0, Q4_K_M, …"""
    tensor_types: Mapping[str, int]
    """How many tensors have each type; K-quants fall back to others where rows do not divide by 256."""
    unquantised: tuple[str, ...]
    """Matrices held in 16 bits."""
    architecture: str
    labels: tuple[str, ...]
    """Of the classification head, in the order of its outputs."""
    pooling: str
    """RANK for a classification head."""
    metadata: Mapping[str, str]
    """The keys below ``freshet.``: what the file was made from."""


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        ExportError: it is no GGUF file.
    """
    import gguf

    try:
        reader = gguf.GGUFReader(path)
        fields: dict[str, Any] = {
            name: field.contents() for name, field in reader.fields.items() if not name.startswith("tokenizer.")
        }
    except (ValueError, OSError, IndexError) as error:
        raise ExportError(f"{path} is no complete GGUF file: {error}") from error
    architecture = fields["general.architecture"]
    types = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    matrices = {tensor.name for tensor in reader.tensors if len(tensor.shape) > 1}
    pooling = fields.get(f"{architecture}.pooling_type")
    return Header(
        file_type=gguf.LlamaFileType(fields["general.file_type"]).name.removeprefix("MOSTLY_"),
        tensor_types=dict(sorted(Counter(types.values()).items())),
        unquantised=tuple(sorted(name for name in matrices if types[name] in {"F16", "BF16"})),
        architecture=architecture,
        labels=tuple(fields.get(f"{architecture}.classifier.output_labels") or ()),
        pooling="NONE" if pooling is None else gguf.PoolingType(pooling).name,
        metadata={name: str(value) for name, value in fields.items() if name.startswith("freshet.")},
    )


def convert(checkpoint: Path, output: Path, *, name: str, metadata: Mapping[str, str]) -> Header:
    """Convert a sequence-classification checkpoint to a 16-bit GGUF file.

    ``metadata`` (keys below ``freshet.`` and ``general.``) is stored in the file.

    Raises:
        ExportError: llama.cpp cannot represent this model, or does not know its tokenizer.
        ConfigError: ``LLAMA_CPP_ROOT`` holds no converter.
    """
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    architecture = _representable(checkpoint, config)
    job = {
        "checkpoint": str(checkpoint),
        "output": str(output),
        "architecture": architecture,
        "name": name,
        "metadata": dict(metadata),
        "root": str(converter_root(Environment().llama_cpp_root)),
    }
    ran = subprocess.run(
        [sys.executable, "-m", "pipelines.release.conversion", json.dumps(job)],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(available_cores())},
        capture_output=True,
        text=True,
        check=False,
    )
    reason = (ran.stderr.strip().splitlines() or ["no reason given"])[-1]
    if ran.returncode == REFUSED and "pre-tokenizer" in reason:
        raise ExportError(
            f"llama.cpp's converter does not know the tokenizer in {checkpoint} ({reason}); its rules are never "
            "guessed: use a base model that llama.cpp knows, or a newer converter by LLAMA_CPP_ROOT"
        )
    if ran.returncode != 0:
        raise ExportError(f"llama.cpp's converter failed on {checkpoint} with status {ran.returncode}: {reason}")
    header = read_header(output)
    labels = tuple(config["id2label"][str(index)] for index in range(len(config["id2label"])))
    _expect(output, header, "F16", labels)
    return header


def quantise(source: Path, output: Path, quantisation: Quantisation, labels: Sequence[str]) -> Header:
    """Quantise a 16-bit GGUF file that scores ``labels``.

    Raises:
        ExportError: llama.cpp failed, or wrote something else than ``quantisation``.
    """
    llama = llama_library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread = available_cores()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{quantisation}")
    status = llama.llama_model_quantize(os.fsencode(source), os.fsencode(output), parameters)
    if status != 0:
        raise ExportError(f"llama.cpp could not quantise {source} to {quantisation}: status {status}")
    header = read_header(output)
    _expect(output, header, quantisation, tuple(labels))
    return header


def converter_root(checkout: Path | None) -> Path:
    """The folder that holds llama.cpp's package ``conversion``: a checkout, or the copy inside auto-round.

    Raises:
        ConfigError: it is not there.
    """
    if checkout is None:
        spec = find_spec("auto_round")  # found, not imported: that would take seconds and load what is not needed
        if spec is None or spec.origin is None:
            raise ConfigError("llama.cpp's converter comes inside the package auto-round: install it")
        root = Path(spec.origin).parent / "export" / "export_to_gguf"
    else:
        root = checkout.expanduser().absolute()
    if not (root / "conversion" / "__init__.py").is_file():
        raise ConfigError(
            f"{root} has no conversion/__init__.py: LLAMA_CPP_ROOT must be a llama.cpp checkout of 2026, or unset"
        )
    return root


def _representable(checkpoint: Path, config: Mapping[str, Any]) -> str:
    """The architecture of ``checkpoint``, if llama.cpp computes the same as transformers for it."""
    from tokenizers import Tokenizer

    architecture = str((config.get("architectures") or [None])[0])
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint} is a {architecture}; its classification head can be exported for: {', '.join(ARCHITECTURES)}"
        )
    if config.get("hidden_act") not in ACTIVATIONS:
        raise ExportError(
            f"{checkpoint} has hidden_act {config.get('hidden_act')!r}, and llama.cpp computes BERT with one of: "
            f"{', '.join(ACTIVATIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ExportError(
            f"{checkpoint} has position_embedding_type {config['position_embedding_type']!r}; llama.cpp: 'absolute'"
        )
    highest = max(Tokenizer.from_file(str(checkpoint / "tokenizer.json")).get_vocab(with_added_tokens=True).values())
    if highest >= config["vocab_size"]:
        raise ExportError(
            f"{checkpoint}: the tokenizer has ids up to {highest}, the embedding has {config['vocab_size']} rows; "
            "they belong to different models"
        )
    return architecture


def _expect(path: Path, header: Header, quantisation: Quantisation, labels: tuple[str, ...]) -> None:
    if header.file_type != quantisation:
        raise ExportError(f"{path} was to be {quantisation}, but its header says {header.file_type}")
    if quantisation != "F16" and header.unquantised:
        raise ExportError(
            f"{path} was to be {quantisation}, but {', '.join(header.unquantised[:3])} stayed in 16 bits: rows that do "
            "not divide by 32 cannot be quantised; leave this quantisation out of release.quantisations"
        )
    if header.labels != labels or header.pooling != "RANK":
        raise ExportError(
            f"{path} was to score the labels {list(labels)}, but its header says {list(header.labels)} with pooling "
            f"{header.pooling}; labels may not be named LABEL_0, LABEL_1"
        )

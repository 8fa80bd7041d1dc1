"""An adapter alone as GGUF, for people who hold its base: what ``llama-cli --lora`` and Ollama's ADAPTER read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from pipelines.errors import ExportError
from pipelines.release.gguf import Header, converter, language_model, read_header, run_converter
from pipelines.release.merge import equal_tensors, open_merge
from pipelines.release.tensors import stored_tensors


def adapter_to_gguf(adapter: Path, base: Path, output: Path, *, name: str, metadata: Mapping[str, str]) -> Header:
    """Write the peft ``adapter`` of the causal language model ``base`` to the GGUF file ``output``, in 16 bits.

    llama.cpp adds alpha / rank * B A with one alpha for all: what an update's own scale differs from that by (rsLoRA,
    alphas by pattern) goes into its B, before it is rounded.

    Raises:
        ExportError: GGUF cannot represent the adapter, which is why; nothing is written then.
        ConfigError: ``LLAMA_CPP_ROOT`` holds no converter.
    """
    merge = open_merge(base, adapter, dtype="F32")
    facts = json.loads((base / "config.json").read_text(encoding="utf-8"))
    alpha = float(json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["lora_alpha"])
    own, held = stored_tensors(base), {tensor.model_name: tensor.stored for tensor in merge.tensors.values()}
    # Beside an update of an embedding peft saves the embedding itself, which is the base's.
    trained = [name for name in merge.replaced if name not in own or not equal_tensors(own[name], held[name])]
    updates = [tensor for tensor in merge.tensors.values() if tensor.update is not None]
    reasons = {
        "DoRA sets the norms of the base's weights, which GGUF has no place for": any(
            tensor.update is not None and tensor.update.magnitude is not None for tensor in updates
        ),
        f"it holds modules trained whole ({', '.join(trained[:3])})": bool(trained),
        "it adapts one of two tied embeddings, which are one tensor in the base": merge.untied,
        "it has trained biases": any(tensor.bias_of is not None for tensor in merge.tensors.values()),
        "its lora_alpha is 0, which llama.cpp takes for none given": alpha == 0,
        "it updates nothing": not updates,
    }
    for reason, holds in reasons.items():
        if holds:
            raise ExportError(f"{adapter} cannot be a GGUF adapter: {reason}; use the merged files")
    job = {
        "checkpoint": str(base),
        "output": str(output),
        "file_type": "F16",
        "architecture": language_model(base, facts),
        "name": name,
        "metadata": dict(metadata),
        "merge": merge,
        "alone": {"alpha": alpha},
        "tokenizer": None,
    }
    with converter() as process:
        run_converter(process, job, base)
    header = read_header(output)
    if header.file_type != "F16" or header.tensor_types.get("F16", 0) < 2 * len(updates):
        output.unlink()
        raise ExportError(
            f"{output} was to hold {2 * len(updates)} tensors in F16; its header says {header.file_type} and "
            f"{dict(header.tensor_types)}"
        )
    return header

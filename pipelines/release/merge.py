"""An adapter merged into its unquantised base: a plain transformers checkpoint, proved before it goes further."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.errors import ExportError
from pipelines.evaluation.classifier import Classifier, base_folder, load_classifier, quiet_transformers
from pipelines.release.probes import PROBES

PREFIX = "base_model.model."
"""What peft puts before the name of every tensor of an adapter."""

UPDATES = (
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_magnitude_vector",
    ".lora_magnitude_vector.weight",
    ".lora_embedding_A",
    ".lora_embedding_B",
)
"""Endings of the tensors that change a module's weight: LoRA, DoRA's magnitude, and LoRA of an embedding."""

TOLERANCE = 1e-3
"""Largest difference between the logits of base and adapter and of the merged checkpoint, both in float32."""


def merge(adapter: Artifact, folder: Path) -> Classifier:
    """Merge ``adapter`` into its base and write the checkpoint (float32, safetensors, with tokenizer) to ``folder``.

    Returns:
        The checkpoint as read back from ``folder``.

    Raises:
        ArtifactError: the adapter or its base is altered, or they do not belong together.
        ExportError: a tensor of the adapter has no place in the merged model, a module that it targets is
            unchanged, or the checkpoint scores texts differently.
    """
    import numpy as np
    import torch
    from safetensors.torch import load_file

    classifier = load_classifier(adapter)
    texts = [probe.text for probe in PROBES]
    expected = classifier.logits(texts)
    model = classifier.merged().to("cpu", torch.float32)
    check_merged(
        load_file(adapter.path / "adapter_model.safetensors"),
        base=_base_weights(base_folder(adapter)),
        merged=model.state_dict(),
        base_prefix=f"{model.base_model_prefix}.",
    )
    with quiet_transformers():
        model.save_pretrained(folder)
        classifier.tokenizer.save_pretrained(folder)
        classifier.model = _checkpoint(folder)
    difference = float(np.abs(classifier.logits(texts) - expected).max())
    if not difference <= TOLERANCE:  # also when it is not a number
        raise ExportError(
            f"{adapter.path}: the merged checkpoint's logits differ by {difference:.3g} from base and adapter "
            f"(allowed: {TOLERANCE}): a part of the model was lost in the merge"
        )
    return classifier


def check_merged(
    adapter: Mapping[str, Any], *, base: Mapping[str, Any], merged: Mapping[str, Any], base_prefix: str
) -> int:
    """Account for every tensor of ``adapter``; tensors are float32, named as in their state dicts.

    Returns:
        How many modules the adapter changes.

    Raises:
        ExportError: a tensor of the adapter has no place in ``merged``, or ``merged`` equals ``base`` where it was
            trained to differ.
    """
    import torch

    updated, homeless, unchanged = set(), [], []
    for name, tensor in adapter.items():
        place = name.removeprefix(PREFIX)
        ending = next((ending for ending in UPDATES if place.endswith(ending)), None)
        if ending is not None and f"{place.removesuffix(ending)}.weight" in merged:
            updated.add(f"{place.removesuffix(ending)}.weight")
        elif place not in merged or not torch.equal(merged[place].float(), tensor.float()):
            homeless.append(name)
    if homeless:
        raise ExportError(
            f"{len(homeless)} tensors of the adapter are lost in the merged model: {_some(homeless)}; the export "
            "would drop what was trained, so it is refused"
        )
    for place in sorted(updated):
        original = base.get(place, base.get(place.removeprefix(base_prefix)))  # a bare encoder has no prefix
        if original is not None and torch.equal(original.float(), merged[place].float()):
            unchanged.append(place)
    if unchanged or not updated:
        raise ExportError(
            f"the merged model equals its base in {_some(unchanged) or 'every module'}: the adapter changes nothing "
            "there; train it again"
        )
    return len(updated)


def _base_weights(folder: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    return {name: tensor for path in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(path).items()}


def _checkpoint(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    lost = sorted({*loading["missing_keys"], *loading["unexpected_keys"]})
    if lost:
        raise ExportError(f"{folder}: the merged checkpoint does not load completely: {_some(lost)}")
    return model.eval()


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""Merging: nothing trained is lost, and the adapter changes what it was trained to change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError, ExportError
from pipelines.evaluation.classifier import base_folder, load_classifier
from pipelines.release.merge import PREFIX, merge
from tests.pipelines.release.samples import copied

WEIGHTS = "adapter_model.safetensors"


def rewritten(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    """An edit of an adapter's tensors."""

    def edit(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        change(tensors)
        save_file(tensors, folder / WEIGHTS)

    return edit


def first(tensors: dict[str, Any], ending: str) -> str:
    return next(name for name in sorted(tensors) if name.endswith(ending))


def test_the_merged_checkpoint_scores_as_base_and_adapter_do(adapter: Artifact, tmp_path: Path) -> None:
    """T19, G2: read back from disk, in float32, head included."""
    texts = ["The invoice for the canteen must be paid.", "short", "Wear a helmet! " * 40]
    expected = load_classifier(adapter).logits(texts)
    merged = merge(adapter, tmp_path / "merged")
    assert np.abs(merged.logits(texts) - expected).max() < 1e-4
    assert {tensor.dtype for tensor in load_file(tmp_path / "merged" / "model.safetensors").values()} == {torch.float32}


def test_the_merged_weights_differ_from_the_base_on_every_target_module(adapter: Artifact, tmp_path: Path) -> None:
    """G1"""
    merge(adapter, tmp_path / "merged")
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    base = load_file(base_folder(adapter) / "model.safetensors")
    targets = [
        name.removeprefix(PREFIX).removesuffix(".lora_A.weight")
        for name in load_file(adapter.path / WEIGHTS)
        if name.endswith(".lora_A.weight")
    ]
    assert len(targets) >= 36  # six layers of query, key, value and three dense
    for target in targets:
        assert not torch.equal(merged[f"{target}.weight"], base[f"{target.removeprefix('bert.')}.weight"]), target


def test_an_adapter_that_changes_nothing_somewhere_is_refused(adapter: Artifact, tmp_path: Path) -> None:
    """G1"""

    def forget_one(tensors: dict[str, Any]) -> None:
        tensors[first(tensors, "key.lora_B.weight")].zero_()

    untrained = copied(adapter, tmp_path / "untrained", edit=rewritten(forget_one))
    with pytest.raises(ExportError, match=r"equals its base in bert\.encoder\.layer\.0\.attention\.self\.key\.weight"):
        merge(untrained, tmp_path / "merged")


def test_a_tensor_of_the_adapter_that_the_model_has_no_place_for_is_refused(adapter: Artifact, tmp_path: Path) -> None:
    """G3: by the loader; by the merge's own account too, as test_merge_streaming has it."""

    def add_one(tensors: dict[str, Any]) -> None:
        tensors[f"{PREFIX}second_head.weight"] = torch.ones(3, 3)

    extra = copied(adapter, tmp_path / "extra", edit=rewritten(add_one))
    with pytest.raises((ArtifactError, ExportError), match="second_head"):
        merge(extra, tmp_path / "merged")


def test_the_head_is_the_adapters_and_the_labels_are_named(adapter: Artifact, tmp_path: Path) -> None:
    """G3, T19"""
    merge(adapter, tmp_path / "merged")
    merged, tensors = load_file(tmp_path / "merged" / "model.safetensors"), load_file(adapter.path / WEIGHTS)
    heads = [name for name in tensors if "classifier" in name]
    assert heads
    for name in heads:
        assert torch.equal(merged[name.removeprefix(PREFIX)], tensors[name])
    config = json.loads((tmp_path / "merged" / "config.json").read_text())
    assert config["id2label"] == {str(index): name for index, name in enumerate(adapter.manifest["categories"])}
    assert config["architectures"] == ["BertForSequenceClassification"]

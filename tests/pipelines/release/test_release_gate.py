"""The gate of a publication: what is published was judged with the prompt that it was trained and exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load, seal
from pipelines.errors import ArtifactError, GateRefusedError
from pipelines.prompt import PromptSettings
from pipelines.release.registry import check_gate, publish, versions
from tests.pipelines.release.samples import USE_CASE, copied, write_report

CHAT: dict[str, Any] = {
    "task": "generate",
    "prompt": PromptSettings(system="Be kind.").model_dump(mode="json"),
    "template_hash": "a" * 64,
}
CLASSIFY: dict[str, Any] = {"task": "classify", "prompt": None, "template_hash": None}
OTHERS: dict[str, Any] = {
    "prompt": PromptSettings(system="Be kind!").model_dump(mode="json"),
    "template_hash": "b" * 64,
}


@pytest.fixture
def judged(tmp_path: Path) -> tuple[Artifact, Artifact, Artifact]:
    """Export, adapter and passed report of a chat model, of one prompt and template."""
    shared = {"use_case": USE_CASE, "training_set": "c" * 64, **CHAT}

    def sealed(name: str, facts: dict[str, Any]) -> Artifact:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "weights").write_bytes(name.encode())
        seal(folder, {"fingerprint": name[0] * 64, **shared, **facts})
        return load(folder)

    adapter = sealed("adapter", {"kind": "lora_adapter"})
    passed = {"passed": True, "reasons": []}
    made_from = {"adapter": adapter.fingerprint, "adapter_files": adapter.manifest["files"]}
    gguf = sealed("gguf", {"kind": "gguf_model", **made_from, "parity": passed})
    return gguf, adapter, write_report(tmp_path / "report", adapter)


def test_one_prompt_in_training_evaluation_and_export_passes(judged: tuple[Artifact, Artifact, Artifact]) -> None:
    check_gate(*judged, use_case=USE_CASE)


@pytest.mark.parametrize("fact", ["prompt", "template_hash"])
@pytest.mark.parametrize("whose", [0, 1, 2], ids=["exported", "trained", "judged"])
def test_a_candidate_is_refused_whose_prompt_is_not_the_one_that_was_judged(
    judged: tuple[Artifact, Artifact, Artifact], tmp_path: Path, fact: str, whose: int
) -> None:
    """T10, T12, T15: whichever of the three differs, and nothing is written."""
    changed = list(judged)
    changed[whose] = copied(judged[whose], tmp_path / "changed", **{fact: OTHERS[fact]})
    url = str(tmp_path / "registry")
    said = rf"(?s)the {fact.replace('_', ' ')} of .* is not one: trained with .*judged with .*exported with"
    with pytest.raises(GateRefusedError, match=said) as refused:
        publish(*changed, use_case=USE_CASE, registry_url=url)
    for value in ("Be kind.", "Be kind!") if fact == "prompt" else ("a" * 64, "b" * 64):
        assert value in str(refused.value)
    assert versions(url, USE_CASE) == []


@pytest.mark.parametrize("lost", ["stated as none", "not stated"])
@pytest.mark.parametrize("fact", ["prompt", "template_hash"])
@pytest.mark.parametrize("whose", [0, 1, 2], ids=["gguf_model", "lora_adapter", "evaluation_report"])
def test_a_chat_model_is_refused_where_nothing_says_what_it_was_asked_with(
    judged: tuple[Artifact, Artifact, Artifact], tmp_path: Path, fact: str, whose: int, lost: str
) -> None:
    """T10, T12, T15: what is not stated cannot be proved to be one, even where the others agree."""
    changed, asset = list(judged), str(judged[whose].manifest["kind"])
    none: dict[str, Any] = {fact: None}
    if lost == "not stated":
        manifest = {name: value for name, value in judged[whose].manifest.items() if name not in {fact, "files"}}
        seal(judged[whose].path, manifest)
        changed[whose] = load(judged[whose].path)
    else:
        changed[whose] = copied(judged[whose], tmp_path / "changed", **none)
    url, path = str(tmp_path / "registry"), changed[whose].path
    said = rf"{path} does not state the {fact.replace('_', ' ')} .*: move it away and materialise {asset} again"
    with pytest.raises(GateRefusedError, match=said):
        publish(*changed, use_case=USE_CASE, registry_url=url)
    assert versions(url, USE_CASE) == []


def test_a_classifier_is_asked_with_no_prompt_and_says_so_everywhere_or_nowhere(
    judged: tuple[Artifact, Artifact, Artifact], tmp_path: Path
) -> None:
    gguf, adapter, report = (
        copied(artifact, tmp_path / f"classify-{number}", **CLASSIFY) for number, artifact in enumerate(judged)
    )
    check_gate(gguf, adapter, report, use_case=USE_CASE)
    prompted = copied(report, tmp_path / "prompted", prompt=CHAT["prompt"])
    with pytest.raises(GateRefusedError, match="trained with None; judged with"):
        check_gate(gguf, adapter, prompted, use_case=USE_CASE)


@pytest.mark.parametrize("whose", [0, 1, 2], ids=["exported", "trained", "judged"])
def test_a_task_is_one_from_training_to_export(
    judged: tuple[Artifact, Artifact, Artifact], tmp_path: Path, whose: int
) -> None:
    """Or a chat model could pass as a classifier, which needs no prompt."""
    changed = list(judged)
    changed[whose] = copied(judged[whose], tmp_path / "changed", **CLASSIFY)
    with pytest.raises(ArtifactError, match=r"was made for task '\w+', and .* for '\w+'"):
        check_gate(*changed, use_case=USE_CASE)

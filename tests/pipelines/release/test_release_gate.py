"""The gate of a publication: what is published was judged with the prompt that it was trained and exported with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact, load, seal
from pipelines.errors import GateRefusedError
from pipelines.prompt import PromptSettings
from pipelines.release.registry import check_gate, publish, versions
from tests.pipelines.release.samples import USE_CASE, copied, write_report

CHAT = {"prompt": PromptSettings(system="Be kind.").model_dump(mode="json"), "template_hash": "a" * 64}
OTHERS = {"prompt": PromptSettings(system="Be kind!").model_dump(mode="json"), "template_hash": "b" * 64}


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
    return gguf, adapter, copied(write_report(tmp_path / "plain", adapter), tmp_path / "report", **CHAT)


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

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import MANIFEST, Artifact, load, seal
from pipelines.errors import ArtifactError, ExamplesError
from pipelines.evaluation.settings import EvaluationSettings, GateSettings
from pipelines.evaluation.suite import evaluate
from pipelines.fingerprint import fingerprint
from tests.pipelines.conftest import train_quickly

SETTINGS = EvaluationSettings(gate=GateSettings(metric="accuracy", minimum_rows=10))


def judged(
    candidate: Artifact,
    training_set: Artifact,
    folder: Path,
    champion: Artifact | None = None,
    settings: EvaluationSettings = SETTINGS,
) -> Artifact:
    return evaluate(
        candidate,
        training_set,
        use_case="shop",
        champion=champion,
        settings=settings,
        folder=folder,
        progress=lambda _: None,
    )


def report_of(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.path / "report.json").read_text())
    return found


def test_candidate_champion_and_base_are_scored_on_the_same_human_rows(
    small_set: Artifact, small_adapter: Artifact, spoilt_adapter: Artifact, tmp_path: Path
) -> None:
    """T16, T20"""
    artifact = judged(small_adapter, small_set, tmp_path, champion=spoilt_adapter)
    report = report_of(artifact)
    human = small_set.manifest["rows"]["test"] - 6  # the model's own labels do not count
    assert {name: found["rows"] for name, found in report["scores"].items()} == dict.fromkeys(
        ("candidate", "champion", "base"), human
    )
    assert len((artifact.path / "predictions.jsonl").read_text().splitlines()) == human
    assert report["verdict"]["passed"] is True
    assert report["verdict"]["difference"]["low"] > 0
    assert sum(map(sum, report["confusion"])) == human
    assert 0 <= report["calibration_error"]["candidate"] <= 1
    assert (artifact.path / "confusion.png").read_bytes().startswith(b"\x89PNG")
    manifest = artifact.manifest
    assert manifest["kind"] == "evaluation_report"
    assert (manifest["adapter"], manifest["adapter_files"]) == (
        small_adapter.fingerprint,
        small_adapter.manifest["files"],
    )
    assert (manifest["training_set"], manifest["champion"]) == (small_set.fingerprint, spoilt_adapter.fingerprint)
    assert manifest["verdict"] == {"passed": True, "reasons": report["verdict"]["reasons"]}


def test_a_deliberately_bad_model_is_refused(
    spoilt_set: Artifact, spoilt_adapter: Artifact, small_adapter: Artifact, tmp_path: Path
) -> None:
    """T7. The champion lacks a category of the candidate's: it gets none of its rows right."""
    artifact = judged(spoilt_adapter, spoilt_set, tmp_path, champion=small_adapter)
    assert artifact.manifest["verdict"]["passed"] is False
    assert artifact.manifest["verdict"]["reasons"][0].startswith("not surely better than the champion")
    per_class = {found["category"]: found for found in report_of(artifact)["scores"]["champion"]["per_class"]}
    assert per_class["praise"]["recall"] == 0
    assert per_class["praise"]["support"] == 8
    assert per_class["delivery"]["recall"] > 0.5


@pytest.fixture(scope="module")
def flipped_set(small_set: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """``small_set`` with 30 % of the training labels flipped, and with slices."""
    folder = tmp_path_factory.mktemp("flipped") / "training_set"
    folder.mkdir()
    categories = small_set.manifest["categories"]
    content = {}
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (small_set.path / f"{split}.jsonl").read_text().splitlines()]
        for number, row in enumerate(rows):
            if split == "train" and number % 10 < 3:
                row["labels"] = [categories[(categories.index(row["labels"][0]) + 1) % len(categories)]]
            row["slices"] = [f"half={number % 2}", *(["regression"] if number < 12 else [])]
        content[split] = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"{split}.jsonl").write_text(content[split])
    facts = {name: small_set.manifest[name] for name in ("kind", "categories", "multi_label", "rows")}
    seal(folder, {"fingerprint": fingerprint(content), **facts})
    return load(folder)


def test_a_flip_of_30_percent_of_the_new_labels_is_refused_and_every_slice_is_told(
    flipped_set: Artifact, small_adapter: Artifact, tmp_path: Path
) -> None:
    """T7, T14, T18"""
    candidate = train_quickly(flipped_set, tmp_path / "adapters")
    gate = GateSettings(minimum_rows=10, slice_floors={"half=1": 1.0, "half=2": 0.1}, maximum_calibration_error=1e-9)
    settings = EvaluationSettings(gate=gate, origins=("human", "model"))
    artifact = judged(candidate, flipped_set, tmp_path / "out", champion=small_adapter, settings=settings)
    report, reasons = report_of(artifact), artifact.manifest["verdict"]["reasons"]
    assert artifact.manifest["verdict"]["passed"] is False
    assert reasons[0].startswith("not surely better than the champion: macro-f1")
    assert any("no held-out row is of slice 'half=2'" in reason for reason in reasons)
    assert any(reason.startswith("calibration error 0.") for reason in reasons)
    assert report["slices"].keys() == {"half=0", "half=1", "regression", "origin=human", "origin=model"}
    on_slice = report["slices"]["regression"]["macro_f1"]
    assert {name: found["rows"] for name, found in on_slice.items()} == dict.fromkeys(
        ("candidate", "champion", "base"), 12
    )
    table = (artifact.path / "per_class.md").read_text().splitlines()
    assert table[0] == "| category | rows | precision | recall | F1 | F1 of champion | F1 of base |"
    assert [line.split(" | ")[0] for line in table[2:]] == ["| delivery", "| refund", "| repair"]
    assert 0 <= report["calibration_error_before"] <= 1
    assert report["abstention"]["coverage"] == 1.0
    found = report["metrics"]["accuracy"]["candidate"]
    assert found["low"] <= found["value"] == report["abstention"]["accuracy_where_answered"] <= found["high"]


def test_a_champion_that_generates_cannot_be_compared_with_a_classifier(
    small_set: Artifact, small_adapter: Artifact, good_chat: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ArtifactError, match="for task 'generate' and the candidate for 'classify': no score compares"):
        judged(small_adapter, small_set, tmp_path, champion=good_chat)


def test_the_same_model_again_does_not_replace_itself(
    small_set: Artifact, small_adapter: Artifact, tmp_path: Path
) -> None:
    """T16"""
    artifact = judged(small_adapter, small_set, tmp_path, champion=small_adapter)
    assert artifact.manifest["verdict"]["passed"] is False
    assert "difference +0.000, 90% interval +0.000 to +0.000" in artifact.manifest["verdict"]["reasons"][0]


def test_several_labels_a_text_are_judged_too_and_too_few_rows_decide_nothing(
    multi_set: Artifact, multi_adapter: Artifact, tmp_path: Path
) -> None:
    settings = EvaluationSettings(gate=GateSettings(metric="micro_f1", minimum_rows=500))
    artifact = judged(multi_adapter, multi_set, tmp_path, settings=settings)
    report = report_of(artifact)
    assert artifact.manifest["champion"] is None
    assert report["verdict"]["reasons"][0] == "only 24 held-out rows; at least 500 are needed to decide anything"
    assert report["scores"]["candidate"]["micro_f1"] > 0.8
    assert report["scores"]["base"]["micro_f1"] > 0.5
    assert "confusion" not in report
    row = json.loads((artifact.path / "predictions.jsonl").read_text().splitlines()[0])
    assert row.keys() == {"id", "labels", "candidate", "base", "probabilities"}


def test_an_equal_report_is_not_made_again_and_another_champion_makes_another_one(
    small_set: Artifact, small_adapter: Artifact, spoilt_adapter: Artifact, tmp_path: Path
) -> None:
    """T16"""
    first = judged(small_adapter, small_set, tmp_path)
    written = (first.path / MANIFEST).stat().st_mtime_ns
    again = judged(small_adapter, small_set, tmp_path)
    assert (again.path, (again.path / MANIFEST).stat().st_mtime_ns) == (first.path, written)
    other = judged(small_adapter, small_set, tmp_path, champion=spoilt_adapter)
    assert other.fingerprint != first.fingerprint


def test_a_candidate_of_another_training_set_is_refused(
    small_set: Artifact, spoilt_adapter: Artifact, tmp_path: Path
) -> None:
    """T1"""
    with pytest.raises(ArtifactError, match="was trained on training set"):
        judged(spoilt_adapter, small_set, tmp_path)


def test_without_a_human_test_row_nothing_is_judged(small_adapter: Artifact, tmp_path: Path) -> None:
    """T20"""
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        row = {"id": "1", "text": "It broke.", "labels": ["repair"], "group": "g", "origin": "model"}
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    facts = {"categories": list(small_adapter.manifest["categories"]), "multi_label": False}
    seal(folder, {"fingerprint": small_adapter.manifest["training_set"], "kind": "training_set", **facts})
    with pytest.raises(ExamplesError, match="no test row of origin human"):
        judged(small_adapter, load(folder), tmp_path / "out")


def test_the_champion_of_a_published_version_is_a_plain_copy(
    small_set: Artifact, small_adapter: Artifact, spoilt_adapter: Artifact, tmp_path: Path
) -> None:
    shutil.copytree(spoilt_adapter.path, tmp_path / "v1" / "adapter")
    artifact = judged(small_adapter, small_set, tmp_path / "out", champion=load(tmp_path / "v1" / "adapter"))
    assert artifact.manifest["champion"] == spoilt_adapter.fingerprint

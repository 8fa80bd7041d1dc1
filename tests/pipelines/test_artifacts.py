"""Artifacts: whole or not there."""

from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines import artifacts
from pipelines.errors import ArtifactError, NotBuiltError


def make(folder: Path, fingerprint: str = "f1") -> artifacts.Artifact:
    with artifacts.writing(folder) as scratch:
        (scratch / "weights.bin").write_bytes(b"\x00\x01")
        (scratch / "inner").mkdir()
        (scratch / "inner" / "notes.txt").write_text("notes", encoding="utf-8")
        artifacts.seal(scratch, {"fingerprint": fingerprint})
    return artifacts.load(folder)


def test_a_finished_artifact_names_every_file_with_its_hash(tmp_path: Path) -> None:
    artifact = make(tmp_path / "a")
    assert sorted(artifact.manifest["files"]) == ["inner/notes.txt", "weights.bin"]
    assert artifact.fingerprint == "f1"


@pytest.mark.parametrize("damage", ["altered", "missing", "added"])
def test_a_file_that_differs_from_the_manifest_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    """T8"""
    folder = make(tmp_path / "a").path
    if damage == "altered":
        (folder / "weights.bin").write_bytes(b"\x00\x02")
    elif damage == "missing":
        (folder / "weights.bin").unlink()
    else:
        (folder / "weights.bin.extra").write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"weights\.bin"):
        artifacts.load(folder)


def test_an_artifact_whose_making_fails_leaves_nothing_and_keeps_the_old_one(tmp_path: Path) -> None:
    make(tmp_path / "a")
    with pytest.raises(ZeroDivisionError), artifacts.writing(tmp_path / "a") as scratch:
        (scratch / "half").write_text(str(1 // 0), encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert artifacts.load(tmp_path / "a").fingerprint == "f1"


def test_a_folder_without_a_manifest_was_never_finished(tmp_path: Path) -> None:
    """T8"""
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ArtifactError, match="never finished"):
        artifacts.load(tmp_path)


def test_the_latest_is_the_one_recorded_last_even_when_it_was_made_before(tmp_path: Path, catalog: sa.Engine) -> None:
    first, second = make(tmp_path / "1", "f1"), make(tmp_path / "2", "f2")
    for artifact in (first, second, first):
        artifacts.record(catalog, "support", "lora_adapter", artifact)
    assert artifacts.latest(catalog, "support", "lora_adapter").fingerprint == "f1"


def test_asking_for_an_artifact_that_was_never_made_says_what_to_materialise(catalog: sa.Engine) -> None:
    with pytest.raises(NotBuiltError, match="support/gguf_model"):
        artifacts.latest(catalog, "support", "gguf_model")

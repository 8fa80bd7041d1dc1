"""From adapter to artifact."""

import shutil
from pathlib import Path

import pytest
from filelock import FileLock

from pipelines.artifacts import Artifact
from pipelines.errors import ArtifactError, ConfigError, ExportError, LockedError
from pipelines.release.export import base_licence, export, exporter_versions
from pipelines.release.settings import ReleaseSettings
from tests.pipelines.release.samples import copied, no_progress


def exported(training: tuple[Artifact, Artifact], folder: Path, adapter: Artifact | None = None) -> Artifact:
    return export(adapter or training[1], training[0], settings=ReleaseSettings(), folder=folder, progress=no_progress)


def test_the_artifact_holds_files_and_figures_and_no_scratch(gguf: Artifact, adapter: Artifact) -> None:
    names = sorted(path.name for path in gguf.path.iterdir())
    assert names == [
        "manifest.json",
        "notices-F16.gguf",
        "notices-Q4_K_M.gguf",
        "notices-Q8_0.gguf",
        "parity.json",
        "parity.png",
    ]
    assert [path.name for path in gguf.path.parent.iterdir() if path.is_dir()] == [gguf.fingerprint]
    assert gguf.manifest["adapter_files"] == adapter.manifest["files"]
    assert gguf.manifest["base_licence"] == "apache-2.0"
    assert gguf.manifest["maximum_tokens"] == 48


def test_equal_inputs_are_exported_once(training: tuple[Artifact, Artifact], gguf: Artifact) -> None:
    written = (gguf.path / "manifest.json").stat().st_mtime_ns
    said: list[str] = []
    again = export(training[1], training[0], settings=ReleaseSettings(), folder=gguf.path.parent, progress=said.append)
    assert again.manifest == gguf.manifest
    assert (gguf.path / "manifest.json").stat().st_mtime_ns == written
    assert said == []


def test_an_altered_adapter_is_not_exported(training: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    """T8"""
    altered = copied(training[1], tmp_path / "altered")
    (altered.path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"adapter_config\.json"):
        exported(training, tmp_path / "gguf_model", altered)


def test_an_adapter_of_another_training_set_is_not_exported(
    training: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    """G5"""
    foreign = copied(training[1], tmp_path / "foreign", training_set="f" * 64)
    with pytest.raises(ArtifactError, match="was trained on the training set ffff"):
        exported(training, tmp_path / "gguf_model", foreign)


def test_a_base_that_changed_since_training_is_refused(training: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    """G5"""
    files = {**training[1].manifest["base_files"], "model.safetensors": "0" * 64}
    moved = copied(training[1], tmp_path / "moved", base_files=files)
    with pytest.raises(ArtifactError, match=r"trained on another .*model\.safetensors"):
        exported(training, tmp_path / "gguf_model", moved)


def test_a_full_disk_is_noticed_before_the_work(
    training: tuple[Artifact, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1_000_000))
    with pytest.raises(ExportError, match=r"needs up to 0\.[0-9]+ GB"):
        exported(training, tmp_path / "gguf_model")
    assert [path for path in (tmp_path / "gguf_model").iterdir() if path.is_dir()] == []


def test_another_converter_makes_another_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that failed its comparison is made again when a newer converter is given, as the error advises."""
    monkeypatch.delenv("LLAMA_CPP_ROOT", raising=False)
    bundled = exporter_versions()
    package = tmp_path / "conversion"
    monkeypatch.setenv("LLAMA_CPP_ROOT", str(tmp_path))
    with pytest.raises(ConfigError, match="LLAMA_CPP_ROOT must be a llama"):
        exporter_versions()
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "qwen.py").write_text("first = 1\n", encoding="utf-8")
    first = exporter_versions()
    assert {**first, **bundled} == first != bundled
    assert exporter_versions() == first
    (package / "qwen.py").write_text("first = 2\n", encoding="utf-8")
    assert exporter_versions() != first
    assert str(tmp_path) not in str(first)


def test_a_file_to_serve_that_is_not_written_is_a_config_error(
    training: tuple[Artifact, Artifact], tmp_path: Path
) -> None:
    settings = ReleaseSettings(quantisations=("F16",), serve="Q8_0")
    with pytest.raises(ConfigError, match="serve 'Q8_0' is not written; quantisations: F16"):
        export(training[1], training[0], settings=settings, folder=tmp_path, progress=no_progress)


def test_two_exports_do_not_write_to_one_folder_at_once(training: tuple[Artifact, Artifact], tmp_path: Path) -> None:
    with FileLock(tmp_path / ".export.lock"), pytest.raises(LockedError, match="another export"):
        exported(training, tmp_path)


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# Card", "mit"),
        ("# no front matter", "unknown"),
        ("---\nlanguage: en\n---", "unknown"),
        ("---\nlicense: [mit\n---", "unknown"),
    ],
)
def test_the_licence_is_what_the_bases_card_states(tmp_path: Path, card: str, licence: str) -> None:
    """G15"""
    assert base_licence(tmp_path) == "unknown"
    (tmp_path / "README.md").write_text(card, encoding="utf-8")
    assert base_licence(tmp_path) == licence

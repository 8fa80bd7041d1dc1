"""What a published version contains."""

import hashlib
import stat
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from pipelines.artifacts import Artifact
from pipelines.release.bundle import base_on_the_hub
from pipelines.release.registry import PublishedVersion, publish
from tests.pipelines.release.samples import CATEGORIES, USE_CASE, write_report


@pytest.fixture(scope="module")
def version(gguf: Artifact, adapter: Artifact, tmp_path_factory: pytest.TempPathFactory) -> PublishedVersion:
    folder = tmp_path_factory.mktemp("published")
    report = write_report(folder / "report", adapter)
    return publish(gguf, adapter, report, use_case=USE_CASE, registry_url=str(folder / "registry"))


def test_the_card_names_base_licence_data_metrics_and_limits(version: PublishedVersion, gguf: Artifact) -> None:
    """G15: and the Hub's own reader takes its front matter."""
    card = ModelCard.load(version.path / "README.md")
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-classification"
    assert {result.metric_type for result in card.data.eval_results} == {"accuracy", "f1"}
    served = gguf.manifest["quantisations"]["Q8_0"]
    assert {round(served["accuracy"], 4), round(served["micro_f1"], 4)} == {
        result.metric_value for result in card.data.eval_results
    }
    quantised = gguf.manifest["quantisations"]["Q4_K_M"]["tensor_types"]
    assert quantised.keys() - {"F32"}
    for fact in (
        gguf.manifest["training_set"],
        gguf.manifest["adapter"],
        "36 rows",
        *(f"{count} {name}" for name, count in quantised.items() if name != "F32"),
        "not calibrated",
        "Hangul",
        "macro-f1 0.900 against 0.700",
        *(f"`{name}`" for name in CATEGORIES),
    ):
        assert fact in card.content, fact


def test_the_sums_are_right_for_every_file(version: PublishedVersion) -> None:
    lines = (version.path / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    files = {path.relative_to(version.path).as_posix() for path in version.path.rglob("*") if path.is_file()}
    assert sums.keys() == files - {"SHA256SUMS", "manifest.json"}
    for name, digest in sums.items():
        assert hashlib.sha256((version.path / name).read_bytes()).hexdigest() == digest


def test_the_modelfile_serves_the_chosen_file_and_does_not_pretend_to_chat(version: PublishedVersion) -> None:
    text = (version.path / "Modelfile").read_text(encoding="utf-8")
    statements = [line for line in text.splitlines() if not line.startswith("#")]
    assert statements == ["FROM ./notices-Q8_0.gguf", "PARAMETER num_ctx 48"]
    assert (version.path / "notices-Q8_0.gguf").is_file()


def test_a_version_is_read_only(version: PublishedVersion) -> None:
    for path in version.path.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            assert not path.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH), path


def test_the_path_of_a_local_base_stays_private(tmp_path: Path) -> None:
    assert base_on_the_hub(str(tmp_path)) is None
    assert base_on_the_hub("owner/model") == "owner/model"

"""One adapter, trained for real, and one export of it, for all tests of the release."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact
from pipelines.release.export import export
from pipelines.release.settings import ReleaseSettings
from tests.pipelines.chat_base import make_chat_base, write_chat_set
from tests.pipelines.release.chat_samples import CHAT_EVALUATION, train_chat
from tests.pipelines.release.samples import copied, no_progress, trained, write_report, write_training_set


@pytest.fixture(scope="session")
def training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Training set and adapter, one label a text."""
    folder = tmp_path_factory.mktemp("training")
    training_set = write_training_set(folder / "training_set")
    return training_set, trained(training_set, folder / "lora_adapter")


@pytest.fixture(scope="session")
def adapter(training: tuple[Artifact, Artifact]) -> Artifact:
    return training[1]


@pytest.fixture(scope="session")
def gguf(training: tuple[Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The export of ``adapter``."""
    return export(
        training[1],
        training[0],
        settings=ReleaseSettings(),
        folder=tmp_path_factory.mktemp("gguf_model"),
        progress=no_progress,
    )


@pytest.fixture(scope="session")
def tiny(gguf: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """``gguf`` with one file, of a few kB, for tests that publish often: publishing does not look into files."""

    def shrink(folder: Path) -> None:
        for path in folder.glob("*.gguf"):
            path.unlink()
        (folder / "notices-Q4_K_M.gguf").write_bytes(b"GGUF" + bytes(range(256)) * 16)

    settings = {**gguf.manifest["settings"], "serve": "Q4_K_M"}
    only = {"Q4_K_M": gguf.manifest["quantisations"]["Q4_K_M"]}
    folder = tmp_path_factory.mktemp("tiny") / "gguf"
    return copied(gguf, folder, edit=shrink, quantisations=only, settings=settings)


@pytest.fixture(scope="session")
def chat_training(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artifact, Artifact]:
    """Training set and adapter of task generate: half of the chats have something retrieved, the others nothing."""
    folder = tmp_path_factory.mktemp("chat_training")
    training_set = write_chat_set(folder / "training_set", context=True)
    return training_set, train_chat(make_chat_base(folder / "base", hidden=128), training_set, folder / "lora_adapter")


@pytest.fixture(scope="session")
def chat_adapter(chat_training: tuple[Artifact, Artifact]) -> Artifact:
    return chat_training[1]


@pytest.fixture(scope="session")
def chat_gguf(chat_training: tuple[Artifact, Artifact], tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """The export of ``chat_adapter``."""
    return export(
        chat_training[1],
        chat_training[0],
        settings=ReleaseSettings(),
        folder=tmp_path_factory.mktemp("chat_gguf_model"),
        progress=no_progress,
        evaluation=CHAT_EVALUATION,
    )


@pytest.fixture
def report(adapter: Artifact, tmp_path: Path) -> Artifact:
    """A passed verdict on ``adapter``, with nothing published yet."""
    return write_report(tmp_path / "report", adapter)


@pytest.fixture
def s3(s3_store: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A client of an empty bucket for models."""
    monkeypatch.setenv("FRESHET_CACHE", str(tmp_path / "cache"))
    s3_store.create_bucket(Bucket="models")
    return s3_store

"""One adapter, trained for real, and one export of it, for all tests of the release."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import Artifact
from tests.pipelines.conftest import export_of, made_once, set_and_adapter
from tests.pipelines.release.samples import copied, trained, write_report, write_training_set


@pytest.fixture(scope="session")
def training(shared: Path) -> list[Artifact]:
    """Training set and adapter, one label a text."""
    return made_once(shared / "training", partial(set_and_adapter, write=write_training_set, train=trained))


@pytest.fixture(scope="session")
def adapter(training: list[Artifact]) -> Artifact:
    return training[1]


@pytest.fixture(scope="session")
def gguf(training: list[Artifact], shared: Path) -> Artifact:
    """The export of ``adapter``."""
    return export_of(training, shared / "gguf")


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

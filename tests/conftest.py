"""Every test has stores of its own, and no network."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from pipelines.environment import available_cores

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
# Parallel test processes that each take all cores crawl: their threads wait for each other by spinning.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // _WORKERS)))

SHARED_DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the whole run: processes of pytest-xdist share the one above theirs."""
    own = tmp_path_factory.getbasetemp()
    return own.parent if os.environ.get("PYTEST_XDIST_WORKER") else own


@pytest.fixture(scope="session")
def embedder_cache(shared: Path) -> Path:
    """Embedders converted once for the whole run."""
    return shared / "embedder_cache"


@pytest.fixture(scope="session", autouse=True)
def outside_the_checkout(tmp_path_factory: pytest.TempPathFactory, embedder_cache: Path) -> Iterator[None]:
    """Nothing of the caller's environment leaks in, nor anything of ours out: fixtures that outlive a test included."""
    with pytest.MonkeyPatch.context() as environment:
        for name in ("DATABASE_URL", "QDRANT_URL", "QDRANT_API_KEY", "MODEL_REGISTRY_URL", "FRESHET_DATA"):
            environment.delenv(name, raising=False)
        environment.setenv("FRESHET_CACHE", str(embedder_cache))
        environment.setenv("FRESHET_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(autouse=True)
def freshet_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A FRESHET_HOME of the test's own."""
    home = tmp_path / "freshet"
    monkeypatch.setenv("FRESHET_HOME", str(home))
    return home


@pytest.fixture(scope="module")
def home_in_memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for stores that are written hundreds of times, where a flush costs nothing; on disk where there is none.

    A killed process loses nothing of it: only the machine could.
    """
    memory = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
    there = memory.is_dir() and os.access(memory, os.W_OK) and shutil.disk_usage(memory).free > 1 << 30
    with tempfile.TemporaryDirectory(dir=memory if there else tmp_path_factory.getbasetemp()) as folder:
        yield Path(folder)


@pytest.fixture
def catalog(freshet_home: Path) -> sa.Engine:
    """An empty SQLite catalog."""
    from pipelines.catalog import open_catalog

    engine = open_catalog(f"sqlite:///{freshet_home / 'catalog.db'}")
    yield engine
    engine.dispose()


def shared_data(name: str) -> Path:
    """A folder of third-party data, or a skip with the reason."""
    folder = SHARED_DATA / name
    if not folder.is_dir():
        pytest.skip(f"third-party data {name} is not at {SHARED_DATA}")
    return folder

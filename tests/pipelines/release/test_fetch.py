"""Versions fetched from an object store by many at once: each gets whole files, and nothing else is left."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from pipelines.artifacts import seal
from pipelines.errors import FreshetError
from pipelines.release.registry import PublishedVersion, versions
from pipelines.release.storage import ObjectStorage, open_storage

USE_CASE = "notices"
URL = "s3://models/registry"
SIZES = {
    "notices-Q8_0.gguf": 6_000_000,
    "notices-F16.gguf": 3_000_000,
    "adapter/manifest.json": 300,
    "README.md": 1,
    "empty": 0,
}


@pytest.fixture
def version(s3: Any) -> PublishedVersion:
    """A version with files of the sizes above."""

    def fill(folder: Path, version: str) -> None:
        for name, size in SIZES.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(hashlib.shake_256(name.encode()).digest(size))
        seal(folder, {"fingerprint": "f" * 64, "version": version, "quantisations": {}})

    storage = open_storage(URL, USE_CASE)
    with storage.alone():
        storage.add(fill)
    (found,) = versions(URL, USE_CASE)
    return found


def cached(tmp_path: Path) -> list[str]:
    """All files and folders of the cache, below the one of the version."""
    (folder,) = (tmp_path / "cache" / "registry").iterdir()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


EVERYTHING = sorted([*SIZES, "adapter", "manifest.json"])


def digests(folder: Path) -> dict[str, str]:
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in SIZES}


@contextmanager
def watched(version: PublishedVersion, tmp_path: Path) -> Iterator[list[str]]:
    """Files that anybody could see under their name meanwhile and that were not whole."""
    wrong: list[str] = []
    looks = 0
    done = threading.Event()

    def look() -> None:
        nonlocal looks
        folder = tmp_path / "cache" / "registry" / hashlib.sha256(version.manifest_bytes).hexdigest()
        while not done.is_set():
            looks += 1
            for name, digest in version.manifest["files"].items():
                if (folder / name).is_file() and hashlib.sha256((folder / name).read_bytes()).hexdigest() != digest:
                    wrong.append(name)
            done.wait(0.005)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield wrong
    finally:
        done.set()
        watcher.join()
        assert looks > 1


def test_eight_threads_that_fetch_at_once_get_whole_files_and_leave_nothing_else(
    version: PublishedVersion, tmp_path: Path
) -> None:
    """T8"""
    begin = threading.Barrier(8)

    def fetch(number: int) -> tuple[Path, dict[str, str]]:
        begin.wait()
        if number % 2:
            return version.fetch(), digests(version.fetch())
        path = version.fetch("notices-Q8_0.gguf")
        found = hashlib.sha256(path.read_bytes()).hexdigest()
        assert found == version.manifest["files"]["notices-Q8_0.gguf"]
        folder = version.fetch("adapter").parent
        return folder, digests(version.fetch())

    with watched(version, tmp_path) as wrong, ThreadPoolExecutor(8) as pool:
        found = list(pool.map(fetch, range(8)))
    assert {path for path, _ in found} == {found[0][0]}
    assert all(each == version.manifest["files"] for _, each in found)
    assert wrong == []
    assert cached(tmp_path) == EVERYTHING
    assert json.loads((found[0][0] / "manifest.json").read_bytes()) == version.manifest


def test_what_is_damaged_in_the_cache_is_made_good_once_for_all_that_ask_at_once(
    version: PublishedVersion, tmp_path: Path
) -> None:
    """T8: cut off, made longer, and of the right length."""
    folder = version.fetch()
    whole = (folder / "notices-Q8_0.gguf").read_bytes()
    (folder / "notices-Q8_0.gguf").write_bytes(whole[:-1])
    (folder / "README.md").write_bytes(b"xx")
    (folder / "adapter" / "manifest.json").write_bytes(bytes(300))
    (folder / "manifest.json").write_bytes(b"{")
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: digests(version.fetch()), range(8)))
    assert all(each == version.manifest["files"] for each in found)
    assert cached(tmp_path) == EVERYTHING
    assert (folder / "manifest.json").read_bytes() == version.manifest_bytes


def fetch_in_a_process(number: int, folder: Path) -> list[dict[str, str]]:
    """What four threads of this process find, once all processes are ready."""
    (version,) = versions(URL, USE_CASE)
    (folder / f"ready-{number}").touch()
    until = time.monotonic() + 60
    while len(list(folder.glob("ready-*"))) < 2:
        assert time.monotonic() < until
        time.sleep(0.005)
    with ThreadPoolExecutor(4) as pool:
        return list(pool.map(lambda _: digests(version.fetch()), range(4)))


def test_two_processes_that_fetch_at_once_get_whole_files_and_leave_nothing_else(
    version: PublishedVersion, tmp_path: Path
) -> None:
    """T8: a server and a pipeline share a cache."""
    (tmp_path / "ready").mkdir()
    with watched(version, tmp_path) as wrong, ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        found = [each for part in pool.map(fetch_in_a_process, range(2), [tmp_path / "ready"] * 2) for each in part]
    assert found == [version.manifest["files"]] * 8
    assert wrong == []
    assert cached(tmp_path) == EVERYTHING


def test_a_download_that_breaks_off_or_was_altered_leaves_nothing(
    s3: Any, version: PublishedVersion, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T8: half of a file gets no name, however many ask."""
    assert isinstance(version.storage, ObjectStorage)
    tried: list[str] = []

    def broken(remote: str, local: str) -> None:
        Path(local).write_bytes(b"half")
        tried.append(remote)
        raise ConnectionResetError("the line is gone")

    def outcome(_: int) -> str:
        try:
            version.fetch("notices-F16.gguf")
        except FreshetError as error:
            return type(error).__name__
        return "fetched"

    with monkeypatch.context() as patch, ThreadPoolExecutor(4) as pool:
        patch.setattr(version.storage._files, "get_file", broken)
        assert list(pool.map(outcome, range(4))) == ["ServerUnavailableError"] * 4
    assert len(tried) == 4
    assert cached(tmp_path) == []
    s3.put_object(Bucket="models", Key="registry/notices/v1/notices-F16.gguf", Body=bytes(SIZES["notices-F16.gguf"]))
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(outcome, range(4))) == ["ArtifactError"] * 4
    assert cached(tmp_path) == []
    assert version.fetch("README.md").is_file()
    assert cached(tmp_path) == ["README.md", "manifest.json"]

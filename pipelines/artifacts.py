"""Finished artifacts on disk: written aside, verified by their hashes, then recorded in the catalog."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa

from pipelines.catalog import artifacts, now
from pipelines.errors import ArtifactError, LockedError, NotBuiltError
from pipelines.fingerprint import folder_sha256s, write_json_atomically

Kind = Literal["training_set", "lora_adapter", "evaluation_report", "gguf_model"]

MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Artifact:
    """A folder whose ``manifest.json`` names every other file with its hash."""

    path: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """What it was made from (64 hex digits)."""
        return str(self.manifest["fingerprint"])


@contextmanager
def writing(folder: Path) -> Iterator[Path]:
    """A scratch folder beside ``folder`` that takes its place only when the block ends well.

    A crash leaves at most a scratch folder, which no reader accepts.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.parent / f".{folder.name}.{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    try:
        yield scratch
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def alone(lock: Path, holder: str, *, seconds: float = 0.0) -> Iterator[None]:
    """Hold the file ``lock`` while the block runs, waiting at most ``seconds`` for it.

    Raises:
        LockedError: another ``holder`` (a noun: training, export, publisher) has it.
    """
    from filelock import FileLock, Timeout

    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=seconds)
    try:
        held.acquire()
    except Timeout as error:
        raise LockedError(f"another {holder} holds {lock}; try again when it has ended") from error
    try:
        yield
    finally:
        held.release()


def seal(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``manifest.json`` with the hash of every other file: the last step of making an artifact.

    ``manifest`` needs a ``fingerprint`` of what the artifact was made from.
    """
    files = folder_sha256s(folder, leave_out=frozenset({MANIFEST}))
    write_json_atomically(folder / MANIFEST, {**manifest, "files": files})


def load(folder: Path) -> Artifact:
    """Open a finished artifact, re-hashing every file.

    Raises:
        ArtifactError: no manifest, or a file missing, added or altered.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} has no {MANIFEST}: it was never finished; materialise its asset again")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    wanted, found = manifest["files"], folder_sha256s(folder, leave_out=frozenset({MANIFEST}))
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise ArtifactError(
            f"{folder} differs from its manifest in {', '.join(differing)}; materialise its asset again"
        )
    return Artifact(folder, manifest)


def record(engine: sa.Engine, use_case: str, kind: Kind, artifact: Artifact) -> None:
    """Make ``artifact`` the latest of its kind."""
    key = {"use_case": use_case, "kind": kind, "fingerprint": artifact.fingerprint}
    with engine.begin() as connection:
        connection.execute(sa.delete(artifacts).filter_by(**key))
        connection.execute(sa.insert(artifacts).values(**key, path=str(artifact.path), created_at=now()))


def latest(engine: sa.Engine, use_case: str, kind: Kind) -> Artifact:
    """The artifact recorded last, verified.

    Raises:
        NotBuiltError: there is none yet.
        ArtifactError: it is incomplete or altered.
    """
    query = (
        sa.select(artifacts.c.path)
        .where(artifacts.c.use_case == use_case, artifacts.c.kind == kind)
        .order_by(artifacts.c.created_at.desc())
        .limit(1)
    )
    with engine.connect() as connection:
        path = connection.execute(query).scalar()
    if path is None:
        raise NotBuiltError(f"{use_case} has no {kind} yet: materialise {use_case}/{kind} first")
    return load(Path(path))

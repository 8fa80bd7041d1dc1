"""Which backend and precision embed on this machine: the fastest that is exact enough for the model.

What was found, and what was converted, is kept in ``<home>/cache/embedders/``, so only the first process ever pays.
"""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pipelines.corpus.embedding.conversion import CONVERTER_VERSION
from pipelines.corpus.embedding.interface import Backend, Embedder, Precision
from pipelines.corpus.embedding.model import ModelFiles, cache_folder, known_sha256s
from pipelines.corpus.embedding.openvino_ir import OpenVinoEmbedder
from pipelines.corpus.embedding.sentence_transformer import SentenceTransformerEmbedder
from pipelines.environment import REPOSITORY
from pipelines.errors import ArtifactError, ConfigError
from pipelines.fingerprint import fingerprint, write_json_atomically

logger = logging.getLogger(__name__)


@cache
def open_embedder(
    model: str, revision: str | None, precision: Precision | None = None, backend: Backend | None = None
) -> Embedder:
    """The embedder of a configuration, one per process.

    ``precision`` and ``backend`` are what is fastest here unless they are given, as to add to what another machine
    indexed. The first time that a model is opened in a home it is converted, in a process of its own.

    Raises:
        ConfigError: the model is not there, its files do not say what is needed, or this machine cannot compute it
            with the backend and the precision that are asked for.
    """
    files = ModelFiles(model, revision)
    refused = []
    for chosen, exactness in _fastest_first(files):
        if backend not in (None, chosen) or precision not in (None, exactness):
            continue
        if chosen == "torch" and (backend == "torch" or exactness == "float32" or _has_cuda()):
            return _embedder(model, revision, exactness, None)
        folder, record = _settled(files, chosen, exactness)
        if record["accepted"]:
            return _embedder(model, revision, exactness, folder if chosen == "openvino" else None)
        refused.append(f"{chosen} in {exactness}: {record['reason']} (remove {folder} to try again)")
        logger.warning("%s is not embedded by %s", files.name, refused[-1])
    why = "; ".join(refused) or f"{precision} by {backend or 'any backend'} needs what this machine does not have"
    raise ConfigError(f"embedder {model!r} cannot run as it is asked to: {why}")


@cache
def _embedder(model: str, revision: str | None, precision: Precision, converted: Path | None) -> Embedder:
    """One per process and model in memory, however it was asked for."""
    files = ModelFiles(model, revision)
    if converted is None:
        return SentenceTransformerEmbedder(files, precision)
    return OpenVinoEmbedder(files, precision, converted)


def _fastest_first(files: ModelFiles) -> list[tuple[Backend, Precision]]:
    """What the hardware only emulates is last.

    Measured on MiniLM, 207-token chunks and a CPU with AMX, in milliseconds of processor time a chunk: 12 by OpenVINO
    and 26 by torch in bfloat16, 37 and 56 in float32.
    """
    found: list[tuple[Backend, Precision]] = []
    if _has_cuda():
        found += [("torch", files.half), ("torch", "float16")]
    precisions: list[Precision] = ["bfloat16", "float32"] if _computes_bfloat16() else ["float32", "bfloat16"]
    for precision in precisions:
        found += [("openvino", precision), ("torch", precision)]
    return found


@cache
def _has_cuda() -> bool:
    """Found without torch, whose import takes seconds."""
    try:
        return "+cpu" not in version("torch") and Path("/proc/driver/nvidia/version").exists()
    except PackageNotFoundError:
        return False


@cache
def _computes_bfloat16() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and bool(set(cpu.read_text().split()) & {"avx512_bf16", "amx_bf16"})


def _settled(files: ModelFiles, backend: Backend, precision: Precision) -> tuple[Path, dict[str, Any]]:
    """Whether a backend is exact enough for a model, and the folder with what it needs; found out once."""
    key = fingerprint(files.fingerprint, version("openvino"), CONVERTER_VERSION, backend, precision)
    folder = cache_folder() / f"{files.name.rpartition('/')[2]}-{backend}-{precision}-{key[:16]}"
    record = _valid_record(folder)
    if record is None:
        from filelock import FileLock

        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f".{folder.name}.lock")):  # whoever waits finds what the other made
            record = _valid_record(folder) or _settle(files, backend, precision, folder)
    return folder, record


def _settle(files: ModelFiles, backend: Backend, precision: Precision, folder: Path) -> dict[str, Any]:
    logger.info("trying %s in %s for %s: once, for every later process", backend, precision, files.name)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        module = "pipelines.corpus.embedding.conversion"
        ran = subprocess.run(
            [sys.executable, "-m", module, str(files.folder), backend, precision, str(made)],
            cwd=REPOSITORY, capture_output=True, text=True, check=False, errors="replace",
        )  # fmt: skip
        if ran.returncode:
            shutil.rmtree(made)
            last = (ran.stderr.strip() or "it said nothing").splitlines()[-1]
            reason = f"its conversion ended with status {ran.returncode}: {last}"
            write_json_atomically(made / "record.json", {"accepted": False, "reason": reason, "files": {}})
        if folder.exists():  # damaged
            folder.rename(Path(scratch) / "damaged")
        made.rename(folder)
    record = _valid_record(folder)
    if record is None:
        raise ArtifactError(f"{folder} changed while it was written: is it on a disk that is full or failing?")
    return record


def _valid_record(folder: Path) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads((folder / "record.json").read_text(encoding="utf-8"))
        return record if known_sha256s(folder, sorted(record["files"])) == record["files"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None

"""Published models: immutable versions, and one pointer that moves.

``<registry>/<use case>/v1, v2, …`` are complete and read-only once they have their name; ``champion.json`` names the
one that is served. Nothing is ever deleted here. Publishing reads the gate's stored verdict and every hash again.
"""

from __future__ import annotations

import json
import re
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from pipelines.artifacts import MANIFEST, Artifact, alone, load, seal
from pipelines.errors import ArtifactError, ConfigError, GateRefusedError, NotBuiltError
from pipelines.evaluation.gate import decided_again
from pipelines.fingerprint import file_sha256, write_json_atomically
from pipelines.release.bundle import bundle

POINTER = "champion.json"
LOCK_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One immutable folder of the registry."""

    use_case: str
    version: str
    """``v1``, ``v2``, …"""
    path: Path
    manifest: Mapping[str, Any]

    @property
    def fingerprint(self) -> str:
        """Of the GGUF model that was published (64 hex digits)."""
        return str(self.manifest["fingerprint"])

    def gguf(self, quantisation: str) -> Path:
        """The file of one quantisation.

        Raises:
            NotBuiltError: this version does not have it.
        """
        found = self.manifest["quantisations"].get(quantisation)
        if found is None:
            raise NotBuiltError(
                f"{self.use_case} {self.version} has no {quantisation}, only "
                f"{', '.join(self.manifest['quantisations'])}; add it to release.quantisations and publish again"
            )
        return self.path / str(found["file"])


def registry_folder(registry_url: str) -> Path:
    """The local folder that ``registry_url`` names.

    Raises:
        ConfigError: it is neither a path nor a file:// URL of this machine.
    """
    parts = urlsplit(registry_url)
    if "://" not in registry_url:
        return Path(registry_url).expanduser().absolute()
    if parts.scheme != "file" or parts.netloc not in ("", "localhost"):
        raise ConfigError(
            f"MODEL_REGISTRY_URL {registry_url!r} is no local folder: give a path or a file:///absolute/path URL"
        )
    return Path(unquote(parts.path))


def publish(
    gguf: Artifact, adapter: Artifact, report: Artifact, *, use_case: str, registry_url: str
) -> PublishedVersion:
    """Make ``gguf`` the champion of ``use_case``, as a new version unless it is one already.

    The three artifacts are read again from their folders; what the caller holds in memory is not trusted.

    Raises:
        ArtifactError: an artifact is altered, or they do not belong together.
        GateRefusedError: the report refuses this adapter, is about another one or compares with another champion than
            the present one, or the files failed their comparison.
        ConfigError: the registry is no local folder.
        LockedError: another publisher holds the registry for long.
    """
    gguf, adapter, report = load(gguf.path), load(adapter.path), load(report.path)
    check_gate(gguf, adapter, report, use_case=use_case)
    folder = _use_case_folder(registry_url, use_case)
    with alone(folder / ".lock", "publisher", seconds=LOCK_SECONDS):
        for known in reversed(_versions(folder, use_case)):
            if known.fingerprint == gguf.fingerprint and _intact(known):
                return _switch(folder, known)
        check_champion(report, _pointer(folder), folder)
        number = max((_number(path) for path in _version_folders(folder)), default=0) + 1
        return _switch(folder, _write(folder, gguf, adapter, report, use_case=use_case, version=f"v{number}"))


def check_gate(gguf: Artifact, adapter: Artifact, report: Artifact, *, use_case: str) -> None:
    """Hold the three manifests against each other.

    Raises:
        ArtifactError: they are of other kinds or another use case, or do not belong together.
        GateRefusedError: the verdict is not a pass for exactly this adapter, or the comparison after export failed.
    """
    expected = ((gguf, "gguf_model"), (adapter, "lora_adapter"), (report, "evaluation_report"))
    for artifact, kind in expected:
        if artifact.manifest.get("kind") != kind:
            raise ArtifactError(f"{artifact.path} holds kind {artifact.manifest.get('kind')!r}, not {kind!r}")
        if artifact.manifest.get("use_case", use_case) != use_case:
            raise ArtifactError(f"{artifact.path} belongs to {artifact.manifest['use_case']!r}, not to {use_case!r}")
        if artifact.manifest.get("training_set") != adapter.manifest["training_set"]:
            raise ArtifactError(f"{artifact.path} and {adapter.path} come from different training sets")
    files = adapter.manifest["files"]
    if gguf.manifest["adapter"] != adapter.fingerprint or gguf.manifest["adapter_files"] != files:
        raise ArtifactError(
            f"{gguf.path} was made from adapter {gguf.manifest['adapter']}, not from {adapter.fingerprint} as it is "
            "now; materialise gguf_model again"
        )
    if report.manifest["adapter"] != adapter.fingerprint or report.manifest["adapter_files"] != files:
        raise GateRefusedError(
            f"the verdict in {report.path} is about adapter {report.manifest['adapter']}, not about "
            f"{adapter.fingerprint} as it is now; materialise evaluation_report again"
        )
    verdict = report.manifest["verdict"]
    if verdict["passed"] is not decided_again(report).passed:
        raise ArtifactError(
            f"the verdict in {report.path / MANIFEST}, passed: {verdict['passed']}, does not follow from the scores in "
            "report.json; materialise evaluation_report again"
        )
    if verdict["passed"] is not True:
        raise GateRefusedError(f"the gate refused this adapter: {_reasons(verdict)} ({report.path})")
    parity = gguf.manifest["parity"]
    if parity["passed"] is not True:
        raise GateRefusedError(f"the exported files do not behave as before: {_reasons(parity)} ({gguf.path})")


def check_champion(report: Artifact, pointer: Mapping[str, Any] | None, folder: Path) -> None:
    """A new version must have been compared with the champion that it replaces.

    Raises:
        GateRefusedError: another version is served now than when the report was made.
    """
    served = None if pointer is None else _adapter_of(folder / str(pointer["version"]))
    if report.manifest["champion"] != served:
        raise GateRefusedError(
            f"the report in {report.path} compares with the champion adapter {report.manifest['champion']}, and "
            f"{served} is served now; materialise evaluation_report again"
        )


def champion(registry_url: str, use_case: str) -> PublishedVersion | None:
    """The version that is served, or None when nothing is published.

    Its manifest is verified here; files are verified by what loads them.

    Raises:
        ArtifactError: the pointer or the version that it names is damaged.
    """
    folder = _use_case_folder(registry_url, use_case)
    pointer = _pointer(folder)
    if pointer is None:
        return None
    path = folder / str(pointer["version"])
    if not (path / MANIFEST).is_file() or file_sha256(path / MANIFEST) != pointer["manifest_sha256"]:
        raise ArtifactError(
            f"{folder / POINTER} names {pointer['version']}, whose manifest is missing or altered; restore {path}, or "
            f"roll back: python -m pipelines.release rollback {use_case}"
        )
    return _read(path, use_case)


def versions(registry_url: str, use_case: str) -> list[PublishedVersion]:
    """All published versions, the oldest first."""
    return _versions(_use_case_folder(registry_url, use_case), use_case)


def promote(registry_url: str, use_case: str, version: str) -> PublishedVersion:
    """Make an existing ``version`` the champion.

    Raises:
        NotBuiltError: there is no such version.
        ArtifactError: one of its files is missing or altered.
        LockedError: a publisher holds the registry for long.
    """
    folder = _use_case_folder(registry_url, use_case)
    with alone(folder / ".lock", "publisher", seconds=LOCK_SECONDS):
        return _switch(folder, _verified(_find(folder, use_case, version)))


def rollback(registry_url: str, use_case: str, to: str | None = None) -> PublishedVersion:
    """Make the champion before the present one the champion again, or ``to``, one of those before it.

    Only the pointer moves. Rolling back again goes further back, never to what was rolled back from.

    Raises:
        NotBuiltError: there is nothing to go back to, or ``to`` was not champion before.
        ArtifactError: a file of the version to go back to is missing or altered.
        LockedError: a publisher holds the registry for long.
    """
    folder = _use_case_folder(registry_url, use_case)
    with alone(folder / ".lock", "publisher", seconds=LOCK_SECONDS):
        pointer = _pointer(folder)
        if pointer is None:
            raise NotBuiltError(f"{use_case} has no champion, so there is nothing to roll back from")
        history: list[str] = pointer["history"]
        if not history or (to is not None and to not in history):
            raise NotBuiltError(
                f"{use_case} {pointer['version']} cannot be rolled back to {to or 'the version before'}: champions "
                f"before it: {', '.join(history) or 'none'}. Any published version can be promoted instead"
            )
        at = len(history) - 1 if to is None else len(history) - 1 - history[::-1].index(to)
        target = _verified(_find(folder, use_case, history[at]))
        _point(folder, target, history[:at])
        return target


def _write(
    folder: Path, gguf: Artifact, adapter: Artifact, report: Artifact, *, use_case: str, version: str
) -> PublishedVersion:
    """Write a version aside, verify it by reading it again, and give it its name."""
    for left in folder.glob(".v*.????????"):  # of publishers that were killed
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder / f".{version}.{uuid.uuid4().hex[:8]}"
    scratch.mkdir()
    try:
        bundle(scratch, gguf, adapter, report, version=version)
        seal(scratch, _manifest(gguf, adapter, report, use_case=use_case, version=version))
        load(scratch)
        for name in gguf.manifest["files"]:
            if file_sha256(scratch / name) != gguf.manifest["files"][name]:
                raise ArtifactError(f"{scratch / name} was not copied faithfully; publish again")
        scratch.rename(folder / version)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return _read(folder / version, use_case)


def _manifest(gguf: Artifact, adapter: Artifact, report: Artifact, *, use_case: str, version: str) -> dict[str, Any]:
    kept = (
        "adapter", "training_set", "base_licence", "categories", "multi_label", "thresholds", "maximum_tokens",
        "calibration", "abstain_below", "quantisations", "merged", "held_out_rows", "parity", "versions",
    )  # fmt: skip
    trained = ("task", "base_model", "base_revision", "base_files")
    return {
        "fingerprint": gguf.fingerprint,
        "kind": "published_model",
        "use_case": use_case,
        "version": version,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: adapter.manifest[name] for name in trained},
        **{name: gguf.manifest[name] for name in kept},
        "settings": {"fine_tune": adapter.manifest["settings"], "release": gguf.manifest["settings"]},
        "evaluation_report": report.fingerprint,
        "verdict": report.manifest["verdict"],
        "code_version": package_version("freshet"),
    }


def _switch(folder: Path, to: PublishedVersion) -> PublishedVersion:
    """Point at ``to``, remembering what was served before."""
    pointer = _pointer(folder)
    if pointer is None or pointer["version"] != to.version:
        _point(folder, to, [] if pointer is None else [*pointer["history"], pointer["version"]])
    return to


def _point(folder: Path, to: PublishedVersion, history: list[str]) -> None:
    value = {
        "version": to.version,
        "previous": history[-1] if history else None,
        "history": history,
        "switched_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "manifest_sha256": file_sha256(to.path / MANIFEST),
    }
    write_json_atomically(folder / POINTER, value)


def _pointer(folder: Path) -> dict[str, Any] | None:
    path = folder / POINTER
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    try:
        value: dict[str, Any] = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"{path} is no JSON ({error}); promote a version again") from error
    missing = sorted({"version", "history", "manifest_sha256"} - value.keys())
    if missing:
        raise ArtifactError(f"{path} has no {', '.join(missing)}; promote a version again")
    return value


def _versions(folder: Path, use_case: str) -> list[PublishedVersion]:
    return [_read(path, use_case) for path in sorted(_version_folders(folder), key=_number)]


def _version_folders(folder: Path) -> list[Path]:
    return [path for path in folder.glob("v*") if re.fullmatch(r"v[1-9]\d*", path.name)]


def _number(path: Path) -> int:
    return int(path.name[1:])


def _read(path: Path, use_case: str) -> PublishedVersion:
    try:
        manifest = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{path / MANIFEST} cannot be read: {error}") from error
    return PublishedVersion(use_case, path.name, path, manifest)


def _find(folder: Path, use_case: str, version: str) -> PublishedVersion:
    known = [path.name for path in sorted(_version_folders(folder), key=_number)]
    if version not in known:
        raise NotBuiltError(f"{use_case} has no version {version!r}; published: {', '.join(known) or 'none'}")
    return _read(folder / version, use_case)


def _verified(found: PublishedVersion) -> PublishedVersion:
    load(found.path)
    return found


def _adapter_of(path: Path) -> str:
    return str(_read(path, path.parent.name).manifest["adapter"])


def _intact(found: PublishedVersion) -> bool:
    try:
        load(found.path)
    except ArtifactError:
        return False
    return True


def _reasons(verdict: Mapping[str, Any]) -> str:
    return " ".join(verdict["reasons"]) or "no reason is recorded"


def _use_case_folder(registry_url: str, use_case: str) -> Path:
    if not re.fullmatch(r"[A-Za-z0-9][\w-]*", use_case):
        raise ConfigError(f"use case {use_case!r} is no name: letters, digits, _ and - are allowed")
    return registry_folder(registry_url) / use_case

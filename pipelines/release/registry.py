"""Published models: immutable versions, and one pointer that moves.

``<registry>/<use case>/v1, v2, …`` are complete once they exist; ``champion.json`` names the one that is served. Moving
it deletes nothing: only ``prune``, and publishing with ``keep``, do (``retention``). Publishing reads the gate's
stored verdict and every hash again. Where all this lies, and what a crash can do to it: ``storage``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version as package_version
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, Artifact, load, seal
from pipelines.errors import ArtifactError, ConfigError, GateRefusedError, NotBuiltError
from pipelines.evaluation.gate import decided_again
from pipelines.fingerprint import file_sha256
from pipelines.release.bundle import bundle
from pipelines.release.retention import removable, remove
from pipelines.release.storage import POINTER, LocalStorage, Storage, open_storage


@dataclass(frozen=True, slots=True)
class PublishedVersion:
    """One immutable version of the registry."""

    use_case: str
    version: str
    """``v1``, ``v2``, …"""
    manifest: Mapping[str, Any]
    manifest_bytes: bytes = field(repr=False)
    storage: Storage = field(repr=False, compare=False)

    @property
    def uri(self) -> str:
        """Where it lies: a path, or a URL of an object store."""
        return self.storage.say(self.version)

    @property
    def path(self) -> Path:
        """The folder in a local registry; ``fetch`` works with any.

        Raises:
            ConfigError: it lies in an object store.
        """
        if not isinstance(self.storage, LocalStorage):
            raise ConfigError(f"{self.uri} is no local folder: fetch() brings its files here")
        return self.storage.folder / self.version

    @property
    def fingerprint(self) -> str:
        """Of the GGUF model that was published (64 hex digits)."""
        return str(self.manifest["fingerprint"])

    def fetch(self, name: str = "") -> Path:
        """A local path of a file or folder of this version (``adapter``, ``x.gguf``), or of all of it, just verified.

        From an object store, files come once, into the cache.

        Raises:
            NotBuiltError: this version has nothing of that name.
            ArtifactError: a file is missing or altered.
            ServerUnavailableError: the store cannot be reached.
        """
        return self.storage.fetch(self.version, name, self.manifest["files"], self.manifest_bytes)

    def adapter(self) -> Artifact:
        """The adapter, fetched: what to compare a candidate with.

        A base in a local folder is where it was at publication, which ``adapter/`` itself, made for others, never says.

        Raises:
            NotBuiltError, ArtifactError, ServerUnavailableError: as ``fetch``.
        """
        found = load(self.fetch("adapter"))
        return Artifact(found.path, {**found.manifest, "base_model": self.manifest["base_model"]})

    def gguf(self, quantisation: str) -> Path:
        """The file of one quantisation, fetched.

        Raises:
            NotBuiltError: this version does not have it.
            ArtifactError: it is missing or altered.
            ServerUnavailableError: the store cannot be reached.
        """
        found = self.manifest["quantisations"].get(quantisation)
        if found is None:
            raise NotBuiltError(
                f"{self.use_case} {self.version} has no {quantisation}, only "
                f"{', '.join(self.manifest['quantisations'])}; add it to release.quantisations and publish again"
            )
        return self.fetch(str(found["file"]))


@dataclass(frozen=True, slots=True)
class Pointer:
    """What ``champion.json`` says."""

    version: str
    history: tuple[str, ...]
    """Champions before it, the latest last."""
    manifest_sha256: str
    token: str
    """Changes when the file does."""


def publish(
    gguf: Artifact,
    adapter: Artifact,
    report: Artifact,
    *,
    use_case: str,
    registry_url: str,
    keep: int | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> PublishedVersion:
    """Make ``gguf`` the champion of ``use_case``, as a new version unless it is one already.

    The three artifacts are read again from their folders; what the caller holds in memory is not trusted. With
    ``keep``, older versions than the last ``keep`` are removed then, but for the served one and the one before it.

    Raises:
        ArtifactError: an artifact is altered, or they do not belong together.
        ExportError: the disk has no room for another version.
        GateRefusedError: the report refuses this adapter, is about another one or compares with another champion than
            the present one, or the files failed their comparison.
        ConfigError: the URL can hold no registry, or the store does not let us in.
        LockedError: another publisher holds the registry for long, or took it over.
        ServerUnavailableError: the store cannot be reached.
    """
    gguf, adapter, report = load(gguf.path), load(adapter.path), load(report.path)
    check_gate(gguf, adapter, report, use_case=use_case)
    storage = open_storage(registry_url, use_case)

    def fill(folder: Path, version: str) -> None:
        bundle(folder, gguf, adapter, report, version=version)
        seal(folder, _manifest(gguf, adapter, report, use_case=use_case, version=version))
        load(folder)
        for name, digest in gguf.manifest["files"].items():
            if file_sha256(folder / name) != digest:
                raise ArtifactError(f"{folder / name} was not copied faithfully; publish again")

    with storage.alone():
        pointer = _pointer(storage)
        known = (_read_or_why(storage, name, use_case) for name in reversed(storage.names()))
        same = (one for one in known if isinstance(one, PublishedVersion) and one.fingerprint == gguf.fingerprint)
        found = next((one for one in same if _intact(one)), None)
        if found is None:
            check_champion(report, pointer, storage, use_case)
            found = _read(storage, storage.add(fill), use_case)
            progress(f"{found.uri} is complete")
        _switch(storage, pointer, found)
        if keep is not None:
            _prune(storage, keep, progress)
        return found


def check_gate(gguf: Artifact, adapter: Artifact, report: Artifact, *, use_case: str) -> None:
    """Hold the three manifests against each other.

    Raises:
        ArtifactError: they are of other kinds, tasks or use cases, or do not belong together.
        GateRefusedError: the verdict is not a pass for exactly this adapter, the comparison after export failed, or a
            chat model was not trained, judged and exported with one prompt and chat template that all three state.
    """
    expected = ((adapter, "lora_adapter"), (report, "evaluation_report"), (gguf, "gguf_model"))
    task = adapter.manifest.get("task", "classify")
    for artifact, kind in expected:
        if artifact.manifest.get("kind") != kind:
            raise ArtifactError(f"{artifact.path} holds kind {artifact.manifest.get('kind')!r}, not {kind!r}")
        if artifact.manifest.get("use_case", use_case) != use_case:
            raise ArtifactError(f"{artifact.path} belongs to {artifact.manifest['use_case']!r}, not to {use_case!r}")
        if artifact.manifest.get("training_set") != adapter.manifest["training_set"]:
            raise ArtifactError(f"{artifact.path} and {adapter.path} come from different training sets")
        if artifact.manifest.get("task", "classify") != task:
            raise ArtifactError(
                f"{artifact.path} was made for task {artifact.manifest.get('task', 'classify')!r}, and {adapter.path} "
                f"for {task!r}; materialise {kind} again"
            )
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
    for fact in ("prompt", "template_hash"):
        shown = fact.replace("_", " ")
        if task == "generate":
            for artifact, kind in expected:
                if not artifact.manifest.get(fact):
                    raise GateRefusedError(
                        f"{artifact.path} does not state the {shown} that it was made with, so nothing proves that the "
                        f"model is served as it was judged: move it away and materialise {kind} again"
                    )
        stated = [artifact.manifest.get(fact) for artifact in (adapter, report, gguf)]
        if any(value != stated[0] for value in stated):
            names = ("trained", "judged", "exported")
            said = "; ".join(f"{name} with {value!r}" for name, value in zip(names, stated, strict=True))
            raise GateRefusedError(
                f"the {shown} of {adapter.path} is not one: {said}. Materialise evaluation_report and gguf_model again"
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


def check_champion(report: Artifact, pointer: Pointer | None, storage: Storage, use_case: str) -> None:
    """A new version must have been compared with the champion that it replaces.

    Raises:
        GateRefusedError: another version is served now than when the report was made.
    """
    served = None if pointer is None else str(_read(storage, pointer.version, use_case).manifest["adapter"])
    if report.manifest["champion"] != served:
        raise GateRefusedError(
            f"the report in {report.path} compares with the champion adapter {report.manifest['champion']}, and "
            f"{served} is served now; materialise evaluation_report again"
        )


def champion(registry_url: str, use_case: str) -> PublishedVersion | None:
    """The version that is served, or None when nothing is published.

    Its manifest is verified here; files are verified when they are fetched.

    Raises:
        ArtifactError: the pointer or the version that it names is damaged.
        ServerUnavailableError: the store cannot be reached.
    """
    storage = open_storage(registry_url, use_case)
    pointer = _pointer(storage)
    if pointer is None:
        return None
    found = storage.read(f"{pointer.version}/{MANIFEST}")
    if found is None or hashlib.sha256(found[0]).hexdigest() != pointer.manifest_sha256:
        raise ArtifactError(
            f"{storage.say(POINTER)} names {pointer.version}, whose manifest is missing or altered; restore "
            f"{storage.say(pointer.version)}, or roll back: python -m pipelines.release rollback {use_case}"
        )
    return PublishedVersion(use_case, pointer.version, json.loads(found[0]), found[0], storage)


def pointer_token(registry_url: str, use_case: str) -> str | None:
    """A value that is another once the champion has changed; None while nothing is published. For who watches.

    Raises:
        ServerUnavailableError: the store cannot be reached.
    """
    return open_storage(registry_url, use_case).token()


def versions(registry_url: str, use_case: str) -> list[PublishedVersion]:
    """All published versions, the oldest first.

    Raises:
        ArtifactError: the manifest of one is damaged.
        ServerUnavailableError: the store cannot be reached.
    """
    storage = open_storage(registry_url, use_case)
    return [_read(storage, name, use_case) for name in storage.names()]


def versions_or_why(registry_url: str, use_case: str) -> dict[str, PublishedVersion | ArtifactError]:
    """All published versions by name, the oldest first; of one with a damaged manifest, why it cannot be read.

    Raises:
        ServerUnavailableError: the store cannot be reached.
    """
    storage = open_storage(registry_url, use_case)
    return {name: _read_or_why(storage, name, use_case) for name in storage.names()}


def find_version(registry_url: str, use_case: str, version: str) -> PublishedVersion:
    """One published version.

    Raises:
        NotBuiltError: there is no such version.
        ArtifactError: its manifest is damaged.
        ServerUnavailableError: the store cannot be reached.
    """
    return _find(open_storage(registry_url, use_case), use_case, version)


def promote(registry_url: str, use_case: str, version: str) -> PublishedVersion:
    """Make an existing ``version`` the champion; also what mends a damaged pointer.

    Raises:
        NotBuiltError: there is no such version.
        ArtifactError: one of its files is missing or altered.
        LockedError: a publisher holds the registry for long.
    """
    storage = open_storage(registry_url, use_case)
    with storage.alone():
        found = _verified(_find(storage, use_case, version))
        try:
            pointer = _pointer(storage)
        except ArtifactError:
            damaged = storage.read(POINTER)
            _point(storage, found, (), None if damaged is None else damaged[1])
        else:
            _switch(storage, pointer, found)
        return found


def rollback(registry_url: str, use_case: str, to: str | None = None) -> PublishedVersion:
    """Make the champion before the present one the champion again, or ``to``, one of those before it.

    Only the pointer moves. Rolling back again goes further back, never to what was rolled back from. Champions that
    have been removed since are passed over.

    Raises:
        NotBuiltError: there is nothing to go back to, or ``to`` was not champion before.
        ArtifactError: a file of the version to go back to is missing or altered.
        LockedError: a publisher holds the registry for long.
    """
    storage = open_storage(registry_url, use_case)
    with storage.alone():
        pointer = _pointer(storage)
        if pointer is None:
            raise NotBuiltError(f"{use_case} has no champion, so there is nothing to roll back from")
        history = _before(pointer, storage.names())
        if not history or (to is not None and to not in history):
            raise NotBuiltError(
                f"{use_case} {pointer.version} cannot be rolled back to {to or 'the version before'}: champions "
                f"before it: {', '.join(history) or 'none'}. Any published version can be promoted instead"
            )
        at = len(history) - 1 if to is None else len(history) - 1 - history[::-1].index(to)
        target = _verified(_read(storage, history[at], use_case))
        _point(storage, target, history[:at], pointer.token)
        return target


def prune(
    registry_url: str, use_case: str, keep: int, progress: Callable[[str], None] = lambda _line: None
) -> list[str]:
    """Remove all versions but the last ``keep``, the served one and the one that a rollback would serve.

    Returns:
        The versions removed, the oldest first. What cannot be deleted now is said and left for the next time.

    Raises:
        ConfigError: ``keep`` is below 1.
        NotBuiltError: nothing is published.
        ArtifactError: the pointer is damaged, so that nobody can say what is served; nothing is removed then.
        LockedError: a publisher holds the registry for long.
        ServerUnavailableError: the store cannot be reached.
    """
    if keep < 1:
        raise ConfigError(f"keep {keep} versions: give 1 or more")
    storage = open_storage(registry_url, use_case)
    if not storage.names():
        raise NotBuiltError(f"{use_case} has no published version in {storage.uri}, so there is nothing to prune")
    with storage.alone():
        return _prune(storage, keep, progress)


def _prune(storage: Storage, keep: int, progress: Callable[[str], None]) -> list[str]:
    pointer, names = _pointer(storage), storage.names()
    kept = () if pointer is None else (pointer.version, *_before(pointer, names)[-1:])
    return remove(storage, removable(names, keep=keep, never=kept), progress)


def _before(pointer: Pointer, names: Collection[str]) -> tuple[str, ...]:
    """The champions that a rollback can go to, the latest last."""
    history = tuple(name for name in pointer.history if name in names)
    while history and history[-1] == pointer.version:  # what was between has been removed
        history = history[:-1]
    return history


def _manifest(gguf: Artifact, adapter: Artifact, report: Artifact, *, use_case: str, version: str) -> dict[str, Any]:
    kept = {
        "classify": ("categories", "multi_label", "thresholds", "maximum_tokens", "calibration", "abstain_below"),
        "generate": (
            "prompt", "template_hash", "stops", "maximum_tokens", "maximum_answer_tokens", "context_length",
            "longest_prompt", "metric", "adapter_gguf", "warnings",
        ),
    }  # fmt: skip
    task = adapter.manifest["task"]
    both = ("adapter", "training_set", "base_licence", "quantisations", "merged", "held_out_rows", "parity", "versions")
    trained = ("task", "base_model", "base_revision", "base_files")
    return {
        "fingerprint": gguf.fingerprint,
        "kind": "published_model",
        "use_case": use_case,
        "version": version,
        "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
        **{name: adapter.manifest[name] for name in trained},
        **{name: gguf.manifest[name] for name in both},
        **{name: gguf.manifest[name] for name in kept[task] if name in gguf.manifest},
        "settings": {"fine_tune": adapter.manifest["settings"], "release": gguf.manifest["settings"]},
        "evaluation_report": report.fingerprint,
        "verdict": report.manifest["verdict"],
        "code_version": package_version("freshet"),
    }


def _switch(storage: Storage, pointer: Pointer | None, to: PublishedVersion) -> None:
    """Point at ``to``, remembering what was served before."""
    if pointer is None:
        _point(storage, to, (), None)
    elif pointer.version != to.version:
        _point(storage, to, (*pointer.history, pointer.version), pointer.token)


def _point(storage: Storage, to: PublishedVersion, history: tuple[str, ...], expected: str | None) -> None:
    value = {
        "version": to.version,
        "previous": history[-1] if history else None,
        "history": history,
        "switched_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "manifest_sha256": hashlib.sha256(to.manifest_bytes).hexdigest(),
    }
    storage.point((json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True) + "\n").encode(), expected)


def _pointer(storage: Storage) -> Pointer | None:
    found = storage.read(POINTER)
    if found is None:
        return None
    shown = storage.say(POINTER)
    try:
        value: dict[str, Any] = json.loads(found[0])
    except ValueError as error:
        raise ArtifactError(f"{shown} is no JSON ({error}); promote a version again") from error
    missing = sorted({"version", "history", "manifest_sha256"} - value.keys())
    if missing:
        raise ArtifactError(f"{shown} has no {', '.join(missing)}; promote a version again")
    return Pointer(value["version"], tuple(value["history"]), value["manifest_sha256"], found[1])


def _read(storage: Storage, version: str, use_case: str) -> PublishedVersion:
    found, shown = storage.read(f"{version}/{MANIFEST}"), storage.say(f"{version}/{MANIFEST}")
    if found is None:
        raise ArtifactError(f"{shown} does not exist; restore it, or promote another version")
    try:
        return PublishedVersion(use_case, version, json.loads(found[0]), found[0], storage)
    except ValueError as error:
        raise ArtifactError(f"{shown} cannot be read ({error}); restore it, or remove that version's files") from error


def _read_or_why(storage: Storage, version: str, use_case: str) -> PublishedVersion | ArtifactError:
    try:
        return _read(storage, version, use_case)
    except ArtifactError as error:
        return error


def _find(storage: Storage, use_case: str, version: str) -> PublishedVersion:
    known = storage.names()
    if version not in known:
        raise NotBuiltError(f"{use_case} has no version {version!r}; published: {', '.join(known) or 'none'}")
    return _read(storage, version, use_case)


def _verified(found: PublishedVersion) -> PublishedVersion:
    found.storage.check(found.version, found.manifest["files"])
    return found


def _intact(found: PublishedVersion) -> bool:
    try:
        _verified(found)
    except ArtifactError:
        return False
    return True


def _reasons(verdict: Mapping[str, Any]) -> str:
    return " ".join(verdict["reasons"]) or "no reason is recorded"

"""From adapter to GGUF files: merged, converted, quantised, compared with the original."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, Artifact, alone, load, seal, writing
from pipelines.errors import ArtifactError, ConfigError, ExportError
from pipelines.evaluation.classifier import base_folder
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import read_split
from pipelines.release.bundle import base_name
from pipelines.release.gguf import Header, convert, quantise
from pipelines.release.merge import merge
from pipelines.release.parity import compare, plot
from pipelines.release.settings import Quantisation, ReleaseSettings

EXPORTER = "3"
"""Version of what this module makes of equal inputs; part of the fingerprint."""

PACKAGES = ("torch", "transformers", "peft", "auto-round", "gguf", "llama-cpp-python")
"""What decides the bytes of the files."""


def export(
    adapter: Artifact,
    training_set: Artifact,
    *,
    settings: ReleaseSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> Artifact:
    """Make ``<folder>/<fingerprint>``: GGUF files, ``parity.json``, ``parity.png`` and the manifest.

    Equal inputs give the same fingerprint, and an export that exists is returned as it is. A failed comparison is an
    artifact too, whose manifest says why.

    Raises:
        ArtifactError: an input is altered, or the adapter was trained on another training set.
        ExportError: the model cannot be merged or converted faithfully, or the disk is full.
        ConfigError: ``settings.serve`` is not among the quantisations.
        LockedError: another process exports into ``folder``.
    """
    if settings.serve not in settings.quantisations:
        raise ConfigError(
            f"serve {settings.serve!r} is not written; quantisations: {', '.join(settings.quantisations)}"
        )
    adapter, training_set = load(adapter.path), load(training_set.path)
    task = adapter.manifest.get("task", "classify")
    if task != "classify":
        raise ExportError(
            f"{adapter.path} was trained for task {task!r}, and only classifiers are exported to GGUF: use the adapter "
            "itself, with peft and transformers"
        )
    trained_on = adapter.manifest["training_set"]
    if trained_on != training_set.fingerprint:
        raise ArtifactError(
            f"{adapter.path} was trained on the training set {trained_on}, not on {training_set.fingerprint}; "
            "materialise lora_adapter again"
        )
    versions = {name: version(name) for name in PACKAGES}
    key = fingerprint(
        "gguf_model",
        EXPORTER,
        adapter.fingerprint,
        adapter.manifest["files"],
        training_set.fingerprint,
        settings.model_dump(mode="json"),
        versions,
    )
    with alone(folder / ".export.lock", "export"):
        if (folder / key / MANIFEST).is_file():
            try:
                return load(folder / key)
            except ArtifactError:
                progress(f"{folder / key} was altered: exporting again")
        for left in folder.glob(".*.????????"):  # of exports that were killed
            shutil.rmtree(left, ignore_errors=True)
        with writing(folder / key) as scratch:
            manifest = _export(adapter, training_set, settings, scratch, progress)
            seal(scratch, {"fingerprint": key, **manifest, "versions": versions})
        return load(folder / key)


def _export(
    adapter: Artifact,
    training_set: Artifact,
    settings: ReleaseSettings,
    folder: Path,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Write the files to ``folder`` and return what the manifest says of them."""
    facts = adapter.manifest
    base = base_folder(adapter)
    licence = base_licence(base)
    _check_disk(folder, base)
    merged_folder = folder / "merged"
    progress(f"merging the adapter into {facts['base_model']}")
    merged = merge(adapter, merged_folder)

    sixteen = folder / f"{facts['use_case']}-F16.gguf"
    progress("converting to GGUF")
    metadata = {
        "freshet.adapter": adapter.fingerprint,
        "freshet.base_model": base_name(facts["base_model"]),
        "freshet.base_revision": facts["base_revision"] or "bundled or local",
        "freshet.base_files": fingerprint(facts["base_files"]),
        "freshet.training_set": training_set.fingerprint,
        "general.license": licence,
    }
    files: dict[Quantisation, tuple[Path, Header]] = {
        "F16": (sixteen, convert(merged_folder, sixteen, name=facts["use_case"], metadata=metadata))
    }
    shutil.rmtree(merged_folder)
    for quantisation in settings.quantisations:
        if quantisation != "F16":
            progress(f"quantising to {quantisation}")
            path = folder / f"{facts['use_case']}-{quantisation}.gguf"
            files[quantisation] = (path, quantise(sixteen, path, quantisation, facts["categories"]))
    if "F16" not in settings.quantisations:
        del files["F16"]
        sixteen.unlink()

    parity = compare(merged, read_split(training_set, "test"), files, settings=settings, progress=progress)
    verdict = {"passed": parity.passed, "reasons": list(parity.reasons)}
    progress("parity passed" if parity.passed else f"parity failed: {'; '.join(parity.reasons)}")
    found = {name: asdict(value) for name, value in parity.quantisations.items()}
    report = {**verdict, "rows": parity.rows, "merged": parity.merged, "tokens": parity.tokens, "quantisations": found}
    (folder / "parity.json").write_text(json.dumps(report, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    (folder / "parity.png").write_bytes(plot(parity))
    return {
        "kind": "gguf_model",
        "use_case": facts["use_case"],
        "adapter": adapter.fingerprint,
        "adapter_files": facts["files"],
        "training_set": training_set.fingerprint,
        "base_licence": licence,
        "categories": facts["categories"],
        "multi_label": facts["multi_label"],
        "thresholds": facts["thresholds"],
        "calibration": facts.get("calibration"),
        "abstain_below": facts["settings"].get("abstain_below", 0.0),
        "maximum_tokens": facts["settings"]["maximum_tokens"],
        "settings": settings.model_dump(mode="json"),
        "quantisations": found,
        "merged": parity.merged,
        "held_out_rows": parity.rows,
        "parity": verdict,
        "exporter": EXPORTER,
    }


def base_licence(folder: Path) -> str:
    """The licence that a base model's own card states, as the Hub writes it, or ``unknown``."""
    card = folder / "README.md"
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
    if front is None:
        return "unknown"
    import yaml

    facts = yaml.safe_load(front.group(1))
    return str(facts.get("license") or "unknown") if isinstance(facts, dict) else "unknown"


def _check_disk(folder: Path, base: Path) -> None:
    weights = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    needed, free = 3 * weights, shutil.disk_usage(folder).free  # the merged checkpoint, F16 and the quantised files
    if free < needed:
        raise ExportError(
            f"the export needs about {needed / 1e9:.1f} GB in {folder.parent}, and {free / 1e9:.1f} GB are free: "
            "make room, or move FRESHET_HOME"
        )

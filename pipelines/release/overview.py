"""What is published, and how two versions differ, for people and for programs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.errors import ArtifactError, NotBuiltError
from pipelines.release.registry import PublishedVersion, champion, find_version, versions_or_why

_COMPARED = (
    "task", "base_model", "base_revision", "training_set", "settings", "prompt", "categories", "multi_label",
    "thresholds", "abstain_below", "maximum_tokens", "maximum_answer_tokens", "context_length", "stops",
    "template_hash", "held_out_rows", "metric", "merged", "quantisations", "adapter_gguf", "verdict", "code_version",
)  # fmt: skip
"""What two versions are compared by: what they were made of, and what was measured."""


def overview(registry_url: str, use_case: str) -> list[dict[str, Any]]:
    """Every version, the oldest first: its name, date, whether it is served, and the figures of its files.

    Of a version whose manifest is damaged, its name and why it cannot be read (``unreadable``).

    Raises:
        NotBuiltError: nothing is published.
        ArtifactError: the pointer, or the version that it names, is damaged.
    """
    served, known = champion(registry_url, use_case), versions_or_why(registry_url, use_case)
    if not known:
        raise NotBuiltError(
            f"{use_case} has no published version in {registry_url}: run the job {use_case}_retrain first"
        )
    return [
        {
            "version": name,
            "served": served is not None and served.version == name,
            **({"unreadable": str(one)} if isinstance(one, ArtifactError) else _figures(one)),
        }
        for name, one in known.items()
    ]


def _figures(version: PublishedVersion) -> dict[str, Any]:
    return {
        "published_at": version.manifest["published_at"],
        "metric": _metric(version),
        "files": {
            name: {"score": _score(version, found), "agreement": found["agreement"], "size": found["size"]}
            for name, found in version.manifest["quantisations"].items()
        },
    }


def overview_lines(found: list[dict[str, Any]]) -> list[str]:
    """``overview`` for people, the served version marked."""
    return [
        f"  {version['version']:<4} {version['unreadable']}"
        if "unreadable" in version
        else f"{'*' if version['served'] else ' '} {version['version']:<4} {version['published_at']}  "
        f"{version['metric']} on held-out rows: "
        + "  ".join(
            f"{name} {file['score']:.3f} ({file['size'] / 1e6:.0f} MB)" for name, file in version["files"].items()
        )
        for version in found
    ]


def difference(registry_url: str, use_case: str, one: str, other: str) -> dict[str, tuple[Any, Any]]:
    """What is not the same in two versions: dotted names, and both values; None where one has no such thing.

    Raises:
        NotBuiltError: a version is not there.
        ArtifactError: the manifest of one of them is damaged.
    """
    before, after = (_flat(_compared(find_version(registry_url, use_case, name))) for name in (one, other))
    return {
        name: (before.get(name), after.get(name))
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    }


def difference_lines(found: Mapping[str, tuple[Any, Any]]) -> list[str]:
    """``difference`` for people."""
    return [f"{name}: {_said(one)} -> {_said(other)}" for name, (one, other) in found.items()] or ["no difference"]


def _compared(version: PublishedVersion) -> dict[str, Any]:
    return {name: version.manifest[name] for name in _COMPARED if version.manifest.get(name) is not None}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    return {
        key: found
        for part, inner in value.items()
        for key, found in _flat(inner, f"{name}.{part}" if name else str(part)).items()
    }


def _metric(version: PublishedVersion) -> str:
    return str(version.manifest.get("metric") or "accuracy")


def _score(version: PublishedVersion, file: Mapping[str, Any]) -> float:
    metric = _metric(version)
    return float(file["scores"][metric] if "scores" in file else file[metric])


def _said(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}…"

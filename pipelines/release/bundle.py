"""What a published version contains beside its GGUF files, written from the manifests alone."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, Artifact
from pipelines.fingerprint import folder_sha256s
from pipelines.models import BUNDLED

HUB_NAMES = {BUNDLED: "sentence-transformers/all-MiniLM-L6-v2"}
"""Where bundled bases live on the Hub."""

SUMS = "SHA256SUMS"


def bundle(folder: Path, gguf: Artifact, adapter: Artifact, report: Artifact, *, version: str) -> None:
    """Fill ``folder``: the files of ``gguf``, ``adapter/`` with its own manifest, card, Modelfile and SHA256SUMS.

    All is flushed to the disk, and made read-only.
    """
    for name in gguf.manifest["files"]:
        shutil.copyfile(gguf.path / name, folder / name)
    shutil.copytree(adapter.path, folder / "adapter", copy_function=shutil.copyfile)
    (folder / "evaluation.json").write_bytes((report.path / MANIFEST).read_bytes())
    (folder / "README.md").write_text(model_card(gguf, adapter, report, version=version), encoding="utf-8")
    (folder / "Modelfile").write_text(modelfile(gguf), encoding="utf-8")
    sums = folder_sha256s(folder)
    (folder / SUMS).write_text("".join(f"{sums[name]}  {name}\n" for name in sorted(sums)), encoding="utf-8")
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            path.chmod(0o444)
            with path.open("rb") as file:
                os.fsync(file.fileno())


def base_on_the_hub(base_model: str) -> str | None:
    """A base model's Hub id, or None for a local folder, whose path is nobody else's business."""
    if base_model in HUB_NAMES:
        return HUB_NAMES[base_model]
    return None if Path(base_model).expanduser().is_dir() else base_model


def base_name(base_model: str) -> str:
    """A base model's name for others: its Hub id, or the name of its local folder."""
    return base_on_the_hub(base_model) or Path(base_model).name


def model_card(gguf: Artifact, adapter: Artifact, report: Artifact, *, version: str) -> str:
    """The card in Markdown, with the front matter that the Hub reads."""
    import yaml

    facts, trained, licence = gguf.manifest, adapter.manifest, gguf.manifest["base_licence"]
    use_case, base = facts["use_case"], base_on_the_hub(trained["base_model"])
    served = facts["quantisations"][facts["settings"]["serve"]]
    front: dict[str, Any] = {
        "library_name": "gguf",
        "pipeline_tag": "text-classification",
        "tags": ["freshet", "gguf", "llama.cpp", "lora", "text-classification"],
        "model-index": [
            {
                "name": f"{use_case}-{version}",
                "results": [
                    {
                        "task": {"type": "text-classification"},
                        "dataset": {"name": f"{use_case}, held-out rows", "type": facts["training_set"][:16]},
                        "metrics": [
                            {"type": "accuracy", "value": round(served["accuracy"], 4)},
                            {"type": "f1", "name": "micro F1", "value": round(served["micro_f1"], 4)},
                        ],
                    }
                ],
            }
        ],
    }
    if licence != "unknown":
        front["license"] = licence
    if base is not None:
        front |= {"base_model": base, "base_model_relation": "finetune"}
    effective = trained["effective"]
    lines = [
        "---",
        yaml.safe_dump(front, allow_unicode=True, sort_keys=True).strip(),
        "---",
        "",
        f"# {use_case} {version}",
        "",
        f"Assigns {'any number' if facts['multi_label'] else 'one'} of {len(facts['categories'])} labels to a text of "
        f"up to {facts['maximum_tokens']} tokens; a longer text is cut.",
        "",
        f"Labels: {', '.join(f'`{name}`' for name in facts['categories'])}",
        "",
        "## Made from",
        "",
        "| what | value |",
        "|---|---|",
        *_table(
            {
                "base model": base or f"{base_name(trained['base_model'])} (a local folder)",
                "base revision": trained["base_revision"] or "fixed by the hashes in `adapter/manifest.json`",
                "licence of the base model": licence,
                "method": f"LoRA, rank {trained['settings']['lora']['rank']}, merged in float32",
                "training set": f"`{facts['training_set']}`",
                "training rows": effective["rows"],
                "optimiser steps": effective["steps"],
                "adapter": f"`{adapter.fingerprint}`",
                "evaluation report": f"`{report.fingerprint}`",
            }
        ),
        "",
        f"## Held-out results ({facts['held_out_rows']} rows)",
        "",
        "| file | size (MB) | tensors | predicted as before export | accuracy | micro F1 |",
        "|---|---|---|---|---|---|",
        *_table({"merged, float32": ("", "", "", *_scores(facts["merged"]))}),
        *_table({f"`{found['file']}`": _measured(found) for found in facts["quantisations"].values()}),
        "",
        "A K-quant needs rows that divide by 256; where a matrix has others, llama.cpp falls back to another type, as "
        "the column of tensors shows.",
        "",
        f"The gate let this version pass: {' '.join(report.manifest['verdict']['reasons']) or 'no objections.'}",
        "",
        "## Use",
        "",
        "```python",
        "from pathlib import Path",
        "",
        "from pipelines.release.classifier import GgufClassifier",
        "",
        f'print(GgufClassifier(Path("{served["file"]}")).predict(["…"]))',
        "```",
        "",
        "Any llama.cpp from 2026 on computes the raw label scores with pooling type `rank`. `adapter/` holds the LoRA "
        "adapter for peft.",
        "",
        "## Limits",
        "",
        "- It knows these labels only, and answers from them alone.",
        "- It was measured on held-out rows of its own data; on other text, or other languages than the base model's, "
        "nothing is promised.",
        _calibration(gguf.manifest.get("calibration")),
        *(f"- {difference['known']}." for difference in _known(gguf)),
        "",
    ]
    return "\n".join(lines)


def _calibration(found: Mapping[str, float] | None) -> str:
    if found is None:
        return "- Scores are not calibrated probabilities: there were too few validation rows to measure them on."
    shift = f" plus {found['bias']:.3f}" if found["bias"] else ""
    return (
        f"- Probabilities are calibrated on {found['rows']:.0f} validation rows: logits divided by "
        f"{found['temperature']:.3f}{shift}, before softmax or sigmoid. Freshet does that; llama.cpp gives raw scores."
    )


def modelfile(gguf: Artifact) -> str:
    """Ollama's Modelfile, as far as it means anything for a classifier."""
    facts = gguf.manifest
    served = facts["quantisations"][facts["settings"]["serve"]]["file"]
    return (
        "# This file holds a text classifier (pooling type RANK), not a model that writes text. There is no template,\n"
        "# no stop token and nothing to chat with: what applies is the file, and how many tokens it was trained on.\n"
        "# Ollama has no call that returns label scores: use Freshet's GgufClassifier, or llama.cpp.\n"
        f"FROM ./{served}\n"
        f"PARAMETER num_ctx {facts['maximum_tokens']}\n"
    )


def _scores(found: Mapping[str, float]) -> tuple[str, str]:
    return f"{found['accuracy']:.4f}", f"{found['micro_f1']:.4f}"


def _measured(found: Mapping[str, Any]) -> tuple[str, ...]:
    tensors = ", ".join(f"{count} {name}" for name, count in found["tensor_types"].items() if name != "F32")
    return (f"{found['size'] / 1e6:.1f}", tensors, f"{found['agreement']:.4f}", *_scores(found))


def _table(rows: Mapping[str, object]) -> list[str]:
    cells = {name: value if isinstance(value, tuple) else (value,) for name, value in rows.items()}
    return [f"| {' | '.join(str(cell) for cell in (name, *values))} |" for name, values in cells.items()]


def _known(gguf: Artifact) -> list[dict[str, str]]:
    import json

    report = json.loads((gguf.path / "parity.json").read_text(encoding="utf-8"))
    return [difference for difference in report["tokens"]["differences"] if difference["known"]]

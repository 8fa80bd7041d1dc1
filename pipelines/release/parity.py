"""Does an exported file read and predict as the merged model does?

Blocking: token ids of every held-out text and of every probe without a known difference; on the held-out rows, the
share predicted alike per quantisation, and for F16 the logits themselves. What llama.cpp is known to read in another
way is reported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.evaluation.calibration import calibrated
from pipelines.evaluation.classifier import Classifier
from pipelines.evaluation.metrics import scores
from pipelines.figures import canvas, png
from pipelines.labels.examples import Example
from pipelines.release.gguf import Header
from pipelines.release.llama import GgufModel
from pipelines.release.probes import PROBES
from pipelines.release.settings import Quantisation, ReleaseSettings
from pipelines.training.dataset import indicators

F16_TOLERANCE = 0.02
"""Largest difference between F16 and original, as a share of the range of the original's logits."""


@dataclass(frozen=True, slots=True)
class QuantisationParity:
    """One file compared with the merged model on the held-out rows."""

    file: str
    file_type: str
    tensor_types: Mapping[str, int]
    size: int
    """Bytes."""
    agreement: float
    """Share of decisions that are the merged model's: one a row, or with several labels one for each row and label."""
    disagreements: int
    """Decisions that are not."""
    row_agreement: float
    """Share of rows without a disagreement."""
    max_logit_difference: float
    accuracy: float
    """Share of rows whose predicted labels are exactly the true ones."""
    micro_f1: float


@dataclass(frozen=True, slots=True)
class Parity:
    """All files compared, and the verdict."""

    reasons: tuple[str, ...]
    """Why it did not pass; empty when it did."""
    rows: int
    merged: Mapping[str, float]
    """Accuracy and micro-F1 of the merged model on the same rows."""
    tokens: Mapping[str, Any]
    """Texts compared, and every difference with its reason where that is known."""
    quantisations: Mapping[Quantisation, QuantisationParity]

    @property
    def passed(self) -> bool:
        """Whether the files may be published."""
        return not self.reasons


def compare(
    merged: Classifier,
    rows: Sequence[Example],
    files: Mapping[Quantisation, tuple[Path, Header]],
    *,
    settings: ReleaseSettings,
    progress: Callable[[str], None],
) -> Parity:
    """Compare every file with the ``merged`` model on held-out ``rows``; the vocabulary is the same in all files.

    A quantisation may disagree on the share of decisions that ``settings.minimum_agreement`` leaves, rounded up to a
    whole one: on few rows the floor cannot be finer. With several labels each is a decision of its own, or a file would
    have to be ten times as faithful to ten labels as to one.
    """
    import numpy as np

    texts = [row.text for row in rows]
    truth = indicators([row.labels for row in rows], merged.categories)
    reasons = [] if rows else ["there are no held-out rows to compare on"]
    reference = merged.logits(texts)
    expected = _decided(merged, reference)
    spread = float(np.ptp(reference)) if len(rows) else 0.0
    tokens: dict[str, Any] = {}
    found: dict[Quantisation, QuantisationParity] = {}
    for quantisation, (path, header) in files.items():
        progress(f"comparing {quantisation} with the merged model on {len(rows)} held-out rows")
        model = GgufModel(path, merged.maximum_tokens)
        if not tokens:
            tokens = _token_parity(model, merged.tokenizer, rows, merged.maximum_tokens)
            reasons += tokens["reasons"]
        logits = model.logits(texts)
        predicted = _decided(merged, logits)
        differing = predicted != expected
        rows_differing = int(differing.any(axis=1).sum())
        disagreements, decisions = (
            (int(differing.sum()), differing.size) if merged.multi_label else (rows_differing, len(rows))
        )
        difference = float(np.abs(logits - reference).max()) if len(rows) else 0.0
        result = scores(truth, predicted, merged.categories)
        found[quantisation] = QuantisationParity(
            file=path.name,
            file_type=header.file_type,
            tensor_types=header.tensor_types,
            size=path.stat().st_size,
            agreement=1 - disagreements / decisions if rows else 0.0,
            disagreements=disagreements,
            row_agreement=1 - rows_differing / len(rows) if rows else 0.0,
            max_logit_difference=difference,
            accuracy=result.accuracy,
            micro_f1=result.micro_f1,
        )
        minimum = settings.minimum_agreement[quantisation]
        if disagreements > math.ceil(round((1 - minimum) * decisions, 9)):
            reasons.append(
                f"{quantisation} predicts {rows_differing} of {len(rows)} held-out rows otherwise than the merged "
                f"model ({disagreements} of {decisions} decisions, agreement {found[quantisation].agreement:.4f}, "
                f"at least {minimum} is asked for)"
            )
        if not np.isfinite(logits).all() or (quantisation == "F16" and difference > F16_TOLERANCE * spread):
            reasons.append(
                f"{quantisation}: logits differ by up to {difference:.3g} from the merged model's, whose range is "
                f"{spread:.3g}; the head or an activation was not converted faithfully"
            )
    result = scores(truth, expected, merged.categories)
    return Parity(
        reasons=tuple(reasons),
        rows=len(rows),
        merged={"accuracy": result.accuracy, "micro_f1": result.micro_f1},
        tokens=tokens,
        quantisations=found,
    )


def plot(parity: Parity) -> bytes:
    """Size against agreement, as PNG."""
    figure, axes = canvas(width=6, height=4)
    for name, found in parity.quantisations.items():
        differing = round((1 - found.row_agreement) * parity.rows)
        label = f"{name}: {found.size / 1e6:.1f} MB, {differing} of {parity.rows} rows differ"
        axes.scatter(found.size / 1e6, 100 * found.agreement, s=70, label=label)
    lowest = min(found.agreement for found in parity.quantisations.values())
    axes.set_ylim(min(95.0, 100 * lowest - 1), 100.5)
    axes.set_xlim(left=0)
    axes.set_xlabel("size (MB)")
    axes.set_ylabel("held-out predictions as before export (%)")
    axes.legend(loc="lower left")
    axes.grid(alpha=0.3)
    return png(figure)


def _decided(merged: Classifier, logits: Any) -> Any:
    chances = calibrated(logits, merged.calibration, multi_label=merged.multi_label) if len(logits) else logits
    return indicators(merged.decide(chances) if len(logits) else [], merged.categories)


def _token_parity(model: GgufModel, tokenizer: Any, rows: Sequence[Example], maximum_tokens: int) -> dict[str, Any]:
    """Where both stacks read a text differently, cut as in training for the held-out rows, whole for the probes."""
    differences, reasons = [], []
    for probe in PROBES:
        theirs, ours = tokenizer(probe.text)["input_ids"], model.tokens(probe.text)
        if theirs != ours:
            differences.append({"probe": probe.name, "known": probe.known_difference or None})
            if not probe.known_difference:
                reasons.append(f"token ids differ on the probe {probe.name!r}: {_first(theirs, ours, tokenizer)}")
    differing = 0
    for row in rows:
        theirs = tokenizer(row.text, truncation=True, max_length=maximum_tokens)["input_ids"]
        ours = model.cut(model.tokens(row.text))
        if theirs != ours:
            differing += 1
            if differing <= 5:
                reasons.append(f"token ids differ on the held-out row {row.id}: {_first(theirs, ours, tokenizer)}")
    if differing:
        reasons.append(
            f"{differing} of {len(rows)} held-out texts would not be served as they were trained on: use a base whose "
            "tokenizer llama.cpp reads alike, or quarantine such texts"
        )
    return {
        "probes": len(PROBES),
        "held_out": len(rows),
        "held_out_differing": differing,
        "differences": differences,
        "reasons": reasons,
    }


def _first(theirs: Sequence[int], ours: Sequence[int], tokenizer: Any) -> str:
    index = next(
        (index for index, (one, other) in enumerate(zip(theirs, ours, strict=False)) if one != other),
        min(len(theirs), len(ours)),
    )
    shown = [tokenizer.convert_ids_to_tokens(list(ids[index : index + 3])) for ids in (theirs, ours)]
    return f"at token {index}, {shown[0]} in training, {shown[1]} in llama.cpp"

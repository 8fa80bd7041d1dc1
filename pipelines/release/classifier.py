"""An exported GGUF file, ready to classify texts on the CPU."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifacts import MANIFEST
from pipelines.errors import ArtifactError
from pipelines.evaluation.calibration import Calibration, calibrated
from pipelines.evaluation.classifier import Classifier
from pipelines.fingerprint import file_sha256
from pipelines.release.llama import GgufModel

if TYPE_CHECKING:
    from pipelines.release.llama import Floats


class GgufClassifier:
    """A GGUF file, and what the manifest beside it says of its labels."""

    def __init__(self, path: Path) -> None:
        """Load ``path`` and the ``manifest.json`` beside it, and hold the one against the other.

        Raises:
            ArtifactError: a file is missing or altered, or the two do not belong together.
        """
        manifest_path = path.parent / MANIFEST
        if not path.is_file() or not manifest_path.is_file():
            raise ArtifactError(f"{path} and {MANIFEST} beside it are both needed; export the model again")
        manifest: dict[str, Any] = json.loads(manifest_path.read_text(encoding="utf-8"))
        if manifest["files"].get(path.name) != file_sha256(path):
            raise ArtifactError(f"{path} differs from what its manifest says; export or publish the model again")
        self.path = path
        self.model = GgufModel(path, manifest["maximum_tokens"])
        self.categories = tuple(manifest["categories"])
        self.multi_label = bool(manifest["multi_label"])
        self.thresholds: dict[str, float] = manifest["thresholds"]
        self.calibration: Calibration | None = manifest.get("calibration")
        self.abstain_below = float(manifest.get("abstain_below", 0.0))
        if self.model.metadata("freshet.adapter") != manifest["adapter"]:
            raise ArtifactError(
                f"{path} was made from adapter {self.model.metadata('freshet.adapter')}, its manifest says "
                f"{manifest['adapter']}; export the model again"
            )
        if self.model.labels != self.categories:
            raise ArtifactError(
                f"{path} scores the labels {list(self.model.labels)}, its manifest says {list(self.categories)}"
            )

    def scores(self, texts: Sequence[str]) -> Floats:
        """Raw logits: float32 (texts, categories)."""
        return self.model.logits(texts)

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """Float32 (texts, categories): softmax with one label a text, a sigmoid for each label with several."""
        return calibrated(self.scores(texts), self.calibration, multi_label=self.multi_label)

    def predict(self, texts: Sequence[str]) -> list[list[str]]:
        """The labels of each text: the most probable, or all above their threshold."""
        rule = Classifier(
            model=None,
            tokenizer=None,
            categories=self.categories,
            multi_label=self.multi_label,
            thresholds=self.thresholds,
            maximum_tokens=self.model.maximum_tokens,
            abstain_below=self.abstain_below,
        )
        return rule.decide(self.probabilities(texts))  # by the rule that evaluation judged

"""The untuned base that a candidate has to beat: frozen encoder, logistic regression on its features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipelines.artifacts import Artifact
from pipelines.environment import available_cores
from pipelines.evaluation.calibration import calibrate, calibrated
from pipelines.evaluation.classifier import (
    Classifier,
    base_folder,
    logistic_regression,
    padding_tokenizer,
    quiet_transformers,
    run_model,
)
from pipelines.evaluation.metrics import best_threshold
from pipelines.labels.examples import read_split
from pipelines.training.dataset import indicators

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray


def base_predictions(
    adapter: Artifact, training_set: Artifact, texts: Sequence[str]
) -> tuple[NDArray[np.float32], list[list[str]]]:
    """Probabilities (texts, categories) and labels by the base of ``adapter``, its head fitted on the training split.

    Its features are the mean token vector, scaled to length 1; with several labels its threshold is chosen on the
    validation split, as the adapter's is.

    Raises:
        ArtifactError: the base model or the training set was altered.
    """
    import numpy as np
    import torch
    from transformers import AutoModel

    categories, multi_label = tuple(training_set.manifest["categories"]), bool(training_set.manifest["multi_label"])
    folder, length = base_folder(adapter), adapter.manifest["settings"]["maximum_tokens"]
    torch.set_num_threads(available_cores())
    with quiet_transformers():
        tokenizer = padding_tokenizer(folder)
        encoder = AutoModel.from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, local_files_only=True, trust_remote_code=False
        ).eval()

    def features(texts: Sequence[str]) -> torch.Tensor:
        return torch.from_numpy(run_model(encoder, tokenizer, texts, _mean_vector, maximum_tokens=length))

    rows = read_split(training_set, "train")
    truth = indicators([row.labels for row in rows], categories)
    labels = torch.from_numpy(truth.astype("float32") if multi_label else truth.argmax(axis=1))
    weight, bias = logistic_regression(features([row.text for row in rows]), labels, len(categories))

    def logits(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.asarray((features(texts) @ weight.T + bias).numpy())

    thresholds = dict.fromkeys(categories, 0.5) if multi_label else {}
    rule = Classifier(None, None, categories, multi_label, thresholds, length)
    validation = read_split(training_set, "validation")
    if validation:
        known, said = (
            indicators([row.labels for row in validation], categories),
            logits([row.text for row in validation]),
        )
        rule.calibration = calibrate(said, known, multi_label=multi_label)
        if multi_label:
            chances = calibrated(said, rule.calibration, multi_label=True)
            rule.thresholds = dict.fromkeys(categories, best_threshold(known, chances))
    found = calibrated(logits(texts), rule.calibration, multi_label=multi_label)
    return found, rule.decide(found)


def _mean_vector(output: Any, mask: Any) -> Any:
    import torch

    weights = mask.unsqueeze(-1).to(output.last_hidden_state.dtype)
    return torch.nn.functional.normalize((output.last_hidden_state * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)

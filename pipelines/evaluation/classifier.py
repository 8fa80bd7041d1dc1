"""A trained adapter on its base model, ready to classify texts."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.artifacts import Artifact
from pipelines.environment import available_cores
from pipelines.errors import ArtifactError
from pipelines.evaluation.calibration import Calibration, calibrated
from pipelines.fingerprint import file_sha256
from pipelines.models import model_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

Pooling = Literal["first", "mean"]
"""Whether a text is read by its first token's vector, or by the mean of all."""

BASE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
"""The files of a base model that decide what it does."""


def base_hashes(folder: Path) -> dict[str, str]:
    """``{file name: sha256}`` of a base model."""
    paths = sorted({path for pattern in BASE_FILES for path in folder.glob(pattern) if path.is_file()})
    return {path.name: file_sha256(path) for path in paths}


def pooling_of(folder: Path) -> Pooling:
    """What the base in ``folder`` was trained to be read by, as its sentence-transformers files say.

    Only a BERT can be told apart: of another architecture transformers' own head is taken as it is.
    """
    said = folder / "1_Pooling" / "config.json"
    if not said.is_file() or json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"] != "bert":
        return "first"
    return "mean" if json.loads(said.read_text(encoding="utf-8")).get("pooling_mode_mean_tokens") else "first"


def base_model(
    folder: Path, categories: Sequence[str], *, multi_label: bool, pooling: Pooling = "first"
) -> tuple[Any, list[str]]:
    """The base in ``folder`` with a classification head, in float32, and the modules whose weights it did not have.

    With ``pooling`` mean it has one layer more, through which the first token sees the mean of all: the head, here and
    in llama.cpp, reads the first. That layer is not for training: ``averaging`` tells its parameters.
    """
    import torch
    from transformers import AutoConfig, AutoModelForSequenceClassification

    names = dict(enumerate(categories))
    safely: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    config = AutoConfig.from_pretrained(
        folder,
        num_labels=len(categories),
        id2label=names,
        label2id={name: index for index, name in names.items()},
        problem_type="multi_label_classification" if multi_label else "single_label_classification",
        **safely,
    )
    if pooling == "mean":
        config.num_hidden_layers += 1
    if config.pad_token_id is None:  # a decoder's: it scores the last token that is no padding
        config.pad_token_id = padding_tokenizer(folder).pad_token_id
    for name in ("attention_probs_dropout_prob", "attention_dropout"):
        if hasattr(config, name):
            setattr(config, name, 0.0)  # drawing its masks takes longer on a CPU than the attention itself
    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True, **safely
    )
    if pooling == "mean":
        _average(model.base_model.encoder.layer[-1])
    return model, sorted({key.rpartition(".")[0] for key in loading["missing_keys"]})


def averaging(model: Any, pooling: Pooling) -> list[Any]:
    """The parameters of ``base_model``'s additional layer, with or without an adapter."""
    if pooling == "first":
        return []
    place = f".encoder.layer.{model.config.num_hidden_layers - 1}."
    return [value for name, value in model.named_parameters() if place in name]


def _average(layer: Any) -> None:
    """Make a BERT's layer add four times the mean of all tokens to each, normalise that, and do nothing else."""
    import torch

    attention = layer.attention
    with torch.no_grad():
        for value in layer.parameters():
            value.zero_()  # queries and keys too: all tokens weigh alike
        attention.self.value.weight.copy_(torch.eye(attention.self.value.in_features))
        attention.output.dense.weight.copy_(4 * torch.eye(attention.output.dense.in_features))
        attention.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(0.3)  # the head's tanh is nearly linear there


def padding_tokenizer(folder: Path) -> Any:
    """The tokenizer in ``folder``; a decoder's, which may know no padding, pads with the end of a text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    tokenizer.padding_side = "right"
    return tokenizer


def logistic_regression(features: Any, labels: Any, categories: int, *, penalty: float = 1.0) -> tuple[Any, Any]:
    """Weight (categories, features) and bias of a logistic regression with an L2 penalty, by full-batch L-BFGS.

    ``features`` is a float tensor (rows, width); ``labels`` holds an index a row, or a float (rows, categories) with
    several labels. Unlike scikit-learn's it takes a category without a row.
    """
    import torch

    weight = torch.zeros(categories, features.shape[1], requires_grad=True)
    bias = torch.zeros(categories, requires_grad=True)
    loss = (
        torch.nn.functional.cross_entropy if labels.dim() == 1 else torch.nn.functional.binary_cross_entropy_with_logits
    )
    labels_a_row = 1 if labels.dim() == 1 else categories  # the latter's mean is over rows and categories
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        fit = loss(features @ weight.T + bias, labels) * labels_a_row
        value: torch.Tensor = fit + 0.5 * penalty * weight.square().sum() / len(features)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call]
    return weight.detach(), bias.detach()


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Only errors, and no progress bars."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of one part of transformers about another
            yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]


def run_model(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    read: Callable[[Any, Any], Any],
    *,
    maximum_tokens: int,
    batch_size: int = 32,
) -> Floats:
    """What ``read`` takes from the model's output and the attention mask: float32 (texts, width), in their order."""
    import numpy as np
    import torch

    order = sorted(range(len(texts)), key=lambda index: len(texts[index]))  # alike lengths pad least
    parts = []
    for start in range(0, len(order), batch_size):
        batch = [texts[index] for index in order[start : start + batch_size]]
        encoded = tokenizer(batch, truncation=True, max_length=maximum_tokens, padding=True, return_tensors="pt")
        encoded = encoded.to(model.device)
        with torch.inference_mode():
            parts.append(read(model(**encoded), encoded["attention_mask"]).float().cpu().numpy())
    if not parts:
        return np.zeros((0, model.config.num_labels), dtype=np.float32)
    result = np.concatenate(parts)
    return np.asarray(result[np.argsort(order)])


@dataclass(slots=True)
class Classifier:
    """Base model and adapter, loaded from disk and verified."""

    model: Any
    """The PEFT model, in evaluation mode."""
    tokenizer: Any
    categories: tuple[str, ...]
    multi_label: bool
    thresholds: Mapping[str, float]
    """Per category, the least probability that assigns it; empty when a text has exactly one label."""
    maximum_tokens: int
    calibration: Calibration | None = None
    """What makes probabilities of the logits; None: they were never measured."""
    abstain_below: float = 0.0
    """A text whose most probable label is less probable gets none; only where a text has exactly one label."""

    def logits(self, texts: Sequence[str], *, batch_size: int = 32) -> Floats:
        """Float32 (texts, categories), in the order of ``categories``."""
        return run_model(
            self.model,
            self.tokenizer,
            texts,
            lambda output, _: output.logits,
            maximum_tokens=self.maximum_tokens,
            batch_size=batch_size,
        )

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """Float32 (texts, categories): softmax with one label a text, a sigmoid for each label with several."""
        return calibrated(self.logits(texts), self.calibration, multi_label=self.multi_label)

    def predict(self, texts: Sequence[str]) -> list[list[str]]:
        """The labels of each text."""
        return self.decide(self.probabilities(texts))

    def decide(self, probabilities: Floats) -> list[list[str]]:
        """The labels that ``probabilities`` (texts, categories) mean: the most probable, or all above threshold.

        Where a text has exactly one label, none means that the classifier abstains.
        """
        if not self.multi_label:
            sure = probabilities.max(axis=1) >= self.abstain_below
            best = probabilities.argmax(axis=1)
            return [[self.categories[index]] if known else [] for index, known in zip(best, sure, strict=True)]
        return [
            [name for name, value in zip(self.categories, row, strict=True) if value >= self.thresholds[name]]
            for row in probabilities.tolist()
        ]

    def merged(self) -> Any:
        """The transformers model with the adapter merged into its weights; this classifier is used up by it."""
        return self.model.merge_and_unload(safe_merge=True)


def base_folder(adapter: Artifact) -> Path:
    """Folder of the base model that ``adapter`` was trained on, verified.

    Raises:
        ArtifactError: it is no adapter, or the base is another one now.
        ConfigError: the base model is not there.
    """
    manifest = adapter.manifest
    if manifest.get("kind") != "lora_adapter":
        raise ArtifactError(f"{adapter.path} holds kind {manifest.get('kind')!r}, not 'lora_adapter'")
    folder = model_folder(manifest["base_model"], manifest["base_revision"])
    wanted, found = manifest["base_files"], base_hashes(folder)
    differing = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    if differing:
        raise ArtifactError(
            f"{adapter.path} was trained on another {manifest['base_model']!r}: {', '.join(differing)} in {folder} "
            "differ; bring that base back, or train again"
        )
    return folder


def load_classifier(adapter: Artifact) -> Classifier:
    """Put ``adapter`` on the base model that it was trained on.

    Raises:
        ArtifactError: it is no adapter, its base is not the one it was trained on, or a tensor of it has no place.
        ConfigError: the base model is not there.
    """
    import torch
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors.torch import load_file

    manifest, folder = adapter.manifest, base_folder(adapter)
    torch.set_num_threads(available_cores())
    with quiet_transformers():  # it would report the head as missing from the base: it comes with the adapter
        base, _ = base_model(
            folder,
            manifest["categories"],
            multi_label=manifest["multi_label"],
            pooling=manifest.get("pooling", "first"),
        )
        model = PeftModel.from_pretrained(base, adapter.path, local_files_only=True).eval()
    stored, loaded = (
        load_file(adapter.path / "adapter_model.safetensors"),
        get_peft_model_state_dict(model, save_embedding_layers=False),
    )
    lost = sorted(
        name
        for name in stored.keys() | loaded.keys()
        if name not in stored or name not in loaded or not torch.equal(stored[name], loaded[name].cpu())
    )
    if lost:
        raise ArtifactError(f"{adapter.path}: tensors that did not load as stored: {', '.join(lost[:5])}; train again")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Classifier(
        model=model.to(device),
        tokenizer=padding_tokenizer(adapter.path),
        categories=tuple(manifest["categories"]),
        multi_label=manifest["multi_label"],
        thresholds=manifest["thresholds"],
        maximum_tokens=manifest["settings"]["maximum_tokens"],
        calibration=manifest.get("calibration"),
        abstain_below=manifest["settings"].get("abstain_below", 0.0),
    )

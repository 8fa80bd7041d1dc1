"""Fine-tuning a sequence classifier with LoRA, by peft and transformers' Trainer."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.artifacts import Artifact
from pipelines.environment import available_cores
from pipelines.errors import ExamplesError
from pipelines.evaluation.calibration import calibrate, calibrated
from pipelines.evaluation.classifier import (
    Classifier,
    averaging,
    base_model,
    logistic_regression,
    padding_tokenizer,
    pooling_of,
)
from pipelines.evaluation.metrics import best_threshold, score, scores
from pipelines.labels.examples import Example
from pipelines.training.dataset import indicators, rows_to_fit
from pipelines.training.lora import bf16_is_faster, save, with_adapter
from pipelines.training.memory import most_at_once, with_smaller_batches
from pipelines.training.processes import add_up_gradients
from pipelines.training.progress import Progress, recorder
from pipelines.training.settings import ClassifySettings
from pipelines.training.trainer import arguments, fit

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

PROBED_ROWS = 5_000
"""Most training rows that the head's starting point is fitted on."""

HEADS = {"pooler"}
"""Modules that are trained whole besides those that the base has no weights for (the classifier always is)."""


def fit_classifier(
    settings: ClassifySettings,
    training_set: Artifact,
    base: Path,
    folder: Path,
    work: Path,
    progress: Callable[[Progress], None],
    *,
    refit: bool = False,
) -> dict[str, Any]:
    """Train, write the adapter's files to ``folder``, and return what is particular to it in the manifest.

    ``work`` survives a kill: checkpoints and the progress so far. A ``refit`` trains on the validation rows too.

    Raises:
        ExamplesError: there is too little to learn from.
        ConfigError: the base has no layers of the names to adapt.
        TrainingError: the loss is not finite, training ended early, or not even one row fits into memory.
    """
    import torch
    from transformers import Trainer, set_seed

    started = time.monotonic()
    multi_label = bool(training_set.manifest["multi_label"])
    categories = tuple(training_set.manifest["categories"])
    rows, validation_rows = rows_to_fit(training_set, refit=refit)
    if len(categories) < 2 or len(rows) < 2:
        raise ExamplesError(
            f"{training_set.path} has {len(rows)} training rows in {len(categories)} categories; "
            "at least 2 of each are needed: add labelled examples"
        )
    validation_rows.sort(key=lambda row: len(row.text))  # alike lengths pad least
    torch.set_num_threads(available_cores())
    set_seed(settings.seed)  # before the model: its head starts at random
    precision = "bf16" if bf16_is_faster() else "fp32"
    tokenizer = padding_tokenizer(base)
    pooling = pooling_of(base)
    model, missing = base_model(base, categories, multi_label=multi_label, pooling=pooling)
    if precision == "bf16" and not torch.cuda.is_available() and settings.maximum_tokens <= 256:
        model.set_attn_implementation("eager")  # a third faster there than the fused one, whose backward pass is slow

    def encoded(rows: Sequence[Example]) -> list[dict[str, Any]]:
        ids = tokenizer([row.text for row in rows], truncation=True, max_length=settings.maximum_tokens)["input_ids"]
        truth = indicators([row.labels for row in rows], categories)
        labels = truth.astype("float32") if multi_label else truth.argmax(axis=1)
        return [{"input_ids": text, "labels": label} for text, label in zip(ids, labels.tolist(), strict=True)]

    def padded(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids = [torch.tensor(row["input_ids"]) for row in batch]
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    def validation_score(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        if multi_label:
            chances = calibrated(logits, None, multi_label=True)
            return {"score": score(labels.astype(bool), chances >= 0.5, "micro_f1")}
        return {"score": float((logits.argmax(axis=1) == labels).mean())}

    data, watch = encoded(rows), recorder(progress, work, len(rows), settings.patience)
    longest = max(len(row["input_ids"]) for row in data)
    drawn = torch.randperm(len(data))[:PROBED_ROWS].tolist()
    probed = sorted((data[index] for index in drawn), key=lambda row: len(row["input_ids"]))
    batches = [padded(probed[start : start + 32]) for start in range(0, len(probed), 32)]
    _start_head(model, batches, bf16=precision == "bf16")
    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    model = with_adapter(model, settings, task="SEQ_CLS", whole=sorted({*missing, *(HEADS & leaves)}))

    loss_of = loss_function(settings, indicators([row.labels for row in rows], categories), multi_label=multi_label)

    class GroupedTrainer(Trainer):
        """Trains on batches of alike lengths, an optimiser step each; ``tokens_at_once`` go through the model."""

        tokens_at_once: int

        def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Any:
            model.train()
            inputs = self._prepare_inputs(inputs)
            alone: Any = self.model  # without what waits for the other processes after each part
            examples, width = inputs["input_ids"].shape
            most = min(examples, max(1, self.tokens_at_once // width))

            def step(at_once: int) -> Any:
                if at_once < most:
                    self.tokens_at_once = at_once * width
                alone.zero_grad()  # of a try that ran out of memory
                loss = torch.zeros((), device=self.args.device)
                for start in range(0, examples, at_once):
                    some = {name: value[start : start + at_once] for name, value in inputs.items()}
                    labels, longest = some.pop("labels"), int(some["attention_mask"].sum(dim=1).max())
                    outputs = alone(**{name: value[:, :longest] for name, value in some.items()})
                    part = loss_of(outputs, labels, num_items_in_batch)
                    self.accelerator.backward(part)
                    loss += part.detach()
                return loss

            loss = with_smaller_batches(step, most, logger.warning)
            add_up_gradients(alone)
            return loss * self.args.world_size  # the Trainer takes the mean over processes

        def get_train_dataloader(self) -> Any:
            sampler = AlikeLengths([len(row["input_ids"]) for row in data], settings.batch_size, seed=settings.seed)
            loader: Any = torch.utils.data.DataLoader(
                data,  # type: ignore[arg-type]  # a list will do
                self.args.per_device_train_batch_size,
                sampler=sampler,
                collate_fn=padded,
                pin_memory=torch.cuda.is_available(),
            )
            return self.accelerator.prepare(loader)

        def evaluate(self, *args: Any, **more: Any) -> dict[str, float]:
            if self.args.world_size == 1:  # several processes have to agree
                # Without gradients to keep.
                self.args.per_device_eval_batch_size = 2 * max(1, self.tokens_at_once // longest)
            return super().evaluate(*args, **more)

        def create_optimizer(self, model: Any = None) -> Any:
            for value in averaging(self.model, pooling):  # peft trains what it saves whole
                value.requires_grad_(False)
            return super().create_optimizer(model)

    trainer = GroupedTrainer(
        model=model,
        args=arguments(settings, work, bf16=precision == "bf16", validate=bool(validation_rows)),
        train_dataset=data,
        eval_dataset=encoded(validation_rows) if validation_rows else None,
        data_collator=padded,
        compute_loss_func=loss_of,
        compute_metrics=validation_score,
    )
    rows_at_once = most_at_once(settings, longest, trainer.args.world_size)
    trainer.tokens_at_once = rows_at_once * longest
    trainer.args.per_device_eval_batch_size = 2 * rows_at_once
    state, losses = fit(trainer, watch, settings, work), [point.loss for point in watch.points]
    save(model, tokenizer, folder, settings)

    classifier = Classifier(
        model=model.eval(),
        tokenizer=tokenizer,
        categories=categories,
        multi_label=multi_label,
        thresholds=dict.fromkeys(categories, 0.5) if multi_label else {},
        maximum_tokens=settings.maximum_tokens,
        abstain_below=settings.abstain_below,
    )
    validation = None
    if validation_rows:
        truth = indicators([row.labels for row in validation_rows], categories)
        logits = classifier.logits([row.text for row in validation_rows])
        classifier.calibration = calibrate(logits, truth, multi_label=multi_label)
        chances = calibrated(logits, classifier.calibration, multi_label=multi_label)
        if multi_label:
            classifier.thresholds = dict.fromkeys(categories, best_threshold(truth, chances))
        validation = asdict(scores(truth, indicators(classifier.decide(chances), categories), categories))
    return {
        "categories": list(categories),
        "multi_label": multi_label,
        "pooling": pooling,
        "thresholds": dict(classifier.thresholds),
        "calibration": classifier.calibration,
        "effective": {
            "rows": len(rows),
            "validation_rows": len(validation_rows),
            "epochs": state.epoch,
            "best_epoch": watch.best_epoch,
            "steps": state.global_step,
            "stopped_early": watch.stopped_early,
            "tokens": int(state.num_input_tokens_seen),
            "tokens_at_once": trainer.tokens_at_once,
            "rows_cut": sum(len(row["input_ids"]) == settings.maximum_tokens for row in data),
            "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        },
        "loss": {"first": losses[0], "last": losses[-1]},
        "validation": validation,
        "precision": precision,
        "seconds": round(time.monotonic() - started, 2),
    }


def loss_function(settings: ClassifySettings, truth: NDArray[np.bool_], *, multi_label: bool) -> Callable[..., Any]:
    """The loss by ``outputs`` and ``labels`` of a batch, a mean over rows, or over all labels of all rows.

    With one label a row it is smoothed (Szegedy et al., 2016, arXiv:1512.00567). With ``class_weights: balanced`` rare
    categories of ``truth`` (rows, categories), the training split's, count more: by the inverse of their frequency, ten
    times at most, so that a handful of rows does not rule the training.
    """
    import numpy as np
    import torch

    weights = None
    if settings.class_weights == "balanced":
        counts = np.maximum(truth.sum(axis=0), 1)
        usual = (len(truth) - counts) / counts if multi_label else len(truth) / (len(counts) * counts)
        weights = torch.tensor(np.clip(usual, 0.1, 10.0), dtype=torch.float32)

    def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
        logits, functional = outputs["logits"].float(), torch.nn.functional
        each = None if weights is None else weights.to(logits.device)
        if multi_label:
            total = functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=each, reduction="sum")
        else:
            smoothing = settings.label_smoothing
            total = functional.cross_entropy(logits, labels, weight=each, reduction="sum", label_smoothing=smoothing)
        return total / (labels.numel() if num_items_in_batch is None else num_items_in_batch)

    return loss


class AlikeLengths:
    """Example indices in a new order each pass: ``batch_size`` in a row have alike lengths, and batches come at random.

    transformers' own grouping runs from long to short again and again; what long texts are about then comes in waves.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, *, seed: int, batches_sorted_together: int = 50
    ) -> None:
        self._lengths, self._batch_size = lengths, batch_size
        self._pool = batch_size * batches_sorted_together
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """The order is one of the seed and the epoch alone, so that a resumed training finds it again."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        import torch

        draw = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        drawn = torch.randperm(len(self._lengths), generator=draw).tolist()
        last = len(drawn) % self._batch_size
        whole, rest = drawn[: len(drawn) - last], drawn[len(drawn) - last :]
        batches = []
        for start in range(0, len(whole), self._pool):
            pool = sorted(whole[start : start + self._pool], key=lambda index: self._lengths[index])
            batches += [pool[at : at + self._batch_size] for at in range(0, len(pool), self._batch_size)]
        for number in torch.randperm(len(batches), generator=draw).tolist():
            yield from batches[number]
        yield from rest


def _start_head(model: Any, batches: Sequence[dict[str, Any]], *, bf16: bool) -> None:
    """Start from a linear probe instead of a random head (LP-FT: Kumar et al., 2022, arXiv:2202.10054).

    A sentence encoder's pooler was never trained, so it starts as the identity, and the classifier as the logistic
    regression on what reaches it. Without this, MiniLM spends its first epochs on predicting the categories' shares.
    """
    import torch

    classifier = [module for module in model.modules() if isinstance(module, torch.nn.Linear)][-1]
    pooler = getattr(getattr(model.base_model, "pooler", None), "dense", None)
    if pooler is not None and pooler.in_features == pooler.out_features:
        torch.nn.init.eye_(pooler.weight)
        torch.nn.init.zeros_(pooler.bias)
    reached: list[torch.Tensor] = []
    device = "cuda" if torch.cuda.is_available() else "cpu"
    hook = classifier.register_forward_pre_hook(lambda _module, inputs: reached.append(inputs[0].float().cpu()))
    model.to(device).eval()
    with torch.inference_mode(), torch.autocast(device, torch.bfloat16, enabled=bf16):
        for batch in batches:
            model(**{name: value.to(device) for name, value in batch.items() if name != "labels"})
    hook.remove()
    if reached[0].dim() == 3:  # a decoder's head scores every token; the last one is the text's
        lasts = [batch["attention_mask"].sum(dim=1) - 1 for batch in batches]
        reached = [each[torch.arange(len(each)), last] for each, last in zip(reached, lasts, strict=True)]
    weight, bias = logistic_regression(
        torch.cat(reached).clone(), torch.cat([batch["labels"] for batch in batches]), classifier.out_features
    )
    with torch.no_grad():
        classifier.weight.copy_(weight)
        if classifier.bias is not None:
            classifier.bias.copy_(bias)

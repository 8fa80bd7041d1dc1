"""LoRA fine-tuning of an encoder for classification (Hu et al., 2021, arXiv:2106.09685), by peft and transformers."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pipelines.artifacts import MANIFEST, Artifact, alone, load, seal, writing
from pipelines.environment import available_cores
from pipelines.errors import ArtifactError, ConfigError, ExamplesError, TrainingError
from pipelines.evaluation.classifier import (
    Classifier,
    base_hashes,
    base_model,
    logistic_regression,
    probabilities,
    quiet_transformers,
)
from pipelines.evaluation.metrics import best_threshold, score, scores
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import Example, read_split
from pipelines.models import model_folder
from pipelines.settings import Settings
from pipelines.training.dataset import indicators, training_set_at
from pipelines.training.progress import Progress, recorder
from pipelines.training.settings import FineTuneSettings

TRAINER = "2"
"""Version of what this module makes of equal inputs; part of the adapter's fingerprint."""

PROBED_ROWS = 5_000
"""Most training rows that the head's starting point is fitted on."""

HEADS = {"pooler"}
"""Modules that are trained whole besides those that the base has no weights for (the classifier always is)."""


class TrainingJob(Settings):
    """Everything one training needs; ``python -m pipelines.training`` reads it as JSON."""

    use_case: str
    training_set: Path
    """Folder of the frozen training set."""
    output: Path
    """Folder of the use case's adapters: this one becomes ``<output>/<fingerprint>``."""
    settings: FineTuneSettings = FineTuneSettings()


def adapter_fingerprint(job: TrainingJob, training_set: Artifact, base_files: Mapping[str, str]) -> str:
    """What an adapter is made from: base, training set, settings and trainer, not the machine it is made on."""
    settings = job.settings.model_dump(mode="json")
    return fingerprint("lora_adapter", TRAINER, job.use_case, training_set.fingerprint, settings, dict(base_files))


def train(job: TrainingJob, *, progress: Callable[[Progress], None]) -> Artifact:
    """Fine-tune and return the finished adapter; one made from equal inputs before is returned as it is.

    ``progress`` is called about every second; what it raises ends the training, and nothing is left of it.

    Raises:
        ArtifactError: the training set is incomplete or altered.
        ExamplesError: it has too little to learn from.
        ConfigError: the base model is not there, or has no layers of the names to adapt.
        LockedError: another training writes to the same folder.
        TrainingError: the loss is not finite, or training ended early.
    """
    training_set = training_set_at(job.training_set)
    base = model_folder(job.settings.base_model, job.settings.base_revision)
    base_files = base_hashes(base)
    key = adapter_fingerprint(job, training_set, base_files)
    folder = job.output / key
    with alone(job.output / ".training.lock", "training"):
        finished = _finished(folder)
        if finished is not None:
            return finished
        for left in job.output.glob(".*.*"):  # by trainings that were killed
            if left.is_dir():
                shutil.rmtree(left)
        with writing(folder) as scratch, quiet_transformers():
            manifest = _fit(job, training_set, base, scratch, progress)
            seal(scratch, {"fingerprint": key, "base_files": base_files, **manifest})
        return load(folder)


def _finished(folder: Path) -> Artifact | None:
    """The adapter in ``folder``; None where there is none, or an altered one that has to be made again."""
    try:
        return load(folder) if (folder / MANIFEST).is_file() else None
    except ArtifactError:
        return None


def _fit(
    job: TrainingJob, training_set: Artifact, base: Path, folder: Path, progress: Callable[[Progress], None]
) -> dict[str, Any]:
    """Train, write the adapter's files to ``folder`` and return what its manifest says."""
    import torch
    from peft import set_peft_model_state_dict
    from transformers import AutoTokenizer, PrinterCallback, Trainer, set_seed

    started = time.monotonic()
    settings, multi_label = job.settings, bool(training_set.manifest["multi_label"])
    categories = tuple(training_set.manifest["categories"])
    rows, validation_rows = read_split(training_set, "train"), read_split(training_set, "validation")
    if len(categories) < 2 or len(rows) < 2:
        raise ExamplesError(
            f"{training_set.path} has {len(rows)} training rows in {len(categories)} categories; "
            "at least 2 of each are needed: add labelled examples"
        )
    validation_rows.sort(key=lambda row: len(row.text))  # alike lengths pad least
    torch.set_num_threads(available_cores())
    torch.set_flush_denormal(True)
    set_seed(settings.seed)  # before the model: its head starts at random
    precision = "bf16" if _bf16_is_faster() else "fp32"
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    model, missing = base_model(base, categories, multi_label=multi_label)
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
            "input_ids": pad(ids, batch_first=True, padding_value=tokenizer.pad_token_id or 0),
            "attention_mask": pad([torch.ones_like(row) for row in ids], batch_first=True),
            "labels": torch.tensor([row["labels"] for row in batch]),
        }

    def validation_score(prediction: Any) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        if multi_label:
            chances = probabilities(logits, multi_label=True)
            return {"score": score(labels.astype(bool), chances >= 0.5, "micro_f1")}
        return {"score": float((logits.argmax(axis=1) == labels).mean())}

    data, watch = encoded(rows), recorder(progress, folder / "progress.jsonl", len(rows))
    drawn = torch.randperm(len(data))[:PROBED_ROWS].tolist()
    probed = sorted((data[index] for index in drawn), key=lambda row: len(row["input_ids"]))
    batches = [padded(probed[start : start + 32]) for start in range(0, len(probed), 32)]
    _start_head(model, batches, bf16=precision == "bf16")
    model = _with_adapter(model, missing, settings)

    class GroupedTrainer(Trainer):
        """Trains on batches of alike lengths."""

        def get_train_dataloader(self) -> Any:
            sampler = AlikeLengths([len(row["input_ids"]) for row in data], settings.batch_size)
            loader: Any = torch.utils.data.DataLoader(
                data,  # type: ignore[arg-type]  # a list will do
                settings.batch_size,
                sampler=sampler,
                collate_fn=padded,
                pin_memory=torch.cuda.is_available(),
            )
            return self.accelerator.prepare(loader)

    trainer = GroupedTrainer(
        model=model,
        args=_arguments(settings, folder, bf16=precision == "bf16", validate=bool(validation_rows)),
        train_dataset=data,
        eval_dataset=encoded(validation_rows) if validation_rows else None,
        data_collator=padded,
        compute_metrics=validation_score,
        callbacks=[watch],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    state, losses = trainer.state, [point.loss for point in watch.points]
    if state.global_step != state.max_steps or not math.isfinite(losses[-1]):
        raise TrainingError(
            f"training ended at step {state.global_step} of {state.max_steps} with loss {losses[-1]}; "
            "lower learning_rate and train again"
        )
    if watch.best is not None:
        set_peft_model_state_dict(model, watch.best)
    _save(model, tokenizer, folder, settings)

    classifier = Classifier(
        model=model.eval(),
        tokenizer=tokenizer,
        categories=categories,
        multi_label=multi_label,
        thresholds=dict.fromkeys(categories, 0.5) if multi_label else {},
        maximum_tokens=settings.maximum_tokens,
    )
    validation = None
    if validation_rows:
        truth = indicators([row.labels for row in validation_rows], categories)
        chances = classifier.probabilities([row.text for row in validation_rows])
        if multi_label:
            classifier.thresholds = dict.fromkeys(categories, best_threshold(truth, chances))
        validation = asdict(scores(truth, indicators(classifier.decide(chances), categories), categories))
    return {
        "kind": "lora_adapter",
        "use_case": job.use_case,
        "task": settings.task,
        "base_model": settings.base_model,
        "base_revision": settings.base_revision,
        "training_set": training_set.fingerprint,
        "categories": list(categories),
        "multi_label": multi_label,
        "thresholds": dict(classifier.thresholds),
        "settings": settings.model_dump(mode="json"),
        "effective": {
            "rows": len(rows),
            "validation_rows": len(validation_rows),
            "epochs": state.epoch,
            "best_epoch": watch.best_epoch,
            "steps": state.global_step,
            "tokens": int(state.num_input_tokens_seen),
            "rows_cut": sum(len(row["input_ids"]) == settings.maximum_tokens for row in data),
            "trained_parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        },
        "loss": {"first": losses[0], "last": losses[-1]},
        "validation": validation,
        "trainer": TRAINER,
        "versions": {name: version(name) for name in ("torch", "transformers", "peft", "accelerate")},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "precision": precision,
        "seconds": round(time.monotonic() - started, 2),
    }


class AlikeLengths:
    """Example indices in a new order each pass: ``batch_size`` in a row have alike lengths, and batches come at random.

    transformers' own grouping runs from long to short again and again; what long texts are about then comes in waves.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, batches_sorted_together: int = 50) -> None:
        self._lengths, self._batch_size = lengths, batch_size
        self._pool = batch_size * batches_sorted_together

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        import torch

        drawn = torch.randperm(len(self._lengths)).tolist()
        last = len(drawn) % self._batch_size
        whole, rest = drawn[: len(drawn) - last], drawn[len(drawn) - last :]
        batches = []
        for start in range(0, len(whole), self._pool):
            pool = sorted(whole[start : start + self._pool], key=lambda index: self._lengths[index])
            batches += [pool[at : at + self._batch_size] for at in range(0, len(pool), self._batch_size)]
        for number in torch.randperm(len(batches)).tolist():
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
    weight, bias = logistic_regression(
        torch.cat(reached).clone(), torch.cat([batch["labels"] for batch in batches]), classifier.out_features
    )
    with torch.no_grad():
        classifier.weight.copy_(weight)
        classifier.bias.copy_(bias)


def _with_adapter(model: Any, missing: Sequence[str], settings: FineTuneSettings) -> Any:
    """``model`` with a fresh adapter: LoRA on its layers, and trained whole its heads and what the base lacked."""
    from peft import LoraConfig, TaskType, get_peft_model

    leaves = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    targets = settings.lora.target_modules
    config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=settings.lora.dropout,
        target_modules=targets if targets == "all-linear" else list(targets),
        modules_to_save=sorted({*missing, *(HEADS & leaves)}),
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"target_modules {targets!r} do not fit {settings.base_model!r}: {error}") from error
    _share_dropout_masks(adapted)
    return adapted


def _share_dropout_masks(model: Any) -> None:
    """Give all tokens of a text the same dropout mask (Gal and Ghahramani, 2016, arXiv:1512.05287).

    A mask for each token takes half of a CPU's step to draw.
    """
    import torch

    class SharedDropout(torch.nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name for it
            if not self.training or self.p == 0 or input.dim() != 3:
                return super().forward(input)
            mask = torch.empty((input.shape[0], 1, input.shape[2]), dtype=input.dtype, device=input.device)
            return input * mask.bernoulli_(1 - self.p).div_(1 - self.p)

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is torch.nn.Dropout:
                parent.add_module(name, SharedDropout(module.p))


def _arguments(settings: FineTuneSettings, folder: Path, *, bf16: bool, validate: bool) -> Any:
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size * 2,
        warmup_steps=settings.warmup_share,
        weight_decay=settings.weight_decay,
        include_num_input_tokens_seen="non_padding",
        use_cpu=not torch.cuda.is_available(),
        bf16=bf16,
        seed=settings.seed,
        eval_strategy="epoch" if validate else "no",
        save_strategy="no",  # the recorder keeps the best epoch in memory
        logging_strategy="no",  # the recorder says when
        logging_nan_inf_filter=False,
        remove_unused_columns=False,
        label_names=["labels"],
        report_to="none",
        disable_tqdm=True,
    )


def _save(model: Any, tokenizer: Any, folder: Path, settings: FineTuneSettings) -> None:
    """A standard PEFT adapter that names its base without this machine's paths."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = (
        Path(settings.base_model).name if Path(settings.base_model).is_dir() else settings.base_model
    )
    config.revision = settings.base_revision
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card; the release writes one from the manifest
    tokenizer.save_pretrained(folder)


def _bf16_is_faster() -> bool:
    """On CUDA since Ampere, and on CPUs that multiply bf16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))

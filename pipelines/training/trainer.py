"""transformers' Trainer as both tasks use it: its arguments, and a training that goes on where a killed one was."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from pipelines.errors import TrainingError
from pipelines.training.checkpoints import checkpointing, last_checkpoint, stopping_on_sigterm
from pipelines.training.processes import processes
from pipelines.training.settings import ClassifySettings, FineTuneSettings


def arguments(
    settings: FineTuneSettings,
    work: Path,
    *,
    bf16: bool,
    validate: bool,
    **particular: Any,
) -> Any:
    """``TrainingArguments`` of either task; ``particular`` ones win.

    A batch is an optimiser step's ``settings.batch_size`` examples, shared evenly by the processes; the trainer itself
    takes it to pieces that fit into memory.
    """
    import torch
    from transformers import TrainingArguments

    on_cpu = not torch.cuda.is_available()
    rows = settings.batch_size // processes()
    common: dict[str, Any] = {
        "output_dir": str(work),
        "num_train_epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows * 2,
        "warmup_steps": settings.warmup_share,
        "weight_decay": settings.weight_decay,
        "include_num_input_tokens_seen": "non_padding",
        "use_cpu": on_cpu,
        **({"ddp_backend": "gloo"} if on_cpu and processes() > 1 else {}),
        "ddp_find_unused_parameters": False,
        "bf16": bf16,
        "seed": settings.seed,
        "eval_strategy": "epoch" if validate else "no",
        "save_strategy": "no",  # ``checkpointing`` says when
        "logging_strategy": "no",  # the recorder says when
        "logging_nan_inf_filter": False,
        "remove_unused_columns": False,
        "label_names": ["labels"],
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(**{**common, **particular})


def fit(trainer: Any, watch: Any, settings: FineTuneSettings, work: Path) -> Any:
    """Train to the end, from the last checkpoint in ``work`` where there is one; return the ``TrainerState``.

    Afterwards the model has the adapter of the best evaluation, or the last one where nothing was evaluated. The order
    of examples is the same as without a break where the sampler of ``get_train_dataloader`` has ``set_epoch`` and
    draws by nothing but a seed and that epoch.

    Args:
        trainer: has no callbacks of ours yet.
        watch: of ``pipelines.training.progress.recorder``.
        settings: of the training.
        work: the training's folder, the Trainer's ``output_dir``.

    Raises:
        TrainingInterruptedError: it was told to stop (SIGTERM); a checkpoint has been written.
        TrainingError: the loss is not finite, or training ended early.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file
    from transformers import PrinterCallback, TrainerState

    if isinstance(settings, ClassifySettings):  # peft's wrapper hides it: the loss is a mean over rows, to be averaged
        trainer.model_accepts_loss_kwargs = False
    saver = checkpointing(work, settings.checkpoint_minutes)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(_order_of_examples())
    trainer.add_callback(watch)
    trainer.add_callback(saver)
    checkpoint = last_checkpoint(work)
    if checkpoint is not None:
        watch.restore(checkpoint)
    state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")) if checkpoint is not None else None
    if checkpoint is not None and state is not None and (watch.stopped_early or state.global_step == state.max_steps):
        set_peft_model_state_dict(trainer.model, load_file(checkpoint / "adapter_model.safetensors"))
        trainer.model.to(trainer.args.device)
    else:
        with stopping_on_sigterm(saver):
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        state = trainer.state
    loss = watch.points[-1].loss
    if not math.isfinite(loss) or not (watch.stopped_early or state.global_step == state.max_steps):
        raise TrainingError(
            f"training ended at step {state.global_step} of {state.max_steps} with loss {loss}; "
            "lower learning_rate and train again"
        )
    if watch.best is not None:
        set_peft_model_state_dict(trainer.model, watch.best)
    return state


def _order_of_examples() -> Any:
    """A callback that tells the sampler which epoch begins; after a resume on several devices the Trainer does not."""
    from transformers import TrainerCallback

    class Order(TrainerCallback):
        def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
            sampler = kwargs["train_dataloader"].batch_sampler
            while sampler is not None:
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(int(state.epoch or 0))
                sampler = getattr(sampler, "batch_sampler", None) or getattr(sampler, "sampler", None)

    return Order()

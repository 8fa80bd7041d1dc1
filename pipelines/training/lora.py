"""LoRA adapters (Hu et al., 2021, arXiv:2106.09685) by peft: put on a model, and saved; for either task."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.errors import ConfigError
from pipelines.training.packing import packed_lengths
from pipelines.training.settings import FineTuneSettings


def with_adapter(model: Any, settings: FineTuneSettings, *, task: str, whole: Sequence[str] = ()) -> Any:
    """``model`` with a fresh adapter on its layers; the modules named in ``whole`` are trained whole.

    ``task`` is peft's (SEQ_CLS, CAUSAL_LM).

    Raises:
        ConfigError: the model has no layers of the names to adapt, or no numbered blocks where only some are wanted.
    """
    from peft import LoraConfig, get_peft_model

    targets = settings.lora.target_modules
    config = LoraConfig(
        task_type=task,
        r=settings.lora.rank,
        lora_alpha=settings.lora.alpha,  # type: ignore[arg-type]  # any number works
        lora_dropout=settings.lora.dropout,
        target_modules=targets if targets == "all-linear" else list(targets),
        exclude_modules=_lower_blocks(model, settings),
        modules_to_save=list(whole) or None,
        use_rslora=settings.lora.variant == "rslora",
        use_dora=settings.lora.variant == "dora",
    )
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ConfigError(f"target_modules {targets!r} do not fit {settings.base_model!r}: {error}") from error
    _share_dropout_masks(adapted)
    return adapted


def _lower_blocks(model: Any, settings: FineTuneSettings) -> str | None:
    """A pattern of the modules in the blocks that stay as they are, or None where all are adapted."""
    import torch

    share = settings.lora.upper_layers
    if share == 1:
        return None
    count = model.config.get_text_config().num_hidden_layers
    stacks = [
        re.escape(name)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == count
    ]
    if not stacks:
        raise ConfigError(
            f"upper_layers {share:g} does not fit {settings.base_model!r}, which has no stack of {count} blocks: leave "
            "it out, or name the layers to adapt in target_modules"
        )
    lower = range(count - max(1, round(share * count)))
    return rf"({'|'.join(stacks)})\.({'|'.join(map(str, lower))})\..*" if lower else None


def _share_dropout_masks(model: Any) -> None:
    """Give all tokens of a text the same dropout mask (Gal and Ghahramani, 2016, arXiv:1512.05287), packed or not.

    A mask for each token takes half of a CPU's step to draw.
    """
    import torch

    class SharedDropout(torch.nn.Dropout):
        def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - torch's name for it
            if not self.training or self.p == 0 or input.dim() != 3:
                return super().forward(input)
            lengths = packed_lengths()
            shape = (len(lengths) or input.shape[0], 1, input.shape[2])
            mask = torch.empty(shape, dtype=input.dtype, device=input.device).bernoulli_(1 - self.p).div_(1 - self.p)
            if lengths:
                mask = mask.squeeze(1).repeat_interleave(torch.tensor(lengths, device=mask.device), dim=0)[None]
            return input * mask

    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is torch.nn.Dropout:
                parent.add_module(name, SharedDropout(module.p))


def save(model: Any, tokenizer: Any, folder: Path, settings: FineTuneSettings) -> None:
    """A standard PEFT adapter that names its base without this machine's paths."""
    config = model.peft_config["default"]
    config.base_model_name_or_path = (
        Path(settings.base_model).name if Path(settings.base_model).is_dir() else settings.base_model
    )
    config.revision = settings.base_revision
    model.save_pretrained(folder, safe_serialization=True, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # peft's card; the release writes one from the manifest
    tokenizer.save_pretrained(folder)


def bf16_is_faster() -> bool:
    """On CUDA since Ampere, and on CPUs that multiply bf16 matrices in hardware."""
    import torch

    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(found.get("amx_bf16") or found.get("avx512_bf16"))

"""Memory and time: what a training will need, said before it starts, and smaller batches where it was not enough."""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from pipelines.artifacts import Artifact
from pipelines.errors import ConfigError, TrainingError
from pipelines.labels.examples import Example, read_split
from pipelines.training.checkpoints import KEPT
from pipelines.training.lora import bf16_is_faster, with_adapter
from pipelines.training.settings import FineTuneSettings, GenerateSettings

T = TypeVar("T")

COUNTED_ROWS = 1_000
"""Most rows that are tokenised to see how long they are."""

UNDERESTIMATED = 0.75
"""A training is refused when this share of the estimate is more than there is: what fits is never refused."""

ADVICE = (
    "lower maximum_tokens or lora.rank, set quantised_base: nf4 (task generate, on a GPU), name a smaller base_model, "
    "or train on a machine with more memory"
)


EFFICIENCY = 0.4
"""Of a plain matrix product's speed that a training's products reach."""

MOVED = {"cpu": 20, "cuda": 6}
"""Times what is kept for the backward pass is read or written; on a busy CPU 22 to 28, on a GPU assumed."""

TOKENS_AT_ONCE = 2048
"""Where nothing else is said, of chats and on a CPU: more is no faster there, nor with chats and 24 layers on a GPU."""

LOGITS_BYTES = 2**27
"""Of chats, whose logits are computed a part at a time, with their gradients."""

QUANTISED_BYTES = {"nf4": 0.57, "int8": 1.03}
"""Bytes of a weight with its share of the scales."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a training will need on each device."""

    tokens_at_once: int
    """That fit; an optimiser step may take them several times."""
    reduced: bool
    """Whether more at once would have been taken, had there been the memory."""
    saves_memory: bool
    """Whether activations are computed twice: by the settings, or because not even one example would fit otherwise."""
    longest: int
    """Tokens of the longest example."""
    weights_bytes: int
    adapter_bytes: int
    """The adapter with its gradients and AdamW's two moments, in float32."""
    activations_bytes: int
    """What is kept from the forward to the backward pass of ``rows`` examples, and the largest steps between."""
    free_bytes: int
    """Memory that there is."""
    disk_bytes: int
    """The adapter and its checkpoints."""
    tokens: int
    """Of all epochs."""
    seconds: float
    """Roughly: a third or three times as much is possible. The progress says it better once it has begun."""

    @property
    def memory_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.adapter_bytes + self.activations_bytes

    def line(self) -> str:
        """For people."""
        return (
            f"estimate: {self.memory_bytes / 2**30:.2f} GiB of {self.free_bytes / 2**30:.1f} GiB free memory with "
            f"{self.tokens_at_once:,} tokens at once (an example has up to {self.longest}), "
            f"{'activations computed twice, ' * self.saves_memory}{self.tokens:,} tokens in "
            f"about {duration(self.seconds)}"
        )


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes and parameters of a model with its adapter, in training."""

    weights_bytes: int
    parameters: int
    """That take part in matrix products: embeddings are only looked up."""
    trained: int
    """Parameters of the adapter, and of modules that are trained whole."""
    kept_bytes: int
    """Tensors kept for the backward pass."""
    largest_bytes: int
    """The largest of them."""
    layers: int
    """Layers that the tensors are kept by."""
    layer_bytes: int
    """What goes into one of them."""

    def computed_twice(self) -> Footprint:
        """Where only what goes into a layer is kept, and of one at a time the rest, in the backward pass."""
        return replace(self, kept_bytes=self.kept_bytes // self.layers + self.layers * self.layer_bytes)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def estimate(settings: FineTuneSettings, training_set: Artifact, base: Path, *, processes: int = 1) -> Estimate:
    """What the training will need, from the base's config alone: no weights are read.

    Raises:
        ConfigError: not even one example at once fits into what is free.
    """
    rows = read_split(training_set, "train")
    counted = [*rows, *read_split(training_set, "validation")] if settings.refit else rows
    lengths = _lengths(settings, counted, base)
    longest = max(lengths, default=1)
    seen = len(rows) + (len(counted) if settings.refit else 0)  # in an epoch, of each training
    tokens = int(sum(lengths) / max(1, len(lengths)) * seen * settings.epochs)
    categories = max(2, len(training_set.manifest["categories"]))
    chats = isinstance(settings, GenerateSettings)
    at_once = wanted = most_at_once(settings, longest, processes)
    free = free_memory()
    asked = settings.save_memory if isinstance(settings, GenerateSettings) else False
    saves = bool(asked)
    while True:
        rows_at_once, length = (1, at_once * longest) if chats else (at_once, longest)
        needs = footprint(settings, base, rows=rows_at_once, length=length, categories=categories)
        seconds = _seconds(needs, tokens, at_once * longest) * (1.5 if saves else 1) / processes
        if saves:
            needs = needs.computed_twice()
        found = Estimate(
            tokens_at_once=at_once * longest,
            reduced=at_once < wanted,
            saves_memory=saves,
            longest=longest,
            weights_bytes=needs.weights_bytes,
            adapter_bytes=needs.trained * 4 * 3,
            activations_bytes=_peak(needs) + (LOGITS_BYTES if chats else 0),
            free_bytes=free,
            disk_bytes=needs.trained * 4 * (4 * (KEPT + 1) * (2 if settings.refit else 1) + 2) + 2**26,
            tokens=tokens,
            seconds=seconds,
        )
        if found.memory_bytes <= free or (at_once == 1 and (saves or asked is False)):
            break
        saves = saves or at_once == 1
        at_once = max(1, at_once // 2)
    if found.memory_bytes * UNDERESTIMATED > free:
        raise ConfigError(
            f"fine-tuning {settings.base_model!r} needs about {found.memory_bytes / 2**30:.1f} GiB with one example of "
            f"{longest} tokens at once (weights {found.weights_bytes / 2**30:.1f}, adapter and optimiser "
            f"{found.adapter_bytes / 2**30:.1f}, activations {found.activations_bytes / 2**30:.1f}), and "
            f"{free / 2**30:.1f} GiB are free: {ADVICE}"
        )
    return found


def most_at_once(settings: FineTuneSettings, longest: int, processes: int) -> int:
    """Examples of ``longest`` tokens that go through the model at once on each device, if memory holds them."""
    import torch

    most = max(1, settings.batch_size // processes)
    tokens = settings.micro_batch_tokens
    if tokens is None and (isinstance(settings, GenerateSettings) or not torch.cuda.is_available()):
        tokens = TOKENS_AT_ONCE
    return most if tokens is None else min(most, max(1, tokens // longest))


def footprint(settings: FineTuneSettings, base: Path, *, rows: int, length: int, categories: int = 2) -> Footprint:
    """What a forward pass of ``rows`` texts of ``length`` tokens keeps, a chat's logits aside: it is run, without data.

    The model is made of tensors that have a shape but no content, so every architecture, adapter and precision is
    counted as it is.
    """
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.multiprocessing.reductions import StorageWeakRef
    from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

    chat = isinstance(settings, GenerateSettings)
    config = AutoConfig.from_pretrained(base, num_labels=categories, local_files_only=True, trust_remote_code=False)
    config.use_cache = False
    kind: Any = AutoModelForCausalLM if chat else AutoModelForSequenceClassification
    bf16 = bf16_is_faster()
    with torch.device("meta"):
        model = kind.from_config(config, dtype=torch.bfloat16 if chat and bf16 else torch.float32)
        embeddings = sum(module.weight.numel() for module in model.modules() if isinstance(module, torch.nn.Embedding))
        head = model.get_output_embeddings() if chat else None
        parameters = sum(value.numel() for value in model.parameters()) - embeddings
        if head is not None and config.tie_word_embeddings:
            parameters += head.weight.numel()
        model = with_adapter(model, settings, task="CAUSAL_LM" if chat else "SEQ_CLS")
    model.train()
    kept: dict[StorageWeakRef, Any] = {}
    with FakeTensorMode():
        device = "cuda" if torch.cuda.is_available() else "cpu"
        held = {
            name: torch.empty(value.shape, dtype=value.dtype, device=device).requires_grad_(value.requires_grad)
            for name, value in (*model.named_parameters(), *model.named_buffers())
        }
        own = {StorageWeakRef(value.untyped_storage()) for value in held.values()}  # type: ignore[no-untyped-call]
        ids = torch.empty((rows, length), dtype=torch.long, device=device)
        more: dict[str, Any] = {"attention_mask": torch.ones_like(ids)}
        if chat:  # its logits are taken a part at a time: see _peak
            more["logits_to_keep"] = 1
        else:
            more["labels"] = torch.empty(rows, dtype=torch.long, device=device)

        def keep(value: Any) -> Any:
            memory = StorageWeakRef(value.untyped_storage())  # type: ignore[no-untyped-call]
            if memory not in own:
                kept[memory] = value  # held, so that its place is not used again
            return value

        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value),
            torch.autocast(device, torch.bfloat16, enabled=bf16),
        ):
            outputs = torch.func.functional_call(model, held, kwargs={"input_ids": ids, **more})
        sizes = [value.untyped_storage().nbytes() for value in kept.values()]
        del outputs
        weights = sum(value.untyped_storage().nbytes() for value in held.values())
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    if isinstance(settings, GenerateSettings) and settings.quantised_base is not None:
        linear = parameters - (head.weight.numel() if head is not None else 0)
        weights -= int(linear * (weights / max(1, parameters + embeddings) - QUANTISED_BYTES[settings.quantised_base]))
    text = config.get_text_config()
    layer = rows * length * text.hidden_size * (2 if chat and bf16 else 4)
    return Footprint(weights, parameters, trained, sum(sizes), max(sizes, default=0), text.num_hidden_layers, layer)


def free_memory() -> int:
    """Bytes that this process can still take: of the GPU's memory where there is one, else of main memory."""
    import torch

    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0]) + int(torch.cuda.memory_reserved() - torch.cuda.memory_allocated())
    available = _fields(Path("/proc/meminfo"))["MemAvailable:"] * 1024
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (most := limit.read_text(encoding="ascii").strip()).isdigit():
        held = int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))
        held -= _fields(Path("/sys/fs/cgroup/memory.stat"))["inactive_file"]  # cached files go when memory is wanted
        available = min(available, int(most) - held)
    return max(0, available)


def check_disk(folder: Path, wanted: int) -> None:
    """There are ``wanted`` bytes left where ``folder`` is.

    Raises:
        TrainingError: there are fewer.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise TrainingError(
            f"the adapter and its checkpoints take about {wanted / 2**20:,.0f} MiB, and {free / 2**20:,.0f} MiB are "
            f"free at {folder}: make room, or lower lora.rank"
        )


def with_smaller_batches(run: Callable[[int], T], start: int, tell: Callable[[str], None]) -> T:
    """``run(start)``, and again with half as much while memory does not suffice.

    ``run`` takes rows or tokens at once, keeps the batch of an optimiser step by accumulating gradients, holds nothing
    when it has raised, and goes on from its last checkpoint.

    Raises:
        TrainingError: one at a time is still too many.
    """
    micro = start
    while True:
        try:
            return run(micro)
        except (MemoryError, RuntimeError) as error:
            if not _out_of_memory(error):
                raise
            said = str(error).partition("\n")[0][:300]
        # Here the error, and with it the frames that hold tensors, is gone.
        _free()
        if micro == 1:
            raise TrainingError(f"out of memory with one at a time ({said}): {ADVICE}")
        micro //= 2
        tell(f"out of memory ({said}): going on with {micro} at once, as large a step")


def _out_of_memory(error: BaseException) -> bool:
    import torch

    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _lengths(settings: FineTuneSettings, rows: Sequence[Example], base: Path) -> list[int]:
    """Tokens of rows spread over the split, at most as many as are trained on."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True, trust_remote_code=False)
    some = rows[:: max(1, len(rows) // COUNTED_ROWS)]
    texts = [" ".join([*(row.context or ()), row.text, *(turn.content for turn in row.messages[-1:])]) for row in some]
    ids = tokenizer(texts, truncation=True, max_length=settings.maximum_tokens)["input_ids"] if texts else []
    return [len(each) for each in ids]


def _peak(needs: Footprint) -> int:
    """Most bytes that activations take: more than what is kept, for steps between and for memory in fragments.

    Fitted on a CPU to MiniLM, BERT and Llamas of several shapes: the whole estimate is 0.92 to 1.03 of their peaks.
    A GPU's allocator leaves fewer gaps than the C library's; its factors are not measured.
    """
    import torch

    if torch.cuda.is_available():
        return int(1.1 * needs.kept_bytes + 2 * needs.largest_bytes)
    return int(1.5 * needs.kept_bytes + 2.5 * needs.largest_bytes) + 2**26


def _seconds(needs: Footprint, tokens: int, at_once: int) -> float:
    """By two short measurements: a matrix product, and filling fresh memory.

    A pass forward and one back to the activations are 4 operations a parameter and token (no weights' gradients);
    beside them memory is read and written many times as much as is kept.
    """
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if bf16_is_faster() else torch.float32
    rows, width = min(max(at_once, 64), 4096), 1024
    left = torch.randn(rows, width, dtype=dtype, device=device)
    right = torch.randn(width, width, dtype=dtype, device=device)
    operations = 2 * rows * width * width / _shortest(lambda: left @ right)
    filled = 2**26 / _shortest(lambda: torch.empty(2**24, device=device).fill_(1.0))
    a_token = 4 * needs.parameters / operations / EFFICIENCY + needs.kept_bytes / at_once * MOVED[device] / filled
    return tokens * a_token


def _shortest(work: Callable[[], Any]) -> float:
    """Seconds that ``work`` takes at best."""
    import torch

    took = []
    for _ in range(4):
        started = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return min(took)


def _fields(path: Path) -> dict[str, int]:
    """Numbers of a file of lines ``name number …``."""
    lines = (line.split() for line in path.read_text(encoding="ascii").splitlines())
    return {fields[0]: int(fields[1]) for fields in lines if len(fields) > 1 and fields[1].isdigit()}

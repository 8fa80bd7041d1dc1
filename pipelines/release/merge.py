"""An adapter merged into its unquantised base, tensor by tensor: a plain transformers checkpoint.

Memory holds some rows of one tensor at a time, whatever the size of the model: they are read, changed in float32,
rounded once and written.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipelines.artifacts import Artifact
from pipelines.errors import ExportError
from pipelines.evaluation.classifier import Classifier, base_folder, load_classifier, quiet_transformers
from pipelines.release.probes import PROBES
from pipelines.release.tensors import SIZES, TORCH, StoredTensor, stored_tensors, tensor_bytes, write_tensors

if TYPE_CHECKING:
    import torch

Dtype = Literal["F32", "BF16", "F16"]

PREFIX = "base_model.model."
"""What peft puts before the name of every tensor of an adapter."""

PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
    ".lora_B.bias": "bias",
}
"""Endings of the tensors that change a module's weight, and what they are of its update."""

INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
"""Values of ``init_lora_weights`` after which the base is still the base that its files hold."""

PLAIN = {
    "peft_type": "LORA", "layer_replication": None, "target_parameters": None, "megatron_config": None,
    "use_qalora": False, "use_bdlora": None, "arrow_config": None, "kasa_config": None, "monteclora_config": None,
    "velora_config": None, "alora_invocation_tokens": None, "trainable_token_indices": None,
}  # fmt: skip
"""Fields of an adapter's configuration that ask for something else than W + s B A when they are not this."""

TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "chat_template.jinja",
)  # fmt: skip

PART = 1 << 20
"""Numbers handled at a time: 4 MiB in float32, which stay in a CPU's cache from one step to the next."""

TOLERANCE = 1e-3
"""Largest difference between the logits of base and adapter and of the merged checkpoint, both in float32."""


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What a merge did; names are those of the transformers model."""

    changed: tuple[str, ...]
    """Tensors that the adapter updates; each differs from its base."""
    replaced: tuple[str, ...]
    """Tensors that come from the adapter whole."""
    dropped: tuple[str, ...]
    """Tensors of the base's files that the model does not have, such as another head."""
    untied: bool
    """Whether output and input embedding were one tensor and are two now."""
    size: int
    """Bytes of all tensors."""


@dataclass(frozen=True, slots=True)
class _Update:
    """What an adapter adds to one weight W: s L R, and with DoRA the rows' or columns' new norms."""

    a: StoredTensor
    b: StoredTensor
    magnitude: StoredTensor | None
    bias: StoredTensor | None
    scale: float
    transposed: bool
    """Whether W is (in, out), as in an embedding and in GPT-2's layers."""

    def load(self, device: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """L (rows, r), R (r, columns) and the magnitudes, in float32."""
        a, b = self.a.read().float().to(device), self.b.read().float().to(device)
        magnitude = None if self.magnitude is None else self.magnitude.read().float().flatten().to(device)
        return (a.T, b.T, magnitude) if self.transposed else (b, a, magnitude)

    def equals(self, other: _Update) -> bool:
        """Whether both add the same."""
        import torch

        (left, right, magnitude), (left2, right2, magnitude2) = self.load("cpu"), other.load("cpu")
        same = self.scale == other.scale and magnitude is None and magnitude2 is None
        return same and torch.equal(left, left2) and torch.equal(right, right2)


@dataclass(slots=True)
class _Merged:
    """One tensor of the merged model."""

    stored: StoredTensor
    """Its values before the update: the base's, or the adapter's own where it holds the whole tensor."""
    dtype: str
    model_name: str
    file: str
    """Of the checkpoint that it is written to."""
    update: _Update | None = None
    bias_of: _Update | None = None


@dataclass(slots=True)
class Merge:
    """Base and adapter, opened and matched; tensors are merged when they are read."""

    tensors: dict[str, _Merged]
    config: dict[str, Any]
    """The merged model's ``config.json``."""
    replaced: tuple[str, ...]
    dropped: tuple[str, ...]
    untied: bool
    device: str
    _differing: set[str] = field(default_factory=set)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the tensor ``name``."""
        return self.tensors[name].stored.shape

    def dtype(self, name: str) -> torch.dtype:
        """Wanted for the tensor ``name``."""
        import torch

        found: torch.dtype = getattr(torch, TORCH[self.tensors[name].dtype])
        return found

    def rows(self, name: str) -> Iterator[torch.Tensor]:
        """The merged tensor ``name``, some rows after the other, in the wanted type.

        Raises:
            ExportError: a number is not finite, or too large for the type.
        """
        import torch

        tensor = self.tensors[name]
        stored, update = tensor.stored, tensor.update
        dtype = getattr(torch, TORCH[tensor.dtype])
        count = stored.shape[0] if stored.shape else 1
        step = max(1, PART // max(1, math.prod(stored.shape[1:])))
        left = right = factor = bias = None
        with torch.no_grad():
            if update is not None:
                left, right, magnitude = update.load(self.device)
                if magnitude is not None and update.transposed:
                    factor = magnitude / self._column_norms(stored, update, left, right, step)
            if tensor.bias_of is not None and tensor.bias_of.bias is not None:
                bias = tensor.bias_of.bias.read().float().to(self.device) * tensor.bias_of.scale
            for first in range(0, count, step):
                before = stored.read(first, first + step)
                after = before
                if update is not None and left is not None and right is not None:
                    after = _updated(before.to(self.device), left[first : first + step], right, update.scale)
                    if magnitude is not None and not update.transposed:
                        after *= (magnitude[first : first + step] / torch.linalg.norm(after, dim=1)).unsqueeze(1)
                    elif factor is not None:
                        after *= factor
                elif bias is not None:
                    after = before.to(self.device).float() + bias[first : first + step]
                if after is before and (tensor.dtype != "F16" or tensor.stored.dtype == "F16"):
                    yield after.to(dtype)
                    continue
                least, most = torch.aminmax(after) if after.numel() else (after.sum(), after.sum())
                if not (-torch.finfo(dtype).max <= least <= most <= torch.finfo(dtype).max):  # also not a number
                    raise ExportError(
                        f"{tensor.model_name} has numbers that {TORCH[tensor.dtype]} cannot hold after the merge: the "
                        "adapter diverged, or a wider type is needed"
                    )
                after = after.to("cpu", dtype)
                if (
                    (update or bias is not None)
                    and name not in self._differing
                    and not torch.equal(after, before.to(dtype))
                ):
                    self._differing.add(name)
                yield after

    def read(self, name: str) -> torch.Tensor:
        """The merged tensor ``name``, whole."""
        import torch

        tensor = self.tensors[name]
        whole = torch.empty(tensor.stored.shape, dtype=getattr(torch, TORCH[tensor.dtype]))
        first = 0
        for rows in self.rows(name):
            whole[first : first + len(rows)].copy_(rows) if rows.dim() else whole.copy_(rows)
            first += len(rows) if rows.dim() else 0
        return whole

    def parts(self, name: str) -> Iterable[Any]:
        """The bytes of the merged tensor ``name``, in parts."""
        tensor = self.tensors[name]
        if tensor.update is None and tensor.bias_of is None and tensor.dtype == tensor.stored.dtype:
            return tensor.stored.parts(16 * PART)
        return (tensor_bytes(rows) for rows in self.rows(name))

    def check(self) -> MergeReport:
        """Report, when every tensor was read.

        Raises:
            ExportError: a module that the adapter targets is unchanged.
        """
        updated = {name for name, tensor in self.tensors.items() if tensor.update is not None}
        unchanged = sorted(self.tensors[name].model_name for name in updated - self._differing)
        if unchanged or not (updated or self.replaced):
            raise ExportError(
                f"the merged model equals its base in {_some(unchanged) or 'every module'}: the adapter changes "
                "nothing there; train it again"
            )
        return MergeReport(
            changed=tuple(sorted(self.tensors[name].model_name for name in self._differing)),
            replaced=self.replaced,
            dropped=self.dropped,
            untied=self.untied,
            size=sum(SIZES[tensor.dtype] * math.prod(tensor.stored.shape) for tensor in self.tensors.values()),
        )

    def _column_norms(
        self, stored: StoredTensor, update: _Update, left: torch.Tensor, right: torch.Tensor, step: int
    ) -> torch.Tensor:
        import torch

        squares = torch.zeros(stored.shape[1], dtype=torch.float64, device=self.device)
        for first in range(0, stored.shape[0], step):
            part = stored.read(first, first + step).to(self.device)
            squares += _updated(part, left[first : first + step], right, update.scale).square().sum(0).double()
        return squares.sqrt().float()


def merge(adapter: Artifact, folder: Path) -> Classifier:
    """Merge a classifier's ``adapter`` into its base and write the checkpoint (float32, with tokenizer) to ``folder``.

    Returns:
        The checkpoint as read back from ``folder``.

    Raises:
        ArtifactError: the adapter or its base is altered, or they do not belong together.
        ExportError: a tensor of the adapter has no place in the merged model, a module that it targets is
            unchanged, or the checkpoint scores texts differently.
    """
    import numpy as np

    classifier = load_classifier(adapter)
    texts = [probe.text for probe in PROBES]
    expected = classifier.logits(texts)
    names = dict(enumerate(classifier.categories))
    merge_checkpoint(
        base_folder(adapter),
        adapter.path,
        folder,
        dtype="F32",
        config={
            "num_hidden_layers": classifier.model.config.num_hidden_layers,  # one more where the mean is read
            "pad_token_id": classifier.model.config.pad_token_id,  # a decoder's head reads the token before it
            "id2label": names,
            "label2id": {name: index for index, name in names.items()},
            "problem_type": "multi_label_classification" if classifier.multi_label else "single_label_classification",
        },
    )
    with quiet_transformers():
        classifier.model = _checkpoint(folder)
    difference = float(np.abs(classifier.logits(texts) - expected).max())
    if not difference <= TOLERANCE:  # also when it is not a number
        raise ExportError(
            f"{adapter.path}: the merged checkpoint's logits differ by {difference:.3g} from base and adapter "
            f"(allowed: {TOLERANCE}): a part of the model was lost in the merge"
        )
    return classifier


def merge_checkpoint(
    base: Path,
    adapter: Path,
    folder: Path,
    *,
    dtype: Dtype | None = None,
    config: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] = lambda _line: None,
) -> MergeReport:
    """Merge the peft ``adapter`` into ``base`` and write a checkpoint to ``folder``, which is made.

    The files are the base's, one for one; so are names, except that a bare encoder's get the prefix of the model with
    a head. The tokenizer and chat template are the adapter's where it has them.

    Args:
        base: a transformers model, unquantised, as safetensors.
        adapter: LoRA as peft saves it: also rsLoRA, DoRA, ranks and alphas by pattern, modules trained whole.
        folder: may not hold a model yet.
        dtype: of every weight; the base's own types when not given.
        config: changes of the base's ``config.json``, such as the labels of a classification head.
        progress: called for each file.

    Raises:
        ExportError: something of the adapter has no place in the merged model or cannot be merged, or a module that
            it targets is unchanged.
    """
    opened = open_merge(base, adapter, dtype=dtype, config=config)
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.glob("*.safetensors*")):
        raise ExportError(f"{folder} holds a model already: give an empty folder")
    files: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {}
    for name, tensor in opened.tensors.items():
        files.setdefault(tensor.file, {})[name] = (tensor.dtype, tensor.stored.shape)
    for number, (file, layout) in enumerate(files.items(), 1):
        progress(f"merging file {number} of {len(files)}: {len(layout)} tensors")
        write_tensors(folder / file, layout, opened.parts)
    report = opened.check()
    if len(files) > 1:
        index = {
            "metadata": {"total_size": report.size},
            "weight_map": {name: tensor.file for name, tensor in sorted(opened.tensors.items())},
        }
        _write_json(folder / "model.safetensors.index.json", index)
    write_surroundings(opened, base, adapter, folder)
    return report


def write_surroundings(opened: Merge, base: Path, adapter: Path, folder: Path) -> None:
    """Everything of the merged model but its weights: configurations, tokenizer, chat template."""
    _write_json(folder / "config.json", opened.config)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
    own = (adapter / "tokenizer_config.json").is_file()
    for name in TOKENIZER_FILES:
        source = (adapter if own else base) / name
        if own and not source.is_file() and name.endswith(".model") and _same_vocabulary(base, adapter):
            source = base / name  # transformers no longer saves it, llama.cpp's converter still reads it
        if source.is_file():
            shutil.copyfile(source, folder / name)


def open_merge(
    base: Path, adapter: Path, *, dtype: Dtype | None = None, config: Mapping[str, Any] | None = None
) -> Merge:
    """Match every tensor of ``adapter`` with one of ``base``; nothing but headers is read.

    Raises:
        ExportError: something of the adapter has no place in the merged model, or cannot be merged.
    """
    import torch

    facts = _adapter_config(adapter)
    raw = json.loads((base / "config.json").read_text(encoding="utf-8"))
    if raw.get("quantization_config"):
        raise ExportError(
            f"{base} is quantised ({raw['quantization_config'].get('quant_method')}): merging into it loses quality; "
            "merge into the model that it was made from"
        )
    changes = dict(config or {})
    model = _skeleton(base, facts.get("task_type"), raw, changes)
    own = stored_tensors(base)
    names, fused, dropped = _names(model, own)
    updates, whole = _places(stored_tensors(adapter, "adapter_model"), model, fused, facts)
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    last = max(stored.path.name for stored in own.values())
    tensors: dict[str, _Merged] = {}

    def add(name: str, written: str, stored: StoredTensor, file: str) -> None:
        kind = stored.dtype if dtype is None or stored.dtype not in TORCH else dtype
        module, _, leaf = name.rpartition(".")
        found = updates.get(f"{module}.weight")
        tensors[written] = _Merged(stored, kind, name, file)
        if leaf == "bias" and found is not None and found.bias is not None:
            tensors[written].bias_of = found
        elif name in updates:
            tensors[written].update = updates[name]

    for name, (key, written) in names.items():
        add(name, written, whole.get(name, own[key]), own[key].path.name)
        if dtype is None:
            tensors[written].dtype = own[key].dtype
    for key in fused:
        add(key, key, own[key], own[key].path.name)
    for name, stored in whole.items():
        if name not in names:
            add(name, name, stored, last)

    untied = _tie(ties, tensors, names, updates, whole, own, ensure=bool(facts.get("ensure_weight_tying")), add=add)
    made = {tensor.model_name for tensor in tensors.values()}
    made |= {key for group in fused.values() for key in group}
    missing = sorted(
        name
        for name, _ in model.named_parameters(remove_duplicate=False)
        if name not in made and ties.get(name) not in made
    )
    if missing:
        raise ExportError(
            f"{base} and {adapter} have no weights for {_some(missing)}: the merged model would be random"
        )

    raw |= changes | {"architectures": [type(model).__name__]}
    if dtype is not None:
        raw["torch_dtype" if "torch_dtype" in raw else "dtype"] = TORCH[dtype]
    if untied:
        raw["tie_word_embeddings"] = False
        if isinstance(raw.get("text_config"), dict):
            raw["text_config"]["tie_word_embeddings"] = False
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Merge(tensors, raw, tuple(sorted(whole)), tuple(dropped), untied, device)


def _adapter_config(adapter: Path) -> dict[str, Any]:
    """Peft's configuration of an adapter that can be merged."""
    path = adapter / "adapter_config.json"
    if not path.is_file():
        raise ExportError(f"{adapter} holds no adapter_config.json: it is no adapter")
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    odd = [f"{name} {facts[name]!r}" for name, value in PLAIN.items() if (facts.get(name) or value) != value]
    if facts.get("init_lora_weights", True) not in INITIALISATIONS:
        odd.append(f"init_lora_weights {facts['init_lora_weights']!r} (peft changed the base's weights for it)")
    if odd:
        raise ExportError(f"{adapter} cannot be merged into the weights of its base: {'; '.join(odd)}")
    return facts


def _skeleton(base: Path, task: str | None, raw: Mapping[str, Any], changes: Mapping[str, Any]) -> Any:
    """The merged model without any weights."""
    import torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(base, local_files_only=True, trust_remote_code=False, **changes)
    named = getattr(transformers, (raw.get("architectures") or ["-"])[0], None)
    auto = {
        "CAUSAL_LM": transformers.AutoModelForCausalLM,
        "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    }.get(str(task))
    try:
        with quiet_transformers(), torch.device("meta"):
            if auto is not None:
                return auto.from_config(config, trust_remote_code=False)  # type: ignore[no-untyped-call]
            if isinstance(named, type) and issubclass(named, transformers.PreTrainedModel):
                return named(config)
    except ValueError as error:
        raise ExportError(f"{base} is no model for task {task}: {error}") from error
    raise ExportError(f"{base} is a {raw.get('architectures')}, which transformers {transformers.__version__} lacks")


def _names(
    model: Any, own: Mapping[str, StoredTensor]
) -> tuple[dict[str, tuple[str, str]], dict[str, list[str]], list[str]]:
    """How transformers loads the tensors ``own``.

    Returns:
        ``{name in the model: (name in the base's files, name to write)}``; the names in the files of those that are
        fused or split on loading, with what they become; and those that the model does not take.
    """
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping, get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    others: Any = get_checkpoint_conversion_mapping("legacy")  # type: ignore[no-untyped-call]
    legacy = [entry for entry in others if isinstance(entry, WeightRenaming)]
    targets = {pattern: entry.target_patterns for entry in converters for pattern in entry.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    names: dict[str, tuple[str, str]] = {}
    fused: dict[str, list[str]] = {}
    dropped = []
    for key in own:
        name, pattern = rename_source_key(key, renamings, converters, prefix, state)
        if name not in state and key in state:
            name, pattern = rename_source_key(key, [], [], prefix, state)
        if pattern is not None:
            first, *others = targets[pattern]
            found = [name, *(name.replace(first, other) for other in others)]
            fused[key] = [part for part in found if part in state] or found
        elif name not in state:
            dropped.append(key)
        elif own[key].shape != tuple(state[name].shape):
            raise ExportError(
                f"{own[key].path} holds {key} of shape {list(own[key].shape)}; its config.json means "
                f"{list(state[name].shape)}"
            )
        else:
            # Names that transformers changes for this architecture stay the files' own, as its save_pretrained has it.
            plain, _ = rename_source_key(key, legacy, [], prefix, state)
            names[name] = (key, name if plain == name else key)
    return names, fused, sorted(dropped)


def _places(
    adapter: Mapping[str, StoredTensor], model: Any, fused: Mapping[str, list[str]], facts: Mapping[str, Any]
) -> tuple[dict[str, _Update], dict[str, StoredTensor]]:
    """The updates by the weights that they change, and the tensors that replace one, for all tensors of ``adapter``."""
    state, modules = model.state_dict(), dict(model.named_modules())
    taken = {name for names in fused.values() for name in names}
    found: dict[str, dict[str, StoredTensor]] = {}
    whole: dict[str, StoredTensor] = {}
    homeless = []
    for key, tensor in adapter.items():
        place = key.removeprefix(PREFIX)
        ending = next((ending for ending in PARTS if place.endswith(ending)), None)
        name = re.sub(r"\.(base_layer|modules_to_save)\.", ".", place)
        if ending is not None:
            name = f"{place.removesuffix(ending)}.{'bias' if PARTS[ending] == 'bias' else 'weight'}"
        if name not in state or name in taken:
            homeless.append(key)
        elif ending is not None:
            found.setdefault(place.removesuffix(ending), {})[PARTS[ending]] = tensor
        elif tensor.shape != tuple(state[name].shape):
            raise ExportError(
                f"the adapter holds {name} of shape {list(tensor.shape)}, the base's is {list(state[name].shape)}: "
                "give the labels that a head was trained for; a resized embedding has to be in the base itself"
            )
        else:
            whole[name] = tensor
    if homeless:
        raise ExportError(
            f"{len(homeless)} tensors of the adapter are lost in the merged model: {_some(homeless)}; the export "
            "would drop what was trained, so it is refused"
        )
    updates = {f"{name}.weight": _update(name, parts, modules[name], facts) for name, parts in found.items()}
    return updates, whole


def _update(name: str, parts: Mapping[str, StoredTensor], module: Any, facts: Mapping[str, Any]) -> _Update:
    """The update of the module ``name``, its shapes and rank checked."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    if not {"a", "b"} <= parts.keys():
        raise ExportError(f"the adapter holds only {', '.join(sorted(parts))} of the update of {name}: train it again")
    if not isinstance(module, nn.Linear | nn.Embedding | Conv1D):
        raise ExportError(f"{name} is a {type(module).__name__}: only linear layers and embeddings can be merged")
    transposed = not isinstance(module, nn.Linear)
    a, b, magnitude = parts["a"], parts["b"], parts.get("magnitude")
    rank = a.shape[0]
    alpha = _by_pattern(facts.get("alpha_pattern"), name, facts["lora_alpha"])
    stated = _by_pattern(facts.get("rank_pattern"), name, facts["r"])
    rows, columns = module.weight.shape
    outer, inner = (columns, rows) if transposed else (rows, columns)
    count = None if magnitude is None else math.prod(magnitude.shape)
    if (a.shape, b.shape, stated) != ((rank, inner), (outer, rank), rank) or count != (
        outer if facts.get("use_dora") else None
    ):
        raise ExportError(
            f"the adapter's update of {name} has shapes {list(a.shape)} and {list(b.shape)} and {count} magnitudes; "
            f"the base's weight is {rows} by {columns}, the adapter's configuration says rank {stated} and use_dora "
            f"{bool(facts.get('use_dora'))}: they do not belong together"
        )
    scale = alpha / (math.sqrt(rank) if facts.get("use_rslora") else rank)
    return _Update(a, b, magnitude, parts.get("bias"), scale, transposed)


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The value of the first pattern that matches the name of ``module``, as peft reads them."""
    found = (value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module))
    return next(found, otherwise)


def _tie(
    ties: Mapping[str, str],
    tensors: dict[str, _Merged],
    names: Mapping[str, tuple[str, str]],
    updates: dict[str, _Update],
    whole: Mapping[str, StoredTensor],
    own: Mapping[str, StoredTensor],
    *,
    ensure: bool,
    add: Callable[[str, str, StoredTensor, str], None],
) -> bool:
    """Split embeddings that were one tensor and that the adapter makes two; whether it did."""
    untied = False
    for target, source in ties.items():
        pair = [updates.get(target), updates.get(source)], [whole.get(target), whole.get(source)]
        if ensure and pair[0][0] is None and pair[1][0] is None:  # the adapter holds the first of the two only
            if target in names and pair[0][1] is not None:
                tensors[names[target][1]].update = pair[0][1]
            if target in names and pair[1][1] is not None:
                tensors[names[target][1]].stored = pair[1][1]
            continue
        first, second = pair[0]
        updated = first is not second and (first is None or second is None or not first.equals(second))
        one, other = pair[1]
        replaced = one is not other and (one is None or other is None or not equal_tensors(one, other))
        if not updated and not replaced:
            if target not in names:
                tensors.pop(target, None)  # stays the same tensor
            continue
        untied = True
        if target not in names and target not in whole and source in names:
            key, written = names[source]
            add(target, target, own[key], tensors[written].file)
    return untied


def equal_tensors(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether both hold the same numbers in the same type."""
    return (one.dtype, one.shape) == (other.dtype, other.shape) and all(
        first == second for first, second in zip(one.parts(PART), other.parts(PART), strict=True)
    )


def _updated(weight: torch.Tensor, left: torch.Tensor, right: torch.Tensor, scale: float) -> torch.Tensor:
    import torch

    return weight.to(torch.float32, copy=True).addmm_(left, right, alpha=scale)


def _same_vocabulary(one: Path, other: Path) -> bool:
    paths = [folder / "tokenizer.json" for folder in (one, other)]
    if not all(path.is_file() for path in paths):
        return False
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    return all(found[0].get(part) == found[1].get(part) for part in ("model", "added_tokens"))


def _checkpoint(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForSequenceClassification

    model, loading = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32,
        use_safetensors=True,
        local_files_only=True,
        trust_remote_code=False,
        output_loading_info=True,
    )
    lost = sorted({*loading["missing_keys"], *loading["unexpected_keys"]})
    if lost:
        raise ExportError(f"{folder}: the merged checkpoint does not load completely: {_some(lost)}")
    return model.eval()


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")

"""GGUF files: converted by llama.cpp's own converter, quantised by llama.cpp, and believed only by their headers."""

from __future__ import annotations

import ctypes
import json
import math
import os
import pickle
import re
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

from pipelines.environment import REPOSITORY, Environment, available_cores
from pipelines.errors import ConfigError, ExportError
from pipelines.release.conversion import REFUSED
from pipelines.release.imatrix import ImportanceMatrix
from pipelines.release.llama import llama_library
from pipelines.release.merge import PARTS, PREFIX, Merge, open_merge, write_surroundings
from pipelines.release.settings import Quantisation
from pipelines.release.tensors import stored_tensors
from pipelines.release.tokens import SpecialTokens, load_tokenizer, pre_tokenizer, prove, special_tokens

ARCHITECTURES = ("BertForSequenceClassification",)
"""Whose classification head llama.cpp computes as transformers does: dense, tanh, output."""

ACTIVATIONS = ("gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast")
"""What llama.cpp computes in BERT's feed-forward layers, up to the approximation."""

TYPES: Mapping[Quantisation, tuple[str, str]] = {
    "F16": ("F16", "F16"), "BF16": ("BF16", "BF16"), "Q8_0": ("Q8_0", "Q8_0"), "Q6_K": ("Q6_K", "Q6_K"),
    "Q5_K_M": ("Q5_K", "Q6_K"), "Q5_K_S": ("Q5_K", "Q5_K"), "Q5_0": ("Q5_0", "Q5_1"), "Q4_K_M": ("Q4_K", "Q6_K"),
    "Q4_K_S": ("Q4_K", "Q5_K"), "Q4_0": ("Q4_0", "Q4_1"), "IQ4_NL": ("IQ4_NL", "Q5_K"), "IQ4_XS": ("IQ4_XS", "Q5_K"),
    "Q3_K_M": ("Q3_K", "Q5_K"), "Q2_K": ("Q2_K", "Q4_K"),
}  # fmt: skip
"""llama.cpp's types of the matrices of a file: of most, and the widest of those that it holds more exactly."""

FALLBACK = {"Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
"""What it takes instead where rows do not divide by 256."""

_MOST = re.compile(
    r"(^|\.)(q_proj|k_proj|gate_proj|up_proj|gate_up_proj|query|key|fc1|fc_in|c_fc|w1|w3|dense_h_to_4h)(\.weight)?$"
)
_MORE = re.compile(
    r"(^|\.)(v_proj|o_proj|out_proj|down_proj|qkv_proj|query_key_value|[Ww]qkv|wo|value|dense|fc2|fc_out|w2"
    r"|dense_4h_to_h|c_attn|c_proj)(\.weight)?$"
)
_EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|embeddings)\.weight$")
_OUTPUT = re.compile(r"(^|\.)(lm_head|embed_out|output)\.weight$")
"""Names of matrices as transformers writes them, by what llama.cpp makes of them; it keeps others in up to 32 bits."""


@dataclass(frozen=True, slots=True)
class Header:
    """What a GGUF file says of itself."""

    file_type: str
    """As llama.cpp names it: F16, Q8_0, Q4_K_M, …"""
    tensor_types: Mapping[str, int]
    """How many tensors have each type; K-quants fall back to others where rows do not divide by 256."""
    unquantised: tuple[str, ...]
    """Matrices held in 16 bits."""
    architecture: str
    labels: tuple[str, ...]
    """Of the classification head, in the order of its outputs."""
    pooling: str
    """RANK for a classification head."""
    metadata: Mapping[str, str]
    """The keys below ``freshet.``: what the file was made from."""
    pre: str
    """How a byte-level BPE cuts texts, as llama.cpp names it; empty for another tokenizer."""
    special: Mapping[str, int]
    """Ids of the special tokens by their kind: bos, eos, eot, padding, …"""
    add_bos: bool | None
    """Whether readers put bos before a text; None when the file leaves it to them."""
    add_eos: bool | None
    chat_template: str | None
    context_length: int | None
    """Tokens, as the model was made for."""


def read_header(path: Path) -> Header:
    """Read the header of a GGUF file.

    Raises:
        ExportError: it is no GGUF file.
    """
    import gguf

    try:
        fields, tensors = _fields_and_tensors(path)
        architecture = fields["general.architecture"]
    except (ValueError, OSError, IndexError, KeyError, struct.error) as error:
        raise ExportError(f"{path} is no complete GGUF file: {error}") from error
    types = {name: kind for name, (kind, _) in tensors.items()}
    matrices = {name for name, (_, dimensions) in tensors.items() if dimensions > 1}
    pooling = fields.get(f"{architecture}.pooling_type")
    return Header(
        file_type=gguf.LlamaFileType(fields["general.file_type"]).name.removeprefix("MOSTLY_"),
        tensor_types=dict(sorted(Counter(types.values()).items())),
        unquantised=tuple(sorted(name for name in matrices if types[name] in {"F16", "BF16"})),
        architecture=architecture,
        labels=tuple(fields.get(f"{architecture}.classifier.output_labels") or ()),
        pooling="NONE" if pooling is None else gguf.PoolingType(pooling).name,
        metadata={name: str(value) for name, value in fields.items() if name.startswith("freshet.")},
        pre=str(fields.get("tokenizer.ggml.pre") or ""),
        special={
            name.removeprefix("tokenizer.ggml.").removesuffix("_token_id"): int(value)
            for name, value in fields.items()
            if name.startswith("tokenizer.ggml.") and name.endswith("_token_id")
        },
        add_bos=fields.get("tokenizer.ggml.add_bos_token"),
        add_eos=fields.get("tokenizer.ggml.add_eos_token"),
        chat_template=fields.get("tokenizer.chat_template"),
        context_length=fields.get(f"{architecture}.context_length"),
    )


def _fields_and_tensors(path: Path) -> tuple[dict[str, Any], dict[str, tuple[str, int]]]:
    """The metadata without the vocabulary, and each tensor's type and number of dimensions.

    Not by gguf's reader, which takes seconds and hundreds of MB for a vocabulary of 150,000 tokens.
    """
    import gguf

    kinds = gguf.GGUFValueType
    formats = {
        kinds.UINT8: "B", kinds.INT8: "b", kinds.UINT16: "H", kinds.INT16: "h", kinds.UINT32: "I", kinds.INT32: "i",
        kinds.FLOAT32: "f", kinds.BOOL: "?", kinds.UINT64: "Q", kinds.INT64: "q", kinds.FLOAT64: "d",
    }  # fmt: skip
    with path.open("rb") as file:

        def number(kind: str) -> Any:
            return struct.unpack(f"<{kind}", file.read(struct.calcsize(f"<{kind}")))[0]

        def text() -> str:
            length = number("Q")
            if length > size:
                raise ValueError(f"a text of {length} bytes in a file of {size}")
            return file.read(length).decode("utf-8")

        def value(kind: Any, *, wanted: bool = True) -> Any:
            if kind == kinds.STRING:
                return text()
            if kind != kinds.ARRAY:
                return number(formats[kind])
            inner, count = kinds(number("I")), number("Q")
            if count > size:
                raise ValueError(f"a list of {count} in a file of {size} bytes")
            if wanted or inner == kinds.ARRAY:
                return [value(inner) for _ in range(count)]
            if inner != kinds.STRING:
                file.seek(count * struct.calcsize(formats[inner]), os.SEEK_CUR)
                return None
            for _ in range(count):
                file.seek(int.from_bytes(file.read(8), "little"), os.SEEK_CUR)
            return None

        size = path.stat().st_size
        if file.read(4) != b"GGUF" or number("I") not in {2, 3}:
            raise ValueError("it does not begin as one of version 2 or 3")
        tensor_count, field_count = number("Q"), number("Q")
        fields = {}
        for _ in range(field_count):
            name, kind = text(), kinds(number("I"))
            found = value(kind, wanted=not name.startswith("tokenizer."))
            if found is not None:
                fields[name] = found
        tensors, end = {}, 0
        for _ in range(tensor_count):
            name, dimensions = text(), number("I")
            count = math.prod(number("Q") for _ in range(dimensions))
            stored = gguf.GGMLQuantizationType(number("I"))
            block, length = gguf.GGML_QUANT_SIZES[stored]
            end = max(end, number("Q") + count // block * length)
            tensors[name] = stored.name, dimensions
        alignment = fields.get("general.alignment", gguf.GGUF_DEFAULT_ALIGNMENT)
        needed = -(-file.tell() // alignment) * alignment + end
        if size < needed:
            raise ValueError(f"{size} bytes of {needed}")
    return fields, tensors


def convert(
    checkpoint: Path,
    output: Path,
    *,
    name: str,
    metadata: Mapping[str, str],
    adapter: Path | None = None,
    config: Mapping[str, Any] | None = None,
    file_type: Literal["F16", "BF16"] = "F16",
    texts: Sequence[str] = (),
) -> Header:
    """Convert a sequence-classification checkpoint or a causal language model to a 16-bit GGUF file.

    A language model's vocabulary is proved against its tokenizer on the probe corpus and ``texts``, its chat template
    and special tokens are read back.

    Args:
        checkpoint: the merged model; with ``adapter`` its base, and weights are merged on their way into the file.
        output: the file to write.
        name: of the model, in the file.
        metadata: keys below ``freshet.`` and ``general.``, stored in the file.
        adapter: a peft adapter of ``checkpoint``.
        config: with ``adapter``, changes of the base's configuration, such as the labels of a classification head.
        file_type: of the matrices.
        texts: held-out texts whose token ids have to be equal too, such as rendered prompts.

    Raises:
        ExportError: llama.cpp cannot represent this model or does not know its tokenizer, or the adapter cannot be
            merged.
        ConfigError: ``LLAMA_CPP_ROOT`` holds no converter.
    """
    with converter() as process, _surroundings(checkpoint, adapter, config, output) as (folder, merge):
        facts = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        classifier = str((facts.get("architectures") or [None])[0]).endswith("ForSequenceClassification")
        architecture = _representable(folder, facts) if classifier else language_model(folder, facts)
        tokenizer = None if classifier else load_tokenizer(folder)
        special = None if tokenizer is None else special_tokens(folder, tokenizer)
        job = {
            "checkpoint": str(folder),
            "output": str(output),
            "file_type": file_type,
            "architecture": architecture,
            "name": name,
            "metadata": dict(metadata),
            "merge": merge,
            "tokenizer": special and {"pre": pre_tokenizer(tokenizer), "fields": _fields(special)},
        }
        run_converter(process, job, checkpoint)
        header = read_header(output)
        if special is None:
            labels = tuple(facts["id2label"][str(index)] for index in range(len(facts["id2label"])))
            _expect(output, header, file_type, labels)
        else:
            _expect(output, header, file_type, None)
            _expect_vocabulary(output, header, special)
            prove(output, tokenizer, special, texts)
    return header


@contextmanager
def converter() -> Iterator[subprocess.Popen[bytes]]:
    """llama.cpp's converter in a process of its own, which imports what it needs while its job is put together.

    Raises:
        ConfigError: ``LLAMA_CPP_ROOT`` holds none.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines.release.conversion", str(converter_root(Environment().llama_cpp_root))],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(available_cores())},
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()  # of one that ended, nothing; one whose job was never given has no reason to wait


def run_converter(process: subprocess.Popen[bytes], job: Mapping[str, Any], checkpoint: Path) -> None:
    """Give ``process``, of ``converter``, its job, and wait for it.

    Raises:
        ExportError: it refused the model, or failed.
    """
    _, said = process.communicate(pickle.dumps(job))
    reason = (said.decode("utf-8", "replace").strip().splitlines() or ["no reason given"])[-1]
    if process.returncode == REFUSED and "pre-tokenizer" in reason:
        raise ExportError(
            f"llama.cpp's converter does not know the tokenizer in {checkpoint} ({reason}); its rules are never "
            "guessed: use a base model that llama.cpp knows, or a newer converter by LLAMA_CPP_ROOT"
        )
    if process.returncode == REFUSED:
        raise ExportError(f"{checkpoint} cannot be converted: {reason}")
    if process.returncode != 0:
        raise ExportError(f"llama.cpp's converter failed on {checkpoint} with status {process.returncode}: {reason}")


@contextmanager
def _surroundings(
    checkpoint: Path, adapter: Path | None, config: Mapping[str, Any] | None, output: Path
) -> Iterator[tuple[Path, Merge | None]]:
    """The configuration and tokenizer to convert with, the checkpoint's or what a merge writes around its weights.

    And the merge, if there is one.
    """
    if adapter is None:
        yield checkpoint, None
        return
    with TemporaryDirectory(dir=output.parent, prefix=".surroundings-") as folder:
        opened = open_merge(checkpoint, adapter, dtype="F32", config=config)
        write_surroundings(opened, checkpoint, adapter, Path(folder))
        yield Path(folder), opened


def _fields(special: SpecialTokens) -> dict[str, int | bool | None]:
    """What the file has to say of ``special``, by its keys; None takes a key away."""
    ids = {"bos": special.bos, "eos": special.eos, "eot": special.eot, "padding": special.pad}
    if special.eot == special.eos:
        ids["eot"] = None
    return {
        **{f"tokenizer.ggml.{kind}_token_id": value for kind, value in ids.items()},
        "tokenizer.ggml.add_bos_token": special.add_bos,
        "tokenizer.ggml.add_eos_token": special.add_eos,
    }


def disk_needed(base: Path, quantisations: Sequence[Quantisation], *, adapter: Path | None = None) -> int:
    """Bytes that the files of ``quantisations`` need at most, the 16-bit one that they are made from counted.

    ``adapter`` is what is merged into ``base``: it can bring a head, or make two of a tied embedding.

    Raises:
        ExportError: ``base`` or ``adapter`` holds no safetensors.
    """
    shapes = {name: tensor.shape for name, tensor in stored_tensors(base).items()}
    trained = {} if adapter is None else stored_tensors(adapter, "adapter_model")
    for key, tensor in trained.items():
        name = key.removeprefix(PREFIX).replace(".modules_to_save", "").replace(".base_layer", "")
        if not key.endswith(tuple(PARTS)) and not any(name.endswith(own) for own in shapes):
            shapes[name] = tensor.shape
    rows = max((shape[0] for name, shape in shapes.items() if _EMBEDDING.search(name)), default=0)
    tied = not any(_OUTPUT.search(name) for name in shapes)
    if tied and any(rows in tensor.shape for tensor in trained.values()):
        embedding = next(shape for name, shape in shapes.items() if _EMBEDDING.search(name))
        shapes["lm_head.weight"], tied = embedding, False
    vocabulary = base / "tokenizer.json"
    # Ids, kinds and merges of tokens take more room than in JSON; then names of tensors, and what fills up to the next.
    around = (vocabulary.stat().st_size if vocabulary.is_file() else 0) + 32 * rows + 128 * len(shapes) + (1 << 17)
    experts = any(".experts." in name for name in shapes)
    written: set[Quantisation] = {*quantisations}
    written |= set() if "BF16" in written else {"F16"}
    return sum(
        around + sum(_bytes(name, shape, each, tied=tied, experts=experts) for name, shape in shapes.items())
        for each in written
    )


def _bytes(name: str, shape: Sequence[int], quantisation: Quantisation, *, tied: bool, experts: bool) -> int:
    """What a tensor takes in a file at most. Source: llama_tensor_get_type in llama.cpp's src/llama-quant.cpp."""
    import gguf

    count = math.prod(shape)
    most, more = TYPES[quantisation]
    embedding = _EMBEDDING.search(name) is not None
    if len(shape) < 2 or not (embedding or any(names.search(name) for names in (_MOST, _MORE, _OUTPUT))):
        return 4 * count
    kind = more if _MORE.search(name) else most
    if most in {"F16", "BF16"}:
        kind = most
    elif "Q8_0" in {most, kind} or (experts and re.search(r"(k_proj|v_proj|qkv_proj)\.weight$", name)):
        kind = "Q8_0"
    elif _OUTPUT.search(name) or (embedding and tied):
        kind = "Q8_0" if "word_embeddings" in name else "Q6_K"  # as Falcon's is
    # The converter turns GPT-2's matrices round, and experts that are one tensor.
    widths = shape[-2:] if len(shape) > 2 or ".c_" in name else shape[-1:]
    if kind in FALLBACK and any(width % 256 for width in widths):
        kind = FALLBACK[kind]
    if any(width % 32 for width in widths):
        kind = "F16"
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return -(-count // block) * size


def quantise(
    source: Path,
    output: Path,
    quantisation: Quantisation,
    labels: Sequence[str] | None,
    *,
    importance: ImportanceMatrix | None = None,
) -> Header:
    """Quantise a 16-bit GGUF file that scores ``labels``, or that of a language model (None).

    With ``importance`` what matters on the texts that it was made from is rounded more exactly.

    Raises:
        ExportError: llama.cpp failed, or wrote something else than ``quantisation``.
    """
    llama = llama_library()
    parameters = llama.llama_model_quantize_default_params()
    parameters.nthread = available_cores()
    parameters.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{quantisation}")
    if importance is not None:
        held = (llama.llama_model_imatrix_data * (len(importance.values) + 1))()  # the last one, empty, ends the list
        for entry, (name, values) in zip(held, importance.values.items(), strict=False):
            entry.name, entry.size = name.encode(), values.size
            entry.data = values.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
        parameters.imatrix = held
    status = llama.llama_model_quantize(os.fsencode(source), os.fsencode(output), parameters)
    if status != 0:
        raise ExportError(f"llama.cpp could not quantise {source} to {quantisation}: status {status}")
    header = read_header(output)
    _expect(output, header, quantisation, None if labels is None else tuple(labels))
    return header


def converter_root(checkout: Path | None) -> Path:
    """The folder that holds llama.cpp's package ``conversion``: a checkout, or the copy inside auto-round.

    Raises:
        ConfigError: it is not there.
    """
    if checkout is None:
        spec = find_spec("auto_round")  # found, not imported: that would take seconds and load what is not needed
        if spec is None or spec.origin is None:
            raise ConfigError("llama.cpp's converter comes inside the package auto-round: install it")
        root = Path(spec.origin).parent / "export" / "export_to_gguf"
    else:
        root = checkout.expanduser().absolute()
    if not (root / "conversion" / "__init__.py").is_file():
        raise ConfigError(
            f"{root} has no conversion/__init__.py: LLAMA_CPP_ROOT must be a llama.cpp checkout of 2026, or unset"
        )
    return root


def _representable(checkpoint: Path, config: Mapping[str, Any]) -> str:
    """The architecture of ``checkpoint``, if llama.cpp computes the same as transformers for it."""
    architecture = str((config.get("architectures") or [None])[0])
    if architecture not in ARCHITECTURES:
        raise ExportError(
            f"{checkpoint} is a {architecture}; its classification head can be exported for: {', '.join(ARCHITECTURES)}"
        )
    if config.get("hidden_act") not in ACTIVATIONS:
        raise ExportError(
            f"{checkpoint} has hidden_act {config.get('hidden_act')!r}, and llama.cpp computes BERT with one of: "
            f"{', '.join(ACTIVATIONS)}"
        )
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ExportError(
            f"{checkpoint} has position_embedding_type {config['position_embedding_type']!r}; llama.cpp: 'absolute'"
        )
    _check_vocabulary(checkpoint, config)
    return architecture


def language_model(checkpoint: Path, config: Mapping[str, Any]) -> str:
    """The architecture of a causal language model."""
    architecture = str((config.get("architectures") or [None])[0])
    if not architecture.endswith(("ForCausalLM", "LMHeadModel")):
        raise ExportError(
            f"{checkpoint} is a {architecture}; causal language models and {', '.join(ARCHITECTURES)} are converted"
        )
    _check_vocabulary(checkpoint, config)
    return architecture


def _check_vocabulary(checkpoint: Path, config: Mapping[str, Any]) -> None:
    from tokenizers import Tokenizer

    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        raise ExportError(f"{checkpoint} has no tokenizer.json: save its fast tokenizer there")
    highest = max(Tokenizer.from_file(str(path)).get_vocab(with_added_tokens=True).values())
    if highest >= config["vocab_size"]:
        raise ExportError(
            f"{checkpoint}: the tokenizer has ids up to {highest}, the embedding has {config['vocab_size']} rows; "
            "they belong to different models"
        )


def _expect_vocabulary(path: Path, header: Header, special: SpecialTokens) -> None:
    """Special tokens and chat template as the tokenizer has them."""
    wanted = {kind: value for kind, value in _fields(special).items() if value is not None}
    found = {f"tokenizer.ggml.{kind}_token_id": value for kind, value in header.special.items()} | {
        "tokenizer.ggml.add_bos_token": header.add_bos,
        "tokenizer.ggml.add_eos_token": header.add_eos,
    }
    differing = [
        f"{name} {found.get(name)} (not {value})" for name, value in wanted.items() if found.get(name) != value
    ]
    if header.chat_template != special.chat_template:
        differing.append("another chat template")
    if differing:
        raise ExportError(f"{path} says of its vocabulary: {', '.join(differing)}; the tokenizer says otherwise")


def _expect(path: Path, header: Header, quantisation: Quantisation | str, labels: tuple[str, ...] | None) -> None:
    if header.file_type != quantisation:
        raise ExportError(f"{path} was to be {quantisation}, but its header says {header.file_type}")
    if quantisation not in {"F16", "BF16"} and header.unquantised:
        raise ExportError(
            f"{path} was to be {quantisation}, but {', '.join(header.unquantised[:3])} stayed in 16 bits: rows that do "
            "not divide by 32 cannot be quantised; leave this quantisation out of release.quantisations"
        )
    if labels is None:
        if header.labels or header.pooling == "RANK":
            raise ExportError(f"{path} was to be a language model, but its header says that it scores {header.labels}")
        return
    if header.labels != labels or header.pooling != "RANK":
        raise ExportError(
            f"{path} was to score the labels {list(labels)}, but its header says {list(header.labels)} with pooling "
            f"{header.pooling}; labels may not be named LABEL_0, LABEL_1"
        )

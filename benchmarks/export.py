"""From base and adapter to GGUF: time and memory, ours against peft's merge and llama.cpp's converter; and parity.

    python -m benchmarks.export [--json FILE] [--quick] [--repeat 3] [--seven]

A Qwen2 of 0.5 B parameters with random weights in bf16, its embeddings tied as in Qwen2.5-0.5B, and a LoRA adapter of
rank 16 on every linear layer. Each contender is a process of its own, in turn with the others:

- ``freshet``: ``convert`` with an adapter, the merge streamed into the file (the processes that it starts counted, the
  vocabulary proved too);
- ``merge_and_unload + converter``: transformers loads the base, peft merges and saves it, llama.cpp's own converter
  reads that checkpoint: two processes one after the other, so the larger peak counts.

Seconds are end to end, with the processes' starts and imports, which are also stated alone. Memory is the peak of the
resident set above what the imports take; of processes that run at once the sum. Each file's tensors are compared with
the other's. ``--seven``: also ours on 7 B parameters (32 GB of disk, some minutes): does it stay within 4 GiB?
``--quick``: a tiny model, and a fifth of the answers.

Parity: the logits of what follows each token of held-out answers, beside the merged model's in transformers in
float32. The F16 file is read twice: in transformers, in float32, which shows what the file holds; and in llama.cpp,
which rounds activations to 16 bits too, for everybody. ``f16_max_logit_difference`` is the larger one of both models in
float32, ``f16_max_logit_difference_in_llama_cpp`` in llama.cpp. Next tokens are those of a trained model, the embedded
base: by random weights the likeliest ones are all but equally likely.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.report import report
from pipelines.environment import REPOSITORY, Environment, available_cores
from pipelines.models import BUNDLED_CHAT, model_folder
from pipelines.release.gguf import converter_root
from pipelines.release.settings import Quantisation

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STARTED = time.monotonic()
OURS, THEIRS = "freshet", "merge_and_unload + converter"
SIZES: Mapping[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
             "num_key_value_heads": 2, "vocab_size": 1024},
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
             "num_key_value_heads": 2, "vocab_size": 151936},
    "7B": {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
           "num_key_value_heads": 4, "vocab_size": 152064},
}  # fmt: skip
RANK = 16
QUANTISED: tuple[Quantisation, ...] = ("Q8_0", "Q4_K_M")
TRANSFORMERS, LLAMA_CPP = "transformers, float32", "llama.cpp"
GIB = 1 << 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help="a tiny model: does it run?")
    parser.add_argument("--repeat", type=int, default=3, help="times that each contender runs; medians are reported")
    parser.add_argument("--seven", action="store_true", help="also ours on 7 B parameters, which takes 28 GB of disk")
    parser.add_argument("--part", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.part:
        print(json.dumps(PARTS[chosen.part[0]](Path(chosen.part[1]))))
        return
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        size = "tiny" if chosen.quick else "0.5B"
        run("make", folder, size)
        found: dict[str, list[dict[str, float]]] = {OURS: [], THEIRS: []}
        for turn in range(1 if chosen.quick else chosen.repeat):
            for name in (OURS, THEIRS) if turn % 2 == 0 else (THEIRS, OURS):
                found[name].append(contend(name, folder))
                print(f"{name}: {found[name][-1]}", flush=True)
        largest = compare(folder / f"{OURS}.gguf", folder / f"{THEIRS}.gguf")
        rows = [
            {"contender": name, "model": size}
            | {key: statistics.median(turn[key] for turn in turns) for key in turns[0]}
            for name, turns in found.items()
        ]
        random = beside_transformers(folder, size, folder / "base", folder / "adapter", chats=6)
        trained = beside_transformers(
            folder, BUNDLED_CHAT, model_folder(BUNDLED_CHAT, None), None, chats=12 if chosen.quick else 60
        )
    ours, theirs = rows
    alike = {row["file"]: row["next tokens alike"] for row in trained}
    exact, computed = (
        max(
            row["largest difference of a logit"]
            for row in random + trained
            if (row["file"], row["in"]) == ("F16", where)
        )
        for where in (TRANSFORMERS, LLAMA_CPP)
    )
    figures = {
        "time_vs_reference": theirs["seconds"] / ours["seconds"],
        "time_vs_reference_without_imports": (theirs["seconds"] - theirs["import_seconds"])
        / (ours["seconds"] - ours["import_seconds"]),
        "memory_vs_reference": ours["peak_mb"] / theirs["peak_mb"],
        "largest_difference": largest,
        "f16_max_logit_difference": exact,
        "f16_max_logit_difference_in_llama_cpp": computed,
        "f16_top1_agreement": alike["F16"],
        "q8_0_top1_agreement": alike["Q8_0"],
    }
    rows += random + trained
    missing = {} if chosen.seven else {"7B": "--seven was not given"}
    if chosen.seven:
        needed = 4 * 7.7e9 + GIB
        with tempfile.TemporaryDirectory() as scratch:
            free = shutil.disk_usage(scratch).free
            if free < needed:
                missing["7B"] = f"{needed / 1e9:.0f} GB of disk are needed, {free / 1e9:.0f} GB are free"
            else:
                run("make", Path(scratch), "7B")
                rows.append({"contender": OURS, "model": "7B", **contend(OURS, Path(scratch))})
                figures["seven_resident_gib"] = rows[-1]["resident_mb"] * 1e6 / GIB
    for name, reason in missing.items():
        print(f"{name}: not measured, {reason}", flush=True)
    report(
        "export",
        rows,
        figures,
        packages=["torch", "transformers", "peft", "gguf", "auto-round", "llama-cpp-python"],
        json_file=chosen.json,
        quick=chosen.quick,
        not_measured=missing,
    )


def run(part: str, folder: Path, *more: str) -> dict[str, Any]:
    """One part, in a process of its own, which says what it took; ``seconds`` are those of the process."""
    (folder / "arguments.json").write_text(json.dumps(more), encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.export", "--part", part, str(folder)]
    began = time.monotonic()
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{part} failed: {done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {"seconds": time.monotonic() - began, **found}


def contend(name: str, folder: Path) -> dict[str, float]:
    """Seconds, and peaks in MB, of one contender."""
    (folder / f"{name}.gguf").unlink(missing_ok=True)
    if name == OURS:
        return run("ours", folder)
    shutil.rmtree(folder / "merged", ignore_errors=True)
    merged, converted = run("merge", folder), run("convert", folder)
    return {
        **{key: merged[key] + converted[key] for key in ("seconds", "import_seconds")},
        **{key: max(merged[key], converted[key]) for key in ("peak_mb", "resident_mb")},
    }


def make(folder: Path) -> dict[str, float]:
    """Base and adapter."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, Qwen2Config

    from pipelines.basemodel.tokenizer import save_tokenizer, train_tokenizer

    (size,) = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    tokenizer = train_tokenizer(600, chats=100)
    config = Qwen2Config(
        **SIZES[size],
        tie_word_embeddings=size != "7B",
        max_position_embeddings=4096,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder / "base", max_shard_size="500MB")
    save_tokenizer(tokenizer, folder / "base")
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=RANK, target_modules="all-linear"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.02)
    adapted.save_pretrained(str(folder / "adapter"), save_embedding_layers=False)
    return {}


def ours(folder: Path) -> dict[str, float]:
    """Merged on the way into the file, by a process that this one starts."""
    # What the imports of both processes take, this one and the one that converts, and how long they do.
    began = time.monotonic()
    both = "import torch, pipelines.release.merge"
    root = str(converter_root(Environment().llama_cpp_root))
    mine, here = imports(
        f"{both}, transformers.models.qwen2.modeling_qwen2, tokenizers, pipelines.release.gguf;"
        "import pipelines.release.llama as l; l.llama_library()"
    )
    child_imports, there = imports(
        f"import sys; sys.path.insert(0, {root!r}); {both}, transformers.models.auto.tokenization_auto, gguf;"
        "import conversion; conversion.get_model_class('Qwen2ForCausalLM')"
    )
    probing = time.monotonic() - began
    from pipelines.release.gguf import convert

    peaks = {0: 0.0}
    watching = threading.Event()

    def watch() -> None:
        while not watching.wait(0.01):
            for path in Path("/proc/self/task").glob("*/children"):
                for child in path.read_text(encoding="utf-8").split():
                    peaks[int(child)] = max(peaks.get(int(child), 0), memory(child))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        convert(folder / "base", folder / f"{OURS}.gguf", name="model", metadata={}, adapter=folder / "adapter")
    finally:
        watching.set()
        watcher.join()
    own, child = memory("self"), max(peaks.values())
    return {
        "seconds": time.monotonic() - STARTED - probing,
        "import_seconds": max(here, there),  # at the same time
        "peak_mb": max(0.0, own - mine) + max(0.0, child - child_imports),
        "resident_mb": own + child,
    }


def beside_transformers(
    folder: Path, model: str, base: Path, adapter: Path | None, *, chats: int
) -> list[dict[str, Any]]:
    """A row for each file, made anew, and for what reads it."""
    found: Any = run("parity", folder, str(base), str(adapter or ""), str(chats))["rows"]
    return [{"contender": OURS, "model": model, **row} for row in found]


def parity(folder: Path) -> dict[str, Any]:
    """How the files' logits differ from the merged model's."""
    import numpy as np
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pipelines.basemodel.language import Draw, chat
    from pipelines.release.gguf import convert, quantise
    from pipelines.release.language import GgufLanguageModel
    from pipelines.training.chats import encode_chats

    torch.set_num_threads(available_cores())
    base, adapter, number = json.loads((folder / "arguments.json").read_text(encoding="utf-8"))
    files = {name: folder / f"{name}.gguf" for name in ("F16", *QUANTISED)}
    convert(Path(base), files["F16"], name="model", metadata={}, adapter=Path(adapter) if adapter else None)
    for name in QUANTISED:
        quantise(files["F16"], files[name], name, None)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    if adapter:
        model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    draw = Draw(7, held_out=True, lifelike=True)
    tokenizer = AutoTokenizer.from_pretrained(base)
    chats = encode_chats(tokenizer, [chat(draw, texts=3, facts=4, questions=1) for _ in range(int(number))])
    answers = [(one.ids[:-1], one.answers[-1][0] - 1) for one in chats]  # and where the first token is foreseen

    def in_transformers(one: Any) -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [one(input_ids=torch.tensor([ids])).logits[0, first:].numpy() for ids, first in answers]

    wanted = np.concatenate(in_transformers(model))
    rows = []

    def add(name: str, where: str, logits: list[NDArray[np.float32]]) -> None:
        found = np.concatenate(logits)[:, : wanted.shape[1]]
        rows.append(
            {
                "file": name,
                "in": where,
                "places": len(wanted),
                "largest difference of a logit": float(np.abs(found - wanted).max()),
                "next tokens alike": float((found.argmax(axis=1) == wanted.argmax(axis=1)).mean()),
            }
        )

    read = AutoModelForCausalLM.from_pretrained(folder, gguf_file=files["F16"].name, dtype=torch.float32)
    add("F16", TRANSFORMERS, in_transformers(read))
    del model, read
    longest = max(len(ids) for ids, _ in answers)
    for name, path in files.items():
        llama = GgufLanguageModel(path, longest)
        add(name, LLAMA_CPP, [llama.logits(ids, first=first) for ids, first in answers])
    return {"rows": rows}


def imports(code: str) -> tuple[float, float]:
    """MB that a process holds after ``code``, and the seconds that it took."""
    code = f"import time; began = time.monotonic(); {code}; print(time.monotonic() - began)"
    code += "; print(open('/proc/self/status').read())"
    said = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    seconds, status = said.stdout.split("\n", 1)
    return resident(status), float(seconds)


def merge(folder: Path) -> dict[str, float]:
    """As people do it."""
    began = time.monotonic()
    import torch
    import transformers.models.qwen2.modeling_qwen2
    from peft import PeftModel

    torch.set_num_threads(available_cores())
    imported, before = time.monotonic() - began, memory("self")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder / "base", dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, folder / "adapter").merge_and_unload()
    merged.save_pretrained(folder / "merged")
    transformers.AutoTokenizer.from_pretrained(folder / "base").save_pretrained(folder / "merged")
    peak = memory("self")
    return {"import_seconds": imported, "peak_mb": peak - before, "resident_mb": peak}


def convert_merged(folder: Path) -> dict[str, float]:
    """llama.cpp's converter, told the one thing that it cannot know: how this tokenizer cuts texts."""
    began = time.monotonic()
    sys.path.insert(0, str(converter_root(Environment().llama_cpp_root)))
    import gguf
    import torch

    conversion = import_module("conversion")
    kind = conversion.get_model_class("Qwen2ForCausalLM")
    torch.set_num_threads(available_cores())
    import_module("transformers.models.auto.tokenization_auto")
    imported, before = time.monotonic() - began, memory("self")
    kind.get_vocab_base_pre = lambda _self, _tokenizer: "qwen2"
    path = folder / f"{THEIRS}.gguf"
    kind(folder / "merged", gguf.LlamaFileType.MOSTLY_F16, path, model_name="model").write()
    peak = memory("self")
    return {"import_seconds": imported, "peak_mb": peak - before, "resident_mb": peak}


def compare(one: Path, other: Path) -> float:
    """The largest difference between two files' tensors, relative to the largest number of each."""
    import gguf
    import numpy as np

    left, right = ({tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors} for path in (one, other))
    if {name: (tensor.tensor_type, *tensor.shape) for name, tensor in left.items()} != {
        name: (tensor.tensor_type, *tensor.shape) for name, tensor in right.items()
    }:
        raise SystemExit(f"{one} and {other} hold other tensors")
    return max(
        float(np.abs(left[name].data.astype(np.float32) - right[name].data.astype(np.float32)).max())
        / max(1e-9, float(np.abs(right[name].data).max()))
        for name in left
    )


def memory(process: str) -> float:
    """The highest that a process's resident set was, in MB."""
    try:
        return resident(Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0.0


def resident(status: str) -> float:
    """VmHWM, in MB."""
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


PARTS: dict[str, Any] = {"make": make, "ours": ours, "merge": merge, "convert": convert_merged, "parity": parity}


if __name__ == "__main__":
    main()

"""Training chat models: ours against TRL's SFTTrainer and transformers' Trainer: ``python -m benchmarks.generation``.

The same model (random weights), chats, LoRA adapter, precision, optimiser and steps of 8 chats; TRL and transformers as
they come otherwise: TRL pads each batch and checkpoints gradients, transformers pads each batch. Each run is a process
of its own, in turn, and three of each: medians are told. Tokens are those of chats, padding not counted; seconds are
those of the training loop; memory is the peak above what the imports take. Processor seconds are less distorted by what
else runs on the machine; ours count loading the model too. Both TRL and transformers get prompts and answers apart, so
that all three learn from answers only. The model's FLOP utilisation (mfu) counts 4 operations a parameter and token,
for weights are frozen, against the fastest of a few large matrix products.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import report
from pipelines.artifacts import Artifact, load, seal
from pipelines.environment import REPOSITORY, available_cores
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import read_split
from pipelines.training.job import TrainingJob, train
from pipelines.training.lora import bf16_is_faster
from pipelines.training.progress import Progress, most_memory
from pipelines.training.settings import GenerateSettings, LoraSettings

CONTENDERS = ("ours", "trl", "transformers")
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CPU_SHAPE: dict[str, Any] = {
    "hidden_size": 384,
    "intermediate_size": 1024,
    "num_hidden_layers": 8,
    "num_attention_heads": 6,
}
GPU_SHAPES: dict[str, dict[str, Any]] = {
    "0.5B": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    "1.5B": {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
}
"""Those of Qwen2.5, whose two heads of keys and values and vocabulary they have too."""

BATCH_SIZE = 8
"""TRL's and transformers' default."""
MAXIMUM_TOKENS = 1024
REPEATS = 3
LORA = LoraSettings(rank=16, alpha=32, dropout=0.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help="a few chats, each contender once: does it run?")
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)  # what a process of ``measure`` does
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--set", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one:
        found = {"ours": run_ours, "trl": run_trl, "transformers": run_transformers}[chosen.one](
            chosen.folder, load(chosen.set)
        )
        print(json.dumps(found))
        return
    rows, figures = measure(quick=chosen.quick)
    report(
        "generation",
        rows,
        figures,
        packages=["torch", "transformers", "peft", "trl"],
        json_file=chosen.json,
        quick=chosen.quick,
    )


def measure(*, quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows by model, data and contender; figures are those of the largest model, and on the CPU of the only one."""
    import torch

    cuda = torch.cuda.is_available()
    rows: list[dict[str, Any]] = []
    figures: dict[str, float] = {}
    peak = matmul_peak()
    missing = find_spec("trl") is None
    if missing:
        print("trl is not installed: not measured (pip install -e '.[dev]')", flush=True)
    contenders = [name for name in CONTENDERS if name != "trl" or not missing]
    with tempfile.TemporaryDirectory() as scratch:
        sets = {
            "short": write_chats(Path(scratch) / "short", 64 if quick else 96 if not cuda else 2048, short=True),
            "long": write_chats(Path(scratch) / "long", 8 if quick else 16 if not cuda else 256, short=False),
        }
        for model, shape in GPU_SHAPES.items() if cuda else {"25M": CPU_SHAPE}.items():
            base = make_base(Path(scratch) / model, shape, vocabulary=151_936 if cuda else 32_000)
            memory: list[float] = []
            for name, training_set in sets.items():
                runs = interleaved(contenders, base, training_set, 1 if quick else REPEATS)
                found = {
                    contender: {key: median(run[key] for run in runs[contender]) for key in runs[contender][0]}
                    for contender in contenders
                }
                for contender, values in found.items():
                    rows.append(_row(model, name, contender, values, peak))
                if not missing:
                    figure = {"short": "packed_vs_trl", "long": "long_vs_trl"}[name]
                    figures[figure] = found["ours"]["tokens_per_second"] / found["trl"]["tokens_per_second"]
                    memory.append(found["ours"]["memory"] / found["trl"]["memory"])
            if memory:
                figures["memory_vs_trl"] = max(memory)
    return rows, figures


def _row(model: str, data: str, contender: str, values: dict[str, float], peak: float) -> dict[str, Any]:
    return {
        "model": model,
        "chats": data,
        "contender": contender,
        "tokens": int(values["tokens"]),
        "tokens_per_second": values["tokens_per_second"],
        "tokens_per_cpu_second": values["tokens_per_cpu_second"],
        "mfu": values["operations_a_token"] * values["tokens_per_second"] / peak,
        "memory_mib": values["memory"] / 2**20,
        "loss": values["loss"],
    }


def interleaved(
    contenders: Sequence[str], base: Path, training_set: Artifact, repeats: int
) -> dict[str, list[dict[str, float]]]:
    """Each contender in a process of its own, in turn."""
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    for number in range(repeats):
        for contender in (*contenders[number % len(contenders) :], *contenders[: number % len(contenders)]):
            command = [sys.executable, "-m", "benchmarks.generation", "--one", contender]
            command += ["--folder", str(base), "--set", str(training_set.path)]
            done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
            if done.returncode:
                raise RuntimeError(f"{contender} failed:\n{done.stderr[-3000:]}")
            runs[contender].append(json.loads(done.stdout.splitlines()[-1]))
            said = runs[contender][-1]
            print(
                f"{base.name} {training_set.path.name} {contender}: {said['tokens_per_second']:,.0f} tokens/s, "
                f"{said['memory'] / 2**20:,.0f} MiB",
                flush=True,
            )
    return runs


def run_ours(base: Path, training_set: Artifact) -> dict[str, float]:
    import peft  # noqa: F401
    import transformers.trainer  # noqa: F401

    before = most_memory()
    settings = GenerateSettings(
        task="generate",
        base_model=str(base),
        lora=LORA,
        epochs=1,
        batch_size=BATCH_SIZE,
        maximum_tokens=MAXIMUM_TOKENS,
        checkpoint_minutes=1000,
    )
    points: list[Progress] = []
    started = time.process_time()
    with tempfile.TemporaryDirectory() as output:
        job = TrainingJob(use_case="bench", training_set=training_set.path, output=Path(output), settings=settings)
        train(job, progress=points.append)
    point = points[-1]
    return _said(base, point.tokens, point.seconds, time.process_time() - started, before, point.loss)


def run_trl(base: Path, training_set: Artifact) -> dict[str, float]:
    import peft  # noqa: F401
    import trl.trainer.sft_trainer  # noqa: F401

    before = most_memory()
    with tempfile.TemporaryDirectory() as output:
        trainer = trl_trainer(base, training_set, Path(output))
        tokens = sum(len(ids) for ids in trainer.train_dataset["input_ids"])
        return _trained(trainer, base, tokens, before)


def trl_trainer(
    base: Path, training_set: Artifact, output: Path, *, lora: LoraSettings = LORA, **particular: Any
) -> Any:
    """A plain ``SFTTrainer`` on the training chats, of answers alone."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoTokenizer
    from trl.trainer.sft_config import SFTConfig
    from trl.trainer.sft_trainer import SFTTrainer

    rows = [
        {
            "prompt": [{"role": turn.role, "content": turn.content} for turn in row.messages[:-1]],
            "completion": [{"role": "assistant", "content": row.answer}],
        }
        for row in read_split(training_set, "train")
    ]
    return SFTTrainer(
        _model(base),
        SFTConfig(output_dir=str(output), max_length=MAXIMUM_TOKENS, **{**_common(), **particular}),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(base),
        peft_config=LoraConfig(**_lora(lora)),
    )


def run_transformers(base: Path, training_set: Artifact) -> dict[str, float]:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    before = most_memory()
    tokenizer = AutoTokenizer.from_pretrained(base)
    rows = []
    for row in read_split(training_set, "train"):
        turns = [{"role": turn.role, "content": turn.content} for turn in row.messages]
        prompt: Any = tokenizer.apply_chat_template(turns[:-1], add_generation_prompt=True, return_dict=False)
        whole: Any = tokenizer.apply_chat_template(turns, return_dict=False)
        rows.append({"input_ids": whole, "labels": [-100] * len(prompt) + whole[len(prompt) :]})
    with tempfile.TemporaryDirectory() as output:
        trainer = Trainer(
            get_peft_model(_model(base), LoraConfig(**_lora())),
            TrainingArguments(output_dir=output, bf16=bf16_is_faster(), **_common()),
            train_dataset=rows,
            data_collator=DataCollatorForSeq2Seq(tokenizer),
        )
        return _trained(trainer, base, sum(len(row["input_ids"]) for row in rows), before)


def _trained(trainer: Any, base: Path, tokens: int, before: int) -> dict[str, float]:
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        started = ended = cpu_started = cpu_ended = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self.started, self.cpu_started = time.monotonic(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ended, self.cpu_ended = time.monotonic(), time.process_time()

    clock = Clock()
    trainer.add_callback(clock)
    trainer.train()
    losses = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    seconds, cpu_seconds = clock.ended - clock.started, clock.cpu_ended - clock.cpu_started
    return _said(base, tokens, seconds, cpu_seconds, before, losses[-1])


def _said(base: Path, tokens: int, seconds: float, cpu_seconds: float, before: int, loss: float) -> dict[str, float]:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    memory = most_memory() - (0 if torch.cuda.is_available() else before)
    with torch.device("meta"):
        model: Any = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base))  # type: ignore[no-untyped-call]
    # Forward, and back to the activations: weights are frozen, and the adapter's own products are below 2 %.
    parameters = sum(value.numel() for value in model.parameters())  # the embedding is the head: it is multiplied once
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "tokens_per_cpu_second": tokens / cpu_seconds,
        "memory": memory,
        "loss": loss,
        "operations_a_token": 4 * parameters,
    }


def _model(base: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(available_cores())
    torch.set_flush_denormal(True)
    return AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16 if bf16_is_faster() else torch.float32)


def _lora(lora: LoraSettings = LORA) -> dict[str, Any]:
    return {
        "task_type": "CAUSAL_LM",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": lora.target_modules,
    }


def _common() -> dict[str, Any]:
    import torch

    return {
        "num_train_epochs": 1,
        "per_device_train_batch_size": BATCH_SIZE,
        "learning_rate": 2e-4,
        "warmup_steps": 0.06,
        "weight_decay": 0.01,
        "use_cpu": not torch.cuda.is_available(),
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 17,
    }


def make_base(folder: Path, shape: dict[str, Any], *, vocabulary: int) -> Path:
    """A Llama with random weights, and a tokenizer of as many made-up words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<unk>", "<pad>", "<|im_start|>", "<|im_end|>"]
    names = [*special, "system", "user", "assistant"]
    names += [f"w{number}" for number in range(vocabulary - len(names))]
    names_of = dict(zip(("unk_token", "pad_token", "eos_token"), (special[0], special[1], special[3]), strict=True))
    words = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, special[0]))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names_of)  # type: ignore[no-untyped-call]
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=vocabulary,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        tie_word_embeddings=True,
        eos_token_id=3,
        pad_token_id=1,
        bos_token_id=None,
        **shape,
    )
    torch.manual_seed(1)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_chats(folder: Path, count: int, *, short: bool) -> Artifact:
    """Questions and answers of made-up words: of about 75 tokens, some six times as long, or of 700 to 1,000."""
    draw = random.Random(3)
    lines = []
    for number in range(count):
        if short:
            sizes = [min(400, max(4, round(draw.lognormvariate(3.4, 0.8)))), round(draw.lognormvariate(3.0, 0.7)) + 2]
        else:
            whole = draw.randint(700, 1000)
            sizes = [whole // 2, whole - whole // 2]
        question, answer = (" ".join(f"w{draw.randrange(20_000)}" for _ in range(size)) for size in sizes)
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        row = {"id": f"{number:06}", "text": question, "labels": [], "group": str(number), "origin": "human"}
        lines.append(json.dumps({**row, "messages": turns, "context": None}) + "\n")
    folder.mkdir(parents=True)
    for split, part in (("train", lines), ("validation", []), ("test", [])):
        (folder / f"{split}.jsonl").write_text("".join(part), encoding="utf-8")
    facts = {"kind": "training_set", "task": "generate", "categories": [], "multi_label": False}
    seal(folder, {"fingerprint": fingerprint(lines), **facts})
    return load(folder)


def matmul_peak() -> float:
    """Operations a second of a large matrix product in the precision of training."""
    import torch

    torch.set_num_threads(available_cores())
    device, size = ("cuda", 8192) if torch.cuda.is_available() else ("cpu", 2048)
    dtype = torch.bfloat16 if bf16_is_faster() else torch.float32
    one = torch.randn(size, size, dtype=dtype, device=device)
    took = []
    for _ in range(8):
        started = time.perf_counter()
        one @ one
        if device == "cuda":
            torch.cuda.synchronize()
        took.append(time.perf_counter() - started)
    return 2 * size**3 / min(took)


if __name__ == "__main__":
    main()

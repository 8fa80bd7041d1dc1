"""A published version's chat template, rendered as transformers does, without its models or torch."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipelines.errors import ArtifactError
from pipelines.fingerprint import text_hash
from pipelines.release.registry import PublishedVersion

TEMPLATE = "chat_template.jinja"
NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
"""What transformers hands to a template."""


@dataclass(frozen=True, slots=True)
class AddedToken:
    """A token that stands for itself, whatever is around it."""

    content: str
    special: bool


class ChatTemplate:
    """Stands for the tokenizer in ``prompt.render``: all that it asks of one."""

    def __init__(self, version: PublishedVersion) -> None:
        """Read the template of ``version``, and of its tokenizer which texts are control tokens.

        Raises:
            NotBuiltError: the version has no such file.
            ArtifactError: a file is missing or altered, or the template is not the one trained with.
            ServerUnavailableError: the registry cannot be reached.
        """
        self.name_or_path = f"{version.use_case} {version.version}"
        self.chat_template = version.fetch(TEMPLATE).read_bytes().decode("utf-8")
        if text_hash(self.chat_template) != version.manifest["template_hash"]:
            raise ArtifactError(
                f"{TEMPLATE} of {version.uri} is not the one that the model was trained with; publish it again"
            )
        tokenizer = json.loads(version.fetch("adapter/tokenizer.json").read_bytes())
        config = json.loads(version.fetch("adapter/tokenizer_config.json").read_bytes())
        self.added_tokens_decoder = {
            int(each["id"]): AddedToken(each["content"], bool(each["special"])) for each in tokenizer["added_tokens"]
        }
        self._named = {name: _content(config[name]) for name in NAMED if config.get(name) is not None}
        extra = config.get("extra_special_tokens") or config.get("additional_special_tokens") or []
        more = extra.values() if isinstance(extra, dict) else extra
        self.all_special_tokens = list(dict.fromkeys([*self._named.values(), *map(_content, more)]))
        self._composes = _composes(tokenizer.get("normalizer"))

    def apply_chat_template(
        self, turns: Sequence[Mapping[str, str]], *, tokenize: bool, add_generation_prompt: bool
    ) -> str:
        """The text of a chat; ``tokenize`` is always false here."""
        from transformers.utils.chat_template_utils import render_jinja_template

        del tokenize
        render: Any = render_jinja_template  # its annotations say a string, and it returns two lists
        rendered, _ = render(
            conversations=[[dict(turn) for turn in turns]],
            chat_template=self.chat_template,
            add_generation_prompt=add_generation_prompt,
            **self._named,
        )
        return str(rendered[0])

    def composed(self, text: str) -> str:
        """``text`` as its tokenizer reads it: some compose characters first (NFC), which llama.cpp leaves to us."""
        return unicodedata.normalize("NFC", text) if self._composes else text


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, Mapping) else token)


def _composes(normalizer: Any) -> bool:
    if not isinstance(normalizer, Mapping):
        return False
    return normalizer.get("type") == "NFC" or any(map(_composes, normalizer.get("normalizers") or ()))

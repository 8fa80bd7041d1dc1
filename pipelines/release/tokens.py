"""Tokenizers of language models: recognised by their structure, and proved to read as llama.cpp does."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.errors import ExportError
from pipelines.release.llama import load_llama
from pipelines.release.probes import PROBES

CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
QWEN2 = CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_WORDS = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+{c}"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*{c}"
)
_END = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4O = _WORDS.replace("{c}", CONTRACTIONS + "?") + r"|\p{N}{1,3}" + _END
TEKKEN = _WORDS.replace("{c}", "") + r"|\p{N}" + _END

KNOWN: Mapping[tuple[tuple[str, ...], bool], str] = {
    ((r"\p{N}", GPT2), False): "smollm",
    ((GPT2,), False): "gpt-2",
    ((LLAMA3,), True): "llama-bpe",
    ((LLAMA3,), False): "smaug-bpe",
    ((QWEN2,), False): "qwen2",
    ((GPT4O,), False): "gpt-4o",
    ((TEKKEN,), True): "tekken",
}
"""What llama.cpp calls a byte-level BPE by what it cuts texts into first, and whether whole words skip the merges."""

TEXTS = (
    "12345 6 78.9 -0.5e10 ²³ ½ ٣٤ १२ 1st 2nd x1y2z3",
    "a  b   c    d\t\te\n\n\nf\r\n\r\ng \n \t h ",
    "  leading and trailing  ",
    "\n\n# Title\n\n- one\n- two\n\n```python\ndef f(x: int) -> int:\n\treturn x << 2  # ünï\n```\n",
    "if(a&&b||!c){d[0]+=e->f::g<h>();}",
    "हिन्दी में लिखा 한국어 문장입니다 ภาษาไทย தமிழ்",
    "I'LL we'Ve they'RE don'T 'S''s’s",
    "......!!!???———===### ~~~ <<< >>> $$$ %%%",
    "🦙🦙 🚀(x) 😶‍🌫️ 👩🏽‍💻 🏳️‍🌈",
    "x" * 300 + " " * 70 + "9" * 40,
    "aé\u0301ñn\u0303 \u200d\u200c\ufe0f\u00a0\u2028\u2029\x0b\x0c\x1c end",
)
"""Beside the probes of all models: what splitting rules of language models differ in."""


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """What a GGUF file has to say of a checkpoint's special tokens; ids are None where there is none."""

    bos: int | None
    eos: int | None
    eot: int | None
    """Ends the assistant's turn, by the chat template."""
    pad: int | None
    add_bos: bool
    """Whether the tokenizer puts ``bos`` before every text."""
    add_eos: bool
    stops: tuple[int, ...]
    """Every token that ends an answer."""
    chat_template: str | None


def load_tokenizer(checkpoint: Path) -> Any:
    """The tokenizer of ``checkpoint`` as transformers reads it."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False)


def pre_tokenizer(tokenizer: Any) -> str | None:
    """llama.cpp's name for how a byte-level BPE cuts texts, or None where it has no such rules.

    By the tokenizer that was loaded: transformers gives that of some architectures other rules than its file says.
    """
    facts = _structure(tokenizer)
    if facts is None:
        return None
    model = facts["model"]
    plain = (
        model.get("type") == "BPE"
        and not model.get("byte_fallback")
        and not model.get("dropout")
        and not model.get("continuing_subword_prefix")
        and not model.get("end_of_word_suffix")
        and (facts.get("normalizer") or {"type": "NFC"}) in ({"type": "NFC"}, {"type": "Sequence", "normalizers": []})
    )
    steps = _steps(facts.get("pre_tokenizer") or {})
    if not plain or steps is None or steps[-1:] != ["bytes"]:
        return None
    return KNOWN.get((tuple(steps[:-1]), bool(model.get("ignore_merges"))))


def special_tokens(checkpoint: Path, tokenizer: Any) -> SpecialTokens:
    """The special tokens of ``checkpoint``, by its tokenizer, chat template and generation config.

    Raises:
        ExportError: the tokenizer puts other tokens around a text than llama.cpp can.
    """
    around, inside = tokenizer("a")["input_ids"], tokenizer("a", add_special_tokens=False)["input_ids"]
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    for add_bos, add_eos in ((False, False), (True, False), (False, True), (True, True)):
        if around == [*([bos] if add_bos else []), *inside, *([eos] if add_eos else [])]:
            break
    else:
        raise ExportError(
            f"{checkpoint}: the tokenizer puts {tokenizer.convert_ids_to_tokens(around)} for 'a'; llama.cpp can add "
            "bos before and eos after a text, nothing else"
        )
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    eot = _end_of_turn(tokenizer) if template else None
    path = checkpoint / "generation_config.json"
    stated = json.loads(path.read_text(encoding="utf-8")).get("eos_token_id") if path.is_file() else None
    stops = [eos, eot, *(stated if isinstance(stated, list) else [stated])]
    return SpecialTokens(
        bos=bos,
        eos=eos,
        eot=eot,
        pad=tokenizer.pad_token_id,
        add_bos=add_bos,
        add_eos=add_eos,
        stops=tuple(sorted({stop for stop in stops if stop is not None})),
        chat_template=template,
    )


class GgufVocabulary:
    """The vocabulary of a GGUF file, without its weights."""

    def __init__(self, path: Path) -> None:
        """Load it.

        Raises:
            ArtifactError: llama.cpp cannot load it.
        """
        self._llama, self._model = load_llama(self, path, vocab_only=True)
        self._vocabulary = self._llama.llama_model_get_vocab(self._model)

    def tokens(self, text: str) -> list[int]:
        """Token ids of ``text``, with what the tokenizer puts around it; special tokens in it count as such."""
        return encode(self._llama, self._vocabulary, text)

    def ends(self, token: int) -> bool:
        """Whether generation stops at ``token``."""
        return bool(self._llama.llama_vocab_is_eog(self._vocabulary, token))


def encode(llama: Any, vocabulary: Any, text: str, *, whole: bool = True) -> list[int]:
    """Token ids of ``text`` by llama.cpp; ``whole`` puts around it what the tokenizer does, such as BOS."""
    encoded = text.encode("utf-8", "replace")
    size = len(encoded) + 8
    while True:
        ids = (llama.llama_token * size)()
        count = llama.llama_tokenize(vocabulary, encoded, len(encoded), ids, size, whole, True)
        if count >= 0:
            return list(ids[:count])
        size = -count  # a character can become more tokens than it has bytes


def prove(path: Path, tokenizer: Any, special: SpecialTokens, texts: Sequence[str] = ()) -> int:
    """Hold the vocabulary of the GGUF file ``path`` against ``tokenizer`` on the probe corpus and ``texts``.

    Where the tokenizer composes characters (NFC) first, so are the probes: llama.cpp leaves that to its caller.

    Returns:
        How many texts were compared.

    Raises:
        ExportError: token ids differ, or a token that ends an answer does not stop generation.
    """
    vocabulary = GgufVocabulary(path)
    added = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    corpus = [probe.text for probe in PROBES] + [*TEXTS, *texts]
    corpus += [f"a{token}b {token} c\n{token}{token}" for token in added[:64]]
    if special.chat_template is not None:
        chat = [{"role": "user", "content": "Is it 10 or 12?"}, {"role": "assistant", "content": "12, I'm sure."}]
        corpus.append(str(tokenizer.apply_chat_template(chat, tokenize=False)))
    composes = (_structure(tokenizer) or {}).get("normalizer") == {"type": "NFC"}
    for text in corpus:
        read = unicodedata.normalize("NFC", text) if composes else text
        theirs, ours = tokenizer(read)["input_ids"], vocabulary.tokens(read)
        if theirs != ours:
            at = next((n for n, (a, b) in enumerate(zip(theirs, ours, strict=False)) if a != b), len(ours))
            shown = [tokenizer.convert_ids_to_tokens(ids[at : at + 4]) for ids in (theirs, ours)]
            raise ExportError(
                f"llama.cpp does not know the tokenizer {tokenizer.name_or_path}: it reads {text[:60]!r} as {shown[1]} "
                f"where transformers reads {shown[0]} (token {at}); its rules are never guessed: use a base model that "
                "llama.cpp knows, or a newer converter by LLAMA_CPP_ROOT"
            )
    running = [token for token in special.stops if not vocabulary.ends(token)]
    if running:
        raise ExportError(
            f"{path} would not stop at {tokenizer.convert_ids_to_tokens(running)}, which ends an answer of "
            f"{tokenizer.name_or_path}: llama.cpp takes one end of a text and one end of a turn"
        )
    return len(corpus)


def _structure(tokenizer: Any) -> dict[str, Any] | None:
    """What a fast tokenizer is made of, as tokenizer.json has it."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return None if backend is None else json.loads(backend.to_str())


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that follows the assistant's words in the chat template."""
    mark = "Qzv7"
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": mark}]
    rendered = str(tokenizer.apply_chat_template(chat, tokenize=False))
    _, found, after = rendered.rpartition(mark)
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"] if found else []
    return int(ids[0]) if ids and ids[0] in tokenizer.added_tokens_decoder else None


def _steps(facts: Mapping[str, Any]) -> list[str] | None:
    """The regular expressions that cut a text one after the other, and ``bytes``; None where a step is another one."""
    kind = facts.get("type")
    if kind == "Sequence":
        parts = [_steps(part) for part in facts["pretokenizers"]]
        return None if any(part is None for part in parts) else [step for part in parts for step in part or []]
    if kind == "Digits" and facts.get("individual_digits"):
        return [r"\p{N}"]
    if kind == "ByteLevel" and not facts.get("add_prefix_space"):
        return [GPT2, "bytes"] if facts.get("use_regex", True) else ["bytes"]
    if kind == "Split" and (facts.get("behavior"), facts.get("invert")) in (("Isolated", False), ("Removed", True)):
        pattern = facts["pattern"].get("Regex")
        cased = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
        return None if pattern is None else [pattern.replace(cased, CONTRACTIONS)]
    return None

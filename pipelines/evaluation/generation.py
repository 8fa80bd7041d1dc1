"""A chat model, tuned or not, that answers greedily what the serving prompt builder makes of a question."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.artifacts import Artifact
from pipelines.environment import available_cores
from pipelines.errors import ArtifactError, ConfigError
from pipelines.evaluation.classifier import base_folder, quiet_transformers
from pipelines.fingerprint import fingerprint
from pipelines.labels.examples import Example
from pipelines.prompt import Message, PromptSettings, build_messages, kept_context, render, template_hash
from pipelines.training.lora import bf16_is_faster

GENERATION = "1"
"""Version of how answers are made; part of what stored answers are found by."""

FIRST_STAGE = 64
"""New tokens in the first stage; rows that have not ended go on together, twice as far."""

BATCH_ROWS = 64
CPU_BATCH_TOKENS = 16_384
LOSS_BATCH_TOKENS = 2048
"""Logits of every place are held: 150,000 a token."""
SECONDS_BETWEEN_LINES = 10.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said."""

    text: str
    """Without control tokens and the space around."""
    stopped: bool
    """Whether it ended by itself."""
    tokens: int
    """The end token counted."""


@dataclass(slots=True)
class ChatModel:
    """A base model, with or without an adapter. Files are verified when it is made, weights read when it first runs."""

    tokenizer: Any
    prompt: PromptSettings
    """As it is served."""
    key: str
    """Hash (64 hex digits) of the files and the arithmetic that decide what it says."""
    end_tokens: tuple[int, ...]
    """Ids after which it has said all."""
    read: Callable[[], Any] = field(repr=False)
    """Reads the weights, in evaluation mode, on the device."""
    loaded: Any = field(default=None, repr=False)

    @property
    def model(self) -> Any:
        """The transformers or PEFT model."""
        if self.loaded is None:
            self.loaded = self.read()
        return self.loaded

    def release(self) -> None:
        """Free the weights' memory; they are read again when needed."""
        import torch

        self.loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def count_tokens(self, text: str) -> int:
        """Tokens of a text."""
        return len(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def chat(self, row: Example) -> list[Message]:
        """What the model sees of ``row`` before it answers."""
        return build_messages(self.prompt, row.messages[:-1], row.context, count_tokens=self.count_tokens)

    def context(self, row: Example) -> tuple[str, ...]:
        """The retrieved texts of ``row`` that the model sees."""
        return kept_context(self.prompt, row.context or (), count_tokens=self.count_tokens)

    def answers(
        self,
        chats: Sequence[Sequence[Message]],
        *,
        maximum_tokens: int,
        progress: Callable[[str], None] = lambda _: None,
        finished: Callable[[Mapping[int, Answer]], None] = lambda _: None,
    ) -> list[Answer]:
        """Greedy answers, in the order of ``chats``, each at most ``maximum_tokens`` tokens long.

        Rows of alike lengths share left-padded batches under a budget of tokens. All rows write a first stage; those
        that have not ended go on in a next one, so that a short answer never waits for a long one. A prompt that leaves
        no room in the model's window gets an empty answer that did not stop. ``finished`` is handed the answers by
        index as they come.

        Raises:
            ConfigError: not even one row fits the memory.
        """
        prompts = [self._ids(render(self.tokenizer, chat)) for chat in chats]
        window = _window(self.model.config)
        answers: dict[int, Answer] = {}
        said: dict[int, list[int]] = {index: [] for index in range(len(chats))}
        watch = Watch(progress, len(chats))

        def room(index: int) -> int:
            return min(maximum_tokens, window - len(prompts[index])) - len(said[index])

        def end(index: int, *, stopped: bool) -> None:
            text = self.tokenizer.decode(said[index], skip_special_tokens=True).strip()
            answers[index] = Answer(text, stopped, len(said[index]))

        going = [index for index in range(len(chats)) if room(index) > 0]
        for index in sorted(set(range(len(chats))) - set(going)):
            end(index, stopped=False)
        finished(dict(answers))
        if answers:
            progress(f"{len(answers)} of {len(chats)} prompts fill the model's window of {window} tokens: not answered")
        stage = FIRST_STAGE
        while going:
            rows = {index: prompts[index] + said[index] for index in going}
            for batch, written in self._batches(rows, min(stage, max(map(room, going)))):
                for index, tokens in zip(batch, written, strict=True):
                    ends = [place for place, token in enumerate(tokens) if token in self.end_tokens]
                    said[index] += tokens[: min(ends[0] + 1 if ends else len(tokens), room(index))]
                    stopped = said[index][-1] in self.end_tokens
                    if stopped or not room(index):
                        end(index, stopped=stopped)
                finished({index: answers[index] for index in batch if index in answers})
                watch.report(len(answers), sum(map(len, said.values())))
            going = [index for index in going if index not in answers]
            stage *= 2
        return [answers[index] for index in range(len(chats))]

    def losses(self, chats: Sequence[Sequence[Message]]) -> list[float]:
        """Mean loss (nats a token) of each chat's last answer, its end token counted; not finite where nothing fits."""
        import torch

        rows: dict[int, tuple[list[int], int]] = {}
        for index, chat in enumerate(chats):
            before, whole = (
                self._ids(render(self.tokenizer, chat[:-1])),
                self._ids(render(self.tokenizer, chat, answer=True)),
            )
            start = next((at for at, pair in enumerate(zip(before, whole, strict=False)) if pair[0] != pair[1]), None)
            start = min(len(before), len(whole)) if start is None else start
            ends = [at for at in range(start, len(whole)) if whole[at] in self.end_tokens]
            rows[index] = (whole[: (ends[0] + 1 if ends else len(whole))][: _window(self.model.config)], start)
        found = [float("nan")] * len(chats)
        for batch in _by_budget({index: len(ids) for index, (ids, _) in rows.items()}, LOSS_BATCH_TOKENS, BATCH_ROWS):
            ids, mask = self._padded([rows[index][0] for index in batch])
            with torch.inference_mode():
                logits = self.model(input_ids=ids, attention_mask=mask, position_ids=_positions(mask)).logits
            for index, row, tokens in zip(batch, logits, ids, strict=True):
                answer = len(rows[index][0]) - rows[index][1]
                if answer > 0:
                    loss = torch.nn.functional.cross_entropy(row[-answer - 1 : -1].float(), tokens[-answer:])
                    found[index] = float(loss)
        return found

    def _ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])  # the template brings its own

    def _batches(self, rows: Mapping[int, list[int]], new: int) -> Iterator[tuple[list[int], list[list[int]]]]:
        """``rows`` in batches, each with the tokens that follow; smaller batches when memory runs out."""
        import torch

        left = {index: len(ids) + new for index, ids in rows.items()}
        budget = _budget(self.model)
        while left:
            batch = next(_by_budget(left, budget, BATCH_ROWS))
            try:
                written = self._continue([rows[index] for index in batch], new)
            except torch.OutOfMemoryError as error:
                if len(batch) == 1:
                    raise ConfigError(
                        f"one prompt of {len(rows[batch[0]])} tokens does not fit the device's memory beside the "
                        "model: choose a smaller base, or fewer prompt.context_tokens"
                    ) from error
                torch.cuda.empty_cache()
                budget = max(1, sum(left[index] for index in batch) // 2)
                continue
            for index in batch:
                del left[index]
            yield batch, written

    def _continue(self, rows: Sequence[list[int]], new: int) -> list[list[int]]:
        """At most ``new`` greedy tokens after each row, what comes after an end token included."""
        import torch
        from transformers import GenerationConfig

        ids, mask = self._padded(rows)
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            max_new_tokens=min(new, _window(self.model.config) - ids.shape[1]),
            do_sample=False,
            num_beams=1,
            use_cache=True,
            eos_token_id=list(self.end_tokens),
            pad_token_id=self.end_tokens[0],
        )
        self.model.generation_config = config  # the base's own may bring a temperature, or a penalty for repeating
        with torch.inference_mode(), quiet_transformers():
            written = self.model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        return [list(map(int, row)) for row in written[:, ids.shape[1] :].tolist()]

    def _padded(self, rows: Sequence[list[int]]) -> tuple[Any, Any]:
        """Token ids and mask (rows, longest), padded at the left."""
        import torch

        longest = max(map(len, rows))
        pad = self.end_tokens[0]
        ids = torch.tensor([[pad] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        return ids.to(self.model.device), mask.to(self.model.device)


def load_chat_model(adapter: Artifact, *, exact: bool = False) -> ChatModel:
    """``adapter`` on the base that it was trained on, prompted as its manifest says.

    A base that was held in fewer bits while training is read whole, as the release merges it. ``exact`` computes in
    float32, whatever is faster.

    Raises:
        ArtifactError: it is no adapter of a chat model, its base or chat template is not the one it was trained with;
            when its weights are read: a tensor of it has no place.
        ConfigError: the base model is not there.
    """
    import torch

    manifest, folder = _chat_manifest(adapter), base_folder(adapter)
    tokenizer = _tokenizer(adapter.path)
    _same_template(adapter, tokenizer, adapter.path)
    dtype = torch.float32 if exact else _dtype()

    def read() -> Any:
        from peft import PeftModel

        with quiet_transformers():
            model = PeftModel.from_pretrained(_base(folder, dtype), adapter.path, local_files_only=True).eval()
        _check_tensors(model, adapter)
        if next(model.parameters()).dtype.itemsize == 4:
            model = model.merge_and_unload()  # exact enough in float32, and faster; bf16 would round the update away
        return _placed(model)

    return ChatModel(
        tokenizer=tokenizer,
        prompt=PromptSettings.model_validate(manifest["prompt"]),
        key=_key(adapter, dict(manifest["files"]), dtype),
        end_tokens=_end_tokens(tokenizer, folder),
        read=read,
    )


def base_chat_model(adapter: Artifact) -> ChatModel:
    """The untuned base of ``adapter``, prompted as the adapter is.

    Raises:
        ArtifactError: it is no adapter of a chat model, or its base or chat template is not the one it was trained on.
        ConfigError: the base model is not there.
    """
    manifest, folder = _chat_manifest(adapter), base_folder(adapter)
    tokenizer = _tokenizer(folder)
    _same_template(adapter, tokenizer, folder)
    return ChatModel(
        tokenizer=tokenizer,
        prompt=PromptSettings.model_validate(manifest["prompt"]),
        key=_key(adapter, None, _dtype()),
        end_tokens=_end_tokens(tokenizer, folder),
        read=lambda: _placed(_base(folder, _dtype()).eval()),
    )


class Watch:
    """Says now and then how far the answers are."""

    def __init__(self, progress: Callable[[str], None], rows: int) -> None:
        self._progress, self._rows = progress, rows
        self._started = self._said = time.monotonic()

    def report(self, done: int, tokens: int) -> None:
        """``done`` answers have ended, and ``tokens`` were written."""
        now = time.monotonic()
        if now - self._said < SECONDS_BETWEEN_LINES and done < self._rows:
            return
        self._said, seconds = now, max(now - self._started, 1e-6)
        left = f", about {seconds / done * (self._rows - done):.0f} s left" if 0 < done < self._rows else ""
        self._progress(f"{done} of {self._rows} answers, {tokens / seconds:.0f} tokens/s{left}")


def _chat_manifest(adapter: Artifact) -> Mapping[str, Any]:
    task = adapter.manifest.get("task", "classify")
    if task != "generate":
        raise ArtifactError(f"{adapter.path} was trained for task {task!r}, not 'generate': it gives no answers")
    return adapter.manifest


def _tokenizer(folder: Path) -> Any:
    from transformers import AutoTokenizer

    with quiet_transformers():
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _same_template(adapter: Artifact, tokenizer: Any, folder: Path) -> None:
    wanted, found = adapter.manifest["template_hash"], template_hash(tokenizer)
    if wanted != found:
        raise ArtifactError(
            f"{adapter.path} was trained with chat template {wanted[:12]}, and {folder} has {found[:12]}: what it "
            "would see is not what it learned from; bring that template back, or train again"
        )


def _base(folder: Path, dtype: Any) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(available_cores())
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False
        )


def _dtype() -> Any:
    import torch

    return torch.bfloat16 if bf16_is_faster() else torch.float32


def _placed(model: Any) -> Any:
    import torch

    return model.to("cuda" if torch.cuda.is_available() else "cpu")


def _check_tensors(model: Any, adapter: Artifact) -> None:
    """Every stored tensor has its place in ``model``, and every place its tensor.

    Raises:
        ArtifactError: one has not.
    """
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    stored = load_file(adapter.path / "adapter_model.safetensors")
    loaded = get_peft_model_state_dict(model, save_embedding_layers=False)
    lost = sorted(
        name
        for name in stored.keys() | loaded.keys()
        if name not in stored
        or name not in loaded
        or not torch.equal(stored[name].to(loaded[name].dtype), loaded[name].cpu())
    )
    if lost:
        raise ArtifactError(f"{adapter.path}: tensors that did not load as stored: {', '.join(lost[:5])}; train again")


def _key(adapter: Artifact, files: Mapping[str, str] | None, dtype: Any) -> str:
    """What decides a model's answers: weights, tokenizer and template (all in the files), and the arithmetic."""
    import torch
    from transformers import __version__

    machine = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    base = dict(adapter.manifest["base_files"])
    return fingerprint(GENERATION, base, files, str(dtype), machine, torch.__version__, __version__)


def _end_tokens(tokenizer: Any, base: Path) -> tuple[int, ...]:
    """What ends an answer: the token that the chat template puts there, the tokenizer's and the base's own.

    Raises:
        ConfigError: there is none.
    """
    from transformers import GenerationConfig

    said = "an answer"
    rendered = render(tokenizer, [Message("user", "a question"), Message("assistant", said)], answer=True)
    after = tokenizer(rendered[rendered.rindex(said) + len(said) :], add_special_tokens=False)["input_ids"]
    special = set(tokenizer.all_special_ids) | {
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special
    }
    found = [next((token for token in after if token in special), None), tokenizer.eos_token_id]
    if (base / "generation_config.json").is_file():
        own = GenerationConfig.from_pretrained(base, local_files_only=True).eos_token_id
        found += own if isinstance(own, list) else [own]
    ends = tuple(dict.fromkeys(int(token) for token in found if token is not None))
    if not ends:
        raise ConfigError(
            f"{tokenizer.name_or_path!r} has no token that ends an answer, neither in its chat template nor as "
            "eos_token: name an instruction-tuned base"
        )
    return ends


def _window(config: Any) -> int:
    """Most tokens that the model was made for."""
    found: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return found or 1 << 30


def _budget(model: Any) -> int:
    """Tokens of a batch, answers counted: on a GPU as many as half of its free memory holds keys and values of."""
    import torch

    if model.device.type != "cuda":
        return CPU_BATCH_TOKENS
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    bytes_a_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    free, _ = torch.cuda.mem_get_info()
    return int(max(1, free // 2 // bytes_a_token))


def _by_budget(lengths: Mapping[int, int], budget: int, rows: int) -> Iterator[list[int]]:
    """Indices in batches of alike lengths, the longest first, of at most ``budget`` tokens with padding."""
    order = sorted(lengths, key=lambda index: (-lengths[index], index))
    start = 0
    while start < len(order):
        count = max(1, min(rows, budget // lengths[order[start]]))
        yield order[start : start + count]
        start += count


def _positions(mask: Any) -> Any:
    return (mask.cumsum(dim=-1) - 1).clamp(min=0)

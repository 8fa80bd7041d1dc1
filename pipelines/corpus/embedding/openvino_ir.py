"""A converted model: transformer, pooling, dense layers and normalisation as one OpenVINO graph.

Needs ``openvino`` and ``tokenizers`` only, so that a process starts to embed within a second.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from pipelines.corpus.embedding.interface import Precision, Vectors, by_budget, unit
from pipelines.corpus.embedding.model import ModelEmbedder, ModelFiles
from pipelines.environment import available_cores

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

_BUDGET = 1_024
"""Tokens of a batch. From 512 to 8,192 the rate is about the same; small ones take less memory and end together."""
_STEP = 16
"""Lengths are rounded up to it: each new shape costs OpenVINO some work of its own."""
_SLICE = 1_024
"""Texts that are tokenised together, before only their ids are kept."""
_HINTS = {"float32": "f32", "bfloat16": "bf16"}


def import_openvino() -> Any:
    """The package, without its telemetry, which would report every import over the network."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # documented: such an import fails
    import openvino

    return openvino


class OpenVinoEmbedder(ModelEmbedder):
    """A model converted into ``folder`` by ``pipelines.corpus.embedding.conversion``."""

    def __init__(self, files: ModelFiles, precision: Precision, folder: Path) -> None:
        super().__init__(files, "openvino", precision)
        self._folder = folder
        self._one_at_a_time = Lock()

    def encode(self, texts: Sequence[str]) -> Vectors:
        """In batches of texts of similar length, as many at once as there are cores; other threads go on meanwhile."""
        return self._encode(texts, self._files.document_prompt)

    def encode_questions(self, questions: Sequence[str]) -> Vectors:
        """As documents are, with the model's own prompt for questions, where it has one."""
        return self._encode(questions, self._files.question_prompt)

    def _encode(self, texts: Sequence[str], prompt: str) -> Vectors:
        import numpy as np

        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        slices = (texts[start : start + _SLICE] for start in range(0, len(texts), _SLICE))
        ids = [each for some in slices for each in self._ids(some, prompt)]
        lengths = [self._padded(len(each)) for each in ids]
        share = sum(lengths) // (2 * available_cores())  # few texts are spread over all cores
        failed: list[Exception] = []

        def keep(request: Any, rows: list[int]) -> None:
            try:
                vectors[rows] = request.get_output_tensor(0).data
            except Exception as error:  # noqa: BLE001 one that leaves a callback ends the process
                failed.append(error)

        with self._one_at_a_time:
            queue = self._queue
            queue.set_callback(keep)
            try:
                for batch in by_budget(lengths, min(_BUDGET, share)):
                    queue.start_async(self._inputs([ids[each] for each in batch], lengths[batch[0]]), batch)
            finally:
                queue.wait_all()
        if failed:
            raise failed[0]
        return unit(vectors)

    def encode_question(self, question: str) -> Vectors:
        """With the model's own prompt for questions, where it has one."""
        [ids] = self._ids([question], self._files.question_prompt)
        outputs = self._compiled.create_infer_request().infer(self._inputs([ids], self._padded(len(ids))))
        vector: Vectors = unit(outputs[0])[0]
        return vector

    def _ids(self, texts: Sequence[str], prompt: str) -> list[npt.NDArray[np.int64]]:
        import numpy as np

        found = self.counter.ids([prompt + each for each in texts], limit=self._files.limit)
        return [np.array(each, dtype=np.int64) for each in found]

    def _padded(self, length: int) -> int:
        return min(-(-max(length, 1) // _STEP) * _STEP, self._files.limit)

    def _inputs(self, batch: Sequence[npt.NDArray[np.int64]], length: int) -> dict[str, npt.NDArray[np.int64]]:
        import numpy as np

        shape = (len(batch), length)
        made = {name: np.zeros(shape, dtype=np.int64) for name in self._record["inputs"]}  # of one text: type 0
        made["input_ids"][:] = self._record["pad_id"]
        for row, ids in enumerate(batch):
            made["input_ids"][row, : len(ids)] = ids
            made["attention_mask"][row, : len(ids)] = 1
        return made

    @cached_property
    def _record(self) -> dict[str, Any]:
        return dict(json.loads((self._folder / "record.json").read_text(encoding="utf-8")))

    @cached_property
    def _queue(self) -> Any:
        return import_openvino().AsyncInferQueue(self._compiled, 2 * available_cores())

    @cached_property
    def _compiled(self) -> Any:
        cores = available_cores()
        settings = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._precision],
            "INFERENCE_NUM_THREADS": cores,
            "NUM_STREAMS": cores,  # a batch, a core: measured fastest beside other work
            "ENABLE_CPU_PINNING": False,  # two processes would pin the same cores
        }
        return import_openvino().Core().compile_model(str(self._folder / "model.xml"), "CPU", settings)

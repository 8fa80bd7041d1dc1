"""``python -m pipelines.release.conversion JOB``: one checkpoint to GGUF by llama.cpp's own converter.

A process of its own: the converter puts a top-level package ``conversion`` on the path, configures logging, and its
memory goes back when it ends. ``JOB`` is JSON: checkpoint, output, architecture, name, metadata and root.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from pathlib import Path
from typing import Any

REFUSED = 2
"""Exit status when the converter cannot do it; the reason is the last line on standard error."""


def main(argument: str) -> int:
    """Convert; 0 when done, 2 when this model cannot be converted."""
    job = json.loads(argument)
    logging.getLogger("hf-to-gguf").setLevel(logging.ERROR)
    sys.path.insert(0, job["root"])
    conversion = importlib.import_module("conversion")
    try:
        _model(conversion, job).write()
    except NotImplementedError as error:
        print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201 the parent reads it
        return REFUSED
    return 0


def _model(conversion: Any, job: dict[str, Any]) -> Any:
    import gguf

    base: Any = conversion.get_model_class(job["architecture"])

    class WithHead(base):  # type: ignore[misc]
        """The converter's model, with the classification head that it would leave out."""

        model_arch = base.model_arch

        @classmethod
        def filter_tensors(cls, item: tuple[str, Any]) -> Any:
            """Keep BERT's pooler: llama.cpp applies ``classifier.dense`` and tanh before the output layer."""
            name, tensor = item
            return super().filter_tensors((name.replace("bert.pooler.dense.", "classifier.dense."), tensor))

        def set_gguf_parameters(self) -> None:
            """Say that the model scores labels, and what it was made from."""
            super().set_gguf_parameters()
            self.gguf_writer.add_pooling_type(gguf.PoolingType.RANK)
            for key, value in job["metadata"].items():
                self.gguf_writer.add_string(key, value)

    return WithHead(Path(job["checkpoint"]), gguf.LlamaFileType.MOSTLY_F16, Path(job["output"]), model_name=job["name"])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

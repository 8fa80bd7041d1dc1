"""How well the embedded base copies, and refuses: ``python -m benchmarks.basemodel [--base FOLDER] [--json FILE]``.

Questions on three texts, answered greedily through the serving prompt builder, four hundred of each kind: on what the
texts say, and on what they do not. Held out are names, values, words and templates; the others share templates and
words with training, and only names and values are new. Lifelike texts are cut out of longer documents, and asked about
as people ask.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from benchmarks.report import report
from pipelines.basemodel.language import Draw
from pipelines.basemodel.pretrain import measure
from pipelines.models import BUNDLED_CHAT, model_folder

SEED = 4242


def measured(model: Any, tokenizer: Any, draw: Draw, questions: int) -> dict[str, float]:
    """Shares of the questions that each is about."""
    found = measure(model, tokenizer, [draw], questions)
    return {
        "right": found["right"],
        "refused_wrongly": found["refused_present"],
        "invented": 1 - found["refused_absent"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--base", default=BUNDLED_CHAT, help="folder of the model")
    parser.add_argument("--questions", type=int, default=400, help="of each kind")
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help="a few questions: does it run?")
    chosen = parser.parse_args()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = model_folder(chosen.base, None)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    model, tokenizer = model.float(), AutoTokenizer.from_pretrained(folder)
    rows = [
        {
            "cases": f"{'held out' if held_out else 'templates of training'}{', lifelike' if lifelike else ''}",
            **measured(
                model,
                tokenizer,
                Draw(SEED, held_out=held_out, lifelike=lifelike),
                4 if chosen.quick else chosen.questions,
            ),
        }
        for held_out in (True, False)
        for lifelike in (False, True)
    ]
    figures = {name: value for name, value in rows[0].items() if isinstance(value, float)}
    report("basemodel", rows, figures, packages=["torch", "transformers"], json_file=chosen.json, quick=chosen.quick)


if __name__ == "__main__":
    main()

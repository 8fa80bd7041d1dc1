"""``python -m pipelines.basemodel FOLDER``: train the base model from scratch, or go on where it was stopped."""

import argparse
import sys
from functools import partial
from pathlib import Path

from pipelines.basemodel.pretrain import Recipe, pretrain


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0 when the model is there."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.basemodel", description=__doc__)
    parser.add_argument("folder", type=Path, help="where tokenizer, state and model are kept")
    parser.add_argument("--tokens", type=int, default=Recipe().tokens, help="tokens to train on")
    parser.add_argument("--learning-rate", type=float, default=Recipe().learning_rate)
    parser.add_argument("--compile", action="store_true", help="faster after three minutes; needs a C++ compiler")
    chosen = parser.parse_args(arguments)
    recipe = Recipe(tokens=chosen.tokens, learning_rate=chosen.learning_rate)
    model = pretrain(recipe, chosen.folder, tell=partial(print, flush=True), compiled=chosen.compile)
    print(model)  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

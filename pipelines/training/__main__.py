"""``python -m pipelines.training JOB.json``: one training in its own process, which frees the GPU when it ends.

Started by Dagster Pipes it streams its progress to Dagster; started by hand it prints it. It ends when its parent does.
"""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes
from pydantic import ValidationError

from pipelines.errors import ConfigError, FreshetError, TrainingError
from pipelines.training.job import TrainingJob, train
from pipelines.training.progress import Progress


def read_job(path: Path) -> TrainingJob:
    """The job in a JSON file.

    Raises:
        ConfigError: it cannot be read, or is no training job.
    """
    try:
        return TrainingJob.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        raise ConfigError(f"{path} is no training job: {error}") from error


def run(path: Path, tell: Callable[[str], None], send: Callable[[dict[str, Any]], None]) -> None:
    """Train the job in ``path``; lines for people go to ``tell``, points and the adapter's path to ``send``."""
    parent = os.getppid()

    def report(point: Progress) -> None:
        if os.getppid() != parent:  # nobody waits for the result any more, and a next run may already want the GPU
            raise TrainingError("the process that started this training has ended; so does the training")
        tell(point.line())
        send({"progress": asdict(point)})

    job = read_job(path)
    tell(f"training {job.use_case}: {job.settings.base_model} on {job.training_set.name}")
    artifact = train(job, progress=report)
    tell(f"adapter: {artifact.path}")
    send({"adapter": str(artifact.path)})


def main(arguments: list[str]) -> int:
    """Exit status: 0, or 2 with a message on stderr when the job cannot be done."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.training", description="Train one LoRA adapter.")
    parser.add_argument("job", type=Path, help="JSON file of a TrainingJob")
    path = parser.parse_args(arguments).job
    try:
        if PipesEnvVarParamsLoader().is_dagster_pipes_process():  # type: ignore[no-untyped-call]
            with open_dagster_pipes():
                context = PipesContext.get()
                try:
                    run(path, context.log.info, context.report_custom_message)
                except FreshetError as error:
                    context.report_custom_message({"error": f"{type(error).__name__}: {error}"})
                    raise
        else:
            run(path, lambda line: print(line, flush=True), lambda _: None)
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""``python -m pipelines.training JOB.json``: one training in its own process, which frees the GPU when it ends.

Started by Dagster Pipes it streams its progress to Dagster; started by hand it prints it. It ends when its parent does.
"""

import argparse
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagster_pipes import PipesContext, PipesEnvVarParamsLoader, open_dagster_pipes
from pydantic import ValidationError

from pipelines.errors import ConfigError, FreshetError, TrainingInterruptedError, TransientError
from pipelines.training.job import TrainingJob, assist, train
from pipelines.training.memory import Estimate
from pipelines.training.processes import end_with_parent
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


def run(
    path: Path,
    tell: Callable[[str], None],
    send: Callable[[dict[str, Any]], None],
    *,
    processes: int | None = None,
) -> None:
    """Train the job in ``path``; lines for people go to ``tell``, what programs show to ``send``."""
    parent = os.getppid()

    def started(needs: Estimate) -> None:
        tell(needs.line())
        send({"estimate": {**asdict(needs), "memory_bytes": needs.memory_bytes}})

    def report(point: Progress) -> None:
        tell(point.line())
        send({"progress": asdict(point)})
        if os.getppid() != parent:  # nobody waits for the result any more, and a next run may already want the GPU
            tell("the process that started this training has ended; so does the training")
            signal.raise_signal(signal.SIGTERM)

    job = read_job(path)
    tell(f"training {job.use_case}: {job.settings.base_model} on {job.training_set.name}")
    artifact = train(job, progress=report, started=started, processes=processes)
    tell(f"adapter: {artifact.path}")
    send({"adapter": str(artifact.path)})


def main(arguments: list[str]) -> int:
    """Exit status: 0; 2 with a message on stderr when the job cannot be done; 75 when trying again may help."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.training", description="Train one LoRA adapter.")
    parser.add_argument("job", type=Path, help="JSON file of a TrainingJob")
    parser.add_argument("--processes", type=int, help="that train together; default: one a GPU, one on a CPU")
    parser.add_argument("--rank", type=int, default=0, help=argparse.SUPPRESS)  # of a process that another one started
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _stop)
    try:
        if options.rank > 0:
            end_with_parent()
            assist(read_job(options.job), options.job.parent)
        elif PipesEnvVarParamsLoader().is_dagster_pipes_process():  # type: ignore[no-untyped-call]
            with open_dagster_pipes():
                context = PipesContext.get()
                try:
                    run(options.job, context.log.info, context.report_custom_message, processes=options.processes)
                except FreshetError as error:
                    context.report_custom_message({"error": f"{type(error).__name__}: {error}"})
                    raise
        else:
            run(
                options.job,
                lambda line: print(line, flush=True),
                lambda _: None,
                processes=options.processes,
            )
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        return os.EX_TEMPFAIL if isinstance(error, TransientError) else 2
    return 0


def _stop(_number: int, _frame: Any) -> None:
    """SIGTERM before and after the steps; while they run, a checkpoint is written first."""
    raise TrainingInterruptedError("training was told to end; started again, it goes on from its checkpoint, if any")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

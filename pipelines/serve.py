"""Published chat models over HTTP: ``python -m pipelines.serve [USE_CASE ...] [--host 127.0.0.1] [--port 8080]``.

OpenAI's API (``/v1/chat/completions``, ``/v1/models``), with what each answer is from. With ``FRESHET_SERVE_TOKEN`` set
every request needs it as its API key; without it only this machine is listened to, and pages of other sites, which a
browser on this machine may show, are refused by Host and Origin.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa

from pipelines.admission import check_address
from pipelines.declaration import USE_CASES, declared, load_declaration
from pipelines.environment import Environment
from pipelines.errors import ConfigError, FreshetError
from pipelines.serving.app import MOST_REQUESTS, VARIABLE, Server, Serving, application


def chat_use_cases(names: Sequence[str], folder: Path = USE_CASES) -> list[str]:
    """``names``, or all that train a chat model.

    Raises:
        ConfigError: one of ``names`` is no such use case, or there is none at all.
    """
    found = []
    for name in names or declared(folder):
        declaration = load_declaration(name, folder)
        if declaration.fine_tune is not None and declaration.task == "generate":
            found.append(name)
        elif names:
            raise ConfigError(f"use case {name!r} trains no chat model (fine_tune with task: generate)")
    if not found:
        raise ConfigError("no use case trains a chat model (fine_tune with task: generate), so there is none to serve")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to end; 2 when it cannot start."""
    parser = argparse.ArgumentParser(prog="python -m pipelines.serve", description="Serve published chat models.")
    parser.add_argument("use_cases", nargs="*", metavar="USE_CASE", help="default: all that train a chat model")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8080)
    parser.add_argument("--slots", type=int, default=4, metavar="N", help="answers of a model written at once (4)")
    parser.add_argument("--threads", type=int, metavar="N", help="of a model (default: the cores that it may use)")
    parser.add_argument(
        "--most-requests",
        type=int,
        default=MOST_REQUESTS,
        metavar="N",
        help=f"running and waiting; more are told to come back ({MOST_REQUESTS})",
    )
    parser.add_argument(
        "--keep-days", type=float, default=90.0, metavar="N", help="how long answers are kept for feedback (90)"
    )
    parser.add_argument("--folder", type=Path, default=USE_CASES, help="folder of use cases (default: the bundled)")
    given = parser.parse_args(arguments)
    if min(given.slots, given.most_requests) < 1 or given.keep_days <= 0:
        parser.error("--slots, --most-requests and --keep-days have to be positive")
    environment = Environment()
    try:
        check_address(given.host, environment.serve_token, variable=VARIABLE)
        serving = Serving(
            use_cases=chat_use_cases(given.use_cases, given.folder),
            folder=given.folder,
            slots=given.slots,
            threads=given.threads,
            most_requests=given.most_requests,
            keep_days=given.keep_days,
        )
        app = application(Server(serving, environment), environment.serve_token)
    except (FreshetError, sa.exc.SQLAlchemyError) as error:
        said = str(error) if isinstance(error, FreshetError) else "the catalog cannot be reached (DATABASE_URL)"
        print(f"{type(error).__name__}: {said}", file=sys.stderr)
        return 2
    import uvicorn

    uvicorn.run(
        app,
        host=given.host,
        port=given.port,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        limit_concurrency=4 * given.most_requests + 64,  # ours says 429 in OpenAI's words first
        timeout_graceful_shutdown=30,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

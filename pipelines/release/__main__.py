"""``python -m pipelines.release``: what is published, how versions differ, and moving the pointer."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from pipelines.environment import Environment
from pipelines.errors import FreshetError
from pipelines.release.overview import difference, difference_lines, overview, overview_lines
from pipelines.release.registry import promote, prune, rollback


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 2 when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.release",
        description="List, compare or prune published versions, or change which is served.",
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="all versions, the served one marked")
    compared = commands.add_parser("diff", help="what is not the same in two versions: made of what, scoring how")
    back = commands.add_parser("rollback", help="serve the champion before this one again, or the version given")
    forward = commands.add_parser("promote", help="serve any published version")
    pruned = commands.add_parser("prune", help="delete old versions, never the served one nor the one before it")
    for command in (listing, compared, back, forward, pruned):
        command.add_argument("use_case")
    compared.add_argument("version", help="e.g. v1")
    compared.add_argument("other", help="e.g. v2")
    back.add_argument("version", nargs="?", help="a version that was served before")
    forward.add_argument("version", help="e.g. v2")
    pruned.add_argument("--keep", type=int, required=True, metavar="N", help="how many of the newest to keep")
    for command in (listing, compared, pruned):
        command.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    url = Environment().registry_url
    try:
        if given.command == "list":
            found = overview(url, given.use_case)
            lines = [json.dumps(found, indent=2)] if given.json else overview_lines(found)
        elif given.command == "diff":
            differing = difference(url, given.use_case, given.version, given.other)
            lines = [json.dumps(differing, indent=2)] if given.json else difference_lines(differing)
        elif given.command == "prune":
            removed = prune(url, given.use_case, given.keep, lambda line: print(line, file=sys.stderr))  # noqa: T201
            lines = [json.dumps(removed) if given.json else f"{given.use_case}: removed {', '.join(removed) or 'none'}"]
        elif given.command == "rollback":
            lines = [f"{given.use_case} serves {rollback(url, given.use_case, given.version).version}"]
        else:
            lines = [f"{given.use_case} serves {promote(url, given.use_case, given.version).version}"]
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 a command line speaks by printing
        return 2
    print("\n".join(lines))  # noqa: T201 likewise
    return 0


if __name__ == "__main__":
    sys.exit(main())

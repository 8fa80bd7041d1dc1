"""``python -m pipelines.release``: what is published, and moving the pointer."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from pipelines.environment import Environment
from pipelines.errors import FreshetError, NotBuiltError
from pipelines.release.registry import PublishedVersion, champion, promote, rollback, versions


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; 0 when done, 2 when it cannot be."""
    parser = argparse.ArgumentParser(
        prog="python -m pipelines.release", description="List published versions, or change which one is served."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="all versions, the served one marked")
    back = commands.add_parser("rollback", help="serve the champion before this one again, or the version given")
    forward = commands.add_parser("promote", help="serve any published version")
    for command in (listing, back, forward):
        command.add_argument("use_case")
    back.add_argument("version", nargs="?", help="a version that was served before")
    forward.add_argument("version", help="e.g. v2")
    given = parser.parse_args(arguments)
    url = Environment().registry_url
    try:
        if given.command == "list":
            lines = _listed(url, given.use_case)
        elif given.command == "rollback":
            lines = [f"{given.use_case} serves {rollback(url, given.use_case, given.version).version}"]
        else:
            lines = [f"{given.use_case} serves {promote(url, given.use_case, given.version).version}"]
    except FreshetError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201 a command line speaks by printing
        return 2
    print("\n".join(lines))  # noqa: T201 likewise
    return 0


def _listed(url: str, use_case: str) -> list[str]:
    served, known = champion(url, use_case), versions(url, use_case)
    if not known:
        raise NotBuiltError(f"{use_case} has no published version in {url}: run the job {use_case}_retrain first")
    return [_line(version, served) for version in known]


def _line(version: PublishedVersion, served: PublishedVersion | None) -> str:
    mark = "*" if served is not None and served.version == version.version else " "
    scores = "  ".join(
        f"{name} {found['accuracy']:.3f} ({found['size'] / 1e6:.0f} MB)"
        for name, found in version.manifest["quantisations"].items()
    )
    return f"{mark} {version.version:<4} {version.manifest['published_at']}  accuracy on held-out rows: {scores}"


if __name__ == "__main__":
    sys.exit(main())

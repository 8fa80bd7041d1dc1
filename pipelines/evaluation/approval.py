"""A person's word on a candidate that passed the gate, kept beside the verdict that it is about."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from pipelines.artifacts import Artifact, load
from pipelines.catalog import approvals, now
from pipelines.errors import ArtifactError, GateRefusedError
from pipelines.evaluation.gate import decided_again
from pipelines.evaluation.settings import GateSettings


@dataclass(frozen=True, slots=True)
class Approval:
    """What somebody decided about one evaluation report, and so about exactly the files that it names."""

    approved: bool
    author: str | None
    note: str | None
    decided_at: datetime


def approve(
    catalog: sa.Engine,
    use_case: str,
    report: Artifact,
    approved: bool,
    author: str | None,
    note: str | None,
) -> Approval:
    """Approve or refuse the candidate of ``report``; the last word counts.

    Raises:
        ArtifactError: the report is altered, or another use case's.
        GateRefusedError: approval of what the gate refused; nobody can give it.
    """
    report = load(report.path)
    _check_owner(report, use_case)
    if approved and not (verdict := decided_again(report)).passed:
        raise GateRefusedError(
            f"the gate refused this candidate, and no approval changes that: {'; '.join(verdict.reasons)}"
        )
    found = Approval(approved, author, note, now())
    key = {"use_case": use_case, "report": report.fingerprint}
    with catalog.begin() as connection:
        connection.execute(sa.delete(approvals).filter_by(**key))
        connection.execute(
            sa.insert(approvals).values(**key, approved=approved, author=author, note=note, decided_at=found.decided_at)
        )
    return found


def approval(catalog: sa.Engine, use_case: str, report: Artifact) -> Approval | None:
    """What was decided about ``report``; None: nobody has yet.

    Another candidate, other files of it, or another champion make another report, whose fingerprint nobody approved.
    """
    c = approvals.c
    query = sa.select(c.approved, c.author, c.note, c.decided_at).where(
        c.use_case == use_case, c.report == report.fingerprint
    )
    with catalog.connect() as connection:
        row = connection.execute(query).one_or_none()
    return None if row is None else Approval(*row)


def may_export(report: Artifact, catalog: sa.Engine, settings: GateSettings) -> tuple[bool, str]:
    """Whether the candidate of ``report`` may be exported and published now, and why.

    The verdict is made again from the stored measurements; where ``settings.approval`` is on, a person has to have
    approved as well.

    Raises:
        ArtifactError: the report is altered, or its verdict does not follow from what it measured.
    """
    report = load(report.path)
    use_case, stated, verdict = str(report.manifest["use_case"]), report.manifest["verdict"], decided_again(report)
    if stated["passed"] is not verdict.passed:
        raise ArtifactError(
            f"the verdict in {report.path}, passed: {stated['passed']}, does not follow from the scores in "
            "report.json; materialise evaluation_report again"
        )
    if not verdict.passed:
        return False, f"the gate refused the candidate: {'; '.join(verdict.reasons)}"
    if not settings.approval:
        return True, "; ".join(verdict.reasons)
    said = approval(catalog, use_case, report)
    if said is None:
        return False, (
            f"it passed the gate and waits for a person: run the job {use_case}_approve_candidate "
            f"(report {report.fingerprint[:12]})"
        )
    who = f"{said.author or 'somebody'} on {said.decided_at:%Y-%m-%d %H:%M} UTC" + (
        f": {said.note}" if said.note else ""
    )
    return said.approved, f"{'approved' if said.approved else 'refused'} by {who}"


def _check_owner(report: Artifact, use_case: str) -> None:
    manifest = report.manifest
    if manifest.get("kind") != "evaluation_report" or manifest.get("use_case") != use_case:
        raise ArtifactError(
            f"{report.path} holds kind {manifest.get('kind')!r} of {manifest.get('use_case')!r}, not the "
            f"evaluation_report of {use_case!r}"
        )

"""Reading a report in tests."""

from fedchain_ledger.core.audit import audit
from fedchain_ledger.core.report import ClaimResult, Finding, Report
from tests.unit.chainkit import Scribe


def claim(report: Report, wanted: str) -> ClaimResult:
    return next(one for one in report.claims if one.id == wanted)


def findings(report: Report) -> list[tuple[str, Finding]]:
    return [(one.id, finding) for one in report.claims for finding in one.findings]


def verdicts(report: Report) -> dict[str, str]:
    return {one.id: one.verdict for one in report.claims}


def audit_of(scribe: Scribe, *names: str) -> Report:
    sources = [scribe.source(name) for name in names or ("validator-1",)]
    return audit(sources, scribe.consortium.genesis)

"""What can go wrong, by the reaction that it asks for.

Every error that fedchain raises on purpose is one of these. A broken invariant of our own is an
AssertionError and never one of these.
"""


class FedchainError(Exception):
    """Root of all that is raised on purpose."""


class EvidenceError(FedchainError):
    """A digest, signature, proof or receipt does not hold. React: distrust the sender."""


class RuleError(FedchainError):
    """Genuine, but the rules in force refuse it. React: correct the request.

    Attributes:
        code: Stable kebab-case name of the rule, for programs ("late", "duplicate").
        claim: The auditor's claim that the rule belongs to ("C5").
    """

    def __init__(self, message: str, *, code: str = "rule", claim: str = "C10") -> None:
        super().__init__(message)
        self.code = code
        self.claim = claim


class UnavailableError(FedchainError):
    """No answer in time, outcome unknown. React: retry; equal bytes are recorded once."""


class UsageError(FedchainError):
    """The caller asked for something that cannot be done. React: correct the call."""

"""The ledger's contract, rule by rule: one file per subject, put together by `core.policy`."""

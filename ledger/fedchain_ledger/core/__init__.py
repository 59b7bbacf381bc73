"""Consensus, chain state, policy and audit: deterministic, no clock, no randomness, no IO."""

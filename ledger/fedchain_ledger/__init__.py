"""The permissioned ledger: a pure core, a service around it, a client that verifies."""

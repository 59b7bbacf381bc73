"""What every party must agree on, and nothing else: bytes, digests, signatures, proofs.

Pure: no sockets, no database, no clock. Import the module that you need; this file imports none.
"""

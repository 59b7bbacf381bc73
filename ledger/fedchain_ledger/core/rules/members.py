"""Who is let in and sent away: rules of MemberAdmitted and MemberRevoked."""

from functools import lru_cache

from fedchain_ledger.core.rules.case import Case, of_this_chain, rule
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import EvidenceError
from fedchain_proto.keys import key_id, verify_possession


@rule("wrong-signer", "C10")
def by_enough_admission_keys(case: Case[wire.MemberAdmitted | wire.MemberRevoked]) -> str | None:
    """Signed by at least the genesis's threshold of admission keys, and by nobody else."""
    genesis = case.state.genesis
    admission = _key_ids(genesis.admission_keys)
    strangers = [signer for signer in case.signers if signer not in admission]
    if strangers:
        return f"signed by {strangers[0].hex()[:12]}, which is no admission key"
    if len(case.signers) < genesis.admission_threshold:
        return f"{len(case.signers)} admission keys signed, {genesis.admission_threshold} must"
    return None


@rule("name-taken", "C10")
def under_a_new_name(case: Case[wire.MemberAdmitted]) -> str | None:
    """A name is never used twice, also not after a revocation."""
    return None if case.said.name not in case.state.members else f"{case.said.name} was admitted"


@rule("key-taken", "C10")
def with_a_new_key(case: Case[wire.MemberAdmitted]) -> str | None:
    """One key has one duty: it is no member's, validator's or admission key already."""
    taken = case.state.key_of(key_id(case.said.public_key)) is not None
    return "its key is somebody's on this chain already" if taken else None


@rule("no-possession", "C10")
def who_holds_the_key(case: Case[wire.MemberAdmitted]) -> str | None:
    """The new member's own key has signed chain, name and role."""
    said, chain_id = case.said, case.state.genesis.chain_id
    if _possesses(said.public_key, chain_id, said.name, said.role, said.possession):
        return None
    return f"{said.name} did not sign for its key, name and role"


# Pure functions of bytes: remembered, because a statement is judged at admission, in a proposal,
# in a block and after each block that leaves it waiting, by every validator of a process.
@lru_cache(maxsize=8192)
def _possesses(public: bytes, chain_id: bytes, name: str, role: int, signature: bytes) -> bool:
    try:
        verify_possession(public, chain_id, name, role, signature)
    except EvidenceError:
        return False
    return True


@lru_cache(maxsize=16)
def _key_ids(keys: tuple[bytes, ...]) -> frozenset[bytes]:
    return frozenset(map(key_id, keys))


@rule("unknown-member", "C10")
def of_a_member(case: Case[wire.MemberRevoked]) -> str | None:
    """Only who was admitted can be revoked."""
    return None if case.said.name in case.state.members else f"{case.said.name} is no member"


@rule("already-revoked", "C10")
def once(case: Case[wire.MemberRevoked]) -> str | None:
    """A revocation is for ever and happens once."""
    member = case.state.members[case.said.name]
    return None if member.in_force else f"{member.name} is revoked since {member.revoked_height}"


ADMITTED = (
    of_this_chain, by_enough_admission_keys, under_a_new_name, with_a_new_key, who_holds_the_key,
)  # fmt: skip
REVOKED = (of_this_chain, by_enough_admission_keys, of_a_member, once)

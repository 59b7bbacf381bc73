"""The owner's folder and its journal."""

import os
from pathlib import Path

import pytest

from fedchain_clients.home import PASSPHRASE, OwnerHome, home_of
from fedchain_clients.journal import Journal
from fedchain_proto import wire_pb2 as wire
from fedchain_proto.errors import RuleError, UsageError
from fedchain_proto.flowkeys import NODE_CONFIG_HOME
from tests.builders import key, make_test_genesis, sealed

CHAIN, RUN = bytes(32), bytes([7] * 32)
OWNER = key(100)


def make_home(path: Path, *, passphrase: str | None = None) -> OwnerHome:
    genesis, _, _ = make_test_genesis()
    OwnerHome.create(path, name="client-00", genesis=genesis.raw, key=OWNER, passphrase=passphrase)
    return OwnerHome(path)


def envelope(update: bytes = bytes(32), number: int = 1) -> bytes:
    statement = wire.UpdateSubmitted(
        chain_id=CHAIN,
        run=RUN,
        round=number,
        participant="client-00",
        base_model=bytes(32),
        instruction=bytes(32),
        update=update,
        num_examples=1,
    )
    return sealed(statement, OWNER)


# ---------------------------------------------------------------- home


def test_created_home_reads_back(tmp_path: Path) -> None:
    """A folder made for an owner holds its name, its key and the genesis, byte for byte."""
    home = make_home(tmp_path / "home")
    assert home.name == "client-00"
    assert home.key.public == OWNER.public
    assert home.genesis.raw == make_test_genesis()[0].raw
    assert (tmp_path / "home" / "participant.key").stat().st_mode & 0o777 == 0o600


def test_home_is_never_overwritten(tmp_path: Path) -> None:
    """A folder that holds anything is refused: an owner's key has no second copy."""
    make_home(tmp_path / "home")
    with pytest.raises(UsageError, match="not empty"):
        make_home(tmp_path / "home")


def test_home_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    """A folder that cannot be made says why."""
    (tmp_path / "file").write_text("a file in the way")
    with pytest.raises(UsageError, match="cannot make the folder"):
        make_home(tmp_path / "file" / "home")


@pytest.mark.parametrize(
    ("name", "genesis", "says"),
    [("Not a name", None, "not a name"), ("client-00", b"{}", "genesis")],
)
def test_home_with_a_wrong_name_or_genesis_is_not_made(
    tmp_path: Path, name: str, genesis: bytes | None, says: str
) -> None:
    """What could not be read back is refused before anything is written."""
    raw = genesis if genesis is not None else make_test_genesis()[0].raw
    with pytest.raises(UsageError, match=says):
        OwnerHome.create(tmp_path / "home", name=name, genesis=raw, key=OWNER, passphrase=None)
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize("missing", ["genesis.json", "name", "participant.key"])
def test_home_without_one_of_its_files_is_refused_by_name(tmp_path: Path, missing: str) -> None:
    """A home that lacks a file says which one."""
    make_home(tmp_path / "home")
    (tmp_path / "home" / missing).unlink()
    with pytest.raises(UsageError, match=missing):
        OwnerHome(tmp_path / "home")


@pytest.mark.parametrize("content", [b"", b"two\nlines\n", b"\xff", b"x" * 2000])
def test_home_with_a_damaged_name_is_refused(tmp_path: Path, content: bytes) -> None:
    """A name file that holds no name is not guessed at."""
    make_home(tmp_path / "home")
    (tmp_path / "home" / "name").write_bytes(content)
    with pytest.raises(UsageError, match="not a name"):
        OwnerHome(tmp_path / "home")


def test_encrypted_key_opens_with_the_environments_passphrase(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An encrypted key needs its passphrase, and a home without it says how to give it."""
    phrase = "correct horse"
    monkeypatch.setenv(PASSPHRASE, phrase)
    assert make_home(tmp_path / "home", passphrase=phrase).key.public == OWNER.public
    monkeypatch.setenv(PASSPHRASE, "wrong horse")
    with pytest.raises(UsageError, match="wrong passphrase"):
        OwnerHome(tmp_path / "home")
    monkeypatch.delenv(PASSPHRASE)
    with pytest.raises(UsageError, match=PASSPHRASE):
        OwnerHome(tmp_path / "home")


def test_node_config_names_the_home(tmp_path: Path) -> None:
    """The node's configuration leads to the folder; without the entry the node is told so."""
    home = make_home(tmp_path / "home")
    config = {NODE_CONFIG_HOME: str(tmp_path / "home")}
    assert home_of(config).name == home.name
    assert home_of(config) is home_of(config)
    for wrong in ({}, {NODE_CONFIG_HOME: 3}, {NODE_CONFIG_HOME: ""}):
        with pytest.raises(UsageError, match=NODE_CONFIG_HOME):
            home_of(wrong)
    with pytest.raises(UsageError, match="no fedchain home"):
        home_of({NODE_CONFIG_HOME: str(tmp_path / "elsewhere")})


def test_changed_home_is_read_again(tmp_path: Path) -> None:
    """What is kept of a home does not outlive a change of its files."""
    make_home(tmp_path / "home")
    config = {NODE_CONFIG_HOME: str(tmp_path / "home")}
    assert home_of(config).name == "client-00"
    (tmp_path / "home" / "name").write_text("client-01\n")
    os.utime(tmp_path / "home" / "name", ns=(1, 1))
    assert home_of(config).name == "client-01"


# ---------------------------------------------------------------- journal


def test_journal_returns_what_it_was_given(tmp_path: Path) -> None:
    """An entry comes back byte for byte; other rounds, runs and chains have none."""
    journal = Journal(tmp_path / "journal")
    assert journal.signed(CHAIN, RUN, 1) is None
    journal.record(CHAIN, RUN, 1, envelope())
    entry = Journal(tmp_path / "journal").signed(CHAIN, RUN, 1)
    assert entry is not None
    assert entry.raw == envelope()
    assert journal.signed(CHAIN, RUN, 2) is None
    assert journal.signed(CHAIN, bytes(32), 1) is None
    assert journal.signed(bytes([1] * 32), RUN, 1) is None


def test_journal_takes_the_same_again_and_nothing_else(tmp_path: Path) -> None:
    """Equal bytes may be recorded twice; different ones for one round are refused, and not kept."""
    journal = Journal(tmp_path / "journal")
    journal.record(CHAIN, RUN, 1, envelope())
    journal.record(CHAIN, RUN, 1, envelope())
    with pytest.raises(RuleError, match="signed already") as refused:
        journal.record(CHAIN, RUN, 1, envelope(update=bytes([1] * 32)))
    assert refused.value.code == "conflict"
    entry = journal.signed(CHAIN, RUN, 1)
    assert entry is not None
    assert entry.raw == envelope()


def test_journal_knows_the_latest_round(tmp_path: Path) -> None:
    """The highest recorded round of a run is found; leftovers of a crash do not count."""
    journal = Journal(tmp_path / "journal")
    assert journal.latest_round(CHAIN, RUN) == 0
    for number in (2, 10, 9):
        journal.record(CHAIN, RUN, number, envelope(number=number))
    folder = tmp_path / "journal" / CHAIN.hex() / RUN.hex()
    (folder / ".tmp-left").write_bytes(b"")
    assert journal.latest_round(CHAIN, RUN) == 10
    assert journal.latest_round(CHAIN, bytes(32)) == 0


@pytest.mark.parametrize("damage", [b"", b"rubbish", envelope()[:-1]])
def test_damaged_entry_stops_the_owner(tmp_path: Path, damage: bytes) -> None:
    """Who cannot read what it signed must not sign: a damaged entry is no missing entry."""
    journal = Journal(tmp_path / "journal")
    journal.record(CHAIN, RUN, 1, envelope())
    path = tmp_path / "journal" / CHAIN.hex() / RUN.hex() / "0000000001.update"
    path.write_bytes(damage)
    with pytest.raises(UsageError, match="damaged"):
        journal.signed(CHAIN, RUN, 1)


def test_unreadable_journal_stops_the_owner(tmp_path: Path) -> None:
    """An entry or a folder that cannot be read is not taken for one that is not there."""
    journal = Journal(tmp_path / "journal")
    journal.record(CHAIN, RUN, 1, envelope())
    entry = tmp_path / "journal" / CHAIN.hex() / RUN.hex() / "0000000001.update"
    entry.unlink()
    entry.mkdir()
    with pytest.raises(UsageError, match="cannot read the journal"):
        journal.signed(CHAIN, RUN, 1)
    (tmp_path / "file").write_text("a file in the way")
    with pytest.raises(UsageError, match="cannot read the journal"):
        Journal(tmp_path / "file").latest_round(CHAIN, RUN)


def test_unwritable_journal_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """An entry that cannot be made durable is not made."""
    (tmp_path / "journal").write_text("a file in the way")
    with pytest.raises(UsageError, match="journal"):
        Journal(tmp_path / "journal").record(CHAIN, RUN, 1, envelope())

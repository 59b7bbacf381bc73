"""Flower's private parts: what we lean on is still there, in the versions that we name."""

import logging
from importlib.metadata import version

import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, MetricRecord, RecordDict

from fedchain import _flower
from fedchain.grid.seeding import call_seed, round_of


def test_this_flower_is_one_that_was_tried() -> None:
    """Another release of Flower wants this file and `fedchain/_flower.py` looked at."""
    assert ".".join(version("flwr").split(".")[:2]) in _flower.TESTED_VERSIONS


def test_a_message_carries_the_metadata_it_was_given() -> None:
    """Ids are ours to set, on content and on errors, and replies refer to them."""
    metadata = Metadata(7, "m1", 0, 3, "", "g", 1.5, 60.0, "train")
    content = RecordDict({"m": MetricRecord({"x": 1})})
    message = _flower.make_message(metadata, content)
    assert message.metadata.message_id == "m1"
    assert message.content == content
    assert Message(RecordDict(), reply_to=message).metadata.reply_to_message_id == "m1"
    failed = _flower.make_message(metadata, Error(5, "why"))
    assert failed.has_error()
    assert failed.error.reason == "why"


def test_a_strategy_can_write_messages_once_the_identity_is_set() -> None:
    """Flower's own constructor takes run and sender from the identity of this process."""
    _flower.set_identity(9, 0)
    message = Message(RecordDict(), 3, "train")
    assert (message.metadata.run_id, message.metadata.src_node_id) == (9, 0)
    assert _flower.empty_run(9).run_id == 9


def test_flower_is_silenced(caplog: pytest.LogCaptureFixture) -> None:
    """Flower's progress lines stay out of our output; its errors do not."""
    logger = logging.getLogger("flwr")
    level = logger.level
    try:
        _flower.silence()
        assert not logger.isEnabledFor(logging.WARNING)
        assert logger.isEnabledFor(logging.ERROR)
    finally:
        logger.setLevel(level)


def test_a_call_is_seeded_by_all_that_names_it() -> None:
    """Seed, message type, round and participant each change the seed; nothing else is in it."""
    base = call_seed(0, "train", 1, "client-00")
    assert base == call_seed(0, "train", 1, "client-00")
    assert 0 <= base < 2**64
    others = {
        call_seed(1, "train", 1, "client-00"),
        call_seed(0, "evaluate", 1, "client-00"),
        call_seed(0, "train", 2, "client-00"),
        call_seed(0, "train", 1, "client-01"),
        call_seed(0, "train1", 1, "client-00"),
    }
    assert len(others | {base}) == 6


def test_the_round_is_read_from_the_config() -> None:
    """Flower's strategies put it there; without it, or with rubbish, the round is 0."""
    metadata = Metadata(1, "1", 0, 1, "", "5", 0.0, 60.0, "train")

    def read(config: ConfigRecord) -> int:
        content = RecordDict({"m": MetricRecord({"server-round": 3}), "config": config})
        return round_of(_flower.make_message(metadata, content))

    assert read(ConfigRecord({"server-round": 4})) == 4
    assert read(ConfigRecord({"server-round": "4"})) == 0
    assert read(ConfigRecord()) == 0

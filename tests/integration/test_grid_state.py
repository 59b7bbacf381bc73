"""What a client keeps between calls has a bound that the client cannot raise."""

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedchain.grid import MALFORMED, InProcessGrid, NodeSpec, processes


def test_state_that_grows_from_call_to_call_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """A larger state does not buy room for a still larger one: that reply is refused by name."""
    monkeypatch.setattr(processes, "_REPLY_SLACK_BYTES", 1 << 16)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        kept = len(context.state["kept"]["b"]) if "kept" in context.state else 10_000  # type: ignore[arg-type]
        context.state["kept"] = ConfigRecord({"b": bytes(5 * kept)})
        return Message(RecordDict(), reply_to=message)

    with InProcessGrid(app, nodes=[NodeSpec(1, "a", {})], workers=1, seed=0, timeout_s=60) as grid:
        outcomes = []
        for _ in range(2):
            message = grid.create_message(RecordDict(), "train", 1, "")
            (reply,) = grid.send_and_receive([message], timeout=60)
            outcomes.append(reply.error.code if reply.has_error() else 0)
    assert outcomes == [0, MALFORMED]

"""A whole program: three data owners train on real handwritten digits, then the audit.

Run it with ``python examples/digits.py [WORKDIR]``. The ClientApp is plain Flower; the only
fedchain lines are the call of `launch` and what follows it.
"""

import sys

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits

import fedchain

app = ClientApp()


def make_model() -> torch.nn.Module:
    """A linear classifier over 8 x 8 pixels."""
    return torch.nn.Linear(64, 10)


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train for one epoch on this owner's share: every k-th image."""
    share = slice(context.node_config["partition-id"], None, context.node_config["num-partitions"])
    images, labels = load_digits(return_X_y=True)
    x = torch.tensor(images[share] / 16.0, dtype=torch.float32)
    y = torch.tensor(labels[share])
    model = make_model()
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for batch in torch.randperm(len(y)).split(32):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
        optimizer.step()
    content = RecordDict(
        {
            "arrays": ArrayRecord(model.state_dict()),
            "metrics": MetricRecord({"num-examples": len(y)}),
        }
    )
    return Message(content, reply_to=message)


def main() -> None:
    """Launch, show the rounds, audit."""
    workdir = sys.argv[1] if len(sys.argv) > 1 else "digits-run"
    zeros = {"weight": np.zeros((10, 64), np.float32), "bias": np.zeros(10, np.float32)}
    initial = ArrayRecord({name: Array(array) for name, array in zeros.items()})
    run = fedchain.launch(app, initial, clients=3, rounds=3, workdir=workdir)
    for record in run.rounds:
        weights = {update.participant: update.examples for update in record.updates}
        print(f"round {record.number}: block {record.height}, {weights}, {record.model[:19]}")
    print(run.audit())


if __name__ == "__main__":
    main()

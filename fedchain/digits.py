"""The demo's data and model: scikit-learn's handwritten digits, shared out among data owners.

1,797 real images of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits"), shipped with
scikit-learn, so that nothing is downloaded. A fifth of them is held out for the server's test and
reaches no owner. The ClientApp is written as any Flower user writes one: it knows nothing of
fedchain, and takes its share by ``partition-id`` from ``context.node_config``.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad

from fedchain.grid.seeding import call_seed
from fedchain_proto.errors import UsageError

CLASSES = 10
TEST_SHARE = 0.2
_TEST_SEED = 0  # One test set for every run, so that their accuracies can be compared.
_BRIGHTEST = 16.0
_MEAN, _DEVIATION = 0.3, 0.38  # of the pixels, known for this data set

EPOCHS = 5
BATCH = 16
LEARNING_RATE = 0.03
MOMENTUM = 0.9


class Examples(NamedTuple):
    """Images, float32 (n, 1, 8, 8) in 0..1, and their labels, int64 (n,) in 0..9."""

    images: Tensor
    labels: Tensor


class Net(nn.Module):
    """A small CNN: two convolutions, one pooling, two dense layers; 38,282 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 64),
            nn.ReLU(),
            nn.Linear(64, CLASSES),
        )

    def forward(self, images: Tensor) -> Tensor:
        """Score images (n, 1, 8, 8): logits, float32 (n, 10)."""
        scores: Tensor = self.layers((images - _MEAN) / _DEVIATION)
        return scores


def make_app(clients: int, alpha: float, seed: int) -> ClientApp:
    """Share the training images out and make the app that trains on one share.

    Args:
        clients: Number of data owners.
        alpha: Of the Dirichlet split; the smaller, the less alike the owners' digits.
        seed: Drives the split.

    Raises:
        UsageError: No owners, more owners than images, or alpha not positive.
    """
    shares = split(training_examples().labels.numpy(), clients, alpha, seed)
    app = ClientApp()

    def mine(context: Context) -> Examples:
        if context.node_config["num-partitions"] != clients:
            raise ValueError(f"the images were shared out among {clients} owners")
        chosen = torch.from_numpy(shares[int(context.node_config["partition-id"])])
        images, labels = training_examples()
        return Examples(images[chosen], labels[chosen])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        examples, model = mine(context), _model(message.content.array_records["arrays"])
        loss = _fit(model, examples)
        metrics = MetricRecord({"num-examples": len(examples.labels), "train-loss": loss})
        content = RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics})
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        examples, model = mine(context), _model(message.content.array_records["arrays"])
        loss, accuracy = _score(model, examples)
        metrics = MetricRecord(
            {"num-examples": len(examples.labels), "loss": loss, "accuracy": accuracy}
        )
        return Message(RecordDict({"metrics": metrics}), reply_to=message)

    return app


def initial_arrays(seed: int) -> ArrayRecord:
    """Make the model that training starts from; torch's own random state stays untouched."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(call_seed(seed, "digits/initial-model", 0, ""))
        return ArrayRecord(Net().state_dict())


def server_evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
    """Test a model on the held-out images: accuracy (0..1) and mean cross-entropy (nats)."""
    loss, accuracy = _score(_model(arrays), test_examples())
    return MetricRecord({"accuracy": accuracy, "loss": loss})


def training_examples() -> Examples:
    """The 1,437 images that owners share; those of a class in random, fixed order."""
    return _load()[0]


def test_examples() -> Examples:
    """The 360 images that no owner sees, every class in proportion."""
    return _load()[1]


@lru_cache(maxsize=1)
def _load() -> tuple[Examples, Examples]:
    data = load_digits()
    images = (data.images[:, np.newaxis] / _BRIGHTEST).astype(np.float32)
    parts = train_test_split(
        images,
        data.target.astype(np.int64),
        test_size=TEST_SHARE,
        stratify=data.target,
        random_state=_TEST_SEED,
    )
    train_images, test_images, train_labels, test_labels = map(torch.from_numpy, parts)
    return Examples(train_images, train_labels), Examples(test_images, test_labels)


def split(
    labels: npt.NDArray[np.int64], clients: int, alpha: float, seed: int
) -> list[npt.NDArray[np.int64]]:
    """Share examples out so that owners differ in which classes they hold, and how many.

    For each class, the owners' parts are drawn from a Dirichlet(alpha) distribution (Hsu et al.
    2019, arXiv:1909.06335); an owner left with nothing gets one example of the richest.

    Args:
        labels: int64 (n,).
        clients: Number of owners, at most n.
        alpha: Concentration, positive.
        seed: Equal seeds give equal splits.

    Returns:
        For each owner the indices of its examples, ascending, int64; together each exactly once.

    Raises:
        UsageError: clients below 1 or above n, or alpha not positive.
    """
    if not 1 <= clients <= len(labels):
        raise UsageError(f"{clients} owners cannot share {len(labels)} training images")
    if not 0 < alpha < float("inf"):
        raise UsageError(f"alpha must be positive and finite, not {alpha}")
    random = np.random.default_rng(call_seed(seed, "digits/split", 0, ""))
    shares: list[list[int]] = [[] for _ in range(clients)]
    for label in range(CLASSES):
        members = random.permutation(np.flatnonzero(labels == label))
        parts = random.dirichlet(np.full(clients, alpha))
        cuts = (np.cumsum(parts)[:-1] * len(members)).astype(np.int64)
        for share, part in zip(shares, np.split(members, cuts), strict=True):
            share.extend(part.tolist())
    for share in shares:
        if not share:
            share.append(max(shares, key=len).pop())
    return [np.array(sorted(share), dtype=np.int64) for share in shares]


def _model(arrays: ArrayRecord) -> Net:
    model = Net()
    model.load_state_dict(arrays.to_torch_state_dict())
    return model


def _fit(model: Net, examples: Examples) -> float:
    """Train in place by stochastic gradient descent; the mean loss of the last epoch (nats)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    total = 0.0
    for _ in range(EPOCHS):
        total = 0.0
        for batch in torch.split(torch.randperm(len(examples.labels)), BATCH):
            images = _shifted(examples.images[batch])
            loss = cross_entropy(model(images), examples.labels[batch])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item() * len(batch)
    return total / len(examples.labels)


def _shifted(images: Tensor) -> Tensor:
    """Move a batch by up to a pixel each way, at random: worth a point of accuracy here."""
    down, right = torch.randint(0, 3, (2,)).tolist()
    return pad(images, (1, 1, 1, 1))[:, :, down : down + 8, right : right + 8]


@torch.no_grad()
def _score(model: Net, examples: Examples) -> tuple[float, float]:
    """Mean cross-entropy (nats) and accuracy (0..1)."""
    scores = model(examples.images)
    right = (scores.argmax(dim=1) == examples.labels).float().mean()
    return float(cross_entropy(scores, examples.labels)), float(right)

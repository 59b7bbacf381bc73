"""The demo's data: who gets which images, and that the app is an ordinary Flower app."""

from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.app import (
    ArrayRecord,
    ConfigRecord,
    Context,
    Metadata,
    MetricRecord,
    RecordDict,
    UserConfig,
)

from fedchain import digits
from fedchain._flower import make_message
from fedchain.plot import save_learning_curve
from fedchain_proto.errors import UsageError

LABELS = digits.training_examples().labels.numpy()


def test_no_owner_sees_a_test_image() -> None:
    """Held out means held out: 1,437 and 360 images make 1,797, every class in proportion."""
    train, test = digits.training_examples(), digits.test_examples()
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    for part in (train, test):
        assert part.images.dtype == torch.float32
        assert part.images.shape == (len(part.labels), 1, 8, 8)
        assert float(part.images.min()) >= 0
        assert float(part.images.max()) <= 1
        assert torch.bincount(part.labels).min() >= 0.09 * len(part.labels)
    known = {image.numpy().tobytes() for image in train.images}
    assert not [image for image in test.images if image.numpy().tobytes() in known]


@pytest.mark.parametrize(
    ("clients", "alpha"), [(1, 0.5), (10, 0.5), (10, 0.01), (100, 0.1), (1437, 0.5)]
)
def test_split_gives_every_image_once_and_every_owner_one(clients: int, alpha: float) -> None:
    """No image is lost or shared twice, and no owner is left with nothing to train on."""
    shares = digits.split(LABELS, clients, alpha, seed=3)
    assert len(shares) == clients
    assert min(map(len, shares)) >= 1
    assert sorted(np.concatenate(shares)) == list(range(len(LABELS)))


def test_split_follows_its_seed() -> None:
    """Equal seeds give equal shares; another seed gives others."""
    first, again, other = (digits.split(LABELS, 10, 0.5, seed) for seed in (7, 7, 8))
    assert all(map(np.array_equal, first, again))
    assert not all(map(np.array_equal, first, other))


def test_small_alpha_makes_owners_unlike() -> None:
    """With alpha 0.1 owners hold few classes, with alpha 1000 nearly all of them alike."""

    def largest_class(alpha: float) -> float:
        shares = digits.split(LABELS, 10, alpha, seed=0)
        return float(np.mean([np.bincount(LABELS[s]).max() / len(s) for s in shares]))

    assert largest_class(1000.0) < 0.2 < 0.5 < largest_class(0.1)


@pytest.mark.parametrize(
    ("clients", "alpha"), [(0, 0.5), (-1, 0.5), (1438, 0.5), (10, 0.0), (10, float("nan"))]
)
def test_impossible_split_is_refused(clients: int, alpha: float) -> None:
    """More owners than images, no owners, or no distribution: said at once, before training."""
    with pytest.raises(UsageError):
        digits.make_app(clients, alpha, seed=0)


def call(kind: str, partitions: int = 10) -> RecordDict:
    app = digits.make_app(10, 0.5, seed=0)
    content = RecordDict({"arrays": digits.initial_arrays(0), "config": ConfigRecord()})
    node: UserConfig = {"partition-id": 2, "num-partitions": partitions}
    torch.manual_seed(0)
    message = make_message(Metadata(1, "1", 0, 3, "", "", 0.0, 60.0, kind), content)
    return app(message, Context(1, 3, node, RecordDict(), {})).content


def test_app_trains_on_its_share() -> None:
    """The reply has the model's arrays, moved, and the share's size as its weight."""
    content = call("train")
    arrays, metrics = content["arrays"], content["metrics"]
    assert isinstance(arrays, ArrayRecord)
    assert isinstance(metrics, MetricRecord)
    start = digits.initial_arrays(0)
    assert [(k, v.shape, v.dtype) for k, v in arrays.items()] == [
        (k, v.shape, v.dtype) for k, v in start.items()
    ]
    assert any(arrays[name].data != start[name].data for name in start)
    assert metrics["num-examples"] == len(digits.split(LABELS, 10, 0.5, seed=0)[2])


def test_app_evaluates_on_its_share() -> None:
    """Federated evaluation reports loss and accuracy, weighted by the share's size."""
    metrics = call("evaluate")["metrics"]
    assert isinstance(metrics, MetricRecord)
    assert set(metrics) == {"num-examples", "loss", "accuracy"}


def test_app_refuses_a_federation_of_another_size() -> None:
    """A share of ten is not a share of twelve: the app says so rather than train on it."""
    with pytest.raises(ValueError, match="10 owners"):
        call("train", partitions=12)


def test_initial_model_follows_its_seed_and_moves_no_generator() -> None:
    """Equal seeds give equal models; the caller's own random numbers are not disturbed."""
    state = torch.get_rng_state()
    first, again, other = map(digits.initial_arrays, (1, 1, 2))
    assert torch.equal(state, torch.get_rng_state())
    assert all(first[k].data == again[k].data for k in first)
    assert any(first[k].data != other[k].data for k in first)


def test_untrained_model_guesses() -> None:
    """The test set can tell an untrained model from a trained one."""
    metrics = digits.server_evaluate(0, digits.initial_arrays(0))
    accuracy, loss = metrics["accuracy"], metrics["loss"]
    assert isinstance(accuracy, float)
    assert isinstance(loss, float)
    assert accuracy < 0.3
    assert 2.0 < loss < 3.0  # ln 10 = 2.30 for a guess


@pytest.mark.parametrize("accuracies", [[], [0.5], [0.4, 0.9, 0.95]])
def test_learning_curve_is_a_png(tmp_path: Path, accuracies: list[float]) -> None:
    """Any number of rounds can be drawn, without a display."""
    path = tmp_path / "curve.png"
    save_learning_curve(path, accuracies, run_id="ab" * 32)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

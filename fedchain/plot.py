"""The learning curve as a picture, drawn without a display."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

_SHORT_ID = 12


def save_learning_curve(path: Path, accuracies: Sequence[float], *, run_id: str) -> None:
    """Draw held-out accuracy by round as a PNG.

    Args:
        path: Where to write it; replaced if it is there.
        accuracies: One per round, from round 1 on, each 0..1.
        run_id: Named in the title by its first 12 characters.
    """
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    rounds = range(1, len(accuracies) + 1)
    axes.plot(rounds, accuracies, marker="o", color="#1f5f8b", linewidth=2, markersize=5)
    if accuracies:
        axes.annotate(
            f"{accuracies[-1]:.1%}",
            (len(accuracies), accuracies[-1]),
            xytext=(0, -16),
            textcoords="offset points",
            ha="center",
        )
    axes.set_title(f"Held-out accuracy by round, run {run_id[:_SHORT_ID]}")
    axes.set_xlabel("Round")
    axes.set_ylabel("Accuracy on the held-out test set")
    axes.set_ylim(top=1.005)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.grid(visible=True, alpha=0.3)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    figure.savefig(path, format="png", dpi=150)

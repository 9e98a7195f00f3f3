"""The coverage of a pool as one picture: domains, lengths, topics."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from tasks.curate.coverage import Coverage

DPI = 110
SHOWN_DOMAINS = 12
BINS = 40
COLOUR, OTHER_COLOUR = "#4c78d8", "#3aa389"


def draw_coverage(coverage: Coverage, path: Path) -> Path:
    """Write the picture as PNG; the same coverage gives the same bytes."""
    panels = [_domains, _lengths, *([_topics] if coverage.topics else [])]
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, draw in zip(figure.subplots(1, len(panels)), panels, strict=True):
        draw(axes, coverage)
    prompts = f"{len(coverage.lengths):,} prompts"
    varied = "" if coverage.vendi is None else f", Vendi score {coverage.vendi:.1f} of {coverage.vendi_prompts}"
    figure.suptitle(prompts + varied)
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    return path


def _domains(axes: Axes, coverage: Coverage) -> None:
    largest = sorted(coverage.domains.items(), key=lambda item: (-item[1], item[0]))[:SHOWN_DOMAINS]
    names = [_plain(name) for name, _ in reversed(largest)]
    axes.barh(names, [count for _, count in reversed(largest)], color=COLOUR)
    hidden = len(coverage.domains) - len(largest)
    axes.set(xlabel="prompts", title="domains" + (f" ({hidden} smaller ones left out)" if hidden else ""))


def _lengths(axes: Axes, coverage: Coverage) -> None:
    """Up to the 99th percentile, so that one long prompt doesn't flatten the rest."""
    longest = max(float(np.quantile(coverage.lengths, 0.99)), 1.0)
    axes.hist(coverage.lengths, bins=BINS, range=(0, longest), color=COLOUR)
    axes.axvline(float(np.median(coverage.lengths)), color="black", linestyle=":")
    axes.set(xlabel="words (up to the 99th percentile; the line is the median)", ylabel="prompts", title="lengths")


def _topics(axes: Axes, coverage: Coverage) -> None:
    total = sum(topic.prompts for topic in coverage.topics)
    rows = list(reversed(coverage.topics))
    axes.barh(range(len(rows)), [topic.prompts / total for topic in rows], color=OTHER_COLOUR)
    axes.set_yticks(range(len(rows)), [_plain(", ".join(topic.words[:3])) for topic in rows], fontsize="x-small")
    axes.set(xlabel=f"share of {total:,} prompts", title="topics")


def _plain(name: str) -> str:
    """Without what matplotlib would read as mathematics."""
    return name.replace("$", r"\$")

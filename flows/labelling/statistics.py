"""What the page of statistics shows: progress, the people, and how far they agree."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from storage.labels import Label, label_frame
from tasks._maths.raters import agreement_share, cohens_kappa, fleiss_kappa, krippendorffs_alpha
from tasks.label_queue.measures import choice_ratings, score_ratings


def statistics(labels: Sequence[Label]) -> dict[str, Any]:
    """People, pairs of people and coefficients. A coefficient that can't be computed is None."""
    frame = label_frame(labels)
    people, choices = choice_ratings(frame)
    _, scores = score_ratings(frame)
    several = (~np.isnan(choices)).sum(axis=0) > 1
    return {
        "people": [_person(name, [label for label in labels if label.annotator == name]) for name in people],
        "shared_items": int(several.sum()),
        "agreement": agreement_share(choices),
        "fleiss_kappa": fleiss_kappa(choices[:, several]) if several.any() else None,
        "krippendorffs_alpha": krippendorffs_alpha(choices),
        "score_alpha": krippendorffs_alpha(scores, "interval"),
        "pairs": [_pair(people[i], people[j], choices[i], choices[j]) for i, j in combinations(range(len(people)), 2)],
    }


def _person(name: str, labels: Sequence[Label]) -> dict[str, Any]:
    """`left` is the share of decided labels for the answer that stood left: far from a half, it isn't reading."""
    seconds = [label.seconds for label in labels if label.seconds is not None]
    decided = [label for label in labels if label.choice in ("first", "second")]
    left = sum((label.choice == "first") != label.swapped for label in decided)
    return {
        "name": name,
        "labels": sum(label.choice != "skip" for label in labels),
        "ties": sum(label.choice == "tie" for label in labels),
        "skips": sum(label.choice == "skip" for label in labels),
        "left": left / len(decided) if decided else None,
        "median_s": float(np.median(seconds)) if seconds else None,
    }


def _pair(first: str, second: str, mine: np.ndarray, theirs: np.ndarray) -> dict[str, Any]:
    both = ~(np.isnan(mine) | np.isnan(theirs))
    return {
        "first": first,
        "second": second,
        "items": int(both.sum()),
        "agreement": float((mine[both] == theirs[both]).mean()) if both.any() else None,
        "kappa": cohens_kappa(mine, theirs),
    }

"""What a frame of labels says of the people who gave them, pure."""

import numpy as np
import polars as pl
from jaxtyping import Float

from tasks._maths.raters import agreement_share, krippendorffs_alpha

CHOICES = {"first": 0.0, "tie": 1.0, "second": 2.0}
Ratings = Float[np.ndarray, "annotators items"]


def label_metrics(labels: pl.DataFrame) -> dict[str, float]:
    """Counts, and how far people agree where two or more saw the same item."""
    _, ratings = choice_ratings(labels)
    agreement = {"agreement": agreement_share(ratings), "krippendorffs_alpha": krippendorffs_alpha(ratings)}
    return {
        "labels": float(len(labels)),
        "items": float(labels["item_id"].n_unique()),
        "annotators": float(labels["annotator"].n_unique()),
        "ties": float((labels["choice"] == "tie").sum()),
        "skips": float((labels["choice"] == "skip").sum()),
        **{name: value for name, value in agreement.items() if value is not None},
    }


def choice_ratings(labels: pl.DataFrame) -> tuple[list[str], Ratings]:
    """The annotators in order, and their choices as categories (`CHOICES`); NaN: not asked, or skipped."""
    rated = labels.select(
        "annotator", "item_id", pl.col("choice").cast(pl.String).replace_strict(CHOICES, default=None)
    )
    return _ratings(rated, "choice")


def score_ratings(labels: pl.DataFrame) -> tuple[list[str], Ratings]:
    """The annotators in order, and their absolute scores; an item's two answers are rated as two items."""
    both = [
        labels.select("annotator", pl.concat_str("item_id", pl.lit(f" {side}")).alias("item_id"), score=f"{side}_score")
        for side in ("first", "second")
    ]
    return _ratings(pl.concat(both), "score")


def _ratings(rated: pl.DataFrame, value: str) -> tuple[list[str], Ratings]:
    """A later label of one annotator for one item, in another queue, takes the place of an earlier one."""
    people, items = rated["annotator"].unique().sort().to_list(), rated["item_id"].unique().sort().to_list()
    rows = {name: index for index, name in enumerate(people)}
    columns = {name: index for index, name in enumerate(items)}
    ratings = np.full((len(people), len(items)), np.nan)
    for annotator, item, given in rated.select("annotator", "item_id", value).iter_rows():
        if given is not None:
            ratings[rows[annotator], columns[item]] = given
    return people, ratings

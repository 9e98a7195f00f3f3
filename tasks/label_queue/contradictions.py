"""Earlier pairs worth another label, pure: answers on which people and the grader that ordered the queue disagree."""

import numpy as np
import polars as pl

from tasks._maths.disagreement import REASONS, disagreements
from tasks.label_queue.config import LabellingConfig

WORTH = {"first": (1.0, 0.0), "tie": (0.5, 0.5), "second": (0.0, 1.0)}
"""What a choice says of the first and of the second answer where nobody gave absolute scores."""
SIDES = ("first", "second")


def scores_by_people(labels: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """`prompt_id, text, human` of every labelled answer, to be compared within a prompt only.

    The mean of people's absolute scores where all answers of the prompt that were compared have one, else the share of
    comparisons that an answer won, a tie being half. Each kind is in standard deviations from the prompt's mean.
    """
    choice = pl.col("choice").cast(pl.String)
    said = labels.filter(choice != "skip").join(items.select("item_id", "prompt_id", *SIDES), on="item_id", how="inner")
    both = [
        said.select(
            "prompt_id",
            text=side,
            score=f"{side}_score",
            share=choice.replace_strict({name: each[place] for name, each in WORTH.items()}, return_dtype=pl.Float64),
        )
        for place, side in enumerate(SIDES)
    ]
    answers = pl.concat(both).group_by("prompt_id", "text", maintain_order=True).agg(pl.mean("score", "share"))
    scored = pl.col("score").is_not_null().all().over("prompt_id")
    kinds = answers.with_columns(
        scored.alias("scored"), pl.when(scored).then("score").otherwise("share").alias("human")
    )
    centred = kinds.with_columns(pl.col("human") - pl.col("human").mean().over("prompt_id"))
    deviation = pl.col("human").std(ddof=0).over("scored")
    return centred.select(
        "prompt_id", "text", pl.when(deviation > 0).then(pl.col("human") / deviation).otherwise(0.0).alias("human")
    )


def contradicted_pairs(answers: pl.DataFrame, people: pl.DataFrame, config: LabellingConfig) -> pl.DataFrame:
    """One iteration's pairs as `pairs_of` gives them, with `contradiction` (a strategy) and its `gap`.

    `answers` have `rollout_id, prompt_id, text, score, uncertainty`; of prompts of which nobody labelled an answer
    none is taken. The answer with the gap is one of the two, the other one is the next in the grader's order.
    """
    known = answers.join(people.select("prompt_id").unique(), on="prompt_id", how="semi", maintain_order="left")
    known = known.join(people, on=["prompt_id", "text"], how="left", maintain_order="left")
    columns = [known[name].cast(pl.Float64).to_numpy().astype(np.float64) for name in ("score", "human")]
    groups = known["prompt_id"].rank("dense").cast(pl.Int64).to_numpy()
    found = disagreements(groups, *columns, quantile=config.contradiction_quantile)
    rows = [known[found.first.tolist()], known[found.second.tolist()]]
    turned = (rows[0]["text"] > rows[1]["text"]).to_numpy()
    sides = [np.where(turned, found.second, found.first), np.where(turned, found.first, found.second)]
    named = [
        known[side.tolist()].select(pl.col("rollout_id", "score", "uncertainty").name.prefix(f"{name}_"))
        for name, side in zip(SIDES, sides, strict=True)
    ]
    return pl.concat([rows[0].select("prompt_id"), *named], how="horizontal").with_columns(
        pl.Series("contradiction", [REASONS[reason] for reason in found.reason], pl.String),
        pl.Series("gap", found.priority, pl.Float64),
    )

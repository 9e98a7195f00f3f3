"""The pairs of answers that could be labelled, pure: two different answers to one prompt, with what graders say."""

import numpy as np
import polars as pl

from storage.errors import InputError
from tasks._maths.disagreement import REASONS
from tasks.label_queue.config import LabellingConfig
from tasks.label_queue.strategies import Candidates

ANSWERS_PER_PROMPT = 16
"""So many answers to a prompt are considered, drawn at random: 120 pairs."""
ANSWER = ["rollout_id", "prompt_id", "order", "score", "uncertainty"]
SIDES = ("first", "second")


def answers_of(rollouts: pl.LazyFrame, rewards: pl.LazyFrame, grades: pl.LazyFrame, grader: str | None) -> pl.DataFrame:
    """`rollout_id, prompt_id, text, score, uncertainty` of what people can be shown; no text twice to a prompt.

    The score is the grader's, without one the reward.
    """
    answers = (
        rollouts.filter(pl.col("finish_reason") != "abort", pl.col("text").str.strip_chars() != "")
        .sort("rollout_id")
        .unique(["prompt_id", "text"], keep="first", maintain_order=True)
        .select("rollout_id", "prompt_id", "text")
        .collect()
    )
    return answers.join(_scores(rewards, grades, grader), on="rollout_id", how="left", maintain_order="left")


def drawn_answers(answers: pl.DataFrame, seed: int) -> pl.DataFrame:
    """`rollout_id, prompt_id, order, score, uncertainty` of at most `ANSWERS_PER_PROMPT` answers to each prompt.

    `order` ranks a prompt's answers by their text, so that a pair is the same one whenever it comes.
    """
    ranked = answers.with_columns(pl.col("text").rank("ordinal").over("prompt_id").alias("order"))
    drawn = pl.Series("drawn", np.random.default_rng(seed).random(len(answers)))
    kept = ranked.with_columns(drawn).filter(pl.col("drawn").rank("ordinal").over("prompt_id") <= ANSWERS_PER_PROMPT)
    return kept.select(ANSWER)


def pairs_of(answers: pl.DataFrame) -> pl.DataFrame:
    """Every two answers to a prompt, once: `first_*` and `second_*` of `ANSWER`'s columns, sorted by their ids.

    Nobody has said anything of them: `contradiction` and `gap` are null.
    """
    sides = [answers.rename({name: f"{side}_{name}" for name in ANSWER if name != "prompt_id"}) for side in SIDES]
    return (
        sides[0]
        .join(sides[1], on="prompt_id", how="inner")
        .filter(pl.col("first_order") < pl.col("second_order"))
        .drop("first_order", "second_order")
        .with_columns(contradiction=pl.lit(None, pl.String), gap=pl.lit(None, pl.Float64))
        .sort("prompt_id", "first_rollout_id", "second_rollout_id")
    )


def known_of(pairs: pl.DataFrame, answers: pl.DataFrame, grades: pl.LazyFrame, seed: int) -> Candidates:
    """The pairs as the strategies take them. Those with a `contradiction` have its `gap` and nothing else."""
    fresh = pairs["contradiction"].is_null().to_numpy()
    values = {
        f"{side}_{name}": np.where(fresh, _floats(pairs[f"{side}_{name}"]), np.nan)
        for side in SIDES
        for name in ("score", "uncertainty")
    }
    spread = answers["score"].std()
    return Candidates(
        **values,
        spread=float(spread) if isinstance(spread, float) else 0.0,
        margins=_margins(pairs, grades),
        drawn=np.where(fresh, np.random.default_rng([seed, 1]).random(len(pairs)), np.nan),
        gaps={name: np.where(pairs["contradiction"] == name, _floats(pairs["gap"]), np.nan) for name in REASONS},
    )


def _floats(column: pl.Series) -> np.ndarray:
    return column.cast(pl.Float64).to_numpy().astype(np.float64)


def without(pairs: pl.DataFrame, labelled: pl.DataFrame, rollouts: pl.LazyFrame) -> pl.DataFrame:
    """The pairs less those whose two texts are in `labelled` (`prompt_id, first, second`), in their order."""
    if labelled.is_empty():
        return pairs
    texts = rollouts.select("prompt_id", "rollout_id", "text")
    found = labelled.lazy().select("prompt_id", "first", "second")
    for side in SIDES:
        named = texts.rename({"rollout_id": f"{side}_rollout_id", "text": side})
        found = found.join(named, on=["prompt_id", side], how="inner")
    done = found.select("first_rollout_id", "second_rollout_id").collect(engine="streaming")
    turned = done.select(first_rollout_id="second_rollout_id", second_rollout_id="first_rollout_id")
    return pairs.join(
        pl.concat([done, turned]), on=["first_rollout_id", "second_rollout_id"], how="anti", maintain_order="left"
    )


def ordering_grader(grades: pl.LazyFrame, config: LabellingConfig) -> str | None:
    """The grader that orders the queue: the one named, else the one that gives uncertainties; none: the reward does.

    Raises `InputError` for `labelling.grader` that isn't there, or not named where several graders give uncertainties.
    """
    graders = grades.group_by("grader").agg(pl.col("uncertainty").is_not_null().any()).sort("grader").collect()
    names, unsure = graders["grader"].to_list(), graders.filter("uncertainty")["grader"].to_list()
    if config.grader is not None and config.grader not in names:
        raise InputError(f"labelling.grader: {config.grader!r} graded nothing; there are {', '.join(names) or 'none'}")
    if config.grader is None and len(unsure) > 1:
        raise InputError(
            f"labelling.grader: {', '.join(unsure)} give uncertainties; name the one to order the queue by"
        )
    return config.grader or (unsure[0] if unsure else None)


def graded_by(grades: pl.LazyFrame, grader: str | None) -> bool:
    """Whether that grader was among those of an iteration; the reward always is."""
    return grader is None or bool(grades.select((pl.col("grader") == grader).any()).collect().item())


def _scores(rewards: pl.LazyFrame, grades: pl.LazyFrame, grader: str | None) -> pl.DataFrame:
    """`rollout_id, score, uncertainty` by the grader that orders the queue."""
    if grader is None:
        nothing = pl.lit(None, pl.Float64).alias("uncertainty")
        return rewards.select("rollout_id", pl.col("reward").alias("score"), nothing).collect()
    answered = grades.filter(pl.col("grader") == grader, pl.col("status") == "ok")
    return answered.select("rollout_id", "score", "uncertainty").collect()


def _margins(pairs: pl.DataFrame, grades: pl.LazyFrame) -> np.ndarray:
    """Differences in standard deviations, a column per grader whose scores vary."""
    answered = grades.filter(pl.col("status") == "ok").select("rollout_id", "grader", "score").collect()
    spread = answered.group_by("grader").agg(pl.col("score").std().alias("std")).filter(pl.col("std") > 0)
    columns = []
    for grader, std in spread.sort("grader").iter_rows():
        own = answered.filter(pl.col("grader") == grader).select("rollout_id", pl.col("score") / std)
        scores = [
            pairs.select(pl.col(f"{side}_rollout_id").alias("rollout_id"))
            .join(own, on="rollout_id", how="left", maintain_order="left")["score"]
            .to_numpy()
            .astype(np.float64)
            for side in SIDES
        ]
        columns.append(scores[0] - scores[1])
    return np.stack(columns, axis=1) if columns else np.zeros((len(pairs), 0))

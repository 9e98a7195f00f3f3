"""From an iteration's grades to what they say of its prompts, and from there to the history after it. Pure."""

import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from storage.records import PromptUse
from tasks._maths.posteriors import Beta, Moments, adapt_rate, relax, update_beta, update_moments
from tasks.select.history_config import HistoryConfig, OutcomesConfig
from tasks.select.strategies import Rates
from tasks.select.strategy_config import GresoConfig

# A group whose rewards' standard deviation is at most that has no variance (SkyRL's tolerance, as in filtering).
TOLERANCE = 1e-6
# A weighted mean of ones may lie that far above one.
ROUNDING = 1e-9
POSTERIOR = ["alpha", "beta", "last_outcome", "outcome_key"]
OF_REWARDS = ["reward_weight", "reward_mean", "reward_variance", "easy_streak", "hard_streak", "reward_key"]


def outcomes_of(
    rollouts: pl.LazyFrame, grades: pl.LazyFrame, rewards: pl.LazyFrame | None, config: OutcomesConfig
) -> pl.DataFrame:
    """What all rollouts of each prompt say: one row per prompt, sorted.

    `samples` outcomes with `successes` among them (soft ones in part) and `outcome_key`, who made them, of the first of
    `config.bases` that the prompt's rollouts have; `rewards` complete rewards with `reward_mean`, `reward_variance` (of
    the group, not an estimate). `clipped` outcomes lie outside `reward_range` and count as its nearer
    end. Without `rewards` there are verdicts and scores alone. A rollout that wasn't graded says nothing.
    """
    if rewards is None:
        rewards = pl.LazyFrame(schema={"rollout_id": pl.String, "reward": pl.Float64})
    own = grades.filter(
        pl.col("grader").cast(pl.String) == config.grader, pl.col("status").cast(pl.String) == "ok"
    ).select("rollout_id", "passed", "score", "grader_version")
    told = (
        rollouts.select("rollout_id", "prompt_id")
        .join(own, on="rollout_id", how="left")
        .join(rewards.select("rollout_id", "reward"), on="rollout_id", how="left")
        .with_columns(
            pl.col("passed").cast(pl.Float64).alias("verdict"),
            pl.lit(False).alias("outside verdict"),
            _is_outside("score", config.history).alias("outside score"),
            _is_outside("reward", config.history).alias("outside reward"),
            _as_success("score", config.history).alias("score"),
            _as_success("reward", config.history).alias("reward_success"),
        )
        .sort("prompt_id", "rollout_id")
        .group_by("prompt_id", maintain_order=True)
        .agg(
            *(pl.col(_column(basis)).count().alias(f"samples {basis}") for basis in config.bases),
            *(pl.col(_column(basis)).sum().alias(f"successes {basis}") for basis in config.bases),
            *(pl.col(f"outside {basis}").sum().alias(f"clipped {basis}") for basis in config.bases),
            pl.col("grader_version").drop_nulls().first(),
            pl.col("reward").count().alias("rewards"),
            pl.col("reward").mean().alias("reward_mean"),
            pl.col("reward").var(ddof=0).alias("reward_variance"),
        )
        .collect()
    )
    found = [(basis, pl.when(pl.col(f"samples {basis}") > 0)) for basis in config.bases]
    return told.select(
        "prompt_id",
        pl.coalesce(*(has.then(pl.col(f"samples {basis}")) for basis, has in found)).fill_null(0).alias("samples"),
        pl.coalesce(*(has.then(pl.col(f"successes {basis}")) for basis, has in found)).alias("successes"),
        pl.coalesce(*(has.then(pl.col(f"clipped {basis}")) for basis, has in found)).fill_null(0).alias("clipped"),
        pl.coalesce(*(has.then(_key(basis, config)) for basis, has in found)).alias("new_outcome_key"),
        "rewards",
        pl.col("reward_mean").alias("new_reward_mean"),
        pl.col("reward_variance").alias("new_reward_variance"),
    )


def after_outcomes(
    history: pl.DataFrame, outcomes: pl.DataFrame, iteration: int, config: OutcomesConfig
) -> pl.DataFrame:
    """The `PromptUse` frame with one iteration's outcomes in it, sorted by prompt.

    A prompt's outcomes made by somebody else than those before start from the prior. Prompts that the history doesn't
    have are left out.
    """
    touched = history.join(outcomes, on="prompt_id", how="inner", maintain_order="left")
    changed = touched.with_columns(
        *_posterior(touched, iteration, config.history), *_of_rewards(touched, config.reward_key, config.history)
    )
    rest = history.join(outcomes, on="prompt_id", how="anti", maintain_order="left")
    return pl.concat([rest.select(PromptUse.column_names()), changed.select(PromptUse.column_names())]).sort(
        "prompt_id"
    )


def without_stale(history: pl.DataFrame, config: OutcomesConfig) -> pl.DataFrame:
    """The history less what others than today's graders and reward model made; draws stay."""
    current = [config.key_of(basis) for basis in config.bases]
    maker = pl.col("outcome_key").str.split("@").list.first()
    return history.with_columns(
        pl.when(maker.is_in(current)).then(pl.col(name)).otherwise(None).alias(name) for name in POSTERIOR
    ).with_columns(
        pl.when(pl.col("reward_key") == config.reward_key).then(pl.col(name)).otherwise(None).alias(name)
        for name in OF_REWARDS
    )


def recomputed(
    history: pl.DataFrame, earlier: Sequence[tuple[int, pl.DataFrame]], config: OutcomesConfig
) -> pl.DataFrame:
    """The history whose unknown posteriors are made again from outcomes of earlier iterations, the oldest first.

    `earlier` holds iterations with their `outcomes_of`, without rewards: those were made by somebody else.
    """
    unknown = history.filter(pl.col("alpha").is_null()).select("prompt_id")
    for iteration, outcomes in earlier:
        missing = outcomes.join(unknown, on="prompt_id", how="semi", maintain_order="left")
        history = after_outcomes(history, missing, iteration, config)
    return history


def adapted_rates(rates: Rates, outcomes: pl.DataFrame, config: GresoConfig) -> Rates:
    """GRESO's p after an iteration: each a step toward its target share of groups without variance."""
    easy, hard = zero_variance_shares(outcomes)
    limits = (config.step, config.lowest, config.highest)
    return Rates(
        adapt_rate(rates.easy, easy, config.easy_target, *limits),
        adapt_rate(rates.hard, hard, config.hard_target, *limits),
    )


def zero_variance_shares(outcomes: pl.DataFrame) -> tuple[float, float]:
    """The shares of the groups with two or more rewards whose rewards are equal: at the passing and the failing end."""
    groups = outcomes.filter(pl.col("rewards") >= 2)
    easy, hard = (int(groups.select(end.sum()).item()) for end in _ends())
    return easy / max(len(groups), 1), hard / max(len(groups), 1)


def history_metrics(history: pl.DataFrame, outcomes: pl.DataFrame) -> dict[str, float]:
    """What was recorded: prompts with outcomes, their pass rate from all rollouts, and what is known of the pool."""
    easy, hard = zero_variance_shares(outcomes)
    samples, successes = outcomes.select(pl.col("samples").sum(), pl.col("successes").sum()).row(0)
    known = history.filter(pl.col("alpha").is_not_null())
    mean = known.select((pl.col("alpha") / (pl.col("alpha") + pl.col("beta"))).mean()).item()
    return {
        "outcomes": float(samples),
        "clipped": float(outcomes["clipped"].sum()),
        "known": float(len(known)),
        "all_passed_fraction": easy,
        "all_failed_fraction": hard,
        **({"pass_rate": successes / samples} if samples else {}),
        **({"posterior_mean": mean} if mean is not None and math.isfinite(mean) else {}),
    }


def _column(basis: str) -> str:
    return "reward_success" if basis == "reward" else basis


def _as_success(column: str, config: HistoryConfig) -> pl.Expr:
    low, high = config.reward_range
    return ((pl.col(column) - low) / (high - low)).clip(0, 1)


def _is_outside(column: str, config: HistoryConfig) -> pl.Expr:
    low, high = config.reward_range
    rounding = ROUNDING * (high - low)
    return ~pl.col(column).is_between(low - rounding, high + rounding)


def _key(basis: str, config: OutcomesConfig) -> pl.Expr:
    key = pl.lit(config.key_of(basis))
    return key if basis == "reward" else pl.concat_str(key, pl.lit("@"), pl.col("grader_version"))


def _posterior(touched: pl.DataFrame, iteration: int, config: HistoryConfig) -> list[pl.Series]:
    """The Beta posterior of each row; a row without outcomes keeps what it has."""
    seen = (touched["samples"] > 0).to_numpy()
    same = touched["outcome_key"].eq_missing(touched["new_outcome_key"]).to_numpy() & seen
    idle = (iteration - 1 - touched["last_outcome"].fill_null(iteration - 1).to_numpy()).clip(min=0)
    alpha, beta = (touched[name].cast(pl.Float64).to_numpy() for name in ("alpha", "beta"))
    before = Beta(np.where(same, alpha, config.prior[0]), np.where(same, beta, config.prior[1]))
    before = relax(before, config.prior, config.idle_discount ** idle.astype(np.float64))
    successes = touched["successes"].cast(pl.Float64).to_numpy()
    after = update_beta(before, successes, touched["samples"].to_numpy(), config.prior, config.discount)
    return [
        _floats("alpha", np.where(seen, after.alpha, alpha)),
        _floats("beta", np.where(seen, after.beta, beta)),
        _kept("last_outcome", touched, seen, pl.lit(iteration, pl.Int32)),
        _kept("outcome_key", touched, seen, pl.col("new_outcome_key")),
    ]


def _of_rewards(touched: pl.DataFrame, reward_key: str, config: HistoryConfig) -> list[pl.Series]:
    """The reward's moments and the groups without variance in a row; a row without rewards keeps what it has."""
    count = touched["rewards"].to_numpy()
    seen, same = count > 0, (touched["reward_key"] == reward_key).fill_null(False).to_numpy()
    weight, mean, variance, new_mean, new_variance = (
        touched[name].cast(pl.Float64).to_numpy()
        for name in ("reward_weight", "reward_mean", "reward_variance", "new_reward_mean", "new_reward_variance")
    )
    before = Moments(np.where(same, np.nan_to_num(weight), 0.0), mean, variance)
    after = update_moments(before, np.maximum(count, 1), new_mean, new_variance, config.discount)
    grouped = count >= 2  # one rollout has no variance to speak of
    easy, hard = touched.select(end.fill_null(False).alias(str(i)) for i, end in enumerate(_ends())).get_columns()
    return [
        _floats("reward_weight", np.where(seen, after.weight, weight)),
        _floats("reward_mean", np.where(seen, after.mean, mean)),
        _floats("reward_variance", np.where(seen, after.variance, variance)),
        _streak("easy_streak", touched, easy.to_numpy(), grouped, seen, same),
        _streak("hard_streak", touched, hard.to_numpy(), grouped, seen, same),
        _kept("reward_key", touched, seen, pl.lit(reward_key)),
    ]


def _ends() -> tuple[pl.Expr, pl.Expr]:
    """Whether a group is without variance at the passing end, and at the failing one."""
    flat = pl.col("new_reward_variance") <= TOLERANCE**2
    passing = pl.when(pl.col("samples") > 0).then(2 * pl.col("successes") >= pl.col("samples")).otherwise(False)
    return flat & passing, flat & ~passing


def _streak(
    name: str, touched: pl.DataFrame, goes_on: np.ndarray, grouped: np.ndarray, seen: np.ndarray, same: np.ndarray
) -> pl.Series:
    before = np.where(same | ~seen, touched[name].fill_null(0).to_numpy(), 0)
    after = np.where(grouped, np.where(goes_on, before + 1, 0), before)
    known = seen | touched[name].is_not_null().to_numpy()
    return pl.Series(name, np.where(known, after, -1), pl.Int32).replace(-1, None)


def _floats(name: str, values: np.ndarray) -> pl.Series:
    return pl.Series(name, values, pl.Float64).fill_nan(None)


def _kept(name: str, touched: pl.DataFrame, seen: np.ndarray, new: pl.Expr) -> pl.Series:
    """The new value where something was seen, the old one elsewhere."""
    return touched.select(pl.when(pl.Series(seen)).then(new).otherwise(pl.col(name)).alias(name))[name]

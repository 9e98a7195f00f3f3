"""Which candidate pairs make the queue, pure: every strategy its share, mixed so that any beginning of it is too."""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl

from storage.fingerprints import digest
from storage.records import LabelItem
from tasks.label_queue.config import LabellingConfig
from tasks.label_queue.strategies import STRATEGIES, Candidates, Pairs, difference_uncertainty

PROMPT = ["prompt_id", "cluster_id", "messages"]
ANSWER = ["rollout_id", "text", "policy_id"]


def choose(pairs: pl.DataFrame, known: Candidates, config: LabellingConfig) -> pl.DataFrame:
    """The chosen pairs in their order, with `reason`, `priority` and the `uncertainty` of the difference.

    A strategy that has no more candidates leaves its share to the others.
    """
    shares: dict[str, float] = {name: share for name, share in sorted(config.strategies.items()) if share > 0}
    priorities = {name: STRATEGIES[name](known) for name in shares}
    picked = list(_mixed(pairs["prompt_id"].to_list(), priorities, shares, known.drawn, config))
    rows = [row for row, _ in picked]
    unsure = difference_uncertainty(known)[rows]
    return pairs[rows].with_columns(
        pl.Series("reason", [name for _, name in picked], pl.String),
        pl.Series("priority", [float(priorities[name][row]) for row, name in picked], pl.Float64),
        pl.Series("uncertainty", unsure, pl.Float64).fill_nan(None),
    )


def queue_of(chosen: pl.DataFrame, rollouts: pl.LazyFrame, prompts: pl.LazyFrame, iteration: int) -> pl.DataFrame:
    """The `label_queue` frame of chosen pairs. `prompts`: a batch, or earlier items."""
    wanted = pl.concat([chosen["first_rollout_id"], chosen["second_rollout_id"]]).unique().implode()
    answers = rollouts.filter(pl.col("rollout_id").is_in(wanted)).select(ANSWER).collect(engine="streaming")
    asked = prompts.filter(pl.col("prompt_id").is_in(chosen["prompt_id"].unique().implode())).select(PROMPT)
    asked = asked.unique("prompt_id", keep="first", maintain_order=True)
    items = chosen.join(asked.collect(), on="prompt_id", how="inner", maintain_order="left")
    for side in ("first", "second"):
        own = answers.rename({"rollout_id": f"{side}_rollout_id", "text": side, "policy_id": f"{side}_policy_id"})
        items = items.join(own, on=f"{side}_rollout_id", how="inner", maintain_order="left")
    ids = [item_id_of(row["messages"], row["first"], row["second"]) for row in items.iter_rows(named=True)]
    named = items.with_columns(pl.Series("item_id", ids, pl.String), pl.lit(iteration, pl.Int32).alias("iteration"))
    # An earlier iteration's pair may have the words of one of this iteration's.
    once = named.unique("item_id", keep="first", maintain_order=True)
    return once.with_columns(pl.int_range(pl.len(), dtype=pl.Int32).alias("position")).select(LabelItem.column_names())


def item_id_of(messages: list[dict[str, str]], first: str, second: str) -> str:
    """What makes an item the same one in two queues: the conversation and the two answers."""
    return digest([[[each["role"], each["content"]] for each in messages], first, second])


def queue_metrics(queue: pl.DataFrame, candidates: int) -> dict[str, float]:
    """Items, prompts, candidates, and items by strategy."""
    reasons = dict(queue.group_by("reason").len().iter_rows())
    return {
        "items": float(len(queue)),
        "prompts": float(queue["prompt_id"].n_unique()),
        "candidates": float(candidates),
        **{f"items_{name}": float(reasons[name]) for name in sorted(reasons)},
    }


def _mixed(
    prompts: list[str],
    priorities: Mapping[str, Pairs],
    wanted: Mapping[str, float],
    drawn: Pairs,
    config: LabellingConfig,
) -> Iterator[tuple[int, str]]:
    """Rows with the strategy that took each: the one that is furthest behind its share goes next."""
    ranked = {name: iter(_ranked(values, drawn)) for name, values in priorities.items()}
    shares = {name: share / sum(wanted.values()) for name, share in wanted.items()}
    taken, of_prompt, chosen = dict.fromkeys(ranked, 0), dict[str, int](), set[int]()
    while ranked and len(chosen) < config.size:
        name = max(ranked, key=lambda each: (shares[each] * (len(chosen) + 1) - taken[each], shares[each]))
        row = next(
            (
                row
                for row in ranked[name]
                if row not in chosen and of_prompt.get(prompts[row], 0) < config.pairs_per_prompt
            ),
            None,
        )
        if row is None:
            del ranked[name]
            continue
        chosen.add(row)
        taken[name] += 1
        of_prompt[prompts[row]] = of_prompt.get(prompts[row], 0) + 1
        yield row, name


def _ranked(priority: Pairs, drawn: Pairs) -> list[int]:
    """Rows by falling priority, equal ones by the seeded draw; NaN is no candidate."""
    order = np.lexsort((drawn, -priority))
    return [int(row) for row in order if not np.isnan(priority[row])]

"""Pairs of all origins -> one `Preference` frame: each opinion once, split without a leak. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from tasks.preferences.clusters import joined_clusters
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.frames import IS_TIE, joined, prompt_key
from tasks.preferences.splits import assign_splits, choose_held_out, refuse_leaks

# What an iteration itself graded: of earlier iterations only this is taken, for the rest is there anew.
GRADED = ("grader", "ai", "counterexample")
OLDEST = -1


@dataclass(frozen=True)
class Origins:
    """Unsplit `Preference` frames: this iteration's graded pairs and counterexamples, those of files, of labels; and
    what earlier iterations made, by iteration. `anchors` are no origin: pairs whose prompts never train.
    """

    graded: pl.DataFrame
    counterexamples: pl.DataFrame = field(default_factory=lambda: joined([]))
    imported: pl.DataFrame = field(default_factory=lambda: joined([]))
    labelled: pl.DataFrame = field(default_factory=lambda: joined([]))
    earlier: Sequence[tuple[int, pl.DataFrame]] = ()
    anchors: pl.DataFrame = field(default_factory=lambda: joined([]))


def collect_pairs(
    origins: Origins, config: PreferencesConfig, seed: int, folder: Path, policies: Collection[str] = ()
) -> tuple[pl.DataFrame, dict[str, float]]:
    """All pairs with their split, sorted by prompt, then strength; and what became of those that aren't among them.

    A pair that would train on an anchor's prompt, or a near duplicate of one, is left out.

    `policies` are this iteration's: their pairs are never held out. `folder` is for files of the search for near
    duplicates. Raises `InputError` for splits that leak, which sources can bring about that say `split`.
    """
    old = earlier_pairs(origins.earlier, len(origins.graded), config.history_share)
    fresh = [origins.graded, origins.counterexamples, origins.imported, origins.labelled]
    everything = joined([*fresh, old])
    kept, counts = opinions(everything)
    names = joined_clusters(joined([kept, origins.anchors]), config.near_duplicate_threshold, folder)
    clustered, anchored = kept.with_columns(names.head(len(kept))), names.slice(len(kept)).unique()
    held_out = choose_held_out(clustered, config.held_out_annotators, config.held_out_policies, seed, policies)
    split = assign_splits(clustered, config.eval_fraction, seed, held_out)
    refuse_leaks(split, config.near_duplicate_threshold, folder)
    beside = (pl.col("split").cast(pl.String) == "train") & pl.col("cluster_id").is_in(anchored.to_list())
    parted = split.filter(~beside)
    counts |= {
        "earlier": float(len(old)),
        "left_out": float(len(kept) - len(split)),
        "left_out_anchors": float(len(split) - len(parted)),
        "held_out_annotators": float(len(held_out.annotators)),
        "held_out_policies": float(len(held_out.policies)),
    }
    order = ["prompt_id", "strength", "pair_id"]
    return parted.sort(order, descending=[False, True, False], nulls_last=True), counts


def earlier_pairs(earlier: Sequence[tuple[int, pl.DataFrame]], fresh: int, share: float) -> pl.DataFrame:
    """The graded pairs of earlier iterations, the newest first, then the widest margins: `share` of all graded ones.

    Without `fresh` ones there are none: a share of nothing.
    """
    frames = []
    for iteration, frame in sorted(earlier, key=lambda each: -each[0]):
        own = (pl.col("iteration") == iteration) | pl.col("iteration").is_null()
        graded = frame.filter(pl.col("source").cast(pl.String).is_in(GRADED), own)
        dated = graded.with_columns(pl.col("iteration").fill_null(pl.lit(iteration, pl.Int32)))
        frames.append(dated.sort(["strength", "pair_id"], descending=[True, False], nulls_last=True))
    return joined(frames).head(int(share / (1 - share) * fresh))


def opinions(pairs: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, float]]:
    """The pairs in their order, what one voice says of two answers to a prompt once; and what was counted.

    A voice is a source and an annotator; those without a name are one. Different voices stay beside each other, each
    with its row: two people who say the same weigh twice. Of what one voice says of the same two texts its newest
    iteration counts (a pair without one is older than any), then the widest strength. Where it says both there, it
    says nothing: all its rows of that pair fall. `contradictions` counts the pairs of texts of which some rows prefer
    one and others the other, whoever says so; `duplicates` the rows that fell.
    """
    texts = ["prompt", "low", "high"]
    voice = [*texts, "source", "annotator"]
    marked = pairs.with_row_index("row").with_columns(
        prompt=prompt_key(),
        low=pl.min_horizontal("chosen", "rejected").hash(0),
        high=pl.max_horizontal("chosen", "rejected").hash(0),
        says=pl.when(~IS_TIE).then(pl.col("chosen") < pl.col("rejected")),
        age=pl.col("iteration").fill_null(OLDEST),
    )
    both = marked.group_by(texts).agg(pl.col("says").drop_nulls().n_unique().alias("sides"))
    newest = marked.filter(pl.col("age") == pl.col("age").max().over(voice))
    clear = newest.filter(pl.col("says").drop_nulls().n_unique().over(voice) < 2)
    order = ["strength", "pair_id", "row"]
    once = clear.sort(order, descending=[True, False, False], nulls_last=True).unique(
        voice, keep="first", maintain_order=True
    )
    kept = once.sort("row").unique("pair_id", keep="first", maintain_order=True).select(pairs.columns)
    counts = {
        "duplicates": float(len(pairs) - len(kept)),
        "contradictions": float((both["sides"] > 1).sum()),
    }
    return kept, counts


def pair_metrics(pairs: pl.DataFrame) -> dict[str, float]:
    """Pairs, held-out pairs, ties, prompts with a pair, pairs of each source, and the mean margin of graded ones."""
    source = pairs["source"].cast(pl.String)
    margin = pairs.filter(source.is_in(["grader", "ai"]))["strength"].mean()
    by_source = {f"source_{name}": float(count) for name, count in sorted(source.value_counts().iter_rows())}
    return {
        "pairs": float(len(pairs)),
        "eval_pairs": float((pairs["split"] == "eval").sum()),
        "prompts": float(pairs["prompt_id"].n_unique()),
        "ties": float(pairs["tie"].fill_null(False).sum()),
        **by_source,
        **({"margin_mean": float(margin)} if isinstance(margin, float) else {}),
    }

"""Pairs from graded groups: rankings, margins, ties, limits, who prefers."""

import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, context, rollout_rows
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.artifacts import Artifact
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.fingerprints import text_key
from storage.records import RECORDS, BatchEntry, Preference
from tasks._maths.rankings import ranked_pairs
from tasks.policy_update.rows import read_pairs
from tasks.preferences.collecting import Origins, collect_pairs, pair_metrics
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.pairs import (
    PROMPT_COLUMNS,
    Voice,
    answers_of,
    complete_rewards,
    graded_pairs,
    verdict_pairs,
    verdicts_of,
)
from tasks.preferences.ranking import rank_answers
from tasks.preferences.ranking_config import RankingConfig
from tasks.preferences.splits import held_out_clusters
from tasks.preferences.stage import collect_preferences

ANSWERS = st.lists(
    st.tuples(st.integers(0, 7), st.sampled_from("abcdef"), st.sampled_from([0.0, 0.05, 0.3, 0.6, 1.0, None])),
    min_size=1,
    max_size=40,
)
MODES = st.sampled_from(["widest", "all", "best_worst", "adjacent"])


def frames(answers: list[tuple]) -> tuple[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame]:
    """Rollouts, rewards and the batch of (prompt, text, reward or None); two prompts share a cluster."""
    ids = [f"r{index:03d}" for index in range(len(answers))]
    prompts, texts, rewards = zip(*answers, strict=True)
    rollouts = pl.DataFrame(
        {
            "rollout_id": ids,
            "prompt_id": [f"p{prompt}" for prompt in prompts],
            "text": texts,
            "policy_id": "policy",
            "iteration": pl.Series([3] * len(ids), dtype=pl.Int32),
        }
    )
    graded = pl.DataFrame(
        {
            "rollout_id": ids,
            "reward": pl.Series(rewards, dtype=pl.Float64),
            "complete": [r is not None for r in rewards],
        }
    )
    rows = [
        {
            "prompt_id": f"p{prompt}",
            "messages": [{"role": "user", "content": f"Question {prompt}"}],
            "cluster_id": f"c{prompt // 2}",
        }
        for prompt in sorted(set(prompts))
    ]
    schema = BatchEntry.create_empty().select("prompt_id", "messages", "cluster_id").schema
    return rollouts.lazy(), graded.lazy(), pl.DataFrame(rows, schema=schema).lazy()


def unsplit(answers: list[tuple], rules: RankingConfig, seed: int = 0) -> pl.DataFrame:
    rollouts, rewards, batch = frames(answers)
    found = answers_of(rollouts, complete_rewards(rewards), batch)
    return graded_pairs(found, batch.select(PROMPT_COLUMNS).collect(), rules, seed)


def pairs_of(answers, config, folder, seed=0):
    return collect_pairs(Origins(unsplit(answers, config, seed)), config, seed, folder)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shingles")


@settings(max_examples=20)
@given(
    answers=ANSWERS, mode=MODES, per_prompt=st.none() | st.integers(1, 5), ties=st.booleans(), seed=st.integers(0, 3)
)
def test_what_holds_for_every_set_of_pairs(folder, answers, mode, per_prompt, ties, seed):
    config = PreferencesConfig(
        pairs=mode, min_margin=0.1, pairs_per_prompt=per_prompt, eval_fraction=0.3, ties=ties, tie_margin=0.05
    )
    pairs = pairs_of(answers, config, folder, seed)
    assert Preference.is_valid(pairs)
    rewards = {f"r{index:03d}": reward for index, (_, _, reward) in enumerate(answers)}
    for row in pairs.iter_rows(named=True):
        margin = rewards[row["chosen_rollout_id"]] - rewards[row["rejected_rollout_id"]]
        assert row["strength"] == pytest.approx(margin)
        assert margin <= 0.05 if row["tie"] else margin >= 0.1
        assert row["chosen"] != row["rejected"]
        assert row["messages"][0]["content"] == f"Question {row['prompt_id'][1:]}"
        assert (row["iteration"], row["chosen_policy_id"]) == (3, "policy")
    assert ties or not pairs["tie"].any()
    if config.limit is not None and len(pairs):
        assert pairs.group_by("prompt_id", "tie").len()["len"].max() <= config.limit
    sides = pairs.group_by("cluster_id").agg(pl.col("split").n_unique())
    assert set(sides["split"]) <= {1}
    if pairs["cluster_id"].n_unique() > 1:
        assert pairs["split"].n_unique() == 2


# InstructGPT (arXiv 2203.02155), section 3.5: K = 4 to 9 answers make K (K - 1) / 2 pairs.
@pytest.mark.parametrize(("answers", "pairs"), [(1, 0), (2, 1), (4, 6), (8, 28), (9, 36)])
def test_a_ranking_of_k_answers(answers, pairs):
    scores = np.random.default_rng(0).permutation(answers).astype(float)
    groups = np.zeros(answers, dtype=np.int64)
    every = ranked_pairs(groups, scores)
    assert len(every.better) == pairs
    assert {*zip(scores[every.better], scores[every.worse], strict=True)} == {
        (float(high), float(low)) for high in range(answers) for low in range(high)
    }
    adjacent = ranked_pairs(groups, scores, "adjacent")
    assert sorted(zip(scores[adjacent.better], scores[adjacent.worse], strict=True)) == [
        (low + 1.0, float(low)) for low in range(answers - 1)
    ]
    ends = ranked_pairs(groups, scores, "best_worst")
    assert [(scores[b], scores[w]) for b, w in zip(ends.better, ends.worse, strict=True)] == [(answers - 1.0, 0.0)] * (
        answers > 1
    )
    frame = pl.DataFrame(
        {"group": "g", "answer_id": [f"{at}" for at in range(answers)], "text": [f"t{at}" for at in range(answers)]}
    ).with_columns(score=pl.Series(scores))
    assert len(rank_answers(frame, RankingConfig(pairs="all"), 0)) == pairs
    assert len(rank_answers(frame, RankingConfig(), 0)) == min(pairs, 4)


def test_groups_in_several_parts_make_the_same_pairs(monkeypatch):
    rng = np.random.default_rng(1)
    frame = pl.DataFrame(
        {
            "group": [f"g{at % 11}" for at in range(90)],
            "answer_id": [f"{at:03d}" for at in range(90)],
            "text": [f"t{at}" for at in rng.integers(0, 40, 90)],
            "score": rng.integers(0, 5, 90) / 4,
        }
    )
    for rules in (RankingConfig(pairs="all", pairs_per_prompt=3, ties=True), RankingConfig()):
        whole = rank_answers(frame, rules, 5)
        monkeypatch.setattr("tasks.preferences.ranking.PAIRS_AT_ONCE", 30)
        assert rank_answers(frame, rules, 5).equals(whole)
        monkeypatch.undo()


def test_the_widest_margins_are_taken(folder):
    answers = [(0, "a", 0.0), (0, "b", 0.5), (0, "c", 1.0), (0, "d", None), (0, "c", 0.2)]
    pairs = pairs_of(answers, PreferencesConfig(pairs_per_prompt=2), folder)
    assert pairs.select("chosen", "rejected", "strength").rows() == [("c", "a", 1.0), ("b", "a", 0.5)]
    metrics = pair_metrics(pairs)
    assert metrics["margin_mean"] == pytest.approx(0.75) and metrics["source_grader"] == 2


def test_ties_are_those_within_their_margin():
    answers = [(0, "a", 0.0), (0, "b", 0.02), (0, "c", 0.07), (0, "d", 0.5)]
    rules = RankingConfig(pairs="all", ties=True, tie_margin=0.04)
    found = unsplit(answers, rules)
    preferred, tied = found.filter(~pl.col("tie")), found.filter("tie")
    assert {*preferred.select("chosen", "rejected").iter_rows()} == {("d", "a"), ("d", "b"), ("d", "c")}
    assert [{row["chosen"], row["rejected"]} for row in tied.iter_rows(named=True)] == [{"a", "b"}]
    assert tied["strength"].to_list() == pytest.approx([0.02])
    assert unsplit(answers, RankingConfig(pairs="all")).filter("tie").is_empty()
    with pytest.raises(ValueError, match="can't be both"):
        RankingConfig(tie_margin=0.2)


def test_an_update_learns_nothing_from_a_tie(tiny_model):
    from tasks._engines.chat import load_tokenizer

    answers = [(0, "a", 0.0), (0, "b", 0.0), (0, "c", 1.0)]
    frame = unsplit(answers, RankingConfig(ties=True)).with_columns(split=pl.lit("train"))
    assert frame["tie"].sum() == 1
    tokenizer = load_tokenizer(tiny_model)
    assert len(read_pairs(frame, tokenizer, tokenizer.eos_token_id)) == 2 * (len(frame) - 1)


@given(clusters=st.sets(st.integers(0, 200), min_size=2), extra=st.sets(st.integers(201, 300)), seed=st.integers(0, 9))
def test_a_cluster_stays_on_its_side_in_later_iterations(clusters, extra, seed):
    names = [f"c{number}" for number in clusters]
    both = held_out_clusters([*names, *(f"c{number}" for number in extra)], 0.3, seed)
    alone = held_out_clusters(names, 0.3, seed)
    assert len(alone) < len(names)
    if 1 < len(alone) < len(names) - 1:
        assert set(alone) == set(both) & set(names)


def test_no_pair_is_an_empty_table(folder):
    pairs = pairs_of([(0, "a", 0.5), (0, "b", 0.5)], PreferencesConfig(), folder)
    assert Preference.is_valid(pairs)
    assert pair_metrics(pairs) == {"pairs": 0, "eval_pairs": 0, "prompts": 0, "ties": 0}


def test_a_batch_of_other_prompts_is_refused():
    rollouts, rewards, batch = frames([(0, "a", 0.5), (1, "b", 0.5)])
    with pytest.raises(InputError, match="not in the batch"):
        answers_of(rollouts, complete_rewards(rewards), batch.head(1))


def verdict(other: str, result: float, disagreed: bool = False) -> dict:
    return {"other": text_key(other), "result": result, "disagreed": disagreed}


def judged(details: dict[str, dict]) -> pl.LazyFrame:
    return pl.LazyFrame(
        {
            "rollout_id": list(details),
            "grader": "which",
            "status": "ok",
            "detail": [json.dumps({"wins": 1, "why": '"met" \\ "other"', **detail}) for detail in details.values()],
        }
    )


def test_a_judges_verdicts_are_the_pairs():
    answers = [(0, "a", 0.5), (0, "b", 0.5), (0, "c", 0.5), (0, "a", 0.5), (1, "a", 0.5), (1, "b", 0.5)]
    grades = judged(
        {
            "r000": {"met": [verdict("b", 1.0), verdict("c", 0.5, True)]},
            "r001": {"met": [verdict("a", 0.0)]},
            "r002": {"met": [verdict("a", 0.5, True)]},
            "r003": {"met": [verdict("b", 1.0), verdict("c", 0.5, True)]},
            "r004": {},
        }
    )
    rollouts, rewards, batch = frames(answers)
    known = answers_of(rollouts, complete_rewards(rewards), batch)
    verdicts = verdicts_of(grades, "which")
    assert verdicts_of(grades, "another").is_empty()
    args = known, verdicts, batch.select(PROMPT_COLUMNS).collect()
    for ties, expected in ((False, [("a", "b", False)]), (True, [("a", "b", False), ("a", "c", True)])):
        found = verdict_pairs(*args, RankingConfig(ties=ties), 0, Voice("ai", "which"))
        assert (
            sorted((min(c, r), max(c, r), t) for c, r, t in found.select("chosen", "rejected", "tie").rows())
            == expected
        )
        assert found.filter(~pl.col("tie"))["chosen"].to_list() == ["a"]
        assert set(found["source"]) == {"ai"} and set(found["annotator"]) == {"which"}
        assert [json.loads(text) for text in found.filter("tie")["detail"]] == [{"orders_disagreed": True}] * ties


def test_the_stage_compares_by_a_named_grader(tmp_path):
    texts = [("p0", "good"), ("p0", "bad"), ("p1", "fine"), ("p1", "poor")]
    rollouts = committed(tmp_path, "rollouts", rollouts=rollout_rows(texts))
    batch = committed(tmp_path, "select", batch=batch_rows(2, samples=2))
    grades = pl.DataFrame(
        [
            {
                "rollout_id": f"r{at}",
                "grader": grader,
                "grader_version": "1",
                "status": "ok",
                "score": (score if grader == "style" else 1 - score),
                "detail": "{}",
                "cost": 0.0,
                "policy_id": "policy1",
            }
            for at, score in enumerate((0.9, 0.1, 0.8, 0.3))
            for grader in ("style", "other")
        ],
        schema=RECORDS["grades"].create_empty().schema,
    )
    rewards = pl.DataFrame(
        [{"rollout_id": f"r{at}", "reward": float(at % 2), "components": [], "complete": True} for at in range(4)],
        schema=RECORDS["rewards"].create_empty().schema,
    )
    graded = committed(tmp_path, "grading", grades=grades, rewards=rewards)

    def made(history=(), **config):
        return collect_preferences.function(
            rollouts=rollouts,
            rewards=graded,
            batch=batch,
            history=history,
            config=PreferencesConfig(**config),
            seed=0,
            context=context(tmp_path),
        )

    by_style = made(grader="style").tables["preferences"]
    assert by_style["chosen"].to_list() == ["good", "fine"]
    assert set(by_style["annotator"]) == {"style"} and set(by_style["source"]) == {"grader"}
    assert made(grader="other").tables["preferences"]["chosen"].to_list() == ["bad", "poor"]
    by_reward = made()
    assert by_reward.tables["preferences"]["chosen"].to_list() == ["bad", "poor"]
    assert by_reward.tables["preferences"]["annotator"].null_count() == 2
    # What it made is what a later iteration takes up.
    night = Artifact(root=graded.root, stage="preferences", fingerprint="first")
    recipe = Recipe(night, step="preferences", version=2, config={}, inputs={}, seed=0, iteration=1)
    commit_outputs(recipe, Attempt(datetime.now(UTC), tmp_path), by_reward)
    later = night.read("preferences")
    assert set(later["iteration"]) == {1}
    again = made(history_iterations=1, history=[night])
    assert again.metrics["earlier"] == 2 and again.metrics["duplicates"] == 2
    assert again.tables["preferences"].equals(by_reward.tables["preferences"])
    with pytest.raises(InputError, match=r"no such grader graded; expected one of \['other', 'style'\]"):
        made(grader="taste")

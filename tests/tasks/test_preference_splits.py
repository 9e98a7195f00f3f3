"""Splits never leak, whatever the pairs; each opinion counts once; people's labels become pairs."""

import itertools
import json

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.records import Preference
from tasks._maths.words import words_of
from tasks.preferences.collecting import Origins, collect_pairs, earlier_pairs, opinions, pair_metrics
from tasks.preferences.config import HeldOutConfig, PreferencesConfig
from tasks.preferences.frames import joined, pairs_of_rows
from tasks.preferences.labels import label_pairs
from tasks.preferences.splits import HeldOut, assign_splits, choose_held_out, refuse_leaks
from tasks.reward_gate.comparison import TIES, refuse_overlap, training_pairs

# Long prompts of which a few words differ are near duplicates; the last two stand alone.
WORDS = [
    "the",
    "old",
    "pond",
    "a",
    "frog",
    "leaps",
    "in",
    "the",
    "sound",
    "of",
    "water",
    "that",
    "falls",
    "on",
    "stones",
    "beside",
    "the",
    "house",
    "of",
    "my",
    "mother",
]
PROMPTS = [
    " ".join(WORDS),
    " ".join([*WORDS, "today"]),
    " ".join(["say:", *WORDS]),
    " ".join(WORDS).upper() + "!",
    "why is the sky blue in the morning and red in the evening of a day",
    "name three rivers",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("shingles")


def pair(number: int, prompt: int | str = 0, chosen: str = "good", rejected: str = "bad", **fields) -> dict:
    text = prompt if isinstance(prompt, str) else PROMPTS[prompt]
    return {
        "pair_id": f"pair{number:03d}",
        "prompt_id": f"p-{text}",
        "cluster_id": f"p-{text}",
        "messages": [{"role": "user", "content": text}],
        "chosen": chosen,
        "rejected": rejected,
        "source": "human",
        "strength": 1.0,
        **fields,
    }


def frame(*rows: dict) -> pl.DataFrame:
    return pairs_of_rows(rows)


PAIRS = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.integers(0, len(PROMPTS) - 1) | st.text("xyz ", min_size=1, max_size=12),
            "answers": st.permutations(["a", "b", "c", "d"]).map(lambda texts: texts[:2]),
            "source": st.sampled_from(["human", "grader", "ai", "click", "counterexample"]),
            "annotator": st.none() | st.sampled_from(["ann", "bob", "cy", "dee", "eve"]),
            "cluster_id": st.sampled_from(["k1", "k2", "k3", "k4", "k5", "k6", "k7", "k8"]),
            "iteration": st.none() | st.integers(1, 4),
            "policy": st.none() | st.sampled_from(["m1", "m2", "m3"]),
            "tie": st.booleans(),
        }
    ),
    max_size=24,
)
HELD = st.builds(HeldOutConfig, fraction=st.sampled_from([0.0, 0.3, 0.7]), minimum=st.integers(2, 3))


def written(drawn: list[dict]) -> pl.DataFrame:
    rows = []
    for number, each in enumerate(drawn):
        fields = {name: each[name] for name in ("source", "annotator", "cluster_id", "iteration", "tie")}
        chosen, rejected = each["answers"]
        rows.append(pair(number, each["prompt"], chosen, rejected, chosen_policy_id=each["policy"], **fields))
    return frame(*rows)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the word 3-grams, by sets."""

    def shingles(text):
        words = words_of(text)
        return {tuple(words[at : at + 3]) for at in range(len(words) - 2)} or {tuple(words)}

    first, second = shingles(one), shingles(other)
    return len(first & second) / len(first | second)


@settings(max_examples=20)
@given(graded=PAIRS, imported=PAIRS, people=HELD, policies=HELD, seed=st.integers(0, 3))
def test_splits_never_leak(folder, graded, imported, people, policies, seed):
    config = PreferencesConfig(eval_fraction=0.3, held_out_annotators=people, held_out_policies=policies)
    numbered = written([*graded, *imported])
    origins = Origins(graded=numbered.head(len(graded)), imported=numbered.slice(len(graded)))
    pairs, counts = collect_pairs(origins, config, seed, folder)
    assert Preference.is_valid(pairs)
    assert len(pairs) + counts["duplicates"] + counts["left_out"] == len(numbered)
    sides = {split: pairs.filter(pl.col("split").cast(pl.String) == split).to_dicts() for split in ("train", "eval")}
    for train, held in itertools.product(sides["train"], sides["eval"]):
        assert train["cluster_id"] != held["cluster_id"]
        assert train["prompt_id"] != held["prompt_id"]
        assert similarity(train["messages"][0]["content"], held["messages"][0]["content"]) < 0.8
    kept, _ = opinions(joined([origins.graded, origins.imported]))
    away = choose_held_out(kept, people, policies, seed)
    for row in sides["train"]:
        assert row["annotator"] not in away.annotators
        assert row["chosen_policy_id"] not in away.policies


def test_near_duplicates_share_a_cluster_and_a_chat_of_the_pool_keeps_its_name(folder):
    graded = frame(pair(0, 0, cluster_id="pool-b", iteration=1), pair(1, 4, cluster_id="pool-a", iteration=1))
    imported = frame(pair(2, 1, cluster_id="z"), pair(3, 5, cluster_id="y"), pair(4, 3, cluster_id="x"))
    pairs, _ = collect_pairs(Origins(graded, imported=imported), PreferencesConfig(), 0, folder)
    names = dict(pairs.select("pair_id", "cluster_id").iter_rows())
    assert names == {"pair000": "x", "pair001": "pool-a", "pair002": "x", "pair003": "y", "pair004": "x"}


def test_what_shares_an_anchors_prompt_never_trains(folder):
    # The pool names its prompts otherwise than a file, and one of them is only nearly the anchor's.
    graded = frame(
        pair(0, 0, prompt_id="pool1", cluster_id="pool1", iteration=1),
        pair(1, 1, prompt_id="pool2", cluster_id="pool2", iteration=1),
        *(pair(at, f"prompt number {at}", iteration=1) for at in range(2, 12)),
    )
    anchors = frame(pair(99, 0, "better", "worse", cluster_id="anchor"))
    sides = set()
    for seed in range(6):
        config = PreferencesConfig(eval_fraction=0.4)
        pairs, counts = collect_pairs(Origins(graded, anchors=anchors), config, seed, folder)
        anchored = pairs.filter(pl.col("pair_id").is_in(["pair000", "pair001"]))
        assert set(anchored["split"].cast(pl.String)) <= {"eval"} and "pair099" not in pairs["pair_id"]
        assert counts["left_out_anchors"] == 2 - len(anchored) and counts["left_out"] == 0
        assert len(pairs) == 12 - counts["left_out_anchors"]
        trained = training_pairs(pairs.lazy())
        refuse_overlap(trained, anchors.lazy().select(*TIES), "the gate has nothing to refuse")
        sides.add(len(anchored))
    assert sides == {0, 2}, "both sides were drawn"
    alone, counts = collect_pairs(Origins(graded), PreferencesConfig(eval_fraction=0.4), 0, folder)
    assert len(alone) == 12 and counts["left_out_anchors"] == 0


def split(number: int, prompt: int, part: str, **fields) -> dict:
    return pair(number, prompt, detail=json.dumps({"split": part}), **fields)


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([split(0, 0, "train"), split(1, 0, "eval")], "they answer the same prompt with the same text"),
        ([split(0, 0, "train"), split(1, 0, "eval", chosen="x", rejected="y")], "they answer the same prompt;"),
        ([split(0, 0, "train"), split(1, 2, "eval")], "are near duplicates"),
        ([split(0, 4, "train", cluster_id="k"), split(1, 5, "eval", cluster_id="k")], "share the cluster k"),
    ],
)
def test_a_leak_names_both_pairs(folder, rows, told):
    # Two voices, so that the second pair of one prompt isn't the same opinion.
    pairs = frame(*(row | {"annotator": str(at)} for at, row in enumerate(rows)))
    with pytest.raises(InputError, match=f"pair pair000 trains and pair pair001 measures, and .*{told}"):
        refuse_leaks(assign_splits(pairs, 0.5, 0), 0.8, folder)
    if "near" not in told:
        with pytest.raises(InputError, match=told):
            collect_pairs(Origins(joined([]), imported=pairs), PreferencesConfig(), 0, folder)


def test_a_part_that_a_source_names_takes_its_cluster_along(folder):
    named = frame(split(0, 0, "eval"), pair(1, 1, annotator="b"), split(2, 4, "train"), pair(3, 5))
    for seed in range(6):
        pairs, _ = collect_pairs(
            Origins(joined([]), imported=named), PreferencesConfig(eval_fraction=0.5), seed, folder
        )
        parts = dict(pairs.select("pair_id", pl.col("split").cast(pl.String)).iter_rows())
        assert (parts["pair000"], parts["pair001"], parts["pair002"]) == ("eval", "eval", "train")


def test_held_out_people_and_policies_only_measure():
    people = [f"person{at}" for at in range(5)]
    rows = [
        pair(at, f"prompt number {at}", annotator=people[at % 5], chosen_policy_id=f"m{at % 7}") for at in range(140)
    ]
    pairs = frame(*rows)
    chosen = choose_held_out(pairs, HeldOutConfig(fraction=0.2, minimum=5), HeldOutConfig(fraction=0.2, minimum=7), 1)
    assert len(chosen.annotators) >= 1 and len(chosen.policies) >= 1
    divided = assign_splits(pairs, 0.25, 1, chosen)
    train = divided.filter(pl.col("split").cast(pl.String) == "train")
    assert not set(train["annotator"]) & set(chosen.annotators)
    assert not set(train["chosen_policy_id"]) & set(chosen.policies)
    # Every prompt has one pair here, so nothing has to be left out: a held-out person's prompts all measure.
    assert len(divided) == len(pairs)
    few = choose_held_out(pairs, HeldOutConfig(minimum=6), HeldOutConfig(minimum=8), 1)
    assert few == HeldOut([], [])
    assert "m3" not in choose_held_out(pairs, HeldOutConfig(), HeldOutConfig(fraction=0.9), 1, ["m3"]).policies
    # Two people about one prompt: the one who is held out can't measure by it once it trains.
    shared = frame(*(pair(at, f"prompt number {at // 5}", annotator=people[at % 5]) for at in range(100)))
    left = assign_splits(shared, 0.25, 1, chosen)
    fallen = shared.join(left, on="pair_id", how="anti")
    assert set(fallen["annotator"]) == set(chosen.annotators)
    assert set(left.filter(pl.col("annotator").is_in(chosen.annotators))["split"].cast(pl.String)) == {"eval"}


def test_a_held_out_persons_labels_measure_though_others_labelled_the_same_prompts():
    # Everybody shares prompts; the one who is held out labelled four of twenty, and a quarter of all measures.
    rows = [pair(2 * at, f"prompt number {at}", annotator="bob") for at in range(20)]
    rows += [pair(2 * at + 1, f"prompt number {at}", annotator="ann" if at < 4 else "cy") for at in range(20)]
    for seed in range(6):
        usual = assign_splits(frame(*rows), 0.25, seed)
        measured = usual.filter(split="eval")["cluster_id"].n_unique()
        parts = assign_splits(frame(*rows), 0.25, seed, HeldOut(annotators=["ann"]))
        held = parts.filter(split="eval")
        assert held["cluster_id"].n_unique() == measured, "no more measure than without her"
        assert (parts["annotator"] == "ann").sum() == (held["annotator"] == "ann").sum() == min(4, measured)
        assert not set(held["cluster_id"]) & set(parts.filter(split="train")["cluster_id"])


def test_each_opinion_counts_once():
    rows = [
        pair(0, 0, annotator="ann", strength=1.0),
        pair(1, 0, annotator="ann", strength=2.0),
        pair(2, 0, annotator="bob"),
        pair(3, 0, "bad", "good", annotator="cy"),
        pair(4, 4, iteration=1, source="grader"),
        pair(5, 4, "bad", "good", iteration=2, source="grader"),
        pair(6, 5, annotator="ann"),
        pair(7, 5, "bad", "good", annotator="ann"),
        pair(8, 5, "bad", "good", annotator="bob", tie=True),
    ]
    kept, counts = opinions(frame(*rows))
    assert kept["pair_id"].to_list() == ["pair001", "pair002", "pair003", "pair005", "pair008"]
    assert counts == {"duplicates": 4.0, "contradictions": 3.0}


def test_earlier_pairs_are_limited_to_their_share():
    def night(iteration, known=True):
        rows = [
            pair(100 * iteration + at, at, iteration=iteration if known else None, source="grader", strength=at / 10)
            for at in range(5)
        ]
        return frame(*rows, pair(900 + iteration, 0, iteration=None, source="human"), pair(950, 0, iteration=9))

    earlier = [(1, night(1, known=False)), (2, night(2))]
    some = earlier_pairs(earlier, 7, 0.5)
    assert some["pair_id"].to_list() == [f"pair{n}" for n in (204, 203, 202, 201, 200, 104, 103)]
    assert some["iteration"].to_list() == [2] * 5 + [1] * 2
    assert len(earlier_pairs(earlier, 100, 0.5)) == 10
    assert earlier_pairs(earlier, 0, 0.5).is_empty()
    assert len(earlier_pairs(earlier, 6, 0.25)) == 2


QUEUE = {
    "item_id": ["i1", "i2", "i3"],
    "position": [0, 1, 2],
    "prompt_id": ["p1", "p2", "p3"],
    "cluster_id": ["c1", "c2", "c3"],
    "messages": [[{"role": "user", "content": text}] for text in ("one", "two", "three")],
    "first": ["a", "c", "same"],
    "second": ["b", "d", "same"],
    "first_rollout_id": ["r1", "r3", "r5"],
    "second_rollout_id": ["r2", "r4", "r6"],
    "first_policy_id": ["m1"] * 3,
    "second_policy_id": ["m2"] * 3,
    "iteration": [4, 4, 4],
    "reason": ["uncertain", "random", "random"],
}


def labels(*rows: tuple) -> pl.DataFrame:
    names = ["label_id", "item_id", "annotator", "choice", "first_score", "second_score"]
    known = pl.DataFrame(
        rows, schema={name: pl.String for name in names[:4]} | dict.fromkeys(names[4:], pl.Float64), orient="row"
    )
    return known.with_columns(comment=pl.lit("clear"), swapped=pl.lit(False), seconds=pl.lit(3.5))


def test_labels_become_pairs():
    queue = pl.DataFrame(QUEUE)
    found = label_pairs(
        queue,
        labels(
            ("l1", "i1", "ann", "second", 2.0, 5.0),
            ("l2", "i1", "bob", "first", None, None),
            ("l3", "i2", "ann", "tie", 3.0, None),
            ("l4", "i2", "bob", "skip", None, None),
            ("l5", "i3", "bob", "first", None, None),
        ),
    )
    assert found["pair_id"].to_list() == ["l1", "l2", "l3"]
    first = found.row(0, named=True)
    assert (first["chosen"], first["rejected"], first["chosen_rollout_id"]) == ("b", "a", "r2")
    assert (first["human_score_chosen"], first["human_score_rejected"], first["strength"]) == (5.0, 2.0, 3.0)
    assert (first["chosen_policy_id"], first["rejected_policy_id"], first["iteration"]) == ("m2", "m1", 4)
    assert json.loads(first["detail"])["comment"] == "clear"
    assert found["tie"].to_list() == [False, False, True] and found["strength"].to_list() == [3.0, None, None]
    assert found["source"].unique().to_list() == ["human"]
    with pytest.raises(InputError, match="label l9 of ann: its item i9 is in no label queue"):
        label_pairs(queue, labels(("l9", "i9", "ann", "first", None, None)))


def test_people_who_say_the_same_weigh_twice(folder):
    labelled = label_pairs(
        pl.DataFrame(QUEUE),
        labels(("l1", "i1", "ann", "first", None, None), ("l2", "i1", "bob", "first", None, None)),
    )
    pairs, counts = collect_pairs(Origins(joined([]), labelled=labelled), PreferencesConfig(), 0, folder)
    assert pair_metrics(pairs)["source_human"] == 2 and counts["contradictions"] == 0

"""Which pairs people are asked about: by each strategy, in shares, never twice and never one that has its labels."""

import json
from datetime import UTC, datetime

import numpy as np
import polars as pl
import pytest
from graded_rollouts import batch_rows, committed, context, rollout_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from label_queues import CAMPAIGN, offer
from pydantic import ValidationError
from scipy.stats import norm

from storage.errors import InputError
from storage.labels import LabelQueues
from storage.records import Grade, LabelItem, Reward
from tasks.label_queue.choose import choose
from tasks.label_queue.config import COLLECT, LabellingConfig
from tasks.label_queue.contradictions import scores_by_people
from tasks.label_queue.stage import collect_labels, make_queue
from tasks.label_queue.strategies import Candidates, disagreement, high_uncertainty, uncertain

NAN = np.nan


def candidates(first, second, unsure=None, margins=None, spread=1.0):
    unsure = np.full((2, len(first)), NAN) if unsure is None else np.array(unsure, dtype=float)
    drawn = np.random.default_rng(0).random(len(first))
    margins = np.zeros((len(first), 0)) if margins is None else np.array(margins, dtype=float)
    return Candidates(np.array(first, float), np.array(second, float), *unsure, spread, margins, drawn)


def test_uncertain_is_the_probability_of_the_wrong_order():
    pairs = candidates([0.5, 0.9, 0.5, NAN], [0.5, 0.6, 0.9, 1.0], unsure=[[0.3, 0.3, NAN, 0.1], [0.4, 0.4, 0.1, 0.1]])
    found = uncertain(pairs)
    assert found[0] == 0.5
    assert found[1] == pytest.approx(norm.cdf(-0.3 / 0.5))
    assert found[2] == pytest.approx(norm.cdf(-0.4 / np.sqrt(2)))  # no uncertainty: the spread of all scores
    assert np.isnan(found[3])


def test_disagreement_is_the_weaker_of_two_verdicts_that_contradict():
    found = disagreement(candidates([0] * 4, [0] * 4, margins=[[2, -1, NAN], [0.5, -3, 0], [1, 2, 3], [NAN, -1, NAN]]))
    assert found[:2].tolist() == [1, 0.5]
    assert np.isnan(found[2:]).all()
    assert np.isnan(disagreement(candidates([0], [0], margins=[[1.0]]))).all()


def test_high_uncertainty_wants_both():
    assert high_uncertainty(candidates([0, 0], [0, 0], unsure=[[0.9, 0.4], [0.1, 0.3]])).tolist() == [0.1, 0.3]


@settings(max_examples=60, deadline=None)
@given(
    prompts=st.lists(st.integers(0, 9), min_size=1, max_size=60),
    shares=st.fixed_dictionaries({name: st.integers(0, 3) for name in ("uncertain", "random", "disagreement")}),
    size=st.integers(1, 30),
    per_prompt=st.integers(1, 3),
)
def test_every_queue_is_mixed_without_repeats(prompts, shares, size, per_prompt):
    if not sum(shares.values()):
        shares = {**shares, "random": 1}
    random = np.random.default_rng(len(prompts))
    known = candidates(
        random.random(len(prompts)), random.random(len(prompts)), margins=random.normal(size=(len(prompts), 2))
    )
    pairs = pl.DataFrame({"prompt_id": [f"p{each}" for each in prompts], "row": range(len(prompts))})
    config = LabellingConfig(size=size, strategies=shares, pairs_per_prompt=per_prompt)
    chosen = choose(pairs, known, config)
    assert chosen.equals(choose(pairs, known, config))
    assert chosen["row"].is_unique().all() and len(chosen) <= size
    counts = chosen.group_by("prompt_id").len()["len"].to_list()
    assert max(counts, default=0) <= per_prompt
    assert set(chosen["reason"]) <= {name for name, share in shares.items() if share}
    # Uncertain and random take every pair: only the prompts' limit can leave room.
    room = sum(min(prompts.count(each), per_prompt) for each in set(prompts))
    if shares["uncertain"] or shares["random"]:
        assert len(chosen) == min(size, room)


def test_the_beginning_of_a_queue_is_mixed_like_the_whole():
    known = candidates(np.zeros(400), np.arange(400) / 400)
    pairs = pl.DataFrame({"prompt_id": [f"p{each}" for each in range(400)]})
    chosen = choose(pairs, known, LabellingConfig(size=100, strategies={"uncertain": 3, "random": 1}))
    for length in (4, 20, 100):
        assert (chosen.head(length)["reason"] == "uncertain").sum() == 0.75 * length
    doubtful = chosen.filter(pl.col("reason") == "uncertain")["priority"]
    assert doubtful.is_sorted(descending=True) and doubtful[0] == 0.5


def test_configuration_says_what_it_expects():
    with pytest.raises(ValidationError, match="strategies: expected shares"):
        LabellingConfig(strategies={"random": 0})
    with pytest.raises(ValidationError, match="uncertain"):
        LabellingConfig(strategies={"hard": 1})
    with pytest.raises(ValidationError, match="overrated look at what people labelled"):
        LabellingConfig(strategies={"overrated": 1, "random": 0})


def graded(rollouts, scores, grader="reward_model", unsure=None, rewards=None):
    """The tables of a grading in which one grader answered."""
    ids = rollouts["rollout_id"].to_list()
    grades = [
        {
            "rollout_id": name,
            "grader": grader,
            "grader_version": "1",
            "status": "ok",
            "score": score,
            "passed": None,
            "uncertainty": None if unsure is None else unsure[index],
            "detail": "{}",
            "latency_s": 0.1,
            "cost": 0.0,
            "policy_id": "policy1",
        }
        for index, (name, score) in enumerate(zip(ids, scores, strict=True))
    ]
    made = [
        {"rollout_id": name, "reward": reward, "components": [], "complete": True, "passed": None}
        for name, reward in zip(ids, rewards or scores, strict=True)
    ]
    return {
        "grades": pl.DataFrame(grades, schema=Grade.create_empty().schema),
        "rewards": pl.DataFrame(made, schema=Reward.create_empty().schema),
    }


TEXTS = [("p0", "b"), ("p0", "a"), ("p0", "b"), ("p0", " "), ("p1", "x"), ("p1", "y"), ("p1", "z"), ("p2", "alone")]
SCORES = [0.1, 0.9, 0.1, 0.5, 0.4, 0.45, 0.9, 0.5]


@pytest.fixture
def night(tmp_path):
    """Rollouts, grading and batch of three prompts."""
    rows = rollout_rows(TEXTS)
    return {
        "rollouts": committed(tmp_path, "rollouts", rollouts=rows),
        "rewards": committed(tmp_path, "grading", **graded(rows, SCORES)),
        "batch": committed(tmp_path, "select", batch=batch_rows(3)),
    }


def queue_from(night, folder, labels=None, iteration=1, **config):
    config = LabellingConfig(**{"strategies": {"uncertain": 1}, "pairs_per_prompt": 9, **config})
    return make_queue.function(**night, labels=labels, config=config, seed=3, context=context(folder, iteration))


def test_the_queue_of_a_night(night, tmp_path):
    outputs = queue_from(night, tmp_path)
    queue = outputs.tables["label_queue"]
    assert LabelItem.is_valid(queue)
    # Narrowest difference first; blank answers, lonely ones and equal texts make no pair.
    assert queue.select("first", "second").rows() == [("x", "y"), ("y", "z"), ("x", "z"), ("a", "b")]
    assert queue.select("first_score", "second_score").row(0) == (0.4, 0.45)
    assert queue["first_policy_id"].to_list() == ["policy1"] * 4
    assert queue["messages"][0][0]["content"] == "question 1"
    assert outputs.metrics == {"items": 4, "prompts": 2, "candidates": 4, "items_uncertain": 4}
    assert queue_from(night, tmp_path, pairs_per_prompt=1).tables["label_queue"]["first"].to_list() == ["x", "a"]


def test_the_grader_that_gives_uncertainties_orders_the_queue(night, tmp_path):
    rows = rollout_rows(TEXTS)
    unsure = [0.01, 0.01, 0.01, 0.01, 0.01, 2.0, 3.0, 0.01]
    own = graded(rows, SCORES, unsure=unsure, rewards=[0.0] * 8)
    both = pl.concat([own["grades"], graded(rows, SCORES, grader="other")["grades"]])
    night["rewards"] = committed(tmp_path, "grading", "1", grades=both, rewards=own["rewards"])
    queue = queue_from(night, tmp_path, strategies={"high_uncertainty": 1, "uncertain": 1}).tables["label_queue"]
    assert queue.select("first", "second", "reason", "priority").row(0) == ("y", "z", "high_uncertainty", 2.0)
    assert queue["uncertainty"][0] == pytest.approx(13**0.5)
    named = queue_from(night, tmp_path, grader="other").tables["label_queue"]
    assert named["uncertainty"].to_list() == [None] * 4
    with pytest.raises(InputError, match=r"labelling.grader: 'nobody' graded nothing; there are other, reward_model"):
        queue_from(night, tmp_path, grader="nobody")
    two = pl.concat([own["grades"], graded(rows, SCORES, grader="more", unsure=unsure)["grades"]])
    night["rewards"] = committed(tmp_path, "grading", "2", grades=two, rewards=own["rewards"])
    with pytest.raises(InputError, match="more, reward_model give uncertainties; name the one"):
        queue_from(night, tmp_path)


def test_what_has_its_labels_is_not_asked_again(night, tmp_path):
    root = night["rollouts"].root
    queue = committed(tmp_path, "label_queue", label_queue=queue_from(night, tmp_path).tables["label_queue"])
    opened = offer(root, queue, labels_per_item=2)
    labels = LabelQueues(root, CAMPAIGN).labels_of(opened.queue)
    items = queue.read("label_queue")["item_id"].to_list()
    for annotator in ("ada", "bob"):
        labels.add(items[0], annotator, "first")
    labels.add(items[1], "ada", "tie", comment="<b>", first_score=2.0)
    labels.add(items[2], "ada", "second")
    labels.add(items[2], "bob", "skip")
    taken_back, _ = labels.add(items[3], "bob", "second")
    labels.withdraw(taken_back.label_id)

    arguments = {"queues": [queue], "campaign": CAMPAIGN, "context": context(tmp_path)}
    outputs = collect_labels.function(before=None, **arguments)
    said, asked = outputs.tables["labels"], outputs.tables["label_queue"]
    assert set(asked["item_id"]) == set(items[:3])
    assert said.select("item_id", "annotator", "choice").sort("item_id", "annotator").rows() == sorted(
        [
            (items[0], "ada", "first"),
            (items[0], "bob", "first"),
            (items[1], "ada", "tie"),
            (items[2], "ada", "second"),
            (items[2], "bob", "skip"),
        ]
    )
    assert outputs.metrics["labels"] == 5 and outputs.metrics["agreement"] == 1 and outputs.metrics["skips"] == 1

    first = committed(tmp_path, "labels", labels=said, label_queue=asked)
    left = queue_from(night, tmp_path, labels=first, labels_per_item=2).tables["label_queue"]
    assert set(left["item_id"]) == set(items[1:])
    assert len(queue_from(night, tmp_path, labels=first).tables["label_queue"]) == 1

    # A fork has the campaign's labels by what was taken up before; in the campaign itself one was withdrawn since.
    elsewhere = collect_labels.function(before=first, **{**arguments, "campaign": "fork"})
    assert elsewhere.tables["labels"].sort("label_id").equals(first.read("labels").cast(said.schema).sort("label_id"))
    labels.withdraw(next(label.label_id for label in labels.standing() if label.choice == "tie"))
    again = collect_labels.function(before=first, **arguments)
    assert len(again.tables["labels"]) == 4 and items[1] not in set(again.tables["label_queue"]["item_id"])


def said_of(night, folder, name, **said):
    """The artifact of labels that ada gave: for each item's answers her choice and her two scores."""
    queue = committed(folder, "label_queue", name, label_queue=queue_from(night, folder).tables["label_queue"])
    root = night["rollouts"].root
    opened = offer(root, queue)
    labels = LabelQueues(root, CAMPAIGN).labels_of(opened.queue)
    for row in queue.read("label_queue").to_dicts():
        choice, *scores = said.get(f"{row['first']}_{row['second']}", ["skip", None, None])
        labels.add(row["item_id"], "ada", choice, first_score=scores[0], second_score=scores[1])
    outputs = collect_labels.function(queues=[queue], before=None, campaign=CAMPAIGN, context=context(folder))
    return committed(folder, "labels", name, **outputs.tables)


CONTRADICTED = {"overrated": 1, "underrated": 1, "residual": 1, "random": 0.01}


@pytest.mark.parametrize("scores", [True, False], ids=["absolute scores", "choices alone"])
def test_answers_that_people_contradict_come_again_beside_their_neighbour(night, tmp_path, scores):
    # The grader: z .9, y .45, x .4 and a .9, b .1. People take b for the best and z for the worst.
    said = {
        "a_b": ("second", 2.0, 5.0),
        "x_z": ("first", 4.0, 1.0),
        "x_y": ("tie", 4.0, 4.0),
    }
    if not scores:
        said = {pair: (choice, None, None) for pair, (choice, *_) in said.items()}
    labels = said_of(night, tmp_path, "1", **said)
    people = scores_by_people(labels.read("labels"), labels.read("label_queue"))
    known = dict(people.select("text", "human").iter_rows())
    whole = {"a": -1.5, "b": 1.5, "x": 1.0, "z": -2.0, "y": 1.0}
    if not scores:
        whole = {"a": -0.5, "b": 0.5, "x": 1 / 3, "z": -5 / 12, "y": 1 / 12}
    deviation = np.std(list(whole.values()))
    assert known == {text: pytest.approx(value / deviation) for text, value in whole.items()}

    rows = rollout_rows([("p2", "new")]).with_columns(rollout_id=pl.lit("tonight"))
    tonight = {**night, "rollouts": committed(tmp_path, "rollouts", "2", rollouts=rows)}
    tonight["rewards"] = committed(tmp_path, "grading", "2", **graded(rows, [0.5]))
    earlier = {"earlier_rollouts": [night["rollouts"]], "earlier_rewards": [night["rewards"]]}
    outputs = make_queue.function(
        **tonight,
        labels=labels,
        config=LabellingConfig(strategies=CONTRADICTED, pairs_per_prompt=9, contradiction_quantile=0.7),
        **earlier,
        seed=3,
        context=context(tmp_path, 2),
    )
    queue = outputs.tables["label_queue"]
    assert LabelItem.is_valid(queue) and set(queue["iteration"]) == {2}
    # a_b has its label already; z, overrated, comes beside y, which is next below it, and nobody compared the two.
    assert queue.select("first", "second", "reason").rows() == [("y", "z", "overrated")]
    assert queue["messages"][0][0]["content"] == "question 1"
    asked_twice = make_queue.function(
        **tonight,
        labels=labels,
        config=LabellingConfig(
            strategies=CONTRADICTED, pairs_per_prompt=9, contradiction_quantile=0.7, labels_per_item=2
        ),
        **earlier,
        seed=3,
        context=context(tmp_path, 2),
    ).tables["label_queue"]
    again = asked_twice.filter(pl.col("prompt_id") == "p0").row(0, named=True)
    assert (again["first"], again["second"], again["reason"]) == ("a", "b", "underrated")
    item = labels.read("label_queue").filter(pl.col("first") == "a")["item_id"].item()
    assert again["item_id"] == item, "the same pair is the same item"


def test_without_labels_there_is_nothing_to_contradict(night, tmp_path):
    outputs = queue_from(night, tmp_path, strategies=CONTRADICTED)
    assert outputs.metrics == {"items": 4, "prompts": 2, "candidates": 4, "items_random": 4}


def test_an_iteration_that_the_grader_did_not_grade_contradicts_nobody(night, tmp_path):
    labels = said_of(night, tmp_path, "1", a_b=("second", 2.0, 5.0))
    rows = rollout_rows([("p2", "new"), ("p2", "newer")]).with_columns(
        rollout_id=pl.concat_str(pl.lit("tonight"), "rollout_id")
    )
    outputs = make_queue.function(
        rollouts=committed(tmp_path, "rollouts", "2", rollouts=rows),
        rewards=committed(tmp_path, "grading", "2", **graded(rows, [0.5, 0.1], grader="later")),
        batch=night["batch"],
        labels=labels,
        config=LabellingConfig(strategies=CONTRADICTED, grader="later", labels_per_item=2),
        earlier_rollouts=[night["rollouts"]],
        earlier_rewards=[night["rewards"]],
        seed=3,
        context=context(tmp_path, 2),
    )
    assert outputs.tables["label_queue"].select("first", "reason").rows() == [("new", "random")]


def test_labels_are_their_campaigns_own(night, tmp_path):
    queue = committed(tmp_path, "label_queue", label_queue=queue_from(night, tmp_path).tables["label_queue"])
    arguments = {"queues": [queue], "before": None, "config": COLLECT}
    made = [collect_labels.artifact(queue.root, **arguments, campaign=name) for name in (CAMPAIGN, CAMPAIGN, "fork")]
    assert made[0] == made[1] != made[2], "the fork would be given what people said in the other campaign"


def test_no_labels_are_an_empty_artifact(night, tmp_path):
    queue = committed(tmp_path, "label_queue", label_queue=queue_from(night, tmp_path).tables["label_queue"])
    outputs = collect_labels.function(queues=[queue], before=None, campaign="nobody", context=context(tmp_path))
    made = committed(tmp_path, "labels", "9", metrics=outputs.metrics, **outputs.tables)
    assert made.read("labels").is_empty() and made.read("label_queue").is_empty()
    assert json.loads(made.manifest.model_dump_json())["metrics"]["labels"] == 0
    assert datetime.now(UTC) > made.manifest.started_at

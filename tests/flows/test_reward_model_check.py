"""What a run file says of a reward model must be taken by what makes it."""

import json
import shutil

import pytest
from graded_rollouts import committed

from flows.config import parse_config
from flows.frozen_heads import drawn_states
from flows.plan import check_inputs, reward_model_rows
from storage.errors import InputError
from storage.policies import register_base

REST = {
    "campaign": "page",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}]},
}
FROZEN = {"frozen_heads": {}}


@pytest.mark.parametrize(
    "option",
    [
        {"kind": "generative"},
        {"smoothing": 0.1},
        {"members": 3},
        {"loss": "davidson"},
        {"margin": 1.0},
        {"max_tokens": 100},
    ],
    ids=str,
)
def test_heads_refuse_what_they_would_ignore(option):
    with pytest.raises(InputError, match=f"reward_model.{next(iter(option))} would be ignored"):
        parse_config(REST | FROZEN | {"reward_model": option}, "test")
    parse_config(REST | {"reward_model": option}, "test")


def test_heads_stand_on_the_base():
    with pytest.raises(InputError, match=r"reward_model\.base is policy"):
        parse_config(REST | FROZEN | {"reward_model": {"base": "policy"}}, "test")


def test_heads_take_which_pairs_and_when():
    asked = {"sources": ["human"], "max_pairs": 50, "max_heldout_pairs": 20, "min_pairs": 4, "train_every": 2}
    config = parse_config(
        REST | FROZEN | {"reward_model": asked | {"device": "cpu"}, "states": {"layers": [2]}}, "test"
    )
    states = drawn_states(config)
    assert (states.sources, states.max_pairs, states.max_heldout_pairs, states.layers) == (("human",), 50, 20, [2])


@pytest.mark.parametrize("loss", ["davidson", "rao_kupper", "plackett_luce"])
def test_margins_of_label_quality_need_a_loss_that_knows_them(loss):
    margins = {"pair_quality": {"margins": True}, "reward_model": {"loss": loss}}
    with pytest.raises(InputError, match=rf"pair_quality\.margins: reward_model\.loss {loss} knows no margin"):
        parse_config(REST | margins, "test")
    parse_config(REST | margins | {"pair_quality": {}}, "test")
    parse_config(REST | {"pair_quality": {"margins": True}}, "test")


@pytest.mark.parametrize(
    ("sections", "kept_out"),
    [
        ({}, "lets no reward model grade"),
        ({"reward_gate": {"first": "always"}}, "lets no reward model but the first grade"),
        ({"reward_gate": {"enabled": False}}, None),
        ({"reward_model": {"enabled": False}}, None),
        ({"preferences": {"eval_fraction": 0.2}}, None),
    ],
)
def test_a_gate_that_nothing_passes_is_warned_of(sections, kept_out):
    found = parse_config(REST | {"preferences": {"eval_fraction": 0}} | sections, "test").warnings()
    assert [kept_out in each for each in found] == ([True] if kept_out else [])


@pytest.mark.parametrize(
    ("sections", "rows"),
    [
        ({}, {"kind of reward model": "lora on the base, heads 1, loss bradley_terry"}),
        (
            {"reward_model": {"kind": "generative", "base": "policy", "sources": ["ai"]}},
            {"kind of reward model": "generative on the policy, loss bradley_terry, of pairs of source ai"},
        ),
        (
            FROZEN | {"states": {"layers": [9, 12], "poolings": ["last"]}, "pair_quality": {"margins": True}},
            {
                "states": "layers [9, 12], last, of at most 20,000 + 1,000 held-out pairs",
                "pair_quality": "the weakest 10%: flip, next 30%: smooth, margins",
                "kind of reward model": "frozen: 5 linear heads over states",
            },
        ),
        ({"reward_model": {"enabled": False}, "pair_quality": {}}, {}),
    ],
)
def test_check_tells_what_makes_the_reward_model(sections, rows):
    assert dict(reward_model_rows(parse_config(REST | sections, "test"))) == rows


def test_another_reward_model_is_there_before_work_starts(tmp_path, tiny_model):
    made = committed(tmp_path, "select")
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["posttrain"] = len(tokenizer["model"]["vocab"])
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    description = tmp_path / "reward_model.json"
    description.write_text("{}")
    facts = {"base": register_base(made.root, str(other)).id}
    foreign = committed(tmp_path, "reward_model", files={description.name: description}, facts=facts)
    for named, said in (
        (foreign.id, "whose tokenizer isn't that of"),
        (f"reward_model/{'0' * 16}", "expected a reward model of this store"),
        (made.id, "is no reward"),
    ):
        gold = {"grader": "other_reward_model", "weight": 0, "params": {"reward_model": named}}
        run = REST | {"root": made.root, "model": {"path": str(tiny_model)}, "grading": {"graders": [{}, gold]}}
        with pytest.raises(InputError, match=said):
            check_inputs(parse_config(run, "test"))


def test_what_a_second_reward_model_could_be_taken_for_is_named(tmp_path):
    graders = [{}, {"grader": "other_reward_model", "name": "gold", "weight": 0, "params": {"reward_model": "rm/1"}}]
    run = REST | {"grading": {"graders": graders}, "labelling": {}}
    with pytest.raises(InputError, match=r"labelling\.grader: gold may give uncertainties"):
        parse_config(run, "test")
    parse_config(run | {"labelling": {"grader": "verifier"}}, "test")
    rules = {"filtering": {"rules": [{"rule": "uncertain", "threshold": 0.1}]}}
    with pytest.raises(InputError, match="uncertain would take the uncertainty of other_reward_model too"):
        parse_config(REST | {"grading": {"graders": graders}} | rules, "test")
    taught = REST | {"grading": {"graders": graders}, "preferences": {"grader": "gold"}, "report": {"gold": "gold"}}
    assert any("also makes the pairs" in each for each in parse_config(taught, "test").warnings())

"""The pairs of two iterations as the flow makes them: files are read once, and earlier pairs come along."""

import gzip
import json

import polars as pl
from graded_rollouts import batch_rows, committed, rollout_rows
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.config import parse_config
from flows.preference_pairs import gather_pairs
from flows.reward_models import read_anchors
from flows.slow_grades import Graded
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.records import Reward
from tasks._stage import RunContext, run_context

DIALOGUE = "\n\nHuman: Write a haiku about number {}.\n\nAssistant: {}"
TEXTS = ("the old pond is still tonight", "I will not write any haiku today", "a frog jumps in", "no")


def run_file(folder):
    rows = [
        {"chosen": DIALOGUE.format(number, "the old pond"), "rejected": DIALOGUE.format(number, "no")}
        for number in range(9)
    ]
    lines = "".join(json.dumps(row) + "\n" for row in [*rows, {"chosen": "no dialogue", "rejected": "either"}])
    (folder / "people.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    # Its prompt is one of the dialogues'.
    agreed = {"prompt": "Write a haiku about number 3.", "chosen": "better", "rejected": "worse"}
    (folder / "agreed.jsonl").write_text(json.dumps(agreed) + "\n")
    return parse_config(
        {
            "campaign": "pairs",
            "model": {"path": "model"},
            "curate": {"sources": [{"generator": "haiku"}]},
            "grading": {"graders": [{"grader": "verifier"}]},
            "anchors": [{"layout": "pairs", "path": str(folder / "agreed.jsonl"), "prompt_field": "prompt"}],
            "preferences": {
                "pairs": "all",
                "history_iterations": 3,
                "counterexamples": {"share": 0.2},
                "sources": [{"layout": "dialogues", "path": str(folder / "*.jsonl.gz")}],
            },
        },
        "test",
    )


def graded(folder, iteration):
    texts = [(f"p{number // 4}", f"{TEXTS[number % 4]} {iteration}") for number in range(24)]
    rollouts = rollout_rows(texts, iteration=iteration, prefix=f"i{iteration}r")
    rewards = pl.DataFrame(
        [
            {"rollout_id": name, "reward": 1.0 - number % 4 / 4, "components": [], "complete": True}
            for number, name in enumerate(rollouts["rollout_id"])
        ],
        schema=Reward.create_empty().schema,
    )
    name = str(iteration)
    return Graded(
        committed(folder, "rollouts", name, rollouts=rollouts),
        committed(folder, "select", name, batch=batch_rows(6, samples=4)),
        committed(folder, "grading", name, rewards=rewards),
    )


def test_files_are_read_once_and_earlier_pairs_come_along(prefect_server, tmp_path):
    config, root, steps = run_file(tmp_path), str(tmp_path / "root"), {}

    @flow(name="pairs", persist_result=True)
    def iterations():
        for iteration in (1, 2):
            steps[iteration] = {}
            with run_context(
                RunContext(root=root, campaign="pairs", iteration=iteration, steps=steps[iteration])
            ) as run:
                made = gather_pairs(config, run, graded(tmp_path, iteration), anchors=read_anchors(config))
            names = dict.fromkeys(("policy", "champion", "champion_evaluation"), made.id)
            Campaign(root, "pairs").commit(
                State(campaign="pairs", iteration=iteration, steps=steps[iteration], **names)
            )

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        iterations()
    first, second = (Artifact.at(root, steps[iteration]["preferences"]) for iteration in (1, 2))
    files = Artifact.at(root, steps[1]["preference_files"])
    assert steps[2]["preference_files"] == files.id
    assert (files.metrics["pairs"], files.metrics["rejected_not_a_dialogue"]) == (9, 1)
    assert first.manifest.inputs["imported"] == second.manifest.inputs["imported"] == files.id
    assert second.manifest.inputs["history.0"] == first.id and "history.0" not in first.manifest.inputs
    # Six prompts of four answers: 36 pairs, and a fifth of all of them are counterexamples.
    assert (first.metrics["source_grader"], first.metrics["source_counterexample"]) == (36, 9)
    # One dialogue is left out, unless it is held out: its prompt is the anchor's.
    assert first.manifest.inputs["anchors"] == steps[1]["anchors"] == steps[2]["anchors"]
    asked = first.read("preferences").select(pl.col("messages").list.last().struct.field("content"), "split")
    on_anchor = asked.filter(pl.col("content") == "Write a haiku about number 3.")["split"].cast(pl.String).to_list()
    assert on_anchor in ([], ["eval"])
    left_out = first.metrics["left_out_anchors"]
    assert left_out == 1 - len(on_anchor)
    assert first.metrics["source_human"] == second.metrics["source_human"] == 9 - left_out
    assert second.metrics["earlier"] == 36
    assert {1, 2, None} == set(second.read("preferences")["iteration"])

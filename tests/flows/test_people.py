"""A flow that asks people: it waits as long as it was told, goes on with what came, and never waits twice."""

import re
import shutil
import threading
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from graded_rollouts import batch_rows, committed, rollout_rows
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import State as FlowState

from flows.config import parse_config
from flows.people import LABELS, QUEUE, ask_people
from flows.slow_grades import Graded
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.labels import LabelQueues
from storage.records import RECORDS, Reward
from tasks._stage import RunContext, run_context

DOCUMENT = {
    "campaign": "people",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}]},
}


def configured(**labelling):
    return parse_config({**DOCUMENT, "labelling": labelling} if labelling else DOCUMENT, "test")


@pytest.fixture
def graded(tmp_path):
    rows = rollout_rows([(f"p{index // 2}", f"answer {index}") for index in range(8)])
    rewards = [
        {"rollout_id": name, "reward": index / 8, "components": [], "complete": True, "passed": None}
        for index, name in enumerate(rows["rollout_id"])
    ]
    grading = committed(
        tmp_path,
        "grading",
        grades=pl.DataFrame(schema=_schema("grades")),
        rewards=pl.DataFrame(rewards, schema=Reward.create_empty().schema),
    )
    return Graded(
        committed(tmp_path, "rollouts", rollouts=rows), committed(tmp_path, "select", batch=batch_rows(4)), grading
    )


def _schema(table):
    return RECORDS[table].create_empty().schema


def state_after(run, iteration=0):
    return State(
        campaign="people",
        iteration=iteration,
        policy="a/b",
        champion="a/b",
        champion_evaluation="a/b",
        steps=dict(run.steps or {}) if run else {},
    )


@flow
def asks(state, config, run, graded):
    with run_context(run):
        return ask_people(state, config, run, graded)


def ask(api, graded, config, state=None, iteration=1):
    """One flow that asks; gives the run with its steps, and what it took up."""
    run = RunContext(root=graded.rollouts.root, campaign=config.campaign, iteration=iteration, steps={})
    with temporary_settings({PREFECT_API_URL: api}):
        found = asks(state or state_after(None), config, run, graded)
    assert not isinstance(found, FlowState)
    return run, found


def label_soon(root, count, started):
    """A person, in a thread: waits for the queue to open, then labels so many of its items."""

    def work():
        queues = LabelQueues(root, "people")
        while not queues.all():
            time.sleep(0.02)
        opened = queues.newest()
        labels = queues.labels_of(opened.queue)
        items = Artifact.at(root, opened.queue).read("label_queue")["item_id"].to_list()
        for item in items[:count]:
            labels.add(item, "ada", "first")
        started.set()

    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_waiting_ends_with_the_labels_and_the_artifact_is_never_made_twice(prefect_server, graded):
    root, done = graded.rollouts.root, threading.Event()
    person = label_soon(root, 2, done)
    config = configured(size=4, wait_s=300, wait_for=0.5, poll_s=0.05)
    run, labels = ask(prefect_server, graded, config)
    person.join()
    assert done.is_set() and list(run.steps) == [QUEUE, LABELS]
    assert labels.metrics["labels"] == 2 and len(labels.read("label_queue")) == 2
    # What comes later belongs to the next iteration: asked again, it waits for nothing and finds what there was.
    again, found = ask(prefect_server, graded, configured(size=4, wait_s=300, poll_s=0.05))
    assert found == labels and again.steps == run.steps


def test_what_people_contradict_comes_again_in_the_next_iteration(prefect_server, graded):
    person = label_soon(graded.rollouts.root, 4, threading.Event())
    run, _ = ask(prefect_server, graded, configured(size=4, wait_s=300, poll_s=0.05))
    person.join()
    night = {"rollouts": graded.rollouts.id, "grading": graded.grading.id}
    committed_state = state_after(run, 1).model_copy(update={"steps": {**run.steps, **night}})
    Campaign(graded.rollouts.root, "people").commit(committed_state)
    config = configured(size=4, strategies={"overrated": 1, "residual": 1, "random": 0.01}, labels_per_item=2)
    later, _ = ask(prefect_server, graded, config, committed_state, iteration=2)
    queue = Artifact.at(graded.rollouts.root, later.steps[QUEUE])
    assert queue.manifest.inputs["earlier_rollouts.0"] == graded.rollouts.id
    # Of every pair ada took the first, which the grader scores lower.
    assert set(queue.read("label_queue")["reason"]) <= set(config.labelling.strategies) and queue.metrics["items"] > 0


def test_another_campaign_with_the_same_queue_has_labels_of_its_own(prefect_server, graded):
    root, asked = graded.rollouts.root, {"size": 4, "poll_s": 0.05}
    person = label_soon(root, 4, threading.Event())
    run, labels = ask(prefect_server, graded, configured(**asked, wait_s=300, wait_for=0.25))
    person.join()
    fork = configured(**asked, wait_s=0.2).model_copy(update={"campaign": "fork"})
    other, none = ask(prefect_server, graded, fork)
    assert other.steps[QUEUE] == run.steps[QUEUE] and none != labels
    assert labels.metrics["labels"] and not none.metrics["labels"]
    assert LabelQueues(root, "fork").newest().queue == other.steps[QUEUE]
    # A queue is offered whether or not the labels are there already.
    shutil.rmtree(Path(root) / "campaigns" / "fork" / "label_queues")
    assert ask(prefect_server, graded, fork)[1] == none
    assert LabelQueues(root, "fork").newest().queue == other.steps[QUEUE]


def test_without_labels_the_flow_goes_on_after_its_time(prefect_server, graded):
    _, labels = ask(prefect_server, graded, configured(size=4, wait_s=0.2, poll_s=0.05))
    assert labels.metrics["labels"] == 0 and labels.read("labels").is_empty()
    assert LabelQueues(graded.rollouts.root, "people").newest().queue == f"label_queue/{_queue_of(labels)}"


def _queue_of(labels):
    return labels.manifest.inputs["queues.0"].rpartition("/")[2]


def test_nobody_is_asked_by_default(prefect_server, graded):
    run, labels = ask(prefect_server, graded, configured())
    assert labels is None and run.steps == {}


def test_a_grader_that_there_is_not_is_refused():
    with pytest.raises(Exception, match=r"labelling.grader: no grader is called 'reward_model'; there are verifier"):
        configured(grader="reward_model")


PAGE = (Path(__file__).parents[2] / "deployments" / "labelling.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("block", re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL))
def test_what_the_page_shows_is_valid(block):
    assert parse_config({**DOCUMENT, **yaml.safe_load(block)}, "page").labelling is not None

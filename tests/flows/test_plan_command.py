"""`posttrain plan` and the budget in `posttrain check`: what a budget buys, measured, given or unknown."""

import json
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from command import invoke as run_command
from graded_rollouts import rollout_rows
from rich.console import Console

from flows.budget import Request, plan_budget
from flows.budget_command import register
from flows.config import parse_config
from flows.measured import PassRates, Throughput, campaign_runs, pass_rates, pool_size, throughput, tracked_rows
from flows.plan import print_budget_of
from storage.artifacts import Artifact, Outputs
from storage.campaigns import Campaign, Launch, State
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.fingerprints import digest
from storage.records import PromptUse
from storage.tracking import Tracker
from tasks._maths.compute_optimal import FITS
from tasks._maths.sigmoid import Sigmoid

STARTED = datetime(2026, 5, 1, 22, 0, tzinfo=UTC)
FILE = {
    "campaign": "nightly",
    "iterations": 4,
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}]},
}


invoke = partial(run_command, register, "plan")


def document(*arguments: str) -> dict:
    return json.loads(invoke(*arguments, "--json"))


def rewards(passes: list[float]) -> pl.DataFrame:
    rows = [
        {"rollout_id": f"r{index}", "reward": reward, "components": [{"name": "a", "value": reward}], "complete": True}
        for index, reward in enumerate(passes)
    ]
    return pl.DataFrame(rows).with_columns(passed=pl.lit(None, pl.Boolean))


def committed(root: str, folder: Path, passes: list[float], advice: list[dict] | None = None) -> Campaign:
    """One iteration of 8 rollouts of two prompts, 2 tokens each, whose stages took some time."""
    campaign = Campaign(root, "nightly")
    campaign.record_launch(Launch(launch_id="20260501T220000-aa", campaign="nightly", started_at=STARTED, config=FILE))

    def commit(step: str, outputs: Outputs) -> str:
        return ten_seconds(root, folder, step, outputs)

    sampled = rollout_rows([(f"p{index // 4}", "text") for index in range(8)])
    steps = {
        "rollouts": commit("rollouts", Outputs(metrics={"rollouts": 8.0, "tokens": 1600.0}, rollouts=sampled)),
        "grading": commit("grading", Outputs(rewards=rewards(passes))),
        "report": commit("report", Outputs(facts={"advice": advice or []})),
    }
    for iteration, made in ((0, {}), (1, steps)):
        campaign.commit(state_of(iteration, made, steps))
    return campaign


def ten_seconds(root: str, folder: Path, step: str, outputs: Outputs, iteration: int = 1) -> str:
    """Commit what a step made: its seconds run from its attempt's start to its commit."""
    made = Artifact(root=root, stage=step, fingerprint=digest([step, iteration]))
    recipe = Recipe(made, step, 1, {}, {}, 0, "nightly", iteration, "mlflow")
    commit_outputs(recipe, Attempt(datetime.now(UTC) - timedelta(seconds=10), folder), outputs)
    return made.id


def state_of(iteration: int, made: dict[str, str], steps: dict[str, str], history: str | None = None) -> State:
    return State(
        campaign="nightly",
        iteration=iteration,
        policy=steps["rollouts"],
        champion=steps["rollouts"],
        champion_evaluation=steps["grading"],
        prompt_history=history,
        steps=made,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "scratch").mkdir()
    return tmp_path


def test_a_budget_of_rollouts_needs_nothing_else():
    found = document("--rollouts", "160000", "--difficulty", "easy")
    cut = found["allocation"]
    assert (cut["samples"], cut["prompts"], cut["updates"]) == (8, 32, 625)
    assert found["band"]["name"] == "large" and found["rollouts_per_update"] == 256
    assert found["rates"] == pytest.approx({"full": 5e-7, "lora": 5e-6})
    assert [row["fit"] for row in found["fits"]] == ["easy", "hard", "easy_joint", "hard_joint", "easy_tokens"]
    assert found["fits"][-1]["samples"] is None
    assert (found["tokens"], found["hours"], found["usd"], found["informative"]) == (None, None, None, [])
    assert "smallest n that was tried" in found["notes"][0] and found["warnings"] == []


def test_for_people():
    text = invoke(
        "--rollouts", "10000", "--tokens-per-rollout", "256", "--rollouts-per-second", "2", "--usd-per-hour", "3"
    )
    assert "small, 1,000 to 20,000" in text and "experiments and ablations" in text
    assert "8 samples per prompt (the fit says" in text and "x 32 prompts per batch x 39 updates" in text
    assert "2,560,000 tokens, 1.4 hours, 4.17 dollars (speed: speed and length as given)" in text
    assert "warning: 10,000 rollouts lie below the fitted range (60,000 to 10,000,000)" in text


def test_hours_and_dollars_are_turned_into_rollouts():
    speed = ("--rollouts-per-second", "10")
    assert document("--gpu-hours", "2", *speed)["rollouts"] == 72_000
    assert document("--usd", "6", "--usd-per-hour", "3", *speed)["rollouts"] == 72_000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "one of --rollouts, --gpu-hours, --usd; given: none"),
        (["--rollouts", "9", "--usd", "3"], "given: --rollouts, --usd"),
        (["--gpu-hours", "2"], "give --rollouts-per-second, or the name or run file of a campaign"),
        (["--usd", "2", "--rollouts-per-second", "1"], "give --usd-per-hour"),
        (["--rollouts", "9", "--model-size", "huge"], "--model-size 'huge': expected a size such as 7B or 135M"),
        (["--rollouts", "9", "--refit"], "--refit needs a run file or a campaign"),
    ],
)
def test_what_is_missing_is_said(arguments, message):
    with pytest.raises(InputError, match=message):
        invoke(*arguments)


def test_an_unknown_campaign_names_the_known_ones(folder):
    committed(str(folder / "root"), folder / "scratch", [1.0] * 8)
    with pytest.raises(InputError, match=r"'other': unknown below .*; there are nightly"):
        invoke("other", "--rollouts", "9", "--root", str(folder / "root"))


def test_other_models_and_few_prompts_lower_the_ceiling():
    llama = plan_budget(Request(rollouts=3e6, size_b=8.0), None, None)
    assert llama.allocation.samples == 16 and "Llama-3.1-8B" in llama.warnings[0]
    small = plan_budget(Request(rollouts=3e6, size_b=0.135), None, None)
    assert small.allocation.samples == 512 and "nothing says how n moves with size" in small.warnings[0]
    assert plan_budget(Request(rollouts=1e7), None, None).allocation.samples == 512
    assert plan_budget(Request(rollouts=1e7, pool=500), None, None).allocation.samples == 256
    beyond = plan_budget(Request(rollouts=2e7), None, None)
    assert "above the fitted range" in beyond.warnings[0]


def test_a_campaign_tells_speed_pass_rates_and_advice(folder):
    root, advice = str(folder / "root"), [{"rule": "prompts are too easy", "found": "many", "do": "retire"}]
    campaign = committed(root, folder / "scratch", [1, 1, 1, 0, 0, 0, 0, 0.0], advice)
    speed = throughput(campaign)
    # Three stages of ten seconds.
    assert speed.rollouts_per_s == pytest.approx(8 / 30, rel=0.2) and speed.tokens_per_rollout == 200
    rates = pass_rates(campaign)
    posterior = sorted(zip(rates.alpha, rates.beta, strict=True))
    assert posterior == [(1, 5), (4, 2)] and rates.mean == pytest.approx((1 / 6 + 4 / 6) / 2)
    found = document("nightly", "--gpu-hours", "1", "--root", root)
    assert found["difficulty"] == "easy" and found["rollouts"] == pytest.approx(960, rel=0.2)
    assert found["tokens"] == pytest.approx(200 * found["rollouts"])
    row = next(row for row in found["informative"] if row["samples"] == 4)
    # E[1 - p^4 - (1-p)^4] under Beta(4, 2) and Beta(1, 5), by the ratio of rising factorials.
    expected = np.mean([1 - 840 / 3024 - 120 / 3024, 1 - 24 / 3024 - 1680 / 3024])
    assert row["probability"] == pytest.approx(expected) and row["rollouts_per_group"] == pytest.approx(4 / expected)
    assert found["advice"] == advice
    assert "advice: prompts are too easy: many; retire" in invoke("nightly", "--rollouts", "99", "--root", root)


def test_rewards_between_pass_and_fail_leave_the_pass_rate_unknown(folder):
    root = str(folder / "root")
    assert pass_rates(committed(root, folder / "scratch", [0.5] * 8)) is None
    assert "unknown: no campaign with rollouts that pass or fail" in invoke(
        "nightly", "--rollouts", "99", "--root", root
    )


def with_rounds(root: str, folder: Path) -> Campaign:
    """A campaign of one iteration of two rounds, the first of which was screened: 8 rollouts, stored twice."""
    campaign = Campaign(root, "nightly")
    campaign.record_launch(Launch(launch_id="20260501T220000-aa", campaign="nightly", started_at=STARTED, config=FILE))
    sampled = rollout_rows([(f"p{index // 4}", "text") for index in range(8)])
    graded = rewards([1, 1, 1, 0, 0, 0, 0, 0.0])
    steps = {}
    for part, rows in (("-1", slice(0, 2)), ("-1-rest", slice(2, 4)), ("-2", slice(4, 8)), ("", slice(0, 8))):
        if "rest" not in part:
            pool = {"pool": 40.0} if part else {}
            steps[f"select{part}"] = ten_seconds(root, folder, f"select{part}", Outputs(metrics=pool))
        some = sampled[rows]
        made = Outputs(metrics={"rollouts": float(len(some)), "tokens": 200.0 * len(some)}, rollouts=some)
        steps[f"rollouts{part}"] = ten_seconds(root, folder, f"rollouts{part}", made)
        steps[f"grading{part}"] = ten_seconds(root, folder, f"grading{part}", Outputs(rewards=graded[rows]))
    # The refill counted over the same artifact that is the iteration's grading.
    steps["rewards-2"] = steps["grading"]
    for iteration, of in ((0, {}), (1, steps)):
        campaign.commit(state_of(iteration, of, steps))
    return campaign


def test_rounds_count_once_and_their_pool_is_the_first_ones(folder):
    campaign = with_rounds(str(folder / "root"), folder / "scratch")
    speed = throughput(campaign)
    # Eleven artifacts of ten seconds in twelve steps; what rounds sampled is in the joined rollouts.
    assert speed.rollouts_per_s == pytest.approx(8 / 110, rel=0.05) and speed.tokens_per_rollout == 200
    rates = pass_rates(campaign)
    assert sorted(zip(rates.alpha, rates.beta, strict=True)) == [(1, 5), (4, 2)]
    assert rates.source.startswith("8 graded rollouts of 2 prompts")
    assert pool_size(campaign) == 40


def test_the_posterior_of_a_score_or_a_reward_is_no_pass_rate(folder):
    root = str(folder / "root")
    campaign = committed(root, folder / "scratch", [1, 1, 1, 0, 0, 0, 0, 0.0])
    steps = campaign.state(1).steps
    keys = ["verdict:verifier:a@1", "score:verifier:a@1", "reward:b", "verdict:verifier:a@1"]

    def remember(iteration: int, keys: list[str | None]) -> None:
        size = len(keys)
        rows = {"prompt_id": [f"p{index}" for index in range(size)], "times_drawn": [1, 1, 1, 0][:size]}
        rows |= {"last_iteration": [1] * size, "alpha": [2.0, 3.0, 4.0, 5.0][:size], "beta": [6.0] * size}
        table = pl.DataFrame(rows | {"last_outcome": [1] * size, "outcome_key": keys})
        kept = PromptUse.cast(
            table.with_columns(
                pl.lit(None).alias(name) for name in PromptUse.column_names() if name not in table.columns
            )
        )
        history = ten_seconds(root, folder / "scratch", "history", Outputs(prompt_history=kept), iteration)
        campaign.commit(state_of(iteration, steps, steps, history))

    remember(2, keys)
    rates = pass_rates(campaign)
    assert (rates.alpha.tolist(), rates.beta.tolist()) == ([2.0], [6.0])
    assert rates.source == "the posteriors of 1 prompts after iteration 2"
    # Without a verdict the rollouts themselves are counted.
    remember(3, keys[1:3])
    assert "graded rollouts of 2 prompts" in pass_rates(campaign).source


def test_a_run_file_means_its_campaign(folder):
    root = str(folder / "root")
    committed(root, folder / "scratch", [1.0] * 4 + [0.0] * 4)
    path = folder / "nightly.yaml"
    path.write_text(json.dumps(FILE | {"root": root}))
    assert document(str(path), "--rollouts", "99")["pass_rate"] == pytest.approx(0.5)


def test_hard_and_easy_as_measured():
    hard = PassRates(np.array([1.0]), np.array([99.0]), "x")
    assert plan_budget(Request(rollouts=1e6), None, hard).difficulty == "hard"
    assert plan_budget(Request(rollouts=1e6), None, hard).allocation.prompts == 64
    known = PassRates(np.array([90.0]), np.array([10.0]), "x")
    assert "taught nothing" in plan_budget(Request(rollouts=1e6), None, known).warnings[-1]


def test_the_fit_over_tokens_needs_their_number():
    fits = plan_budget(Request(rollouts=1e6), Throughput(None, 10 ** (9.18 - 6), "x"), None).fits
    assert fits[-1]["samples"] == pytest.approx(61.8, abs=0.5) and fits[-1]["in_range"]


def test_check_prints_the_budget_of_the_file(folder):
    config = parse_config(FILE | {"root": str(folder / "root")}, "file")
    console = Console(width=200, record=True)
    print_budget_of(config, 4 * 256, console)
    text = console.export_text()
    assert "budget 1,024 rollouts, easy prompts: small" in text
    assert "this file takes 8 samples x 8 prompts per optimizer step, learning rate 0.0002 (lora)" in text


def tracked(score: dict[int, float], samples: int, campaign: str) -> list[dict]:
    return [
        {"campaign": campaign, "iteration": k, "samples": samples, "rollouts": 100.0, "score": value}
        for k, value in score.items()
    ]


def test_runs_of_a_tracker_by_samples():
    rows = tracked({0: 0.1, 1: 0.2, 2: 0.3}, 8, "a") + tracked({1: 0.4}, 16, "b") + tracked({1: 0.9}, 8, "a")
    mixed = tracked({1: 0.5}, 8, "c") + tracked({2: 0.5}, 16, "c")
    runs = campaign_runs(rows + mixed)
    [(rollouts, score)] = runs[8]
    assert (rollouts.tolist(), score.tolist()) == ([100, 200], [0.2, 0.3])
    assert set(runs) == {8, 16} and len(runs[16]) == 1


def test_n_is_fitted_to_the_campaigns_in_mlflow(folder):
    """Campaigns with n of 8, 16 and 32, each to a higher end, the larger the later: read back from a real MLflow."""
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    tracker = Tracker(uri, "nights")
    file = FILE | {"root": str(folder / "root"), "tracking": {"uri": uri, "experiment": "nights"}}
    path = folder / "nightly.yaml"
    path.write_text(json.dumps(file))
    with pytest.raises(InputError, match=r"needs 3 values of select.samples_per_prompt .* found none"):
        invoke(str(path), "--rollouts", "2000", "--refit")
    curves = {8: Sigmoid(0.3, 4, 3.4, 0.1), 16: Sigmoid(0.5, 4, 3.7, 0.1), 32: Sigmoid(0.8, 4, 4.0, 0.1)}
    for samples, curve in curves.items():
        for k in range(1, 6):
            params = {"model": {"path": "model"}, "select": {"samples_per_prompt": samples}}
            tags = {"posttrain.campaign": f"n{samples}", "posttrain.iteration": str(k)}
            run = tracker.start_run(f"{samples} {k}", parent=None, config=params, tags=tags, note="")
            tracker.log_metrics(run, "rollouts", {"rollouts": 2400.0}, k)
            tracker.log_metrics(run, "evaluation", {"mean_score": float(curve(np.log10(2400 * k)))}, k)
    assert len(tracked_rows(tracker.iteration_runs(), "model")) == 15
    assert tracked_rows(tracker.iteration_runs(), "another") == []
    found = document(str(path), "--rollouts", "12000", "--refit")
    assert found["fits"][-1]["label"] == "your own runs, n of 8, 16, 32" and found["allocation"]["samples"] == 32
    early = document(str(path), "--rollouts", "2400", "--refit")
    assert early["fits"][-1]["samples"] < found["fits"][-1]["samples"]
    assert "your own fit covers" in document(str(path), "--rollouts", "120000", "--refit")["warnings"][0]


PAGE = (Path(__file__).parents[2] / "deployments" / "budget.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("line", [line for line in PAGE.splitlines() if line.startswith("posttrain plan --")])
def test_the_commands_of_the_page(line):
    assert "rollouts" in invoke(*line.split()[2:])


def test_the_page_has_the_fits():
    for fit in FITS.values():
        shown = fit.sigmoid
        assert (
            f"| {shown.height:.2f} | {shown.slope:.4g}" in PAGE
            and f"| {shown.midpoint:.2f} | {shown.floor:.2f} |" in PAGE
        )

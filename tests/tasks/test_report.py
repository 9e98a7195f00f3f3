"""The report page: it opens without a network, escapes what models say, and says the numbers of the history."""

import json
import random
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.fingerprints import digest
from tasks.report.config import ReportConfig
from tasks.report.gather import gather, histogram
from tasks.report.page import render

HOSTILE = "old pond </script><script>alert('x')</script> <img src=http://evil.example/a.png> & frog"
MEANS = (0.237, 0.252, 0.372, 0.462)
TOPICS = ("rain on a tin roof", "a rusted bicycle", "the last train", "moss", "winter plums", "an empty harbour")


def commit(folder: Path, iteration: int, step: str, outputs: Outputs, *, stage: str | None = None) -> Artifact:
    stage = stage or step
    artifact = Artifact(root=str(folder / "root"), stage=stage, fingerprint=digest([step, iteration]))
    recipe = Recipe(artifact, step, 1, {}, {}, 0, "quickstart", iteration, f"mlflow-{iteration}")
    scratch = folder / "scratch"
    scratch.mkdir(exist_ok=True)
    commit_outputs(recipe, Attempt(datetime.now(UTC), scratch, f"flow-{iteration}"), outputs)
    return artifact


def rollouts(iteration: int, prefix: str, rng: random.Random, prompts: list[str], samples: int) -> pl.DataFrame:
    rows = []
    for prompt_id in prompts:
        for index in range(samples):
            tokens = [rng.randrange(1000) for _ in range(int(min(48, max(4, rng.gauss(26 - 2 * iteration, 8)))))]
            rows.append(
                {
                    "rollout_id": f"{prefix}-{iteration}-{prompt_id}-{index}",
                    "prompt_id": prompt_id,
                    "sample_index": index,
                    "iteration": iteration,
                    "policy_id": digest(["policy", iteration]),
                    "prompt_token_ids": [1, 2],
                    "token_ids": tokens,
                    "logprobs": [-1.0] * len(tokens),
                    "text": HOSTILE
                    if index == 0 and iteration == 0
                    else "Rain on the tin roof\nthe kettle begins\nto sing",
                    "finish_reason": "length" if len(tokens) == 48 else "stop",
                    "engine": "vllm",
                    "sampling": "{}",
                    "created_at": datetime.now(UTC),
                }
            )
    return pl.DataFrame(rows)


def rewards(frame: pl.DataFrame, mean: float, rng: random.Random) -> pl.DataFrame:
    def score() -> float:
        return min(1.0, max(0.0, round(rng.gauss(mean, 0.22) * 10) / 10))

    scored = [(rollout_id, score()) for rollout_id in frame["rollout_id"]]
    return pl.DataFrame(
        [
            {
                "rollout_id": name,
                "reward": value,
                "complete": True,
                "components": [{"name": "haiku", "value": value}],
                "passed": None,
            }
            for name, value in scored
        ]
    )


def evaluate(folder: Path, iteration: int, rng: random.Random, held_out: list[str]) -> dict[str, Artifact]:
    made = rollouts(iteration, "eval", rng, held_out, 2)
    mean = MEANS[iteration]
    metrics = {
        "mean_score": mean,
        "mean_score_low": mean - 0.04,
        "mean_score_high": mean + 0.04,
        "pass_at_1": mean / 3,
        "promoted": float(iteration != 1),
    }
    judged = pl.DataFrame(
        {
            "prompt_id": held_out,
            "policy_id": digest(["policy", iteration]),
            "samples": 2,
            "mean_score": mean,
            "best_score": mean,
            "worst_score": mean,
            "passed": 0,
        }
    )
    grading = Outputs(rewards=rewards(made, mean, rng))
    return {
        "evaluation-rollouts": commit(
            folder, iteration, "evaluation-rollouts", Outputs(rollouts=made), stage="rollouts"
        ),
        "evaluation-grading": commit(folder, iteration, "evaluation-grading", grading, stage="grading"),
        "evaluation": commit(folder, iteration, "evaluation", Outputs(metrics=metrics, evaluation=judged)),
    }


def batch(prompts: list[str], split: str) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "prompt_id": prompt_id,
                "position": position,
                "samples": 2,
                "messages": [{"role": "user", "content": f"Write a haiku about {TOPICS[position % 6]} <{prompt_id}>."}],
                "answer": None,
                "verifier": {"name": "haiku", "params": "{}"},
                "domain": "poetry",
                "rubric": None,
                "cluster_id": prompt_id,
                "split": split,
            }
            for position, prompt_id in enumerate(prompts)
        ],
        schema_overrides={"answer": pl.String, "rubric": pl.String},
    )


def train(folder: Path, iteration: int, rng: random.Random) -> dict[str, Artifact]:
    prompts = [f"train{index}" for index in range(32)]
    made = rollouts(iteration, "train", rng, prompts, 8)
    scored = rewards(made, MEANS[iteration - 1], rng)
    rules = [rng.choices(["kept", "no_variance", "truncated", "too_old"], [6, 2, 1, 0.5])[0] for _ in range(len(made))]
    ledger = pl.DataFrame({"rollout_id": made["rollout_id"], "kept": [r == "kept" for r in rules], "rule": rules})
    ledger = ledger.with_columns(value=pl.lit(0.5), threshold=pl.lit(None, pl.Float64))
    steps = [
        {"step": step, "metric": name, "value": value}
        for step in range(4)
        for name, value in {
            "loss": rng.gauss(0, 0.02),
            "grad_norm": float("nan") if step == 3 else 0.4 + rng.random(),
            "clip_fraction": 0.02 * rng.random(),
            "kl": 0.01 * (step + iteration),
        }.items()
    ]
    counts = {
        "rollouts": 256.0,
        "tokens": 6400.0,
        "tokens_per_s": 280.0,
        "length_mean": 25.0,
        "truncated_fraction": 0.05,
    }
    means = {"reward_mean": MEANS[iteration - 1], "reward_std": 0.2, "score/haiku_mean": MEANS[iteration - 1]}
    graders = {"score/reward_model_mean": 0.5 + 0.03 * iteration} if iteration > 1 else {}
    return {
        "select": commit(folder, iteration, "select", Outputs(batch=batch(prompts, "train"))),
        "rollouts": commit(folder, iteration, "rollouts", Outputs(metrics=counts, rollouts=made)),
        "grading": commit(
            folder, iteration, "grading", Outputs(metrics=means | graders, rewards=scored, **analysis(iteration))
        ),
        "filtering": commit(folder, iteration, "filtering", Outputs(ledger=ledger)),
        "reward_model": commit(
            folder, iteration, "reward_model", Outputs(metrics={"heldout_accuracy": 0.6 + iteration / 30})
        ),
        "policy_update": commit(folder, iteration, "policy_update", Outputs(steps=pl.DataFrame(steps))),
    }


def analysis(iteration: int) -> dict[str, pl.DataFrame]:
    """What a grading stage says of its graders; the judge failed everywhere in the first iteration."""
    quantiles = [0.0, 0.1, 0.2, 0.4, 0.6, 0.9, 1.0]
    shared = {
        "rollouts": 256,
        "pending": 0,
        "skipped": 0,
        "low": 0.0,
        "high": 1.0,
        "histogram": [128, 128],
        "latency_p50_s": 0.002,
    }
    rows = [
        {"grader": "haiku", "ok": 256, "failed": 0, "score_mean": 0.411, "score_std": 0.2, "passed_fraction": 0.25}
        | {"quantiles": quantiles, "latency_p95_s": 0.0045, "cost": 0.0},
        {"grader": "judge<1>", "ok": 192, "failed": 64, "score_mean": 0.7, "score_std": 0.1, "passed_fraction": None}
        | {"quantiles": [] if iteration == 1 else quantiles, "latency_p95_s": 1.5, "cost": 3.75},
    ]
    summary = pl.DataFrame([shared | row for row in rows])
    agreement = pl.DataFrame(
        [{"grader": "haiku", "other": "judge<1>", "rollouts": 192, "spearman": 0.622, "kappa": None}],
        schema_overrides={"kappa": pl.Float64},
    )
    return {"grader_summary": summary, "grader_agreement": agreement}


def whole_history(folder: Path, iterations: int = 3) -> dict[str, Artifact]:
    rng = random.Random(5)
    held_out = [f"held{index}" for index in range(12)]
    made = {0: {"evaluation-select": commit(folder, 0, "evaluation-select", Outputs(batch=batch(held_out, "eval")))}}
    made[0] |= evaluate(folder, 0, rng, held_out)
    for iteration in range(1, iterations + 1):
        made[iteration] = train(folder, iteration, rng) | evaluate(folder, iteration, rng, held_out)
    return {f"{iteration:05d}.{step}": each for iteration, steps in made.items() for step, each in steps.items()}


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Artifact]:
    return whole_history(tmp_path_factory.mktemp("report"))


class Page(HTMLParser):
    """What a browser would take from a page: addresses to load, text outside scripts, scripts, elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.addresses, self.text, self.scripts, self.tags, self._script = [], "", [], [], False
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "srcset", "action", "data")]
        self._script = tag == "script"

    def handle_endtag(self, tag):
        self._script = False

    def handle_data(self, data):
        if self._script:
            self.scripts.append(data)
        else:
            self.text += data


@pytest.fixture(scope="module")
def page(history: dict[str, Artifact]) -> Page:
    return Page(render(gather(history, ReportConfig(samples=4))))


def test_page_loads_nothing_and_is_one_document(page):
    assert page.addresses == []
    assert "link" not in page.tags and "iframe" not in page.tags
    assert sum("plotly.js v" in script[:300] for script in page.scripts) == 1


def test_text_of_a_model_stays_text(page):
    assert HOSTILE in page.text
    assert "img" not in page.tags
    assert len(page.scripts) == 3
    assert "Write a haiku about rain on a tin roof <held0>." in page.text or "<held" in page.text


def test_headline_and_tables_hold_the_numbers(page):
    text = " ".join(page.text.split())
    assert "first, iteration 0 0.237[0.197, 0.277]" in text
    assert "last, iteration 3 0.462[0.422, 0.502]" in text
    assert "+0.225" in text
    assert "The champion is the policy of iteration 3" in text
    assert digest(["policy", 3])[:12] in text
    assert f"policy_update/{digest(['policy_update', 2])}" in text
    assert "mlflow-2" in text and "flow-3" in text


def test_the_analysis_of_responses_tells_of_every_grader(page):
    text = " ".join(page.text.split())
    assert "What each grader said of the training rollouts of iteration 3" in text
    assert "haiku256 0.0 %0 0.4110.200 0.4000.250 2.00 ms4.50 ms 0.00" in text
    assert "judge<1>192 25.0 %0 0.7000.100 0.400– 2.00 ms1,500.00 ms 3.75" in text
    assert "haiku, judge<1>1920.622–" in text
    [box] = json.loads(page.scripts[1])["graders"]["data"]
    assert (box["x"], box["median"], box["upperfence"]) == (["haiku", "judge<1>"], [0.4, 0.4], [0.9, 0.9])


def test_figures_hold_the_numbers_and_parse_as_json(page):
    figures = json.loads(page.scripts[1])
    score = figures["score"]["data"][0]
    assert score["y"] == list(MEANS)
    assert score["error_y"]["array"] == pytest.approx([0.04] * 4)
    assert [trace["name"] for trace in figures["reward"]["data"]] == ["reward", "haiku", "reward_model"]
    kept, *dropped = figures["decisions"]["data"]
    assert kept["name"] == "kept"
    totals = [sum(column) for column in zip(kept["y"], *(trace["y"] for trace in dropped), strict=True)]
    assert totals == [256] * 3
    norms = [trace["y"] for trace in figures["training-1"]["data"]]
    assert [each[3] for each in norms] == [None] * 3
    assert figures["training-1"]["data"][1]["x"] == [4, 5, 6, 7]
    assert figures["reward-model"]["data"][0]["x"] == [1, 2, 3]


def test_samples_stand_side_by_side_with_scores(history):
    samples = gather(history, ReportConfig(samples=4, answers=2)).samples
    assert len(samples) == 4
    graded = history["00003.evaluation-grading"].read("rewards")
    for sample in samples:
        assert (sample.before_iteration, sample.after_iteration) == (0, 3)
        assert len(sample.before) == len(sample.after) == 2
        expected = graded.filter(rollout_id=f"eval-3-{sample.prompt_id}-1")["reward"].item()
        assert sample.after[1].score == expected
        assert sample.before[0].text == HOSTILE


@pytest.mark.parametrize(
    "missing",
    ["reward_model", "evaluation", "evaluation-rollouts", "evaluation-grading", "rollouts", "grading", "filtering"],
)
def test_a_step_may_be_missing(history, missing):
    some = {key: artifact for key, artifact in history.items() if not key.endswith(f".{missing}")}
    assert "Provenance" in Page(render(gather(some, ReportConfig()))).text


def test_only_the_base_policy_evaluated(history):
    first = {key: artifact for key, artifact in history.items() if key.startswith("00000.")}
    text = " ".join(Page(render(gather(first, ReportConfig()))).text.split())
    assert "held-out score, iteration 0 0.237" in text


def test_scores_of_different_prompts_are_said_to_be(history, tmp_path):
    assert "of different prompts" not in Page(render(gather(history, ReportConfig()))).text
    other = evaluate(tmp_path, 3, random.Random(1), ["another", "prompt"])["evaluation"]
    assert "of different prompts" in Page(render(gather(history | {"00003.evaluation": other}, ReportConfig()))).text


def test_nothing_at_all_is_a_page():
    assert "No evaluation on held-out prompts yet" in Page(render(gather({}, ReportConfig(title="empty")))).text


def test_histograms_share_bins_and_count_every_row():
    scans = {1: pl.LazyFrame({"value": [0.0, 0.5, 1.0]}), 2: pl.LazyFrame({"value": [2.0, None, float("nan")]})}
    found = histogram(scans, 4)
    assert found.filter(iteration=1)["middle"].to_list() == [0.25, 0.75, 1.25, 1.75]
    assert found.filter(iteration=1)["share"].to_list() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0])
    assert found.filter(iteration=2)["share"].to_list() == [0, 0, 0, 1]
    counts = histogram({1: pl.LazyFrame({"value": [3.0, 3.0, 4.0]})}, 30, whole=True)
    assert counts.filter(pl.col("share") > 0).select("middle", "share").rows() == [(3.0, 2 / 3), (4.0, 1 / 3)]


def test_one_value_everywhere_is_a_histogram():
    found = histogram({1: pl.LazyFrame({"value": [0.5, 0.5]})}, 5)
    assert found["share"].sum() == 1

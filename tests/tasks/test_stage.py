"""The stage decorator, against a real Prefect server: cached, retried, sharded, forced."""

import polars as pl
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

import tasks._stage as stages
from storage.artifacts import Artifact, Outputs
from storage.config_base import StrictConfig, unhashed
from storage.errors import InputError, StageFailed, TransientError
from tasks._stage import RunContext, Shard, StageContext, StoppedAfter, run_context, stage

calls: list[str] = []


class ToyConfig(StrictConfig):
    ids: tuple[str, ...] = ("a", "b", "c")
    parallel: int = unhashed(1, "how many at once")


def ledger(ids):
    frame = pl.DataFrame({"rollout_id": list(ids)}, schema={"rollout_id": pl.String})
    return frame.with_columns(
        kept=pl.lit(True), rule=pl.lit("kept"), value=pl.lit(None, pl.Float64), threshold=pl.lit(None, pl.Float64)
    )


@stage("toy", version=1)
def toy(config: ToyConfig, *, seed: int, context: StageContext) -> Outputs:
    calls.append("toy")
    assert context.scratch.is_dir()
    return Outputs(metrics={"rows": float(len(config.ids))}, ledger=ledger(config.ids))


@stage("flaky", version=1)
def flaky(above: Artifact, config: ToyConfig) -> Outputs:
    calls.append("flaky")
    if calls.count("flaky") < 3:
        raise TransientError("the network")
    return Outputs(ledger=above.read("ledger"))


@stage("refuses", version=1)
def refuses(config: ToyConfig) -> Outputs:
    calls.append("refuses")
    raise InputError("row 3 of x.jsonl has no prompt")


def count(config: ToyConfig) -> int:
    return len(config.ids)


def total(joined: Artifact) -> Outputs:
    return Outputs(metrics={**joined.metrics, "joined": float(len(joined.read("ledger")))})


@stage("sharded", version=1, shards=count, combine=total)
def sharded(config: ToyConfig, *, shard: Shard) -> Outputs:
    calls.append(f"shard {shard.index}")
    if shard.index == 1 and calls.count("shard 1") == 1 and "broken" in config.ids:
        raise StageFailed("a bug")
    return Outputs(metrics={"n": 1.0}, ledger=ledger([config.ids[shard.index]]))


@pytest.fixture
def in_flow(prefect_server, tmp_path, monkeypatch):
    """Run a function of stages as a flow on the real server; gives (result, task states by name)."""
    monkeypatch.setattr(stages, "BACKOFF_S", 0)
    calls.clear()

    def run(body, **context):
        @flow(name="toy", persist_result=True)
        def around():
            with run_context(RunContext(root=str(tmp_path / "root"), campaign="c", iteration=1, steps={}, **context)):
                return body()

        with temporary_settings({PREFECT_API_URL: prefect_server}):
            return around()

    return run


def test_made_once_then_found(in_flow):
    first = in_flow(lambda: toy(config=ToyConfig(), seed=1))
    again = in_flow(lambda: toy(config=ToyConfig(parallel=7), seed=1))
    assert first == again
    assert calls == ["toy"]
    assert first.metrics == {"rows": 3.0}
    assert first.manifest.prefect_task_run_id
    other = in_flow(lambda: toy(config=ToyConfig(), seed=2))
    assert other.fingerprint != first.fingerprint
    assert calls == ["toy", "toy"]


def test_faults_that_may_pass_are_retried_and_bad_input_never(in_flow, monkeypatch):
    quick = flaky.__class__
    assert quick is stages.Stage
    monkeypatch.setattr(stages, "execute_stage", stages.execute_stage.with_options(retry_delay_seconds=0))
    made = in_flow(lambda: flaky(above=toy(config=ToyConfig(), seed=1), config=ToyConfig()))
    assert made.read("ledger")["rollout_id"].to_list() == ["a", "b", "c"]
    assert calls == ["toy", "flaky", "flaky", "flaky"]
    with pytest.raises(InputError, match=r"row 3 of x\.jsonl") as raised:
        in_flow(lambda: refuses(config=ToyConfig()))
    assert calls.count("refuses") == 1
    assert raised.value.__notes__ == ["step refuses of iteration 1, campaign 'c'"]


def test_only_the_missing_shards_are_made(in_flow):
    config = ToyConfig(ids=("a", "broken", "c"))
    with pytest.raises(StageFailed, match="a bug"):
        in_flow(lambda: sharded(config=config))
    made = in_flow(lambda: sharded(config=config))
    assert sorted(calls) == ["shard 0", "shard 1", "shard 1", "shard 2"]
    assert made.read("ledger")["rollout_id"].to_list() == ["a", "broken", "c"]
    assert made.metrics == {"n": 3.0, "joined": 3.0}


def test_forced_stages_are_made_again_with_all_their_shards(in_flow):
    first = in_flow(lambda: sharded(config=ToyConfig()))
    before = first.manifest
    again = in_flow(lambda: sharded(config=ToyConfig()), force=frozenset({"sharded"}))
    assert len(calls) == 6
    assert again.manifest.attempt != before.attempt
    assert again.manifest.content == before.content


def test_a_run_can_stop_after_a_step(in_flow):
    def body():
        try:
            flaky(above=toy(config=ToyConfig(), seed=1, step="first"), config=ToyConfig())
        except StoppedAfter as stopped:
            return stopped.step
        return "went on"

    assert in_flow(body, stop_after="first") == "first"
    assert calls == ["toy"]

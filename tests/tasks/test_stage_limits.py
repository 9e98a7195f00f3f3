"""A stage's concurrency limits, against a real Prefect server."""

import threading
import time

import httpx
import polars as pl
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.task_runners import ThreadPoolTaskRunner

from storage.artifacts import Outputs
from storage.config_base import StrictConfig
from tasks._stage import RunContext, Shard, run_context, stage

SHARDS = 3
at_once: list[int] = []
inside: list[int] = []


class LimitedConfig(StrictConfig):
    limit: str


@stage("limited", version=1, shards=lambda config: SHARDS, limits=lambda config, shard: [config.limit])
def limited(config: LimitedConfig, *, shard: Shard) -> Outputs:
    inside.append(threading.get_ident())
    at_once.append(len(inside))
    time.sleep(0.5)
    inside.pop()
    return Outputs(steps=pl.DataFrame([{"step": shard.index, "metric": "loss", "value": 0.5}]))


@pytest.mark.parametrize(("limit", "most"), [("one-at-a-time", 1), ("prefect-has-no-such-limit", SHARDS)])
def test_shards_take_a_slot_of_a_limit_that_there_is(prefect_server, tmp_path, limit, most):
    at_once.clear()

    @flow(name="limited", persist_result=True, task_runner=ThreadPoolTaskRunner(max_workers=SHARDS))
    def around():
        with run_context(RunContext(root=str(tmp_path / "root"), campaign="c", iteration=1, steps={})):
            return limited(config=LimitedConfig(limit=limit))

    with temporary_settings({PREFECT_API_URL: prefect_server}):
        if most == 1:
            body = {"name": limit, "limit": 1}
            httpx.post(f"{prefect_server}/v2/concurrency_limits/", json=body).raise_for_status()
        made = around()
    assert max(at_once) <= most and len(at_once) == SHARDS
    assert len(made.read("steps")) == SHARDS

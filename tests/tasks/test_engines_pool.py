"""The pool: one engine for many stages, each caller alone with it, and nobody gets one that serves another policy."""

import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from storage.errors import InputError, TransientError
from tasks._engines import pool
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import Completion, Engine, SamplingParams, ServedModel
from tasks._engines.transformers_engine import TransformersEngine

CONFIG = EngineConfig(name="transformers", max_model_len=512, dtype="float32")
TWO = CONFIG.model_copy(update={"data_parallel": 2})
PROMPT = [1, 280, 262, 201, 74, 130]


def served(folder: Path) -> ServedModel:
    return ServedModel(folder, None, "policy", folder)  # one id for all: what is served goes by its folder


def sample(engine: Engine) -> list[list[Completion]]:
    return engine.generate([PROMPT], [4], SamplingParams(max_tokens=12), 3, lambda done, total: None)


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ValidationError, match="auto, vllm, transformers"):
        EngineConfig(name="vlm")
    with (
        pytest.raises(InputError, match="can't be imported"),
        pool.acquire(EngineConfig(name="no.such.module:Engine"), served(Path("nowhere"))),
    ):
        pass


def test_pool_reuses_one_engine_swaps_policies_and_serves_one_caller_at_a_time(
    tiny_model: Path, other_model: Path
) -> None:
    with pool.acquire(CONFIG, served(tiny_model)) as first:
        pass
    with pool.acquire(CONFIG, served(other_model)) as second:
        assert second is first
        assert sample(second) == sample(TransformersEngine(CONFIG, served(other_model)))
        entered = threading.Event()

        def enter() -> None:
            with pool.acquire(CONFIG, served(tiny_model)):
                entered.set()

        waiting = threading.Thread(target=enter)
        waiting.start()
        assert not entered.wait(0.3)
    waiting.join(20)
    assert entered.is_set()
    with pool.acquire(CONFIG.model_copy(update={"keep_alive": False}), served(tiny_model)) as last:
        assert last is first
    with pool.acquire(CONFIG, served(tiny_model)) as fresh:
        assert fresh is not first
    pool.close_all()


def test_close_all_stops_an_engine_that_is_generating(tiny_model: Path) -> None:
    begun, ended = threading.Event(), []

    def generate() -> None:
        with pytest.raises(TransientError, match="closed"), pool.acquire(CONFIG, served(tiny_model)) as engine:
            long = SamplingParams(max_tokens=40)
            engine.generate([PROMPT], [64 * 200], long, 1, lambda done, total: begun.set())
        ended.append(engine.alive)

    busy = threading.Thread(target=generate, daemon=True)
    busy.start()
    assert begun.wait(60)
    pool.close_all()
    busy.join(5)
    assert ended == [False]


def test_pool_hands_out_engines_side_by_side(tiny_model: Path) -> None:
    with pool.acquire(TWO, served(tiny_model)) as one, pool.acquire(TWO, served(tiny_model)) as two:
        assert one is not two
    pool.close_all()

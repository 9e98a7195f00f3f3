"""Drawing prompts: even, seeded, whole cycles first; the held-out batch fixed."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from storage.records import BatchEntry, Prompt, PromptUse
from tasks.select.config import EvalSelectConfig, SelectConfig
from tasks.select.draw import draw, held_out, iteration_after


def pool(train: int, held: int = 0) -> pl.DataFrame:
    rows = [
        {
            "prompt_id": f"p{index:03d}",
            "messages": [{"role": "user", "content": f"Question {index}"}],
            "verifier": {"name": "haiku", "params": "{}"},
            "domain": "haiku",
            "tags": [],
            "source": f"topics:{index}",
            "split": "train" if index < train else "eval",
            "cluster_id": f"p{index:03d}",
        }
        for index in range(train + held)
    ]
    return pl.DataFrame(rows, schema=Prompt.create_empty().schema)


def draws(prompts: pl.DataFrame, config: SelectConfig, seed: int, times: int) -> list[list[str]]:
    history, drawn = None, []
    for _ in range(times):
        batch, history = draw(prompts, history, config, iteration_after(history), seed)
        assert BatchEntry.is_valid(batch) and PromptUse.is_valid(history)
        drawn.append(batch["prompt_id"].to_list())
    return drawn


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 20), taken=st.integers(1, 20), seed=st.integers(0, 3))
def test_no_prompt_comes_again_before_all_have_come(size, taken, seed):
    taken = min(size, taken)
    counts = dict.fromkeys(pool(size)["prompt_id"], 0)
    for drawn in draws(pool(size), SelectConfig(prompts_per_iteration=taken), seed, times=5):
        assert len(set(drawn)) == taken
        for prompt_id in drawn:
            counts[prompt_id] += 1
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_draw_follows_from_the_seed_and_not_from_the_order_of_the_pool():
    config = SelectConfig(prompts_per_iteration=8)
    one = draws(pool(40), config, seed=1, times=3)
    assert one == draws(pool(40).reverse(), config, seed=1, times=3)
    assert one != draws(pool(40), config, seed=2, times=3)


def test_the_second_cycle_is_shuffled_anew():
    first, second = draws(pool(30), SelectConfig(prompts_per_iteration=30), seed=0, times=2)
    assert sorted(first) == sorted(second)
    assert first != second


def test_the_history_counts_iterations_and_keeps_up_with_a_changed_pool():
    config = SelectConfig(prompts_per_iteration=2, samples_per_prompt=3)
    _, history = draw(pool(3), None, config, 1, seed=0)
    batch, history = draw(pool(5), history, config, iteration_after(history), seed=0)
    assert iteration_after(history) == 3
    assert len(history) == 5
    assert set(batch["samples"]) == {3}
    assert set(history.filter(pl.col("prompt_id").is_in(batch["prompt_id"].implode()))["last_iteration"]) == {2}


def test_held_out_prompts_are_never_drawn_and_always_the_same():
    prompts = pool(10, held=6)
    drawn = draws(prompts, SelectConfig(prompts_per_iteration=10), seed=0, times=1)[0]
    batch = held_out(prompts, EvalSelectConfig(eval_prompts=4, samples_per_prompt=2), seed=0)
    assert BatchEntry.is_valid(batch)
    assert not set(batch["prompt_id"]) & set(drawn)
    assert batch.equals(held_out(prompts.reverse(), EvalSelectConfig(eval_prompts=4, samples_per_prompt=2), seed=0))
    assert len(held_out(prompts, EvalSelectConfig(), seed=0)) == 6


def test_too_small_a_pool_says_what_to_change():
    with pytest.raises(InputError, match="prompts_per_iteration is 8 but the pool has 3"):
        draw(pool(3), None, SelectConfig(prompts_per_iteration=8), 1, seed=0)
    with pytest.raises(InputError, match="wants some held-out prompts but the pool has 0"):
        held_out(pool(3), EvalSelectConfig(), seed=0)
    with pytest.raises(InputError, match="wants 5 held-out prompts but the pool has 2"):
        held_out(pool(3, held=2), EvalSelectConfig(eval_prompts=5), seed=0)

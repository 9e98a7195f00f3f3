"""The filter over stored rollouts: seconds and memory for 160,000 of 256 tokens, and both against their number.

Each measurement is a process of its own with two threads: it runs the stage's function on committed artifacts and
commits what comes out, so reading, hashing, the rules, advantages, ledger, validation and writing are all in it.
Memory is the peak of the resident set beyond what the imports take. Rewards are graded by one grader, 8 rollouts to a
prompt; every tenth rollout says what the one before it says.
`python tests/benchmarks/filter_speed.py` measures this part of `make bench` alone; `... filter_speed.py 1000000` for
that many instead of 1,000,000 against 160,000.
"""

import json
import logging
import os
import sys
import tempfile
import time
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import apart
import numpy as np
import polars as pl
from apart import peak_resident_bytes
from update_speed import Line, show

REPOSITORY = Path(__file__).parents[2]
ROLLOUTS, LARGER, PIECE = 160_000, 1_000_000, 50_000
SAMPLES, TOKENS, SENTENCES = 8, 256, 2_000
ODD = 0x9E3779B97F4A7C15F39CC0605CEDC835
SECONDS_LIMIT, MEMORY_LIMIT, GROWTH_LIMIT, PER_ROW_LIMIT = 20.0, 2**30, 1.5, 1.1
RULES = {
    "the default": [{"rule": "aborted"}, {"rule": "no_variance"}],
    "eight": [
        {"rule": "aborted"},
        {"rule": "truncated"},
        {"rule": "repetition"},
        {"rule": "no_variance"},
        {"rule": "difficulty_band", "low": 0.1, "high": 0.9},
        {"rule": "redundant_in_group"},
        {"rule": "max_variance", "keep": 6},
        {"rule": "oversample"},
    ],
}


def rollout_ids(rows) -> list[str]:
    """Ids in no order, as hashes are."""
    return [f"{int(row) * ODD % 2**128:032x}" for row in rows]


def pieces(count: int):
    """Frames of rollouts."""
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(list("etaoinshrdlu"), random.integers(2, 9))) for _ in range(3_000)])
    sentences = pl.Series([" ".join(words[random.integers(0, 3_000, 20)]) + "." for _ in range(SENTENCES)])
    for first in range(0, count, PIECE):
        rows = np.arange(first, min(first + PIECE, count))
        said = np.where(rows % 10 == 9, rows - 1, rows) - first
        tokens = random.integers(0, 32_000, (len(rows), TOKENS), dtype=np.int32)[said]
        parts = [sentences.gather(random.integers(0, SENTENCES, len(rows))[said]).alias(str(part)) for part in range(9)]
        yield pl.DataFrame(
            {
                "rollout_id": rollout_ids(rows),
                "prompt_id": [f"{row // SAMPLES:032x}" for row in rows],
                "sample_index": (rows % SAMPLES).astype(np.int32),
                "iteration": pl.Series(np.full(len(rows), 3), dtype=pl.Int32),
                "policy_id": "policy",
                "prompt_token_ids": pl.Series(tokens[:, :32], dtype=pl.Array(pl.Int32, 32)).cast(pl.List(pl.Int32)),
                "token_ids": pl.Series(tokens, dtype=pl.Array(pl.Int32, TOKENS)).cast(pl.List(pl.Int32)),
                "logprobs": pl.Series(-random.random(tokens.shape, dtype=np.float32)).cast(pl.List(pl.Float32)),
                "text": pl.select(pl.concat_str(parts, separator=" ")).to_series(),
                "finish_reason": np.where(random.random(len(rows)) < 0.05, "length", "stop"),
                "engine": "vllm",
                "sampling": '{"temperature": 1.0, "top_p": 1.0}',
                "created_at": datetime(2026, 1, 1, tzinfo=UTC),
            }
        )


def graded(count: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rewards and grades: prompts of every pass rate."""
    random = np.random.default_rng(1)
    rate = random.beta(0.5, 0.5, count // SAMPLES + 1)
    score = (random.random(count) < rate[np.arange(count) // SAMPLES]).astype(np.float64)
    ids = pl.Series("rollout_id", rollout_ids(range(count)))
    passed = pl.Series(score > 0)
    one = pl.lit("verifier").alias("name")
    rewards = pl.DataFrame({"rollout_id": ids, "reward": score}).with_columns(
        components=pl.concat_list(pl.struct(one, pl.col("reward").alias("value"))),
        complete=pl.lit(True),
        passed=pl.lit(None, pl.Boolean),
    )
    grades = pl.DataFrame({"rollout_id": ids, "score": score, "passed": passed}).with_columns(
        grader=pl.lit("verifier"),
        grader_version=pl.lit("1"),
        status=pl.lit("ok"),
        uncertainty=pl.lit(None, pl.Float64),
        detail=pl.lit("{}"),
        latency_s=pl.lit(0.0),
        cost=pl.lit(0.0),
        policy_id=pl.lit("policy"),
    )
    # The grading stage writes rewards by rollout id.
    return rewards.sort("rollout_id"), grades


def commit(home: Path, stage: str, name: str, outputs) -> None:
    """Commits what a stage made."""
    from storage.artifacts import Artifact
    from storage.commits import Attempt, Recipe, commit_outputs

    recipe = Recipe(Artifact(root=str(home / "root"), stage=stage, fingerprint=name), stage, 1, {}, {}, None)
    commit_outputs(recipe, Attempt(datetime.now(UTC), home), outputs)


def store(count: int, home: Path) -> None:
    """Commits `count` rollouts and their grading."""
    from storage.artifacts import Outputs

    rewards, grades = graded(count)
    commit(home, "rollouts", str(count), Outputs(rollouts=pieces(count)))
    commit(home, "grading", str(count), Outputs(rewards=rewards, grades=grades))


def filtered(rules: str, count: int, home: Path) -> dict[str, float]:
    """Seconds and bytes beyond the imports of filtering and committing."""
    from storage.artifacts import Artifact
    from tasks._stage import StageContext
    from tasks.filtering.config import FilteringConfig
    from tasks.filtering.stage import filter_rollouts

    context = StageContext(home, logging.getLogger(__name__), lambda done, total, label: None, iteration=3)
    rollouts, grading = (
        Artifact(root=str(home / "root"), stage=s, fingerprint=str(count)) for s in ("rollouts", "grading")
    )
    config = FilteringConfig(rules=RULES[rules])
    imported, started, before = peak_resident_bytes(), time.perf_counter(), time.process_time()
    outputs = filter_rollouts.function(rollouts=rollouts, rewards=grading, config=config, context=context)
    decided = time.perf_counter()
    commit(home, "filtering", f"{count}-{os.getpid()}", outputs)
    done = time.perf_counter()
    return {
        "seconds": done - started,
        "deciding_s": decided - started,
        "processor_s": time.process_time() - before,
        "imported_bytes": imported,
        "bytes": peak_resident_bytes() - imported,
        "kept": outputs.metrics["kept_fraction"],
    }


run_apart = partial(apart.run_apart, __file__, threads=2)


def measure(home: Path, larger: int = LARGER) -> list[Line]:
    """Seconds and memory of the rules, and how both grow."""
    home.mkdir(parents=True, exist_ok=True)
    for count in (ROLLOUTS, larger):
        run_apart("store", str(count), str(home))
    lines = []
    for rules in RULES:
        few, many = (run_apart("filter", rules, str(count), str(home)) for count in (ROLLOUTS, larger))
        print(f"{rules} rules: {json.dumps(few)}\n{' ' * len(rules)} {larger}: {json.dumps(many)}")
        seconds, memory = few["seconds"] / SECONDS_LIMIT, few["bytes"] / MEMORY_LIMIT
        growth = many["bytes"] / few["bytes"]
        # By the processor's clock: what else runs in one of the two runs alone doesn't count.
        per_row = many["processor_s"] / larger / (few["processor_s"] / ROLLOUTS)
        sizes = f"{many['bytes'] / 2**20:.0f} / {few['bytes'] / 2**20:.0f}"
        rows = f"{1e6 * many['processor_s'] / larger:.0f} / {1e6 * few['processor_s'] / ROLLOUTS:.0f}"
        lines += [
            Line(f"filter 160k, {rules} rules / limit, s", f"{few['seconds']:.1f} / 20", seconds, "<= 1", seconds <= 1),
            Line("its memory / limit, MiB", f"{few['bytes'] / 2**20:.0f} / 1024", memory, "<= 1", memory <= 1),
            Line(f"memory of {larger} / 160k, MiB", sizes, growth, f"<= {GROWTH_LIMIT}", growth <= GROWTH_LIMIT),
            Line(
                f"processor time a row of {larger} / 160k, us",
                rows,
                per_row,
                f"<= {PER_ROW_LIMIT}",
                per_row <= PER_ROW_LIMIT,
            ),
        ]
    return lines


def main(larger: int = LARGER) -> int:
    """This part alone."""
    with tempfile.TemporaryDirectory() as folder:
        return 0 if all([show(line) for line in measure(Path(folder), larger)]) else 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["store", count, home]:
            store(int(count), Path(home))
        case ["filter", rules, count, home]:
            print(json.dumps(filtered(rules, int(count), Path(home))))
        case [larger]:
            sys.exit(main(int(larger)))
        case _:
            sys.exit(main())

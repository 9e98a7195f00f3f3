"""`make bench`: speed as ratios, each against a peer or a limit measured in the same run.

1. The rollouts stage against the same prompts through bare `vllm.LLM` in one process: tokens per second, once up.
2. The share of a cold iteration's time that no stage accounts for.
3. An iteration with every stage cached, against five seconds.
4. One policy update over that iteration's trajectories, against the machine's matrix product and TRL's GRPOTrainer.
5. Code sandboxes started, against bare interpreters.
6. The cheap verifiers over 100,000 stored rollouts, against 25,000 rollouts/s on a core; their memory, against flat.
7. The filter over 160,000 rollouts against 20 s and 1 GiB, over 1,000,000 against flat memory and linear time.
8. A million prompts: near-duplicate search and the whole of curate, against datasketch and limits of time and memory.
9. Reward models: training and scoring against TRL's RewardTrainer, five members against one.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import curate_speed
import filter_speed
import polars as pl
import reward_speed
import verifier_speed
from sandbox_speed import measure_sandbox
from update_speed import Line, measure, show

REPOSITORY = Path(__file__).parents[2]
REPETITIONS = 3
CACHED_LIMIT_S = 5.0
OUTSIDE_LIMIT = 0.03
ENGINE_RATIO_LIMIT = 0.97
WHOLE_GROUPS = {"rules": [{"rule": "aborted"}, {"rule": "no_variance"}]}


def quickstart(home: Path, **changes):
    """The quickstart's configuration, one iteration long, below a fresh root. Whole groups train, as they do at TRL."""
    from flows.config import load_config

    fixed = {"root": str(home / "root"), "iterations": 1, "filtering": WHOLE_GROUPS}
    return load_config(REPOSITORY / "deployments" / "quickstart.yaml", changes={**fixed, **changes})


def stage_rates(home: Path) -> tuple[list[dict[str, float]], dict]:
    """Tokens and seconds of the stage `rollouts` for several seeds, its engine up; and the job for bare vLLM."""
    from prefect import flow

    from flows.launches import launched, tracked_iteration
    from storage.policies import register_base, resolve_policy
    from tasks._devices import choose_dtype
    from tasks._engines import pool
    from tasks._engines.chat import load_tokenizer, render
    from tasks.curate.stage import curate
    from tasks.rollouts.stage import generate
    from tasks.select.stage import select

    config = quickstart(home)
    seeds = list(range(REPETITIONS + 1))

    @flow(name="bench-rollouts")
    def measured():
        with (
            launched(config) as launch,
            tracked_iteration(launch, config, 1, force=frozenset(), stop_after=None) as run,
        ):
            base = register_base(run.root, config.model.path)
            prompts = curate(config=config.curate, seed=0)
            batch = select(prompts=prompts, history=None, config=config.select, seed=0)
            made = [generate(batch=batch, policy=base, config=config.rollouts, seed=seed) for seed in seeds]
            return base, batch, made

    base, batch, made = measured()
    pool.close_all()
    folder = resolve_policy(base).base
    tokenizer = load_tokenizer(folder)
    entries = batch.read("batch")
    rates = [{"tokens": a.metrics["tokens"], "seconds": a.manifest.duration_s} for a in made[1:]]
    threads = sorted(os.sched_getaffinity(0))
    job = {
        "model": str(folder),
        "prompts": [render(tokenizer, messages) for messages in entries["messages"].to_list()],
        "samples": config.select.samples_per_prompt,
        "sampling": {"max_tokens": config.rollouts.sampling.max_tokens, "temperature": 1.0},
        "seeds": seeds,
        "engine": {
            "dtype": choose_dtype("auto", "cpu"),
            "enforce_eager": True,
            "max_model_len": config.rollouts.engine.max_model_len,
            "logprobs_mode": "processed_logprobs",
        },
        "environment": {
            "VLLM_CPU_KVCACHE_SPACE": "2",
            "VLLM_CPU_OMP_THREADS_BIND": f"{threads[0]}-{threads[-1]}",
            "OMP_NUM_THREADS": str(len(threads)),
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "HF_HUB_OFFLINE": "1",
        },
    }
    return rates, job


def bare_rates(job: dict, home: Path) -> list[dict[str, float]]:
    """The same through bare vLLM in a process of its own; the first call warms up and isn't counted."""
    path = home / "job.json"
    path.write_text(json.dumps(job))
    script = Path(__file__).with_name("bare_vllm.py")
    done = subprocess.run([sys.executable, str(script), str(path)], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"bare vLLM failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])[1:]


def iteration_times(home: Path) -> tuple[float, float, float, pl.DataFrame, Path]:
    """Seconds of a cold iteration, seconds in its stages, and seconds of the same iteration with every stage cached;
    then the iteration's trajectories and the folder of its base model.
    """
    from prefect import flow

    from flows.iteration import first_state, iteration, publish
    from flows.launches import launched
    from storage.artifacts import Artifact
    from storage.models import convert_base
    from storage.store import open_store
    from tasks._engines import pool

    config = quickstart(home, campaign="bench")
    path = f"campaigns/{config.campaign}/iterations/00001.json"

    @flow(name="bench-iteration")
    def measured():
        with launched(config) as launch:
            state = first_state(config, launch)
            publish(state, launch)
            started = time.perf_counter()
            after = iteration(state, config, launch)
            cold = time.perf_counter() - started
            made = {step: Artifact.at(launch.root, made) for step, made in after.steps.items()}
            inside = sum(a.manifest.duration_s for a in made.values() if a.manifest.iteration == 1)
            open_store(launch.root).remove(path)
            started = time.perf_counter()
            iteration(state, config, launch)
            cached = time.perf_counter() - started
            return cold, inside, cached, made["filtering"].read("trajectories")

    times = measured()
    pool.close_all()
    return *times, convert_base(config.model.path)


def rate(runs: list[dict[str, float]]) -> float:
    """Median tokens per second."""
    return statistics.median(run["tokens"] / run["seconds"] for run in runs)


def main() -> int:
    """Measure all, print a line each; 1 when a limit is missed."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        os.environ.setdefault("POSTTRAIN_HOME", str(home / "home"))
        from flows.environment import embedded
        from storage.home import home as own_home

        embedded(own_home())
        os.environ["PREFECT_LOGGING_LEVEL"] = "WARNING"
        stage_runs, job = stage_rates(home)
        stage, bare = rate(stage_runs), rate(bare_rates(job, home))
        cold, inside, cached, trajectories, base = iteration_times(home)
        outside = (cold - inside) / cold
        lines = [
            Line(
                "rollouts stage / bare vllm.LLM, tokens/s",
                f"{stage:.0f} / {bare:.0f}",
                stage / bare,
                f">= {ENGINE_RATIO_LIMIT}",
                stage / bare >= ENGINE_RATIO_LIMIT,
            ),
            Line(
                "outside stages / cold iteration, s",
                f"{cold - inside:.2f} / {cold:.1f}",
                outside,
                f"<= {OUTSIDE_LIMIT}",
                outside <= OUTSIDE_LIMIT,
            ),
            Line(
                "iteration with every stage cached / limit, s",
                f"{cached:.2f} / {CACHED_LIMIT_S:.0f}",
                cached / CACHED_LIMIT_S,
                "<= 1",
                cached <= CACHED_LIMIT_S,
            ),
        ]
        results = [show(line) for line in lines]
        results += [show(line) for line in measure(trajectories, base, home / "update")]
        results += [show(line) for line in measure_sandbox()]
        results += [show(line) for line in verifier_speed.measure(home / "verifiers")]
        results += [show(line) for line in filter_speed.measure(home / "filter")]
        results += [show(line) for line in curate_speed.measure_all(home / "curate")]
        results += [show(line) for line in reward_speed.measure(base, home / "reward")]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())

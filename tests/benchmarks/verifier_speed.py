"""Cheap verifiers over stored rollouts: rollouts per second of one process, and memory against their number.

Each measurement is a process of its own, one thread wide, timed by the processor's clock so that what else runs does
not count: it reads slices of a Parquet file as the grading stage
does (20,000 rollouts a slice), makes samples of them and grades them. Rollouts have 256 tokens, 8 to a prompt, no
two alike. The target is 50,000 rollouts/s on two cores, so 25,000 in one process; workers multiply it by cores.
`python tests/benchmarks/verifier_speed.py` measures this part of `make bench` alone.
"""

import json
import random
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import apart
import polars as pl
from apart import peak_resident_bytes
from update_speed import Line, show

REPOSITORY = Path(__file__).parents[2]
ROLLOUTS, LARGER, SLICE = 100_000, 400_000, 20_000
SAMPLES_PER_PROMPT, TOKENS, WORDS = 8, 256, 180
RATE_LIMIT, MEMORY_LIMIT = 25_000, 1.1
VOCABULARY = 3_000
VERIFIERS = {
    "exact_match": {"last_line": True},
    "number": {},
    "regex": {"pattern": r"<answer>#### (\d+)</answer>"},
    "length": {"min_words": 20, "max_tokens": 256},
    "json": {},
    "format": {},
    "repetition": {},
}
PARTS = ("read", "samples", "verifier", "frame")


def text(kind: str, number: int, draw: random.Random, words: list[str]) -> str:
    """A rollout's text: a thought and an answer in tags, or a JSON object of as many words."""
    said = draw.choices(words, k=WORDS)
    if kind == "json":
        return json.dumps({"answer": number, "steps": [" ".join(said[at : at + 12]) for at in range(0, WORDS, 12)]})
    return f"<think>{' '.join(said)}</think>\n<answer>#### {number}</answer>"


def store(kind: str, count: int, home: Path) -> None:
    """Writes `count` rollouts and their batch."""
    draw = random.Random(0)
    words = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(2, 8))) for _ in range(VOCABULARY)]
    prompts = [f"prompt-{index:06d}" for index in range(count // SAMPLES_PER_PROMPT)]
    rollouts = pl.DataFrame(
        {
            "rollout_id": [f"rollout-{index:07d}" for index in range(count)],
            "prompt_id": [prompts[index // SAMPLES_PER_PROMPT] for index in range(count)],
            "policy_id": "policy",
            "text": [text(kind, index % 100, draw, words) for index in range(count)],
            "finish_reason": pl.Series(["stop"] * count, dtype=pl.Enum(["stop", "length", "abort"])),
        }
    )
    tokens = pl.Series([list(range(TOKENS))], dtype=pl.List(pl.Int32))
    rollouts.with_columns(pl.lit(tokens).first().alias("token_ids")).write_parquet(
        home / f"{kind}-{count}.parquet", compression="zstd", row_group_size=65_536
    )
    user = [{"role": "user", "content": "What is it?"}]
    batch = {
        "prompt_id": prompts,
        "messages": [user] * len(prompts),
        "answer": [str(index % 100) for index in range(len(prompts))],
        "verifier": [{"name": "number", "params": "{}"}] * len(prompts),
    }
    frame = pl.DataFrame(batch).with_columns(domain=pl.lit("any"), rubric=pl.lit(None, pl.String))
    frame.write_parquet(home / f"batch-{count}.parquet")


class Timed:
    """A grader, and the seconds that its answers took."""

    compares_group = False

    def __init__(self, grader):
        self.grader, self.seconds, self.version_of = grader, 0.0, grader.version_of

    def grade_batch(self, samples, progress):
        started = time.process_time()
        answers = self.grader.grade_batch(samples, progress)
        self.seconds += time.process_time() - started
        return answers

    def close(self):
        self.grader.close()


def grade_all(name: str, kind: str, count: int, home: Path) -> dict:
    """Seconds per part and peak memory of grading every slice once; the first slice is graded before, unmeasured."""
    from tasks.grading.config import GraderConfig
    from tasks.grading.grade import grade_samples
    from tasks.grading.graders import open_grader
    from tasks.grading.samples import SAMPLE_COLUMNS, samples_of

    spec = GraderConfig(grader=name, params=VERIFIERS[name])
    seconds = dict.fromkeys(PARTS, 0.0)
    batch, rollouts = pl.scan_parquet(home / f"batch-{count}.parquet"), home / f"{kind}-{count}.parquet"
    for first in (0, *range(0, count, SLICE)):
        started = time.process_time()
        sampled = pl.scan_parquet(rollouts).slice(first, SLICE).select(SAMPLE_COLUMNS).collect()
        read = time.process_time()
        samples = list(samples_of(sampled, batch, spec))
        made = time.process_time()
        grader = Timed(open_grader(spec))
        grades = grade_samples(samples, grader, spec, lambda done, total, label: None)
        done = time.process_time()
        verifying = grader.seconds
        assert set(grades["status"]) == {"ok"}
        for part, spent in zip(PARTS, (read - started, made - read, verifying, done - made - verifying), strict=True):
            seconds[part] += spent if first else 0.0
    graded = count - SLICE  # the first slice warms up
    peak = peak_resident_bytes()
    return {
        "rate": graded / sum(seconds.values()),
        "peak_bytes": peak,
        "us": {p: 1e6 * s / graded for p, s in seconds.items()},
    }


run_apart = partial(apart.run_apart, __file__, threads=1)


def measure(home: Path) -> list[Line]:
    """A line per verifier, and one of memory."""
    home.mkdir(parents=True, exist_ok=True)
    for kind, count in (("prose", ROLLOUTS), ("json", ROLLOUTS), ("prose", LARGER)):
        run_apart("store", kind, str(count), str(home))
    lines = []
    for name in VERIFIERS:
        kind = "json" if name == "json" else "prose"
        found = run_apart("grade", name, kind, str(ROLLOUTS), str(home))
        print(f"{name}, us a rollout: " + ", ".join(f"{part} {us:.1f}" for part, us in found["us"].items()))
        ratio = found["rate"] / RATE_LIMIT
        rates = f"{found['rate']:.0f} / {RATE_LIMIT}"
        lines.append(Line(f"verifier {name} / target, rollouts/s a core", rates, ratio, ">= 1", ratio >= 1))
    fewer, more = (run_apart("grade", "number", "prose", str(n), str(home))["peak_bytes"] for n in (ROLLOUTS, LARGER))
    sizes = f"{more / 2**20:.0f} / {fewer / 2**20:.0f}"
    flat = more / fewer <= MEMORY_LIMIT
    name = f"peak memory of {LARGER // 1000}k / {ROLLOUTS // 1000}k rollouts, MiB"
    return [*lines, Line(name, sizes, more / fewer, f"<= {MEMORY_LIMIT}", flat)]


def main() -> int:
    """This part alone."""
    with tempfile.TemporaryDirectory() as folder:
        return 0 if all([show(line) for line in measure(Path(folder))]) else 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["store", kind, count, home]:
            store(kind, int(count), Path(home))
        case ["grade", name, kind, count, home]:
            print(json.dumps(grade_all(name, kind, int(count), Path(home))))
        case _:
            sys.exit(main())

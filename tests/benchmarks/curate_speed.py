"""A million prompts of a hundred words: near-duplicate search and the whole of curate, and datasketch beside them.

Each measurement is a process of its own, timed by the processor's clock over its two threads, so that what else runs
does not count: on idle cores the wall's clock shows less. A fifth of the prompts repeat an earlier one with one to ten
words changed, a twentieth repeat one as it is. datasketch gets as many permutations, the same bands and the same exact
check, over fewer prompts: its index takes hours and tens of GiB for a million.
`python tests/benchmarks/curate_speed.py` measures this part of `make bench` alone.
"""

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import apart
import numpy as np
from apart import peak_resident_bytes
from update_speed import Line, show

REPOSITORY = Path(__file__).parents[2]
MILLION, FEWER, PEER = 1_000_000, 250_000, 20_000
WORDS, VOCABULARY, AT_A_TIME = 100, 50_000, 10_000
NEAR, EXACT = 0.20, 0.05
SEARCH_LIMIT_S, CURATE_LIMIT_S, PEER_LIMIT, LINEAR_LIMIT = 90, 400, 5.0, 1.3
MEMORY_LIMIT_GIB, BYTES_LIMIT = 2.5, 1000
THRESHOLD = 0.8


def store(count: int, path: Path) -> None:
    """Writes `count` prompts. Words are drawn as in English: the k-th most frequent with weight 1 / k."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = np.array(["".join(draw.choice(letters, draw.integers(2, 9))) for _ in range(VOCABULARY)])
    ends = np.cumsum(1 / np.arange(1, VOCABULARY + 1))
    ends /= ends[-1]
    with pq.ParquetWriter(path, pa.schema([("q", pa.string())])) as file:
        for _ in range(0, count, AT_A_TIME):
            rows = np.searchsorted(ends, draw.random((AT_A_TIME, WORDS)))
            kinds = draw.random(AT_A_TIME)
            for number in np.flatnonzero(kinds[1:] < NEAR + EXACT) + 1:
                rows[number] = rows[draw.integers(number)]
                if kinds[number] < NEAR:
                    changed = draw.integers(0, WORDS, draw.choice([1, 3, 10]))
                    rows[number, changed] = draw.integers(0, VOCABULARY, len(changed))
            file.write_table(pa.table({"q": [" ".join(row) for row in words[rows]]}))


def texts_of(path: Path, count: int):
    """The texts in lists of some thousand."""
    import pyarrow.parquet as pq

    left = count
    for batch in pq.ParquetFile(path).iter_batches(batch_size=4096):
        yield batch["q"].to_pylist()[:left]
        left -= batch.num_rows
        if left <= 0:
            return


def search(path: Path, count: int) -> dict:
    """Seconds and peak memory of the near-duplicate search, and the clusters that it finds."""
    from tasks._maths.near_duplicates import ShingleIndex
    from tasks._maths.words import hashed_words

    hashed_words(["warm up: the tables of characters"])
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        index = ShingleIndex(THRESHOLD, Path(folder))
        for texts in texts_of(path, count):
            index.add(hashed_words(texts))
        sketched, sketched_bytes = time.process_time(), peak_resident_bytes()
        clusters = index.clusters(np.ones(count, bool))
        done = time.process_time()
    found = {
        "seconds": done - started,
        "sketch_s": sketched - started,
        "join_s": done - sketched,
        "sketched_bytes": sketched_bytes,
    }
    return found | {"peak_bytes": peak_resident_bytes(), **_summary(clusters)}


def peer(path: Path, count: int) -> dict:
    """The same by datasketch."""
    sys.path.insert(0, str(REPOSITORY / "tests" / "support"))
    from datasketch_clusters import datasketch_clusters

    texts = [text for part in texts_of(path, count) for text in part]
    started = time.process_time()
    clusters = datasketch_clusters(texts, THRESHOLD)
    return {
        "seconds": time.process_time() - started,
        "peak_bytes": peak_resident_bytes(),
        **_summary(np.array(clusters)),
    }


def curate(path: Path, count: int) -> dict:
    """Seconds and peak memory from the source's rows to validated Parquet files and the report of coverage."""
    from storage.artifacts import Artifact
    from storage.writer import ArtifactWriter
    from tasks.curate.config import CurateConfig
    from tasks.curate.coverage import measure, sampled_places
    from tasks.curate.pool import spool_pool

    source = {"path": str(path), "prompt_field": "q", "verifier": {"name": "length"}}
    config = CurateConfig(sources=[source], near_duplicate_threshold=THRESHOLD)
    with tempfile.TemporaryDirectory() as folder:
        started = time.process_time()
        pool = spool_pool(config, 0, Path(folder))
        pooled = time.process_time()
        kept = np.flatnonzero(pool.kept)
        few = kept[sampled_places(len(kept), config.coverage.topic_sample, 0)]
        measure(pool.domains(), pool.lengths(), pool.texts(few), config.coverage, seed=0)
        covered = time.process_time()
        writer = ArtifactWriter(Artifact(root=folder, stage="curate", fingerprint="bench"), Path(folder))
        writer.add_table("prompts", pool.prompts())
        writer.add_table("rejected", pool.rejected())
        written = time.process_time()
        assert writer.tables["prompts"].rows + writer.tables["rejected"].rows == count
    parts = {"pool_s": pooled - started, "coverage_s": covered - pooled, "write_s": written - covered}
    return {"seconds": written - started, **parts, "peak_bytes": peak_resident_bytes()}


def _summary(clusters: np.ndarray) -> dict:
    _, sizes = np.unique(clusters, return_counts=True)
    return {"clusters": len(sizes), "pairs": int((sizes * (sizes - 1) // 2).sum())}


run_apart = partial(apart.run_apart, __file__, threads=2)


def measure_all(home: Path, count: int = MILLION, fewer: int = FEWER, peer_count: int = PEER) -> list[Line]:
    """The lines of this part, for `count` prompts."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "prompts.parquet"
    run_apart("store", str(count), str(path))
    few, own = (run_apart("search", str(number), str(path)) for number in (peer_count, count))
    middle, other = run_apart("search", str(fewer), str(path)), run_apart("peer", str(peer_count), str(path))
    whole = run_apart("curate", str(count), str(path))
    print(
        f"search of {count}: sketches {own['sketch_s']:.1f} s, pairs {own['join_s']:.1f} s, {own['clusters']} clusters"
    )
    print(
        f"curate of {count}: pool {whole['pool_s']:.1f} s, coverage {whole['coverage_s']:.1f} s, "
        f"written {whole['write_s']:.1f} s"
    )
    faster, linear = other["seconds"] / few["seconds"], own["seconds"] / count / (middle["seconds"] / fewer)
    recall = few["pairs"] / max(other["pairs"], 1)
    grown = (own["peak_bytes"] - middle["peak_bytes"]) / (count - fewer)
    memory = whole["peak_bytes"] / 2**30
    return [
        _limited(f"near duplicates of {count} prompts / limit, CPU s", own["seconds"], SEARCH_LIMIT_S),
        Line(
            f"datasketch / own search, {peer_count} prompts, CPU s",
            f"{other['seconds']:.1f} / {few['seconds']:.2f}",
            faster,
            f">= {PEER_LIMIT:g}",
            faster >= PEER_LIMIT,
        ),
        Line(
            "pairs in clusters, own / datasketch",
            f"{few['pairs']} / {other['pairs']}",
            recall,
            ">= 0.98",
            recall >= 0.98,
        ),
        Line(
            f"search, time per prompt of {count} / {fewer}",
            f"{own['seconds']:.1f} / {middle['seconds']:.1f}",
            linear,
            f"<= {LINEAR_LIMIT}",
            linear <= LINEAR_LIMIT,
        ),
        _limited(f"search, bytes of memory a prompt, {fewer} to {count}", grown, BYTES_LIMIT),
        _limited(f"curate of {count} prompts / limit, CPU s", whole["seconds"], CURATE_LIMIT_S),
        _limited(f"curate of {count} prompts, peak memory / limit, GiB", memory, MEMORY_LIMIT_GIB),
    ]


def _limited(name: str, found: float, limit: float) -> Line:
    return Line(name, f"{found:.1f} / {limit:g}", found / limit, "<= 1", found <= limit)


def main(counts: list[int]) -> int:
    """This part alone, over other numbers of prompts if they are given: all, fewer, datasketch's."""
    with tempfile.TemporaryDirectory() as folder:
        return 0 if all([show(line) for line in measure_all(Path(folder), *counts)]) else 1


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["store", count, path]:
            store(int(count), Path(path))
        case ["search" | "peer" | "curate" as name, count, path]:
            print(json.dumps({"search": search, "peer": peer, "curate": curate}[name](Path(path), int(count))))
        case given:
            sys.exit(main([int(count) for count in given]))

"""The pool on disk: chunks change nothing, memory per prompt is the same for any number, embeddings join clusters."""

import json

import numpy as np
import polars as pl
import pytest

from storage.errors import InputError
from storage.records import Prompt, RejectedRow
from tasks._maths.near_duplicates import Clusters
from tasks._sources.rows import Rejection
from tasks.curate import pool as pools
from tasks.curate import spool as spools
from tasks.curate.config import CurateConfig
from tasks.curate.dedup_config import EmbeddingConfig
from tasks.curate.duplicates import TEXTS_AT_A_TIME
from tasks.curate.embeddings import COLUMNS, hashed_vectors, join_by_cosine, model_vectors
from tasks.curate.pool import Choices, build_pool, spool_pool

VERIFIER = {"name": "length"}
WORDS = [f"w{number}" for number in range(500)]


def write(path, texts) -> dict:
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in texts))
    return {"path": str(path), "prompt_field": "q", "verifier": VERIFIER}


def texts_of(count: int, seed: int = 0) -> list[str]:
    """Texts of 30 words; each tenth repeats the one before it, each seventh with one word changed."""
    words = np.random.default_rng(seed).choice(WORDS, (count, 30))
    for number in range(1, count):
        if number % 7 == 0:
            words[number] = words[number - 1]
            words[number, 29] = "changed"
        elif number % 10 == 0:
            words[number] = words[number - 1]
    return [" ".join(row) for row in words]


def test_a_pool_of_many_chunks_is_the_pool_of_one(tmp_path, monkeypatch):
    sources = [
        write(tmp_path / "a.jsonl", texts_of(80)),
        write(tmp_path / "b.jsonl", [*texts_of(40), "", *texts_of(9, 1)]),
    ]
    config = CurateConfig(sources=sources, eval_prompts=10)
    whole, rejected = build_pool(config, seed=0)
    monkeypatch.setattr(pools, "TEXTS_AT_A_TIME", 7)
    monkeypatch.setattr(spools, "ROWS_PER_FRAME", 20)
    parts = spool_pool(config, 0, tmp_path)
    frames = list(parts.prompts())
    assert [len(frame) >= 20 for frame in frames[:-1]] == [True] * (len(frames) - 1)
    assert pl.concat(frames).equals(whole)
    assert pl.concat(parts.rejected()).equals(rejected)
    assert Prompt.is_valid(whole) and RejectedRow.is_valid(rejected)
    assert rejected["reason"].value_counts(sort=True).rows()[0][0] == "exact_duplicate"
    assert parts.reasons() == {"empty": 1, "exact_duplicate": len(rejected) - 1}
    assert parts.kept.sum() == len(whole) and parts.held_out.sum() == 10
    some = np.array([0, 8, 60])
    assert parts.texts(some) == [texts_of(80)[place] for place in some]


@pytest.mark.parametrize("count", [TEXTS_AT_A_TIME, 5 * TEXTS_AT_A_TIME])
def test_what_stays_in_memory_is_a_few_hundred_bytes_a_prompt_whatever_their_number(tmp_path, monkeypatch, count):
    held = {}
    clusters = pools.ShingleIndex.clusters

    def weighed(self, kept):
        parts = [*self._band_hashes, *self._set_hashes, *self._sizes]
        held["bytes"] = sum(part.nbytes for part in parts)
        return clusters(self, kept)

    monkeypatch.setattr(pools.ShingleIndex, "clusters", weighed)
    config = CurateConfig(sources=[write(tmp_path / "a.jsonl", texts_of(count))], eval_prompts=10)
    pool = spool_pool(config, 0, tmp_path)
    arrays = [value for value in vars(pool.index).values() if isinstance(value, np.ndarray)]
    arrays += [pool.first, pool.kept, pool.held_out, pool.cluster]
    sketches = 128 * count
    assert (held["bytes"] + sum(array.nbytes for array in arrays) + sketches) / count < 360
    assert sum(len(frame) for frame in pool.prompts()) == pool.kept.sum()


def test_screens_weights_and_quotas_leave_out_rows_with_their_reason(tmp_path):
    source = write(tmp_path / "a.jsonl", texts_of(60))
    config = CurateConfig(sources=[source | {"domain": "trivia"}], eval_prompts=5)
    seen = {}

    def screen(prompts):
        return [Rejection("a", 1, "too_short") if number < 3 else None for number, _ in enumerate(prompts)]

    def weights(frame):
        seen["weights"] = frame
        return range(0, len(frame), 2)

    def quotas(frame):
        seen["quotas"] = frame
        return [0, 1, 2]

    pool, rejected = build_pool(config, seed=0, choices=Choices(screen, weights, quotas))
    assert seen["weights"].columns == ["prompt_id", "cluster_id", "domain", "source_index"]
    assert seen["weights"]["domain"].unique().to_list() == ["trivia"]
    assert seen["weights"]["source_index"].unique().to_list() == [0]
    assert set(seen["quotas"]["prompt_id"]) <= set(seen["weights"]["prompt_id"][::2])
    assert pool.filter(split="train")["prompt_id"].to_list() == seen["quotas"]["prompt_id"][:3].to_list()
    held_out = pool.filter(split="eval")["prompt_id"].to_list()
    assert 0 < len(held_out) <= 5 and not set(held_out) & set(seen["quotas"]["prompt_id"])
    counts = dict(rejected["reason"].value_counts().rows())
    assert counts["too_short"] == 3 and counts["over_weight"] == len(seen["weights"]) // 2
    assert counts["over_quota"] == len(seen["quotas"]) - 3
    assert len(pool) + len(rejected) == 60
    assert RejectedRow.is_valid(rejected)


def labels(texts: list[str], vectors: np.ndarray, threshold: float = 0.95) -> list[int]:
    clusters = Clusters(np.arange(len(texts)))
    join_by_cosine(clusters, np.arange(len(texts)), vectors, threshold)
    return clusters.labels.tolist()


PARAPHRASES = [
    "Which river is the longest one in Africa, and through which countries does it flow?",
    "Through which countries does it flow, and which river is the longest one in Africa?",
    "Write a limerick about a baker who never sleeps and whose bread always burns.",
]


def test_hashed_vectors_see_the_same_words_in_another_order():
    vectors = hashed_vectors(iter([PARAPHRASES[:2], PARAPHRASES[2:]]), dimensions=256)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert labels(PARAPHRASES, vectors) == [0, 0, 2]


def test_hashed_vectors_are_tf_idf_where_no_two_words_share_a_dimension():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = texts_of(20)
    expected = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True).fit_transform(texts).toarray()
    vectors = hashed_vectors(iter([texts]), dimensions=1 << 17)
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)


def test_cosines_over_blocks_give_the_components_of_every_pair(monkeypatch):
    draw = np.random.default_rng(0)
    centres = draw.normal(size=(40, 16))
    vectors = np.repeat(centres, 5, axis=0)[draw.permutation(200)] + draw.normal(size=(200, 16)) * 0.15
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    monkeypatch.setattr("tasks.curate.embeddings.ROWS", 7)
    monkeypatch.setattr("tasks.curate.embeddings.COLUMNS", 30)
    from scipy.sparse.csgraph import connected_components

    count, expected = connected_components(vectors @ vectors.T >= 0.95, directed=False)
    found = labels(["x"] * 200, vectors)
    assert 40 <= count < 150
    assert len(set(zip(found, expected.tolist(), strict=True))) == len(set(found)) == count
    assert COLUMNS > 30


def test_clusters_by_words_and_by_vectors_are_joined_in_the_pool(tmp_path):
    texts = [*PARAPHRASES, PARAPHRASES[1] + " Please.", "What is a quasar, and who found the first one of them?"]
    source = write(tmp_path / "rows.jsonl", texts)
    words = CurateConfig(sources=[source], eval_prompts=0, near_duplicate_threshold=0.7)
    alone, _ = build_pool(words, seed=0)
    joined, _ = build_pool(words.model_copy(update={"embeddings": EmbeddingConfig(threshold=0.9)}), seed=0)
    assert alone["cluster_id"].n_unique() == 4
    assert joined["cluster_id"].n_unique() == 3
    assert joined["cluster_id"][:4].n_unique() == 2


def test_a_models_vectors_are_the_mean_over_the_tokens_whatever_the_batch(tiny_model, monkeypatch):
    texts = [*PARAPHRASES, "one", PARAPHRASES[0]]
    whole = model_vectors(iter([texts]), tiny_model, max_tokens=64)
    monkeypatch.setattr("tasks.curate.embeddings.TEXTS_PER_BATCH", 1)
    alone = model_vectors(iter([[text] for text in texts]), tiny_model, max_tokens=64)
    np.testing.assert_allclose(whole, alone, atol=1e-4)
    assert labels(texts, whole, 0.999) == [0, 1, 2, 3, 0]


def test_more_prompts_than_can_be_compared_are_refused_with_what_to_do(tmp_path):
    config = CurateConfig(sources=[write(tmp_path / "rows.jsonl", texts_of(30))], embeddings={"max_prompts": 5})
    with pytest.raises(InputError, match="more than its max_prompts 5; raise it"):
        build_pool(config, seed=0)


def test_a_model_belongs_to_its_method():
    with pytest.raises(ValueError, match="method model needs it"):
        EmbeddingConfig(method="model")
    with pytest.raises(ValueError, match="`model` belongs to method model"):
        EmbeddingConfig(model="folder")

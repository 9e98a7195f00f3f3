"""Near duplicates: hashed words, shingles and bands against plain Python, every pair, and datasketch."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from datasketch.lsh import _optimal_param
from datasketch_clusters import brute_force_clusters, datasketch_clusters, jaccard, shingles
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tasks._maths import near_duplicates
from tasks._maths.minhash import PERMUTATIONS, best_bands, minima, shingle_sets
from tasks._maths.near_duplicates import Clusters, ShingleIndex
from tasks._maths.words import hashed_words, ngrams, whole_texts, words_of
from tasks._sources.split import split_by_cluster
from tasks.curate.config import CurateConfig
from tasks.curate.duplicates import (
    first_of_each,
    id_names,
    id_numbers,
    smallest_of_cluster,
)
from tasks.curate.held_out import hold_out

VOCABULARY = ("sun", "moon", "rain", "old", "pond", "frog", "leaps", "in", "water", "sound")
SENTENCES = st.lists(st.sampled_from(VOCABULARY), min_size=1, max_size=14).map(" ".join)
TEXTS = st.lists(st.one_of(SENTENCES, st.text(max_size=30)), min_size=1, max_size=12)
IDS = st.text("0123456789abcdef", min_size=32, max_size=32)


def varied(count: int, seed: int) -> list[str]:
    """Texts of 5 to 60 words; every third one repeats an earlier one with some words changed."""
    draw = np.random.default_rng(seed)
    words = np.array([f"w{number}" for number in range(400)])
    rows: list[np.ndarray] = []
    for number in range(count):
        if number % 3 == 2:
            row = rows[draw.integers(number)].copy()
            changed = draw.integers(0, len(row), draw.integers(0, 4))
            row[changed] = draw.choice(words, len(changed))
        else:
            row = draw.choice(words, draw.integers(5, 60))
        rows.append(row)
    return [" ".join(row) for row in rows]


def cluster_near_duplicates(texts: list[str], threshold: float) -> np.ndarray:
    with tempfile.TemporaryDirectory() as folder:
        index = ShingleIndex(threshold, Path(folder))
        for first in range(0, len(texts), 4096):
            index.add(hashed_words(texts[first : first + 4096]))
        return index.clusters(np.ones(len(texts), bool))


def pairs(clusters) -> set[tuple[int, int]]:
    members: dict[int, list[int]] = {}
    for index, cluster in enumerate(clusters):
        members.setdefault(int(cluster), []).append(index)
    return {(one, other) for group in members.values() for one in group for other in group if one < other}


@settings(deadline=None)
@given(texts=TEXTS)
@example(texts=["İstanbul naïve_word 12½ ², x", "!!! ???", "Straße ΣΟΦΟΣ", "日本 語", "नमस्ते दुनिया", "\u00a0—\u2003…"])
def test_hashed_words_are_the_words_that_re_finds(texts):
    words = hashed_words(texts)
    expected = [words_of(text) for text in texts]
    assert words.sizes.tolist() == [len(each) for each in expected]
    flat = [word for each in expected for word in each]
    assert len(set(zip(flat, words.values.tolist(), strict=True))) == len(set(flat)) == len(np.unique(words.values))


def test_words_of_a_block_are_those_of_each_text_alone(monkeypatch):
    texts = varied(30, seed=3)
    whole = hashed_words(texts)
    monkeypatch.setattr("tasks._maths.words.BLOCK_CHARACTERS", 100)
    np.testing.assert_array_equal(hashed_words(texts).values, whole.values)
    np.testing.assert_array_equal(hashed_words(texts).offsets, whole.offsets)


@settings(deadline=None)
@given(texts=TEXTS, n=st.integers(1, 5))
def test_ngrams_are_the_runs_of_words_and_whole_texts_know_their_order(texts, n):
    found = ngrams(hashed_words(texts), n)
    split = [words_of(text) for text in texts]
    expected = [tuple(words[at : at + n]) for words in split for at in range(len(words) - n + 1)]
    assert found.sizes.tolist() == [max(len(words) - n + 1, 0) for words in split]
    assert len(set(zip(expected, found.values.tolist(), strict=True))) == len(set(expected))
    assert len(set(found.values.tolist())) == len(set(expected))
    wholes = whole_texts(hashed_words(texts))
    assert len(np.unique(wholes)) == len({tuple(words) for words in split})


@settings(deadline=None)
@given(texts=TEXTS)
def test_shingle_sets_have_the_similarity_of_the_words_3_grams(texts):
    sets = shingle_sets(hashed_words(texts))
    own = [set(sets.values[first:last].tolist()) for first, last in zip(sets.offsets, sets.offsets[1:], strict=False)]
    plain = [shingles(text) for text in texts]
    for one in range(len(texts)):
        assert len(own[one]) == sets.sizes[one] == len(plain[one])
        for other in range(one):
            assert len(own[one] & own[other]) == len(plain[one] & plain[other])


@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.95])
def test_bands_are_those_of_datasketch(threshold):
    assert best_bands(threshold) == _optimal_param(threshold, PERMUTATIONS, 0.1, 0.9)


def test_minima_agree_as_often_as_sets_are_similar():
    """Broder 1997: two minima agree with the probability of the Jaccard similarity."""
    count, shared = 400, 60
    draw = np.random.default_rng(0)
    texts = []
    for row in draw.integers(0, 100_000, (count, shared + 40)).astype(str):
        texts += [" ".join(row[:-20]), " ".join(row[20:])]
    agree = (lambda found: found[0::2] == found[1::2])(minima(shingle_sets(hashed_words(texts))))
    similarity = np.mean([jaccard(shingles(a), shingles(b)) for a, b in zip(texts[::2], texts[1::2], strict=True)])
    deviation = np.sqrt(similarity * (1 - similarity) / (count * PERMUTATIONS))
    assert abs(agree.mean() - similarity) < 5 * deviation
    assert abs(agree[:, 0].mean() - similarity) < 5 * np.sqrt(similarity * (1 - similarity) / count)


@pytest.mark.parametrize("threshold", [0.5, 0.8])
def test_clusters_are_those_of_every_pair_but_for_what_bands_miss(threshold):
    texts = varied(400, seed=1)
    own = pairs(cluster_near_duplicates(texts, threshold))
    every = pairs(brute_force_clusters(texts, threshold))
    peer = pairs(datasketch_clusters(texts, threshold))
    assert own <= every
    assert len(own) >= 0.95 * len(every) > 80
    assert len(own) >= 0.97 * len(peer)


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=1, max_size=12))
def test_clusters_join_only_what_is_linked_by_similar_texts(texts):
    found = [shingles(text) for text in texts]
    clusters = cluster_near_duplicates(texts, threshold=0.8)
    for index, document in enumerate(found):
        others = [other for place, other in enumerate(found) if clusters[place] == clusters[index] and place != index]
        assert not others or max(jaccard(document, other) for other in others) >= 0.8
        same = [place for place, other in enumerate(found) if other == document]
        assert {clusters[place] for place in same} == {clusters[index]}
        assert clusters[index] == min(place for place in range(len(texts)) if clusters[place] == clusters[index])


@settings(max_examples=30, deadline=None)
@given(texts=st.lists(SENTENCES, min_size=2, max_size=12, unique=True), data=st.data())
def test_cluster_names_do_not_depend_on_the_order(texts, data):
    order = data.draw(st.permutations(range(len(texts))))
    ids = [f"{index:032x}" for index in range(len(texts))]

    def named(places):
        numbers, kept = id_numbers([ids[place] for place in places]), np.ones(len(places), bool)
        clusters = cluster_near_duplicates([texts[place] for place in places], 0.8)
        names = id_names(numbers[smallest_of_cluster(numbers, clusters, kept)])
        return dict(zip(numbers[:, 1].tolist(), names.to_list(), strict=True))

    assert named(range(len(texts))) == named(order)


def test_a_long_prompt_with_one_word_changed_shares_a_cluster():
    text = (
        "A train leaves the station at nine in the morning and travels east at sixty miles per hour while another "
        "train leaves the next town an hour later going west at forty miles per hour; when do the two trains meet?"
    )
    unrelated = "Explain in two sentences why bread rises when yeast is added to warm dough and left to rest."
    texts = [text, text.replace("nine", "ten"), unrelated]
    assert jaccard(shingles(texts[0]), shingles(texts[1])) >= 0.8
    assert cluster_near_duplicates(texts, 0.8).tolist() == [0, 0, 2]


def test_a_threshold_of_one_joins_equal_texts_alone():
    assert cluster_near_duplicates(["The old pond.", "the OLD pond", "the old pond now"], 1.0).tolist() == [0, 0, 2]


@pytest.fixture
def compared(monkeypatch):
    """How many pairs each call of the exact check got."""
    counts: list[int] = []
    similar = near_duplicates._Checker.similar

    def counted(self, left, right):
        counts.append(len(left))
        return similar(self, left, right)

    monkeypatch.setattr(near_duplicates._Checker, "similar", counted)
    return counts


COMMON = "please write a short and friendly note to the neighbours about the party that we plan for the "


def test_twenty_thousand_equal_texts_are_never_compared(compared):
    assert not cluster_near_duplicates([COMMON + "first"] * 20_000, 0.8).any()
    assert sum(compared) == 0


def test_a_bucket_of_twenty_thousand_similar_texts_costs_one_comparison_each(compared):
    """Every two of them are candidates in most bands: two hundred million pairs."""
    texts = [COMMON + f"evening of day{number}" for number in range(20_000)]
    assert not cluster_near_duplicates(texts, 0.8).any()
    assert sum(compared) <= 2 * len(texts)


def test_a_bucket_of_unlike_texts_is_compared_within_a_window(compared, tmp_path, monkeypatch):
    """Texts that share a band by accident, whatever their number: pairs grow with it, not with its square."""
    texts = [" ".join(f"w{number}x{place}" for place in range(12)) for number in range(3000)]
    index = ShingleIndex(0.8, tmp_path)
    index.add(hashed_words(texts))
    index._band_hashes = [np.zeros_like(part) for part in index._band_hashes]
    clusters = index.clusters(np.ones(len(texts), bool))
    np.testing.assert_array_equal(clusters, np.arange(len(texts)))
    assert sum(compared) <= len(texts) * near_duplicates.WINDOW * best_bands(0.8).number


def test_any_number_of_links_between_two_clusters_join_them():
    for links in (1, 255, 256, 65_536):
        clusters = Clusters(np.arange(4))
        clusters.join(np.full(links, 3), np.full(links, 1))
        assert clusters.labels.tolist() == [0, 1, 2, 1]


def test_texts_that_are_not_kept_join_nothing(tmp_path):
    texts = [COMMON + "first of may", COMMON + "second of may", COMMON + "first of may"]
    index = ShingleIndex(0.5, tmp_path)
    index.add(hashed_words(texts))
    assert index.clusters(np.array([True, True, True])).tolist() == [0, 0, 0]
    assert index.clusters(np.array([False, True, True])).tolist() == [0, 1, 1]


@given(ids=st.lists(IDS, min_size=1, max_size=20))
def test_ids_as_numbers_come_back_and_the_first_of_each_is_found(ids):
    numbers = id_numbers(ids)
    assert id_names(numbers).to_list() == ids
    assert first_of_each(numbers).tolist() == [ids.index(each) for each in ids]
    smallest = smallest_of_cluster(numbers, np.zeros(len(ids), np.int64), np.ones(len(ids), bool))
    assert {ids[place] for place in smallest} == {min(ids)}


@given(names=st.lists(st.integers(0, 12), min_size=2, max_size=60), wanted=st.integers(0, 20), seed=st.integers(0, 5))
def test_the_same_prompts_are_held_out_as_by_names(names, wanted, seed):
    ids = [f"{index:032x}" for index in range(len(names))]
    first = np.array([names.index(name) for name in names])
    expected = split_by_cluster([ids[place] for place in first], wanted, seed)
    held_out = expected.count("eval")
    if held_out == len(names) or (wanted and not held_out):
        return
    config = CurateConfig(sources=[{"generator": "haiku"}], eval_prompts=wanted)
    found = hold_out(first, id_numbers(ids), config, seed)
    assert ["eval" if each else "train" for each in found] == expected

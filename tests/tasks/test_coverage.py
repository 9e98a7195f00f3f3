"""What a pool covers: the Vendi score by hand, topics that are known, the table, the picture, the stage."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.records import QUANTILES, CoverageMeasure
from tasks.curate.config import CurateConfig
from tasks.curate.coverage import Coverage, Topic, measure, sampled_places, vendi_score
from tasks.curate.coverage_picture import draw_coverage
from tasks.curate.dedup_config import CoverageConfig, EmbeddingConfig

THEMES = {
    "cooking": ("bread", "yeast", "oven", "flour", "dough", "butter"),
    "planets": ("orbit", "moon", "saturn", "gravity", "comet", "telescope"),
    "law": ("court", "judge", "appeal", "statute", "verdict", "jury"),
}


def themed(count: int, seed: int = 0) -> list[str]:
    draw = np.random.default_rng(seed)
    kinds = list(THEMES.values())
    return ["Tell me about the " + " ".join(draw.choice(kinds[i % 3], 4)) + " in your own words" for i in range(count)]


def test_vendi_score_of_matrices_whose_eigenvalues_are_known():
    assert vendi_score(np.eye(7)) == pytest.approx(7)
    assert vendi_score(np.ones((5, 5))) == pytest.approx(1)
    assert vendi_score(np.kron(np.eye(3), np.ones((4, 4)))) == pytest.approx(3)
    # Two items of similarity s: the eigenvalues of K / 2 are (1 + s) / 2 and (1 - s) / 2.
    for s in (0.0, 0.25, 0.5, 0.9):
        high, low = (1 + s) / 2, (1 - s) / 2
        entropy = -high * math.log(high) - low * math.log(low)
        assert vendi_score(np.array([[1, s], [s, 1]])) == pytest.approx(math.exp(entropy))
    # Groups of 3 and 1 at right angles: eigenvalues 3/4 and 1/4.
    assert vendi_score(np.kron(np.diag([1, 0]), np.ones((3, 3)))[:4, :4] + np.diag([0, 0, 0, 1])) == pytest.approx(
        math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    )


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 1000), count=st.integers(1, 12), copies=st.integers(1, 4))
def test_vendi_score_lies_between_one_and_n_and_copies_add_nothing(seed, count, copies):
    vectors = np.random.default_rng(seed).normal(size=(count, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    score = vendi_score(vectors @ vectors.T)
    assert 1 - 1e-9 <= score <= min(count, 6) + 1e-9
    copied = np.repeat(vectors, copies, axis=0)
    assert vendi_score(copied @ copied.T) == pytest.approx(score)


def measured(texts: list[str], **config) -> Coverage:
    lengths = np.array([len(text.split()) for text in texts])
    return measure({"general": len(texts)}, lengths, texts, CoverageConfig(**config), seed=0)


def test_topics_are_the_themes_that_the_prompts_have():
    found = measured(themed(90), topics=3).topics
    assert [topic.prompts for topic in found] == [30, 30, 30]
    named = {theme for topic in found for theme, words in THEMES.items() if set(topic.words) <= set(words)}
    assert named == set(THEMES)


def test_varied_prompts_score_higher_than_alike_ones():
    alike = measured(["Tell me about the bread in the oven"] * 60, topics=3)
    assert alike.vendi == pytest.approx(1)
    assert len(alike.topics) == 1 and alike.topics[0].prompts == 60
    assert measured(themed(60), topics=0).vendi > 3


def test_coverage_is_the_same_again_and_of_a_sample_at_most():
    texts = themed(300)
    one, other = measured(texts, vendi_sample=50), measured(texts, vendi_sample=50)
    assert one.frame().equals(other.frame())
    assert one.vendi_prompts == 50
    assert measured(texts, vendi_sample=0).vendi is None
    places = sampled_places(1000, 10, seed=1)
    assert len(set(places.tolist())) == 10 and (np.diff(places) > 0).all()
    np.testing.assert_array_equal(sampled_places(5, 10, seed=1), np.arange(5))


@pytest.mark.parametrize("texts", [["?!"], ["??", "!!"], ["one"], ["a", "a"]])
def test_pools_with_hardly_a_word_are_covered_too(texts, tmp_path):
    found = measured(texts)
    CoverageMeasure.validate(found.frame())
    assert draw_coverage(found, tmp_path / "coverage.png").stat().st_size > 1000


def test_the_table_and_the_picture_say_the_same_each_time(tmp_path):
    coverage = Coverage(
        {"verse": 3, "": 1},
        np.array([4, 8, 8, 100]),
        [Topic(["$x", "_y^"], 3), Topic([], 1)],
        vendi=2.5,
        vendi_prompts=4,
    )
    frame = CoverageMeasure.validate(coverage.frame())
    shares = {row["name"]: row["value"] for row in frame.filter(measure="domain").to_dicts()}
    assert shares == {"verse": 0.75, "": 0.25}
    assert frame.filter(measure="length")["value"].to_list() == np.quantile([4, 8, 8, 100], QUANTILES).tolist()
    assert frame.filter(measure="topic")["words"].to_list() == [["$x", "_y^"], []]
    assert coverage.metrics() == {"domains": 2.0, "largest_domain_share": 0.75, "words_p50": 8.0, "vendi": 2.5}
    first = draw_coverage(coverage, tmp_path / "one.png").read_bytes()
    assert first == draw_coverage(coverage, tmp_path / "two.png").read_bytes()


PAGE = (Path(__file__).parents[2] / "deployments" / "coverage.md").read_text()


@pytest.mark.parametrize("block", re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_every_configuration_of_the_page_is_one(block):
    CurateConfig(**yaml.safe_load(block)["curate"])
    for line in block.splitlines():
        if line.startswith("# embeddings"):
            EmbeddingConfig(**yaml.safe_load(line.removeprefix("# "))["embeddings"])

"""What a pool covers: domains, lengths, topics and how varied it is, as a table of measures."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from storage.records import QUANTILES, CoverageMeasure
from tasks.curate.dedup_config import CoverageConfig

TOP_WORDS = 5
MOST_WORDS = 20_000
RESTARTS = 2
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Topic:
    """A cluster of prompts: the words that tell it from the rest, and how many of the sampled prompts fall to it."""

    words: list[str]
    prompts: int


@dataclass(frozen=True)
class Coverage:
    """The measures of a pool. `lengths`: words of each prompt; topics and Vendi score are of samples of it."""

    domains: dict[str, int]
    lengths: NDArray[np.int64]
    topics: list[Topic] = field(default_factory=list)
    vendi: float | None = None
    vendi_prompts: int = 0

    def frame(self) -> pl.DataFrame:
        """A `CoverageMeasure` frame."""
        prompts, sampled = len(self.lengths), sum(topic.prompts for topic in self.topics)
        rows: list[tuple[str, str, int, float, list[str]]] = [
            ("domain", name, count, count / prompts, []) for name, count in self.domains.items()
        ]
        quantiles = np.quantile(self.lengths, QUANTILES)
        rows += [
            ("length", f"quantile {at:.2f}", prompts, float(value), [])
            for at, value in zip(QUANTILES, quantiles, strict=True)
        ]
        rows += [
            ("topic", f"topic {number:02d}", topic.prompts, topic.prompts / sampled, topic.words)
            for number, topic in enumerate(self.topics, start=1)
        ]
        if self.vendi is not None:
            rows.append(("diversity", "vendi", self.vendi_prompts, self.vendi, []))
        schema = CoverageMeasure.create_empty().schema
        return pl.DataFrame(rows, schema=schema, orient="row")

    def metrics(self) -> dict[str, float]:
        """The few numbers that a tracker shows over time."""
        shares = [count / len(self.lengths) for count in self.domains.values()]
        found = {
            "domains": float(len(self.domains)),
            "largest_domain_share": max(shares),
            "words_p50": float(np.median(self.lengths)),
        }
        return found if self.vendi is None else found | {"vendi": self.vendi}


def sampled_places(prompts: int, wanted: int, seed: int) -> NDArray[np.int64]:
    """At most `wanted` of the numbers below `prompts`, drawn without replacement, ascending."""
    if prompts <= wanted:
        return np.arange(prompts)
    return np.sort(np.random.default_rng(seed).choice(prompts, wanted, replace=False))


def measure(
    domains: dict[str, int], lengths: NDArray[np.int64], texts: Sequence[str], config: CoverageConfig, seed: int
) -> Coverage:
    """The coverage of a pool; `texts` are a sample of its prompts' texts, for topics and the Vendi score."""
    vectors, words = tfidf(texts)
    topics = topics_of(vectors, words, config.topics, seed) if config.topics and words else []
    if not (config.vendi_sample and words):
        return Coverage(domains, lengths, topics)
    few = vectors[sampled_places(len(texts), config.vendi_sample, seed)]
    score = vendi_score((few @ few.T).toarray())
    return Coverage(domains, lengths, topics, round(score, 6), few.shape[0])


def vendi_score(similarities: Matrix) -> float:
    """The effective number of different items: exp of the entropy of the eigenvalues of K / n.

    Friedman and Dieng 2022 (arXiv 2210.02410), definition 3.1. `similarities`: K, (n, n), symmetric and positive
    semidefinite with ones on its diagonal. From 1, all alike, to n, all at right angles.
    """
    values = np.linalg.eigvalsh(similarities / len(similarities))
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def tfidf(texts: Sequence[str]) -> tuple[csr_matrix, list[str]]:
    """Unit TF-IDF vectors of texts, (texts, words), and the words; no words where no text has any."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(token_pattern=r"\w+", sublinear_tf=True, max_features=MOST_WORDS)
    if not any(vectorizer.build_analyzer()(text) for text in texts):
        return csr_matrix((len(texts), 0)), []
    vectors = csr_matrix(vectorizer.fit_transform(texts))
    return vectors, list(vectorizer.get_feature_names_out())


def topics_of(vectors: csr_matrix, words: list[str], count: int, seed: int) -> list[Topic]:
    """At most `count` topics, the largest first: k-means of unit vectors (spherical but for its means).

    A topic's words are those whose mean weight in it is furthest above their mean weight in all.
    """
    from sklearn.cluster import KMeans

    clusters = min(count, _different(vectors))
    model = KMeans(clusters, n_init=RESTARTS, random_state=seed).fit(vectors)
    overall = np.asarray(vectors.mean(axis=0)).reshape(-1)
    sizes = np.bincount(model.labels_, minlength=clusters)
    topics = []
    for number in np.argsort(-sizes, kind="stable"):
        above = model.cluster_centers_[number] - overall
        best = np.argsort(-above, kind="stable")[:TOP_WORDS]
        topics.append(Topic([words[word] for word in best if above[word] > 0 or clusters == 1], int(sizes[number])))
    return topics


def _different(vectors: csr_matrix) -> int:
    """How many of the vectors differ: by their products with one random vector."""
    direction = np.random.default_rng(0).normal(size=vectors.shape[1])
    return len(np.unique((vectors @ direction).round(9)))

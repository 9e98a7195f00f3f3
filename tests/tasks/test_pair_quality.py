"""Label quality on pairs whose wrong labels are known; learning curves whose law is known."""

import numpy as np
import polars as pl
import pytest
from frozen_pairs import known_pairs

from storage.errors import TooFew
from storage.records import RECORDS
from tasks._maths.learning_curve import CurveFit, PowerLaw, fit_curve, fit_power_law
from tasks._maths.pair_quality import Rules, deciles, judge
from tasks._maths.paired_answers import cross_validate, member_weights, right
from tasks._training.stored_pairs import StoredPairs
from tasks.pair_quality.config import PairQualityConfig
from tasks.pair_quality.quality import judge_pairs

CONFIG = PairQualityConfig(ridges=[1.0], members=3, repeats=2, lowest_share=0.2, middle_share=0.2)
RULES = Rules(lowest_share=0.25, lowest="flip", middle_share=0.25, middle="smooth", smoothing=0.2, margins=True)


def stored(pairs, held_out=None):
    held_out = np.zeros(len(pairs), dtype=bool) if held_out is None else held_out
    return StoredPairs(np.array([f"p{number:04d}" for number in range(len(pairs))]), held_out, pairs)


def test_the_rules_by_hand():
    """Of eight pairs the lowest quarter is flipped where it is below 0, the next quarter smoothed, the rest kept."""
    strengths = np.array([-1.0, 0.5, 2.0, 0.1, -0.5, 3.0, 0.2, 1.0])
    found = judge(np.stack([strengths - 0.1, strengths + 0.1], axis=1), RULES)
    assert found.action.tolist() == ["flip", "keep", "keep", "smooth", "flip", "keep", "smooth", "keep"]
    np.testing.assert_allclose(found.strength, strengths)
    np.testing.assert_allclose(found.deviation, 0.1)
    assert found.smoothing.tolist() == [0, 0, 0, 0.2, 0, 0, 0.2, 0]
    np.testing.assert_allclose(found.margin, [0, 0.5, 2, 0, 0, 3, 0, 1])
    assert judge(np.full((8, 1), 0.4), RULES).action.tolist() == ["smooth"] * 4 + ["keep"] * 4


def test_deciles_are_even():
    assert np.bincount(deciles(np.random.default_rng(0).normal(size=40))).tolist() == [0, *[4] * 10]


def test_wrong_labels_are_the_weak_ones_and_flipping_helps():
    """Secrets of RLHF II: of labels that are wrong in 25 % the strongest tenth is right, the weakest wrong."""
    pairs, wrong, _ = known_pairs(1200, noise=0.25, seed=1)
    judged = judge_pairs(stored(pairs), CONFIG, seed=0)
    RECORDS["pair_quality"].validate(judged.quality)
    RECORDS["strength_deciles"].validate(judged.deciles)
    by_decile = judged.quality.with_columns(wrong=pl.Series(wrong)).group_by("decile").agg(pl.col("wrong").mean())
    shares = dict(by_decile.iter_rows())
    assert shares[10] < 0.05 and shares[1] > 0.9
    assert judged.metrics["below_zero"] == pytest.approx(0.25, abs=0.08)
    acted = judged.quality["action"].to_numpy() == "flip"
    assert wrong[acted].mean() > 0.9
    by_confidence = judged.deciles.filter(pl.col("ordered_by") == "confidence")["accuracy"].to_list()
    assert np.mean(by_confidence[-3:]) > np.mean(by_confidence[:3]) + 0.1


def test_noise_of_a_quarter_caps_accuracy_where_theory_says():
    """methods.md 3.2: measured = a (1 - e) + (1 - a) e, a being the accuracy on true labels, e the share of flips."""
    noise = 0.25
    pairs, wrong, _ = known_pairs(3000, noise=noise, seed=2)
    correct = right(cross_validate(pairs, [1.0], folds=5, seed=0).single)
    true = np.where(wrong, 1 - correct, correct).mean()
    assert true > 0.95
    assert correct.mean() == pytest.approx(true * (1 - noise) + (1 - true) * noise, abs=0.02)


def test_a_split_by_pair_claims_what_a_split_by_prompt_does_not_find():
    """Pairs of a prompt share a mark that says nothing of other prompts: by pair it is learned by heart."""
    pairs, _, _ = known_pairs(300, features=200, per_prompt=3, sharpness=0.0, of_prompt=3.0, seed=3)
    by_prompt, by_pair = (
        right(cross_validate(pairs, [0.1], folds=5, seed=0, by_pair=leaky).single).mean() for leaky in (False, True)
    )
    assert by_pair > by_prompt + 0.2


def test_members_weigh_whole_clusters():
    clusters = np.array([3, 3, 1, 2, 1])
    weights = member_weights(clusters, 0, seed=5)
    assert weights[0] == weights[1] and weights[2] == weights[4] and weights.mean() == pytest.approx(1)
    assert not np.allclose(weights, member_weights(clusters, 1, seed=5))


def test_too_few_prompts_to_judge_by_others():
    pairs, _, _ = known_pairs(4, per_prompt=4)
    with pytest.raises(TooFew, match="1 clusters of prompts among the training pairs, expected at least 2"):
        judge_pairs(stored(pairs), CONFIG, seed=0)


def test_a_law_is_found_again():
    sizes = np.array([100.0, 200, 400, 800, 1600])
    law = PowerLaw(0.75, 1.5, 0.5)
    found = fit_power_law(sizes, law(sizes))
    assert (found.a, found.b, found.c) == pytest.approx((0.75, 1.5, 0.5), rel=0.02)
    noise = np.random.default_rng(0).normal(scale=0.01, size=(20, 5))
    curve = fit_curve(np.tile(sizes, (20, 1)), law(sizes) + noise, seed=0)
    assert curve.gain_low < float(law(3200) - law(1600)) < curve.gain_high
    assert curve.ceiling_low < 0.75 < curve.ceiling_high
    assert curve.verdict.startswith("more data would help: doubling 1,600 pairs would add ")


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.006, 0.02, "more data would help"), (0.0, 0.004, "hardly"), (0.001, 0.02, "can't tell")],
)
def test_the_verdict_in_words(low, high, words):
    assert words in CurveFit(PowerLaw(0.7, 1.0, 0.5), 1000, 0.003, low, high, 0.6, 0.8).verdict


def test_a_curve_takes_three_sizes():
    with pytest.raises(ValueError, match="three sizes at least"):
        fit_curve(np.ones((4, 2)), np.ones((4, 2)), seed=0)

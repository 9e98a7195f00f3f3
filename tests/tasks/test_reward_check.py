"""The check of a reward model on synthetic raters whose utility, scale, noise and length bias are known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from synthetic_raters import OFFSET, SCALE, fit_heads, preference_rows, world

from storage.records import RECORDS
from tasks._maths.agreement import spearman
from tasks._maths.calibration import apply
from tasks.reward_check.check import check_pairs
from tasks.reward_check.config import CalibrationConfig, CheckedEnsemble, LengthConfig, RewardCheckConfig
from tasks.reward_check.fresh import Fresh, fresh_measures, fresh_metrics, other_scores, sample_prompts
from tasks.reward_check.held_out import held_out, held_out_pairs

PAIRS, MEMBERS = 300, 5


def members_of(given, heads):
    """Members' standardised scores of the chosen and the rejected answers."""
    raw = given.chosen_first(given.features) @ heads
    standardised = (raw - raw.mean(axis=(0, 1))) / raw.std(axis=(0, 1))
    return standardised[:, 0], standardised[:, 1]


def held(given, heads, *, scored=True, domains=None, shift=None, ensemble=None):
    chosen, rejected = members_of(given, heads)
    if shift is not None:
        chosen, rejected = chosen + shift, rejected + shift
    lengths = given.chosen_first(given.length)
    rows = preference_rows(given, scored=scored)
    return held_out(rows, chosen, rejected, lengths, ensemble or CheckedEnsemble(), domains or {})


def rewards_of(checked, given):
    """The calibrated rewards of the check's pairs beside the true utility."""
    table = checked.checked_pairs
    found = np.stack([table["chosen_calibrated"].to_numpy(), table["rejected_calibrated"].to_numpy()], axis=1)
    return found.ravel(), given.chosen_first(given.utility).ravel()


def measure(checked, name, where="all"):
    return checked.gap.filter(measure=name, slice=where).row(0, named=True)


@pytest.fixture(scope="module")
def honest():
    """Raters without a bias: heads fitted to 2,000 of their choices, checked on 600 others."""
    heads = fit_heads(world(2000, seed=0), MEMBERS)
    given = world(PAIRS, seed=1)
    return given, heads, check_pairs(held(given, heads), RewardCheckConfig(), seed=3)


@pytest.fixture(scope="module")
def biased():
    """Raters who like length: heads fitted to their choices, checked on others with people's fair scores."""
    heads = fit_heads(world(3000, seed=0, length_bias=2.5), MEMBERS)
    return world(500, seed=1), heads


def test_the_order_and_the_scale_of_the_utility_come_back(honest):
    given, _, checked = honest
    found, utility = rewards_of(checked, given)
    assert spearman(found, utility) > 0.98
    assert checked.calibration["scale"] == "absolute"
    slope, intercept = np.polyfit(utility, found, 1)
    assert slope == pytest.approx(SCALE, rel=0.05) and intercept == pytest.approx(OFFSET, abs=0.05)
    assert np.abs(found - (OFFSET + SCALE * utility)).mean() < 0.25
    assert abs(checked.metrics["gap_bias"]) < 0.05 and checked.metrics["gap_spearman"] > 0.95


def test_the_tables_are_records_and_the_file_gives_the_same_rewards(honest):
    given, heads, checked = honest
    RECORDS["gap"].validate(checked.gap)
    RECORDS["checked_pairs"].validate(checked.checked_pairs)
    chosen, _ = members_of(given, heads)
    again = apply(checked.calibration, chosen.mean(axis=1), given.chosen_first(given.length)[:, 0])
    np.testing.assert_allclose(again, checked.checked_pairs["chosen_calibrated"].to_numpy())


def test_the_metrics_that_the_gate_reads(honest):
    checked = honest[2]
    named = {"heldout_accuracy", "heldout_accuracy_low", "heldout_accuracy_high", "pairs", "ece", "gap_bias", "gap_mae"}
    named |= {"gap_spearman", "length_correlation", "uncertainty_mean", "uncertainty_coverage"}
    assert named <= checked.metrics.keys() and "anchor_agreement" not in checked.metrics
    assert all(np.isfinite(value) for value in checked.metrics.values())
    assert checked.metrics["pairs"] == PAIRS
    right = checked.checked_pairs["right"]
    assert checked.metrics["heldout_accuracy"] == pytest.approx(right.mean())
    assert checked.metrics["heldout_accuracy_low"] < right.mean() < checked.metrics["heldout_accuracy_high"]


def test_the_probability_is_calibrated(honest):
    checked = honest[2]
    assert checked.metrics["ece"] < 0.06
    said = checked.checked_pairs["probability"].to_numpy()
    assert np.maximum(said, 1 - said).mean() == pytest.approx(checked.metrics["heldout_accuracy"], abs=0.03)


def test_intervals_of_scores_hold(honest):
    assert honest[2].metrics["score_coverage"] == pytest.approx(0.9, abs=0.04)


def test_the_gap_finds_a_domain_that_is_flattered(honest):
    """Of half of the prompts the reward model says 0.6 deviations more: the map can't mend it, the slices show it."""
    given, heads, _ = honest
    maths = np.arange(PAIRS) % 2 == 0
    domains = {f"q{index:05d}": "maths" if flattered else "prose" for index, flattered in enumerate(maths)}
    shifted = held(given, heads, domains=domains, shift=np.where(maths, 0.6, 0.0)[:, None])
    checked = check_pairs(shifted, RewardCheckConfig(), seed=3)
    per_deviation = SCALE * given.utility.std()
    for domain, sign in (("maths", 1), ("prose", -1)):
        row = measure(checked, "gap_bias", f"domain: {domain}")
        assert sign * row["value"] > 0 and not row["low"] <= 0 <= row["high"]
        assert abs(row["value"]) == pytest.approx(0.3 * per_deviation, rel=0.25)
    first = checked.gap.filter((pl.col("measure") == "gap_bias") & (pl.col("slice") != "all")).row(0, named=True)
    assert first["slice"].startswith("domain: ")


def test_an_earlier_calibration_shows_the_drift(honest):
    """People's scores rose by 1 since: the calibration that graded so far is off by that, a new one is not."""
    _, heads, before = honest
    later = world(PAIRS, seed=7)
    later = type(later)(later.features, later.utility, later.length, later.score + 1.0, later.choice)
    checked = check_pairs(held(later, heads), RewardCheckConfig(), seed=3, graded_by=before.calibration)
    assert checked.metrics["graded_gap_bias"] == pytest.approx(-1.0, abs=0.1)
    assert abs(checked.metrics["gap_bias"]) < 0.05


def test_the_mitigation_removes_the_effect_of_length(biased):
    given, heads = biased
    plain = check_pairs(held(given, heads), RewardCheckConfig(), seed=3)
    config = RewardCheckConfig(length=LengthConfig(mitigate="auto"))
    fair = check_pairs(held(given, heads), config, seed=3)
    assert plain.metrics["length_correlation"] > 0.3 and "length_correlation_raw" not in plain.metrics
    assert fair.metrics["length_correlation_raw"] == plain.metrics["length_correlation"]
    assert abs(fair.metrics["length_correlation"]) < 0.05
    before, utility = rewards_of(plain, given)
    after, _ = rewards_of(fair, given)
    assert spearman(after, utility) > spearman(before, utility) + 0.03
    assert fair.metrics["heldout_accuracy"] > fair.metrics["heldout_accuracy_raw"]
    assert fair.metrics["gap_mae"] < plain.metrics["gap_mae"]


def test_without_people_s_scores_the_choice_holds_quality(biased):
    """What a quality that is known to be one of two leaves in: better answers are longer. It is still far less."""
    given, heads = biased
    config = RewardCheckConfig(length=LengthConfig(mitigate="auto"))
    checked = check_pairs(held(given, heads, scored=False), config, seed=3)
    assert checked.calibration["scale"] == "log_odds" and "gap_bias" not in checked.metrics
    found, utility = rewards_of(checked, given)
    before, _ = rewards_of(check_pairs(held(given, heads, scored=False), RewardCheckConfig(), seed=3), given)
    assert spearman(found, utility) > spearman(before, utility)
    assert abs(checked.metrics["length_correlation"]) < 0.05


def test_an_honest_reward_model_is_left_as_it_is(honest):
    given, heads, plain = honest
    checked = check_pairs(held(given, heads), RewardCheckConfig(length=LengthConfig(mitigate="auto")), seed=3)
    before, _ = rewards_of(plain, given)
    after, _ = rewards_of(checked, given)
    assert spearman(before, after) > 0.999


@pytest.mark.parametrize("by", ["fixed_quality", "lowess"])
def test_both_ways_of_mitigation_apply_to_new_answers(biased, by):
    given, heads = biased
    config = RewardCheckConfig(length=LengthConfig(mitigate="always", by=by))
    calibration = check_pairs(held(given, heads), config, seed=3).calibration
    fresh = world(1000, seed=11)
    raw = fresh.features @ heads
    reward = ((raw - raw.mean(axis=(0, 1))) / raw.std(axis=(0, 1))).mean(axis=2).ravel()
    found = apply(calibration, reward, fresh.length.ravel())
    assert spearman(found, fresh.utility.ravel()) > spearman(reward, fresh.utility.ravel())


@pytest.mark.parametrize("flipped", [0.0, 0.25])
def test_label_noise_caps_the_accuracy(flipped):
    """Measured accuracy is a (1 - e) + (1 - a) e: heads fitted to labels of which 25 % are wrong, checked on such."""
    heads = fit_heads(world(3000, seed=0, sharpness=1e3, flipped=flipped), 2)
    noisy = world(1200, seed=1, sharpness=1e3, flipped=flipped)
    clean = world(1200, seed=1, sharpness=1e3)
    config = RewardCheckConfig(calibration=CalibrationConfig(to="none"))
    true = check_pairs(held(clean, heads), config, seed=3).metrics["heldout_accuracy"]
    measured = check_pairs(held(noisy, heads), config, seed=3).metrics
    expected = true * (1 - flipped) + (1 - true) * flipped
    assert true > 0.92
    assert measured["heldout_accuracy"] == pytest.approx(expected, abs=0.035)
    assert measured["heldout_accuracy_low"] <= expected <= measured["heldout_accuracy_high"]
    if flipped:
        assert measured["heldout_accuracy"] < 0.76


def test_uncertain_pairs_are_more_often_wrong():
    """Members that saw few pairs disagree where they are wrong."""
    heads = fit_heads(world(60, seed=5), MEMBERS)
    given = world(600, seed=6)
    checked = check_pairs(held(given, heads), RewardCheckConfig(), seed=3)
    found = checked.metrics
    assert found["uncertainty_gain"] >= -1e-3
    assert found["uncertainty_coverage"] > 0.8
    deciles = checked.gap.filter(pl.col("slice").str.starts_with("margin "))
    assert len(deciles) == 10 and deciles["value"][9] > deciles["value"][0] + 0.2


def test_one_member_has_no_uncertainty(honest):
    given, heads, _ = honest
    found = check_pairs(held(given, heads[:, :1]), RewardCheckConfig(), seed=3).metrics
    assert found["uncertainty_mean"] == 0 and "uncertainty_coverage" not in found


def test_anchors_are_judged_by_the_calibrated_reward(honest):
    given, heads, _ = honest
    anchors = world(40, seed=9, sharpness=1e3)
    checked = check_pairs(held(given, heads), RewardCheckConfig(), seed=3, anchors=held(anchors, heads))
    assert checked.metrics["anchor_agreement"] > 0.9
    assert checked.metrics["anchor_agreement_low"] <= checked.metrics["anchor_agreement"]


def test_fresh_accuracy_is_that_of_the_iterations_own_pairs(honest):
    given, heads, whole = honest
    rows = held(given, heads)
    # Of iteration 4 are those of which every third is wrong; an older label and an imported pair are not.
    order = np.argsort(-rows.right, kind="stable")
    right, wrong = order[: int(rows.right.sum())], order[int(rows.right.sum()) :]
    fresh = [*right[:40], *wrong[:20]]
    iterations = np.full(PAIRS, 3).astype(object)
    iterations[fresh], iterations[right[40:60]] = 4, None
    dated = replace(rows, pairs=rows.pairs.with_columns(iteration=pl.Series(iterations.tolist(), dtype=pl.Int32)))
    metrics = check_pairs(dated, RewardCheckConfig(), seed=3, iteration=4).metrics
    assert metrics["fresh_accuracy"] == pytest.approx(2 / 3) and metrics["fresh_pairs"] == 60
    assert metrics["fresh_accuracy_low"] < 2 / 3 < metrics["fresh_accuracy_high"]
    assert metrics["heldout_accuracy"] == whole.metrics["heldout_accuracy"]
    for none in (None, 5):
        found = check_pairs(dated, RewardCheckConfig(), seed=3, iteration=none).metrics
        assert not [name for name in found if name.startswith("fresh")]


@pytest.mark.parametrize(("pairs", "scale"), [(12, "standardised"), (40, "absolute"), (60, "absolute")])
def test_few_pairs_have_a_check_too(honest, pairs, scale):
    given = world(pairs, seed=1)
    checked = check_pairs(held(given, honest[1]), RewardCheckConfig(), seed=3)
    assert checked.calibration["scale"] == scale
    RECORDS["gap"].validate(checked.gap)
    assert checked.metrics["pairs"] == pairs


@pytest.mark.parametrize("pairs", [1, 2])
def test_a_single_cluster_has_an_accuracy(honest, pairs):
    rows = held(world(pairs, seed=1), honest[1])
    checked = check_pairs(rows, RewardCheckConfig(), seed=3)
    assert checked.metrics["heldout_accuracy"] in (0.0, 0.5, 1.0)
    assert checked.calibration["map"]["kind"] == "identity" and checked.calibration["map"]["why"]


def test_ties_are_no_pairs():
    rows = preference_rows(world(4, seed=0)).drop("tie", strict=False)
    marked = rows.with_columns(tie=pl.Series([True, False, None, False]))
    assert held_out_pairs(marked)["pair_id"].to_list() == ["p00001", "p00002", "p00003"]
    assert len(held_out_pairs(rows)) == 4


def test_a_domain_that_only_the_source_knows():
    rows = preference_rows(world(2, seed=0)).drop("detail", strict=False)
    rows = rows.with_columns(detail=pl.Series(['{"domain": "law"}', None]))
    scores = np.zeros((2, 1))
    found = held_out(rows, scores, scores, np.ones((2, 2)), CheckedEnsemble(), {"q00001": "maths"})
    assert found.domain.tolist() == ["law", "maths"]


def rollout_frame(prompts, samples):
    ends = ("stop", "length")
    rows = [(f"r{p}-{s}", f"p{p}", [1, 2], [3] * (s + 1), ends[s % 2]) for p in range(prompts) for s in range(samples)]
    names = ["rollout_id", "prompt_id", "prompt_token_ids", "token_ids", "finish_reason"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_fresh_answers_are_drawn_by_whole_prompts():
    frame = rollout_frame(20, 4)
    drawn = sample_prompts(frame.lazy(), 30, seed=1)
    assert len(drawn) == 28 and set(drawn.group_by("prompt_id").len()["len"]) == {4}
    assert sample_prompts(frame.lazy(), 30, seed=1).equals(drawn)
    assert len(sample_prompts(frame.lazy(), 1, seed=1)) == 4
    assert len(sample_prompts(frame.lazy(), 1000, seed=1)) == 80
    # As with held-out answers the end token doesn't count; one that was cut off has none.
    assert drawn["length"].to_list() == [0, 2, 2, 4] * 7


def test_other_graders_scores_follow_the_rollouts_and_leave_out_the_own():
    frame = rollout_frame(2, 2)
    grades = pl.DataFrame(
        {
            "rollout_id": ["r1-1", "r0-0", "r0-0", "r0-1"],
            "grader": ["haiku", "haiku", "reward_model", "haiku"],
            "grader_version": ["1", "1", "own", "1"],
            "status": ["ok", "ok", "ok", "failed"],
            "score": [0.7, 0.2, 0.9, None],
        }
    )
    found = other_scores(grades.lazy(), frame, "own")
    assert list(found) == ["haiku"]
    np.testing.assert_allclose(found["haiku"], [0.2, np.nan, np.nan, 0.7])


def test_fresh_answers_tell_length_and_agreement():
    random = np.random.default_rng(0)
    prompt = np.repeat(np.arange(40), 5)
    quality, z = random.normal(size=200), random.normal(size=200)
    length = np.round(np.exp(4 + 0.4 * z)) + 30 * (prompt % 7)
    fresh = Fresh(quality + 0.5 * z + prompt, np.full(200, 0.4), length, prompt, {"people": quality})
    measures = fresh_measures(fresh, seed=0)
    metrics = fresh_metrics(fresh, measures, held_out_uncertainty=0.2)
    assert metrics["fresh_length_correlation"] > 0.5
    assert metrics["fresh_uncertainty_ratio"] == pytest.approx(2.0)
    assert "fresh_spearman/people" in metrics and metrics["fresh_answers"] == 200
    free = Fresh(quality + prompt, fresh.uncertainty, length, prompt, {"people": quality})
    assert all(
        each.measure != "fresh_length_correlation" or abs(each.value) < 0.2 for each in fresh_measures(free, seed=0)
    )

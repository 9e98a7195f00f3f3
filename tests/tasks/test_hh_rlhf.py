"""HH-RLHF's human pairs with SmolLM2-135M, from the shared data: the accuracy that the frozen heads claim."""

import hh_rlhf
import numpy as np
import pytest

pytestmark = pytest.mark.skipif(
    not hh_rlhf.PAIRS.is_file(), reason=f"no HH-RLHF at {hh_rlhf.PAIRS}; POSTTRAIN_SHARED names its folder"
)


def test_pairs_are_read():
    """All 1,802 pairs; dialogues that begin with the same turn share a cluster."""
    pairs = hh_rlhf.read_pairs()
    assert len(pairs) == 1802 and pairs["cluster_id"].n_unique() == 1696
    assert pairs["messages"].list.last().struct.field("role").unique().to_list() == ["user"]
    assert hh_rlhf.shorter_wins(pairs) == pytest.approx(0.5585, abs=0.001)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_best_configuration_beats_the_mark(tmp_path):
    """From scratch: forward passes, then five folds by prompt, ridges chosen inside the training folds, ten seeds."""
    pairs, best = hh_rlhf.read_pairs(), hh_rlhf.TRIED[hh_rlhf.BEST]
    reached = hh_rlhf.confirmed(pairs, best, tmp_path)
    assert np.mean(reached) >= hh_rlhf.GOAL and min(reached) > hh_rlhf.MARK, reached
    found = hh_rlhf.validated(pairs, best, tmp_path, members=5, repeats=1)
    accuracy = {(row["split"], row["heads"]): row["accuracy"] for row in found.iter_rows(named=True)}
    leaked, honest = (
        np.mean([accuracy[split, heads] for heads in ("single", "ensemble")]) for split in ("by_pair", "by_prompt")
    )
    assert leaked > honest - 0.01

"""The algorithms of the field by name: each sets parts of a run file, where the file itself says nothing.

`algorithm: dapo` is one line; everything else of a run stays, rollouts and grades are found in the store.
Defaults and sources: see each entry.
"""

from dataclasses import dataclass, field
from typing import Any

Section = dict[str, Any]
KEEP_ALL = [{"rule": "aborted"}]
DISCARD_EVEN_GROUPS = [{"rule": "aborted"}, {"rule": "no_variance"}]


@dataclass(frozen=True)
class Algorithm:
    """What an algorithm is, where it comes from, and what it sets in the sections of a run file."""

    summary: str
    source: str
    policy_update: Section
    filtering: Section = field(default_factory=lambda: {"rules": DISCARD_EVEN_GROUPS})
    needs_judge: bool = False


def _pairs(objective: str, source: str, **options: Any) -> Section:
    return {"objective": objective, "pairs": {"source": source, **options}}


ALGORITHMS: dict[str, Algorithm] = {
    "dr_grpo": Algorithm(
        "group-mean advantages, sums over a constant length: no length and no difficulty bias",
        "arXiv 2503.20783",
        {"objective": "clipped", "aggregate": "constant", "clip_low": 0.2, "clip_high": 0.28},
    ),
    "grpo": Algorithm(
        "advantages in standard deviations of the group, each answer's token mean; its KL is k3 in the loss "
        "(kl.coefficient, 0.04 in the paper, 0 by default as peers have it)",
        "arXiv 2402.03300, equations 3 and 4",
        {
            "objective": "clipped",
            "aggregate": "sequence_mean",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": {"estimator": "k3"},
        },
        {"rules": DISCARD_EVEN_GROUPS, "advantage": "group_mean_std"},
    ),
    "dapo": Algorithm(
        "clip-higher, one mean over all tokens, soft overlong punishment, no KL, even groups discarded",
        "arXiv 2503.14476, equations 8 to 13",
        {"objective": "clipped", "aggregate": "token_mean", "clip_low": 0.2, "clip_high": 0.28},
        {"rules": DISCARD_EVEN_GROUPS, "advantage": "group_mean_std", "overlong": {}},
    ),
    "gdpo": Algorithm(
        "every grader normalised within its group before they are added up, then whitened over the batch",
        "methods.md section 4, GDPO",
        {"objective": "clipped", "aggregate": "sequence_mean", "clip_low": 0.2, "clip_high": 0.2},
        {"rules": KEEP_ALL, "advantage": "per_component"},
    ),
    "lite_ppo": Algorithm(
        "group mean, deviation over the batch, one mean over all tokens",
        "methods.md section 4, LitePPO",
        {"objective": "clipped", "aggregate": "token_mean", "clip_low": 0.2, "clip_high": 0.28},
        {"rules": DISCARD_EVEN_GROUPS, "advantage": "group_mean_batch_std"},
    ),
    "gspo": Algorithm(
        "one ratio a sequence, the geometric mean of its tokens' ratios, clipped tightly",
        "arXiv 2507.18071",
        {
            "objective": "gspo",
            "aggregate": "sequence_mean",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            # Bounds this tight would clip what engine and trainer round differently.
            "old_logprobs": "trainer",
        },
        {"rules": DISCARD_EVEN_GROUPS, "advantage": "group_mean_std"},
    ),
    "cispo": Algorithm(
        "the ratio is a weight without gradient, at most 5, no lower bound: every token keeps its gradient; prompts "
        "count equally (ScaleRL)",
        "arXiv 2506.13585; 2510.13786",
        {"objective": "cispo", "aggregate": "prompt_mean", "clip_low": 1.0, "clip_high": 4.0},
        {"rules": DISCARD_EVEN_GROUPS, "advantage": "group_mean_whitened"},
    ),
    "rloo": Algorithm(
        "the other samples' mean as baseline, whole answers, KL in the reward",
        "arXiv 2402.14740; coefficient as TRL",
        {
            "objective": "clipped",
            "aggregate": "sequence_sum",
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": {"coefficient": 0.05, "estimator": "k1", "place": "reward"},
        },
        {"rules": KEEP_ALL, "advantage": "leave_one_out"},
    ),
    "reinforce_pp": Algorithm(
        "discounted token returns with KL in the reward, whitened over the batch; no group needed",
        "REINFORCE++, arXiv 2501.03262",
        {
            "objective": "clipped",
            "aggregate": "token_mean",
            "credit": "returns",
            "whiten": True,
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": {"coefficient": 0.01, "estimator": "k1", "place": "reward"},
        },
        {"rules": KEEP_ALL, "advantage": "reward"},
    ),
    "reinforce_pp_baseline": Algorithm(
        "less the group's mean, whitened over the tokens of the batch, KL k2 in the loss",
        "REINFORCE++-baseline, arXiv 2501.03262",
        {
            "objective": "clipped",
            "aggregate": "token_mean",
            "whiten": True,
            "clip_low": 0.2,
            "clip_high": 0.2,
            "kl": {"coefficient": 0.01, "estimator": "k2", "place": "loss"},
        },
        {"rules": KEEP_ALL, "advantage": "group_mean"},
    ),
    "ppo": Algorithm(
        "a critic, generalised advantage estimation, clipped values, two epochs, KL in the reward, dual clip",
        "arXiv 1707.06347, 1506.02438, 1912.09729",
        {
            "objective": "clipped",
            "aggregate": "token_mean",
            "credit": "gae",
            "whiten": True,
            "epochs": 2,
            "clip_low": 0.2,
            "clip_high": 0.2,
            "dual_clip": 3.0,
            "kl": {"coefficient": 0.02, "estimator": "k1", "place": "reward"},
        },
        {"rules": KEEP_ALL, "advantage": "reward"},
    ),
    "raft": Algorithm(
        "rejection sampling: the likelihood of the best of n answers",
        "arXiv 2304.06767",
        {"objective": "likelihood", "aggregate": "token_mean"},
        {"rules": DISCARD_EVEN_GROUPS, "advantage": "best_of_n"},
    ),
    "raft_pp": Algorithm(
        "positive rewards only, with importance ratios and clipping",
        "arXiv 2504.11343",
        {"objective": "clipped", "aggregate": "token_mean", "clip_low": 0.2, "clip_high": 0.2},
        {"rules": KEEP_ALL, "advantage": "positive_reward"},
    ),
    "dpo": Algorithm(
        "direct preferences on the stored pairs of the iteration; pairs.sft_weight adds the SFT term",
        "arXiv 2305.18290, equation 7",
        _pairs("dpo", "preferences", beta=0.1),
        {"rules": KEEP_ALL},
    ),
    "ipo": Algorithm(
        "a squared loss on the pairs' margin: no overfitting to certain preferences",
        "arXiv 2310.12036, equation 17",
        _pairs("ipo", "preferences", beta=0.1),
        {"rules": KEEP_ALL},
    ),
    "robust_dpo": Algorithm(
        "DPO for labels of which a known share is flipped",
        "arXiv 2403.00409",
        _pairs("robust_dpo", "preferences", beta=0.1, label_smoothing=0.1),
        {"rules": KEEP_ALL},
    ),
    "iterated_dpo": Algorithm(
        "DPO on the best against the worst of n by reward, anew in each iteration",
        "RLHF Workflow, arXiv 2405.07863",
        _pairs("dpo", "best_worst", beta=0.1),
        {"rules": DISCARD_EVEN_GROUPS},
    ),
    "kto": Algorithm(
        "every answer by itself: desirable above its group's mean, undesirable below",
        "arXiv 2402.01306, equation 8",
        {"objective": "kto", "aggregate": "sequence_sum", "pairs": {"beta": 0.1}},
    ),
    "crpg": Algorithm(
        "CGPO's policy gradient: reward calibrated by the group's mean if every judge passes, fading with KL, less the "
        "batch's mean",
        "arXiv 2409.20370, section 4",
        {"objective": "clipped", "aggregate": "sequence_sum", "credit": "crpg", "clip_low": 0.2, "clip_high": 0.2},
        {"rules": KEEP_ALL, "advantage": "reward"},
        needs_judge=True,
    ),
    "codpo": Algorithm(
        "CGPO's DPO: the best that passes against the worst that fails, with the SFT term",
        "arXiv 2409.20370, section 4",
        _pairs("dpo", "judges", beta=0.1, sft_weight=1.0),
        {"rules": KEEP_ALL, "advantage": "reward"},
        needs_judge=True,
    ),
    "crraft": Algorithm(
        "CGPO's RAFT: the best that passes within the KL bound, weighted by its reward, calibrated by the group's mean",
        "arXiv 2409.20370, section 4",
        {"objective": "likelihood", "aggregate": "token_mean", "credit": "crraft"},
        {"rules": KEEP_ALL, "advantage": "reward"},
        needs_judge=True,
    ),
}
"""`sft` is no entry: it is a stage of its own, before the loop (`sft:` in the run file)."""


def apply_algorithm(document: dict[str, Any], name: str) -> dict[str, Any]:
    """The run file with the algorithm's settings below its own: what the file says stays."""
    algorithm = ALGORITHMS[name]
    merged = dict(document)
    for section, settings in (("filtering", algorithm.filtering), ("policy_update", algorithm.policy_update)):
        given = document.get(section) or {}
        if isinstance(given, dict):
            merged[section] = under(settings, given)
    return merged


def under(defaults: Section, given: Section) -> Section:
    """`given` over `defaults`, section by section."""
    merged = {**defaults, **given}
    for key, value in defaults.items():
        if isinstance(value, dict) and isinstance(given.get(key), dict):
            merged[key] = under(value, given[key])
    return merged

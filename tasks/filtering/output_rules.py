"""Rules that look at what a rollout says: twice the same, going in circles, in the wrong language."""

from typing import Any

import numpy as np
import polars as pl
from jaxtyping import UInt64

from tasks._maths.redundancy import Alike, Signatures, alike_across, alike_within, closest, clusters
from tasks.filtering.evidence import Evidence, Finding
from tasks.filtering.features import DIGEST, SIGNATURE, Feature, language_share, minhash, repeated, text_digest
from tasks.filtering.rules_config import RedundantAcross, RedundantInGroup, Repetition, WrongLanguage


def redundant_in_group(evidence: Evidence, rule: RedundantInGroup) -> Finding:
    """The similarity to the likest output of the group. One of each cluster and reward stays, with the weight of all.

    So the weighted sums over a group are those of all its rollouts: its mean reward, and its advantages.
    """
    # Signatures are what is large: they are looked up, not copied.
    alike = alike_within(evidence.frame[SIGNATURE].to_numpy(), evidence.groups, rule.threshold, evidence.chosen)
    cluster = clusters(len(evidence), alike)
    levels, level = np.unique(evidence.column("reward"), return_inverse=True)
    pairs = cluster * len(levels) + level
    _, first, member, count = np.unique(pairs, return_index=True, return_inverse=True, return_counts=True)
    stays = first[member] == np.arange(len(evidence))
    return Finding(closest(len(evidence), alike), ~stays, rule.threshold, np.where(stays, count[member], 1.0))


def redundant_across(evidence: Evidence, rule: RedundantAcross) -> Finding:
    """The similarity to the likest output that another group of tonight or an earlier night has.

    Outputs that are alike form a cluster; the group of its first output keeps its own, all others fall.
    """
    name = DIGEST if rule.by == "text" else SIGNATURE
    stored = None if evidence.earlier is None else _stored(evidence.earlier, name, rule.nights)
    earlier = 0 if stored is None else len(stored)
    own = evidence.column(name)
    alike = _equal(stored, own) if rule.by == "text" else alike_across(_together(stored, own), rule.threshold)
    group = np.concatenate([-1 - np.arange(earlier), evidence.groups])
    elsewhere = group[clusters(len(group), alike)] != group
    long = evidence.column("tokens") >= rule.min_tokens
    likest = closest(len(group), alike)[earlier:]
    return Finding(likest, elsewhere[earlier:] & long, 1.0 if rule.by == "text" else rule.threshold)


def _stored(earlier: pl.DataFrame, name: str, nights: int) -> pl.Series:
    """What the last nights kept, as far as it was stored in this form."""
    return earlier.filter(pl.col("night") <= nights)[name].drop_nulls()


def _together(stored: pl.Series | None, own: Signatures) -> Signatures:
    """Earlier nights' signatures, then tonight's."""
    if stored is None:
        return own
    return np.concatenate([stored.list.to_array(own.shape[1]).to_numpy(), own])


def _equal(stored: pl.Series | None, own: UInt64[np.ndarray, " rows"]) -> Alike:
    """Every digest, earlier nights' first, with the first that is equal to it."""
    digests = own if stored is None else np.concatenate([stored.to_numpy(), own])
    _, first, member = np.unique(digests, return_index=True, return_inverse=True)
    later = np.flatnonzero(first[member] != np.arange(len(digests)))
    return Alike(first[member][later], later, np.ones(len(later)))


def repetition(evidence: Evidence, rule: Repetition) -> Finding:
    """The share of n-grams that were there before, as the verifier `repetition` counts words, over tokens."""
    share = evidence.column(_repeated(rule))
    return Finding(share, share > rule.threshold, rule.threshold)


def wrong_language(evidence: Evidence, rule: WrongLanguage) -> Finding:
    """The probability of the languages that are right."""
    share = evidence.column(_spoken(rule))
    return Finding(share, share < rule.threshold, rule.threshold)


def signature_of(_: Any) -> dict[str, Feature]:
    """The MinHash signature."""
    return {SIGNATURE: minhash}


def likeness_of(rule: RedundantAcross) -> dict[str, Feature]:
    """What outputs of different groups are compared by."""
    return {DIGEST: text_digest} if rule.by == "text" else {SIGNATURE: minhash}


def repeated_of(rule: Repetition) -> dict[str, Feature]:
    """The repeated share, by the length of the n-grams."""
    return {_repeated(rule): repeated(rule.n)}


def spoken_of(rule: WrongLanguage) -> dict[str, Feature]:
    """The probability of the rule's languages."""
    return {_spoken(rule): language_share(rule.languages, rule.min_letters)}


def signatures_of(decided: pl.DataFrame) -> pl.DataFrame:
    """The `OutputSignature` frame of what is kept: later nights compare with it."""
    known = [pl.col(name) if name in decided.columns else pl.lit(None).alias(name) for name in (DIGEST, SIGNATURE)]
    return decided.filter("kept").select("rollout_id", *known)


def _repeated(rule: Repetition) -> str:
    return f"repeated:{rule.n}"


def _spoken(rule: WrongLanguage) -> str:
    return f"language:{','.join(rule.languages)}:{rule.min_letters}"

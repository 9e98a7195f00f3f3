"""The shares of sources and domains: exact, drawn by the seed, whatever the order of the rows."""

import json
from fractions import Fraction

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import InputError
from tasks.curate.config import CurateConfig, SourceConfig
from tasks.curate.mixing import divided, domain_counts, limit_domains, mix
from tasks.curate.pool import build_pool

SIZES = st.dictionaries(st.integers(0, 5), st.integers(0, 40), min_size=1)


def config(*weights, **changes) -> CurateConfig:
    sources = [
        SourceConfig(path=f"{index}", prompt_field="q", verifier={"name": "haiku"}, weight=weight)
        for index, weight in enumerate(weights)
    ]
    return CurateConfig(sources=sources, **changes)


def frame(sizes: list[int], clusters: int = 10_000) -> pl.DataFrame:
    rows = [(f"{source}-{number}", source, f"d{source}") for source, size in enumerate(sizes) for number in range(size)]
    table = pl.DataFrame(
        rows, schema={"prompt_id": pl.String, "source_index": pl.Int32, "domain": pl.String}, orient="row"
    )
    return table.with_columns(cluster_id=pl.int_range(pl.len()).mod(clusters).cast(pl.String))


@settings(max_examples=80, deadline=None)
@given(sizes=SIZES, total=st.integers(0, 300), data=st.data())
def test_a_total_is_divided_in_whole_numbers_by_weight(sizes, total, data):
    weights = {index: data.draw(st.sampled_from([0.1, 0.5, 1.0, 3.0])) for index in sizes}
    counts = divided(total, sizes, weights)
    assert sum(counts.values()) == min(total, sum(sizes.values()))
    assert all(0 <= counts[index] <= sizes[index] for index in sizes)
    open_ = [index for index in sizes if counts[index] < sizes[index]]
    for one in open_:  # those that aren't exhausted stand to each other as their weights, but for rounding
        for other in open_:
            assert (
                abs(counts[one] / weights[one] - counts[other] / weights[other])
                <= 1 / weights[one] + 1 / weights[other]
            )


@pytest.mark.parametrize(
    ("sizes", "weights", "changes", "expected"),
    [
        ([100, 100], (1, 1), {}, [100, 100]),
        ([100, 10], (1, 1), {}, [10, 10]),  # the scarcest source limits the pool
        ([100, 10], (3, 1), {}, [30, 10]),
        ([100, 10], (3, 1), {"max_prompts": 20}, [15, 5]),
        ([100, 10], (1, 1), {"max_prompts": 60, "scarce_sources": "fill"}, [50, 10]),
        ([100, 10, 50], (1, 1, 1), {"max_prompts": 90, "scarce_sources": "fill"}, [40, 10, 40]),
        ([7, 7, 7], (1, 1, 1), {"max_prompts": 10}, [4, 3, 3]),
        ([5, 5], (None, None), {}, [5, 5]),
    ],
)
def test_the_weights_decide_how_many_of_each_source_stay(sizes, weights, changes, expected):
    prompts = frame(sizes)
    kept = prompts[mix(prompts, config(*weights, **changes), seed=0)]
    counts = dict(kept.group_by("source_index").len().iter_rows())
    assert [counts[index] for index in range(len(sizes))] == expected


def test_without_weights_max_prompts_draws_from_the_whole_pool():
    prompts = frame([400, 100])
    kept = mix(prompts, config(None, None, max_prompts=100), seed=0)
    assert len(kept) == 100
    assert 60 <= len(prompts[kept].filter(source_index=0)) <= 95
    assert kept != mix(prompts, config(None, None, max_prompts=100), seed=1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 3), shuffle=st.integers(0, 99), quota=st.sampled_from([{}, {"d0": 3}, {"*": 0.5}]))
def test_another_order_of_the_rows_keeps_the_same_prompts(seed, shuffle, quota):
    prompts = frame([12, 9], clusters=5)
    moved = prompts.sample(fraction=1, shuffle=True, seed=shuffle)
    for chosen in (
        lambda rows: mix(rows, config(2, 1), seed),
        lambda rows: limit_domains(rows, quota, seed),
    ):
        assert set(prompts[chosen(prompts)]["prompt_id"]) == set(moved[chosen(moved)]["prompt_id"])


def test_near_duplicates_stand_back():
    prompts = frame([30], clusters=6)
    kept = prompts[mix(prompts, config(None, max_prompts=6), seed=0)]
    assert kept["cluster_id"].n_unique() == 6
    kept = prompts[mix(prompts, config(None, max_prompts=12), seed=0)]
    assert set(kept.group_by("cluster_id").len()["len"]) == {2}


def test_a_weighted_source_without_prompts_is_named():
    with pytest.raises(InputError, match=r"curate\.sources\.1 \(1\) has a weight and no prompt"):
        mix(frame([3]), config(1, 1), seed=0)


@pytest.mark.parametrize(
    ("sizes", "quota", "expected"),
    [
        ({"a": 100, "b": 40}, {"a": 30}, {"a": 30, "b": 40}),
        ({"a": 100, "b": 40}, {"a": 0.5}, {"a": 40, "b": 40}),
        ({"a": 100, "b": 40}, {"a": 0.2}, {"a": 10, "b": 40}),
        ({"a": 100, "b": 40}, {"a": 0.2, "b": 20}, {"a": 5, "b": 20}),
        ({"a": 100, "b": 40, "c": 7}, {"*": 10, "b": 1.0}, {"a": 10, "b": 40, "c": 7}),
        ({"a": 100, "b": 100, "c": 20}, {"a": 0.4, "b": 0.4}, {"a": 40, "b": 40, "c": 20}),
        ({"a": 100, "b": 10}, {"*": 0.5}, {"a": 10, "b": 10}),
        ({"a": 3, "b": 5}, {"a": 0}, {"a": 0, "b": 5}),
        ({"a": 3, "b": 5}, {}, {"a": 3, "b": 5}),
    ],
)
def test_quotas_by_hand(sizes, quota, expected):
    assert domain_counts(sizes, quota) == expected


@settings(max_examples=80, deadline=None)
@given(
    sizes=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 60), min_size=2),
    quota=st.dictionaries(
        st.sampled_from("abcd*"), st.one_of(st.integers(1, 20), st.sampled_from([0.1, 0.25, 0.5, 1.0]))
    ),
)
def test_every_quota_holds_and_no_prompt_is_left_out_for_nothing(sizes, quota):
    try:
        counts = domain_counts(sizes, quota)
    except InputError:
        return
    total = sum(counts.values())
    for domain, count in counts.items():
        limit = quota.get(domain, quota.get("*"))
        if isinstance(limit, int):
            assert count <= limit
        if isinstance(limit, float):
            # Rounding down the shares makes the whole smaller, by less than one prompt a domain.
            assert count <= Fraction(str(limit)) * (total + len(sizes))
        if limit is None or count == sizes[domain]:
            assert count == sizes[domain]
        elif isinstance(limit, int):
            assert count == min(limit, sizes[domain])
        else:
            assert count + 1 > Fraction(str(limit)) * total


def test_shares_that_can_not_make_a_whole_are_named():
    with pytest.raises(InputError, match=r"a: 0\.5, b: 0\.2 leaves no prompt"):
        domain_counts({"a": 10, "b": 10}, {"a": 0.5, "b": 0.2})


def questions(folder, name: str, rows: int, **changes) -> SourceConfig:
    path = folder / f"{name}.jsonl"
    words = [
        f"Question {number} of {name}: what is {number * 7919 % 997} in words that nobody {number} used"
        for number in range(rows)
    ]
    path.write_text("".join(json.dumps({"q": text}) + "\n" for text in words))
    return SourceConfig(path=str(path), prompt_field="q", domain=name, verifier={"name": "haiku"}, **changes)


def test_the_pool_has_the_shares_in_both_parts_and_names_what_it_leaves_out(tmp_path):
    sources = [questions(tmp_path, "left", 120, weight=3), questions(tmp_path, "right", 30, weight=1)]
    pool, rejected = build_pool(CurateConfig(sources=sources, eval_prompts=24), seed=0)
    assert dict(pool["domain"].value_counts().iter_rows()) == {"left": 90, "right": 30}
    assert pool.filter(split="eval")["domain"].n_unique() == 2
    assert rejected["reason"].to_list() == ["over_weight"] * 30
    assert rejected["row"].to_list() == [int(source.rpartition(":")[2]) for source in rejected["source"]]

    limited = CurateConfig(sources=sources, eval_prompts=24, quota={"left": 20})
    quota_pool, out = build_pool(limited, seed=0)
    held_out = pool.filter(split="eval")["prompt_id"]
    assert set(quota_pool.filter(split="eval")["prompt_id"]) == set(held_out)
    assert quota_pool.filter(split="train", domain="left").height == 20
    assert len(quota_pool) + len(out) == 150
    assert set(out["reason"]) == {"over_weight", "over_quota"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": ["1", None]}, r"sources\.1 has no weight and others have"),
        ({"sources": ["1", "1"], "scarce_sources": "fill"}, "fill needs a weight for each source and max_prompts"),
        ({"sources": [None, None], "quota": {"a": 1.5}}, "less than or equal to 1"),
        ({"sources": [None, None], "quota": {"a": -1}}, "greater than or equal to 0"),
    ],
)
def test_wrong_shares_are_refused(changes, message):
    weights = [None if weight is None else float(weight) for weight in changes.pop("sources")]
    with pytest.raises(ValueError, match=message):
        config(*weights, **changes)

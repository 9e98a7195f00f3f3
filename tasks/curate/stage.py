"""The stages `expand` (a model writes prompts after seeds) and `curate` (sources -> the pool, and rows set aside)."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.policies import resolve_policy
from tasks._engines import pool
from tasks._engines.chat import load_tokenizer, render
from tasks._engines.protocol import SamplingParams
from tasks._serving import served_model
from tasks._sources.rows import rejected_frame
from tasks._stage import StageContext, stage
from tasks.curate.config import CurateConfig, ExpansionConfig
from tasks.curate.expand import Written, expand, seeds_of
from tasks.curate.filters import TokenCounter, filters_content
from tasks.curate.pool import build_pool
from tasks.curate.sources import Expanded, source_content


def content_of_sources(config: CurateConfig) -> list[Any]:
    """What the fingerprint covers besides the configuration: what each source holds, wherever it lies."""
    return [*(source_content(source) for source in config.sources), *filters_content(config.filters)]


def content_of_seeds(config: ExpansionConfig) -> list[Any]:
    """What the seeds' sources hold, and what engine `auto` comes to on this machine: both decide what is written."""
    engine = config.expand.engine
    in_use = [pool.choose(engine), pool.adapter_mode(engine), pool.served_dtype(engine)]
    return [*(source_content(source) for source in config.sources), in_use]


@stage("curate", version=1, extra=content_of_sources)
def curate(
    config: CurateConfig,
    *,
    expansions: Mapping[str, Artifact] | None = None,
    tokenizer: Artifact | None = None,
    seed: int,
    context: StageContext,
) -> Outputs:
    """The pool of prompts. Raises `InputError` for sources that can't be used.

    `expansions`: what the stage `expand` made, by the source's position. `tokenizer`: the model whose tokens count.
    """
    written = {int(at): Expanded(made.id, made.read("expanded")) for at, made in (expansions or {}).items()}
    prompts, rejected = build_pool(
        config, seed, context.progress, expansions=written, count_tokens=_counter(tokenizer) if tokenizer else None
    )
    held_out = prompts.filter(split="eval")
    context.log.info("curate: %d prompts, %d held out, %d rows set aside", len(prompts), len(held_out), len(rejected))
    metrics = {
        "prompts": float(len(prompts)),
        "eval_prompts": float(len(held_out)),
        "clusters": float(prompts["cluster_id"].n_unique()),
        "rejected": float(len(rejected)),
    }
    return Outputs(metrics=metrics | _by_reason(rejected), prompts=prompts, rejected=rejected)


@stage("expand", version=1, extra=content_of_seeds)
def expand_seeds(writer: Artifact, config: ExpansionConfig, *, seed: int, context: StageContext) -> Outputs:
    """New prompts that `writer` writes after those of the sources. Raises `InputError` without a seed."""
    files = resolve_policy(writer)
    tokenizer, wanted = load_tokenizer(files.base), config.expand
    sampling = SamplingParams(max_tokens=wanted.max_tokens, temperature=wanted.temperature, top_p=wanted.top_p)
    seeds = seeds_of(config, seed)
    with pool.acquire(wanted.engine, served_model(files, wanted.engine)) as engine:

        def ask(requests: Sequence[str], sampling_seed: int) -> list[Written]:
            prompts = [render(tokenizer, [{"role": "user", "content": request}]) for request in requests]
            answers = engine.generate(
                prompts,
                [1] * len(prompts),
                sampling,
                sampling_seed,
                lambda done, total: context.progress(done, total, "requests of a round"),
            )
            return [Written(answer.text, answer.finish_reason) for [answer] in answers]

        made = expand(seeds, wanted, files.policy_id, seed, ask)
    rejected = rejected_frame(made.rejected)
    count, asked = len(made.kept), made.requests
    context.log.info("expand: %d of %d prompts wanted, from %d requests", count, wanted.prompts, asked)
    if count < wanted.prompts:
        context.log.warning("expand: max_rounds (%d) are over; raise it, or requests_per_round", wanted.max_rounds)
    metrics = {"seeds": float(len(seeds)), "prompts": float(count), "requests": float(asked)}
    return Outputs(metrics=metrics | _by_reason(rejected), expanded=made.kept, rejected=rejected)


def _counter(tokenizer: Artifact) -> TokenCounter:
    loaded = load_tokenizer(resolve_policy(tokenizer).base)
    return lambda chats: [len(render(loaded, chat)) for chat in chats]


def _by_reason(rejected: pl.DataFrame) -> dict[str, float]:
    """Rows set aside by their reason, as metrics."""
    counts = rejected.group_by("reason").len().sort("reason").iter_rows()
    return {f"rejected_{reason.replace(':', '_')}": float(rows) for reason, rows in counts}

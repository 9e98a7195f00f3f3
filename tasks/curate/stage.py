"""The stages `expand` (a model writes prompts after seeds) and `curate`: sources -> the pool of prompts, the rows
set aside, and what the pool covers.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.artifacts import Artifact, Outputs
from storage.fingerprints import derive_seed
from storage.models import convert_base, weights_digest
from storage.policies import resolve_policy
from tasks._engines import pool as engines
from tasks._engines.chat import load_tokenizer, render
from tasks._engines.protocol import SamplingParams
from tasks._serving import served_model
from tasks._sources.rows import rejected_frame
from tasks._stage import StageContext, stage
from tasks.curate.config import CurateConfig, ExpansionConfig
from tasks.curate.coverage import Coverage, measure, sampled_places
from tasks.curate.coverage_picture import draw_coverage
from tasks.curate.decontaminate import set_content
from tasks.curate.expand import Written, expand, seeds_of
from tasks.curate.filters import TokenCounter, filters_content
from tasks.curate.pool import Pool, choices_of, spool_pool
from tasks.curate.sources import Expanded, source_content


def content_of_sources(config: CurateConfig) -> dict[str, Any]:
    """What the fingerprint covers besides the configuration: what each source and each evaluation set holds, wherever
    it lies, and the weights that embeddings are made by.
    """
    model = _embedding_model(config)
    return {
        "sources": [source_content(source) for source in config.sources],
        "sets": [set_content(each) for each in config.decontaminate],
        "embedding_model": weights_digest(model) if model else None,
        "filters": filters_content(config.filters),
    }


def content_of_seeds(config: ExpansionConfig) -> list[Any]:
    """What the seeds' sources hold, and what engine `auto` comes to on this machine: both decide what is written."""
    engine = config.expand.engine
    in_use = [engines.choose(engine), engines.adapter_mode(engine), engines.served_dtype(engine)]
    return [*(source_content(source) for source in config.sources), in_use]


@stage("curate", version=2, extra=content_of_sources)
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
    pool = spool_pool(
        config,
        seed,
        context.scratch,
        context.progress,
        expansions={int(at): Expanded(made.id, made.read("expanded")) for at, made in (expansions or {}).items()},
        model=_embedding_model(config),
        choices=choices_of(config, seed, _counter(tokenizer) if tokenizer else None),
    )
    coverage = _coverage(pool, config, seed)
    reasons = pool.reasons()
    counts = {
        "prompts": int(pool.kept.sum()),
        "eval_prompts": int(pool.held_out.sum()),
        "clusters": len(np.unique(pool.cluster[pool.kept])),
        "rejected": sum(reasons.values()),
    }
    said = ", ".join(f"{reason} {count}" for reason, count in reasons.items())
    context.log.info(
        "curate: %d prompts in %d clusters, %d held out, %d rows set aside%s",
        counts["prompts"],
        counts["clusters"],
        counts["eval_prompts"],
        counts["rejected"],
        f" ({said})" if said else "",
    )
    metrics = {name: float(count) for name, count in counts.items()}
    metrics |= _by_reason(reasons)
    metrics |= {f"coverage/{name}": value for name, value in coverage.metrics().items()}
    return Outputs(
        metrics=metrics,
        files={"coverage.png": draw_coverage(coverage, context.scratch / "coverage.png")},
        prompts=pool.prompts(),
        rejected=pool.rejected(),
        coverage=coverage.frame(),
    )


@stage("expand", version=1, extra=content_of_seeds)
def expand_seeds(writer: Artifact, config: ExpansionConfig, *, seed: int, context: StageContext) -> Outputs:
    """New prompts that `writer` writes after those of the sources. Raises `InputError` without a seed."""
    files = resolve_policy(writer)
    tokenizer, wanted = load_tokenizer(files.base), config.expand
    sampling = SamplingParams(max_tokens=wanted.max_tokens, temperature=wanted.temperature, top_p=wanted.top_p)
    seeds = seeds_of(config, seed)
    with engines.acquire(wanted.engine, served_model(files, wanted.engine)) as engine:

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
    return Outputs(metrics=metrics | _by_reason(Counter(rejected["reason"])), expanded=made.kept, rejected=rejected)


def _counter(tokenizer: Artifact) -> TokenCounter:
    loaded = load_tokenizer(resolve_policy(tokenizer).base)
    return lambda chats: [len(render(loaded, chat)) for chat in chats]


def _by_reason(reasons: Mapping[str, int]) -> dict[str, float]:
    """Rows set aside by their reason, as metrics."""
    return {f"rejected_{reason.replace(':', '_')}": float(rows) for reason, rows in sorted(reasons.items())}


def _coverage(pool: Pool, config: CurateConfig, seed: int) -> Coverage:
    kept = np.flatnonzero(pool.kept)
    few = kept[sampled_places(len(kept), config.coverage.topic_sample, derive_seed(seed, "coverage"))]
    return measure(pool.domains(), pool.lengths(), pool.texts(few), config.coverage, derive_seed(seed, "topics"))


def _embedding_model(config: CurateConfig) -> Path | None:
    embeddings = config.embeddings
    return convert_base(embeddings.model) if embeddings is not None and embeddings.model is not None else None

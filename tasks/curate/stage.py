"""The stage `curate`: sources -> the pool of prompts, the rows set aside, and what the pool covers."""

from pathlib import Path
from typing import Any

import numpy as np

from storage.artifacts import Outputs
from storage.fingerprints import derive_seed
from storage.models import convert_base, weights_digest
from tasks._stage import StageContext, stage
from tasks.curate.config import CurateConfig
from tasks.curate.coverage import Coverage, measure, sampled_places
from tasks.curate.coverage_picture import draw_coverage
from tasks.curate.decontaminate import set_content
from tasks.curate.pool import Pool, spool_pool
from tasks.curate.sources import source_content


def content_of_sources(config: CurateConfig) -> dict[str, Any]:
    """What the fingerprint covers besides the configuration: what each source and each evaluation set holds, wherever
    it lies, and the weights that embeddings are made by.
    """
    model = _embedding_model(config)
    return {
        "sources": [source_content(source) for source in config.sources],
        "sets": [set_content(each) for each in config.decontaminate],
        "embedding_model": weights_digest(model) if model else None,
    }


@stage("curate", version=2, extra=content_of_sources)
def curate(config: CurateConfig, *, seed: int, context: StageContext) -> Outputs:
    """The pool of prompts. Raises `InputError` for sources that can't be used."""
    pool = spool_pool(config, seed, context.scratch, context.progress, _embedding_model(config))
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
    metrics |= {f"rejected_{reason.replace(':', '_')}": float(count) for reason, count in reasons.items()}
    metrics |= {f"coverage/{name}": value for name, value in coverage.metrics().items()}
    return Outputs(
        metrics=metrics,
        files={"coverage.png": draw_coverage(coverage, context.scratch / "coverage.png")},
        prompts=pool.prompts(),
        rejected=pool.rejected(),
        coverage=coverage.frame(),
    )


def _coverage(pool: Pool, config: CurateConfig, seed: int) -> Coverage:
    kept = np.flatnonzero(pool.kept)
    few = kept[sampled_places(len(kept), config.coverage.topic_sample, derive_seed(seed, "coverage"))]
    return measure(pool.domains(), pool.lengths(), pool.texts(few), config.coverage, derive_seed(seed, "topics"))


def _embedding_model(config: CurateConfig) -> Path | None:
    embeddings = config.embeddings
    return convert_base(embeddings.model) if embeddings is not None and embeddings.model is not None else None

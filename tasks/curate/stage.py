"""The stage `curate`: sources -> the pool of prompts, and the rows set aside."""

from typing import Any

from storage.artifacts import Outputs
from tasks._stage import StageContext, stage
from tasks.curate.config import CurateConfig
from tasks.curate.pool import build_pool
from tasks.curate.sources import source_content


def content_of_sources(config: CurateConfig) -> list[dict[str, Any]]:
    """What the fingerprint covers besides the configuration: what each source holds, wherever it lies."""
    return [source_content(source) for source in config.sources]


@stage("curate", version=1, extra=content_of_sources)
def curate(config: CurateConfig, *, seed: int, context: StageContext) -> Outputs:
    """The pool of prompts. Raises `InputError` for sources that can't be used."""
    prompts, rejected = build_pool(config, seed, context.progress)
    held_out = prompts.filter(split="eval")
    context.log.info("curate: %d prompts, %d held out, %d rows set aside", len(prompts), len(held_out), len(rejected))
    metrics = {
        "prompts": float(len(prompts)),
        "eval_prompts": float(len(held_out)),
        "clusters": float(prompts["cluster_id"].n_unique()),
        "rejected": float(len(rejected)),
    }
    return Outputs(metrics=metrics, prompts=prompts, rejected=rejected)

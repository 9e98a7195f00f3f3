"""The pool of prompts from a run's configuration: what a model writes first, then the pool."""

from flows.config import RunConfig
from storage.artifacts import Artifact
from storage.fingerprints import derive_seed
from storage.policies import register_base
from tasks._engines import pool as engines
from tasks.curate.stage import curate, expand_seeds


def make_pool(config: RunConfig, root: str) -> Artifact:
    """Expand where a source asks for it, then curate. Both are found where they exist."""
    expansions = {}
    for position, expansion in config.curate.expansions().items():
        expansions[str(position)] = expand_seeds(
            writer=register_base(root, expansion.expand.model or config.model.path),
            config=expansion,
            seed=derive_seed(config.seed, "expand", position),
            step=f"expand-{position}",
        )
    if expansions:
        engines.free_accelerator()
    counts = config.curate.filters.counts_tokens
    tokenizer = register_base(root, config.model.path) if counts else None
    return curate(config=config.curate, expansions=expansions, tokenizer=tokenizer, seed=config.seed)

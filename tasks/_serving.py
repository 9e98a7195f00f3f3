"""From a policy's files to the model that an engine loads: what every stage that generates shares."""

from storage.models import PolicyFiles, merged_folder
from tasks._engines import pool
from tasks._engines.config import EngineConfig
from tasks._engines.protocol import ServedModel


def served_model(files: PolicyFiles, engine: EngineConfig) -> ServedModel:
    """The policy as the engine takes it: full weights, its own or merged, or base and adapter side by side."""
    merged = files.adapter is None or pool.adapter_mode(engine) == "merged"
    return ServedModel(
        model=merged_folder(files, pool.served_dtype(engine)) if merged else files.weights,
        adapter=None if merged else files.adapter,
        policy_id=files.policy_id,
        tokenizer=files.base,
    )

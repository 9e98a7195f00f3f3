"""The stage `states`: preferences and a base -> frozen states of every distinct answer."""

import polars as pl

from storage.artifacts import Artifact, Outputs
from storage.policies import base_of, resolve_policy
from tasks._devices import dtype_in_use
from tasks._stage import StageContext, stage
from tasks.states.config import DrawnStatesConfig


@stage("states", version=1, extra=dtype_in_use)
def read_answers(
    preferences: Artifact, base: Artifact, config: DrawnStatesConfig, *, seed: int = 0, context: StageContext
) -> Outputs:
    """Only the base's layers up to the last one that is read are computed. `facts["states"]` says what was read.

    The table `paired_answers` has the pairs that were drawn: whoever reads the states takes these alone.
    """
    from dataclasses import asdict

    from tasks._devices import choose_device
    from tasks._engines.chat import load_tokenizer
    from tasks._training.batching import microbatch_tokens
    from tasks._training.drawn_pairs import drawn, of_sources
    from tasks._training.states import StateReader, read_states
    from tasks.states.answers import answer_states, distinct_answers
    from tasks.states.spec import spec_of

    folder = resolve_policy(base).base
    tokenizer = load_tokenizer(folder)
    spec = spec_of(config, folder, tokenizer)
    pairs = of_sources(preferences.read("preferences"), config.sources)
    limits = {"train": config.max_pairs, "eval": config.max_heldout_pairs}
    pairs = pl.concat([drawn(pairs, split, limit, seed) for split, limit in limits.items()])
    answers = distinct_answers(pairs, tokenizer)
    device = choose_device(config.device)
    states = read_states(
        StateReader(folder, spec, device),
        answers.prompts,
        answers.responses,
        tokens_per_microbatch=microbatch_tokens(config.tokens_per_microbatch, device.type),
        progress=context.progress,
    )
    context.log.info("states: %d answers of %d pairs, %d features", len(states), len(answers.paired), states.shape[1])
    metrics = {"answers": float(len(states)), "pairs": float(len(answers.paired)), "features": float(states.shape[1])}
    return Outputs(
        metrics=metrics,
        facts={"base": base_of(base).id, "states": asdict(spec)},
        states=answer_states(answers.answer_ids, states),
        paired_answers=answers.paired,
    )

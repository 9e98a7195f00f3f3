"""`posttrain check`: everything that can be known before work starts."""

from rich.console import Console
from rich.table import Table

from flows.budget import Request, plan_budget
from flows.budget_command import print_budget
from flows.config import RunConfig
from flows.measured import pass_rates, pool_size, throughput
from flows.reward_schedule import schedule
from flows.tables import short_id
from storage.artifacts import Artifact
from storage.campaigns import Campaign
from storage.errors import InputError
from storage.models import convert_base, find_base
from storage.policies import base_of, resolve_policy
from storage.store import check_root
from tasks.curate.decontaminate import check_sets
from tasks.curate.sources import check_sources, verifiers_of
from tasks.grading.checks import check_graders, check_iterations
from tasks.grading.judges.config import CHAMPION
from tasks.preferences.files import check_preference_files
from tasks.sft.demonstrations import check_demonstrations

REWARD_MODEL_DESCRIPTION = "reward_model.json"


def check_inputs(config: RunConfig) -> None:
    """Raise `InputError` for a model, a source, a grader or a store that can't be used."""
    find_base(config.model.path)
    for model in config.grading.local_models.values():
        if model != CHAMPION:
            find_base(model)
    for label, model in config.grading.other_reward_models.items():
        _check_reward_model(label, Artifact.at(config.resolved_root(), model), config.model.path)
    for expansion in config.curate.expansions().values():
        if expansion.expand.model is not None:
            find_base(expansion.expand.model)
    check_iterations(config.grading)
    check_sources(config.curate)
    check_sets(config.curate.decontaminate)
    if config.curate.embeddings is not None and config.curate.embeddings.model is not None:
        find_base(config.curate.embeddings.model)
    check_graders(config.grading, verifiers_of(config.curate))
    check_preference_files(config.preferences.files)
    check_preference_files(config.anchor_files)
    if config.sft is not None:
        check_demonstrations(config.sft)
    check_root(config.resolved_root())


def _check_reward_model(label: str, named: Artifact, model: str) -> None:
    """Raises `InputError` for an artifact that isn't there, is no reward model, or reads other tokens than the run."""
    if not named.exists():
        raise InputError(
            f"grading.graders: {label}: no {named.id} below {named.root}; expected a reward model of this store, whole "
            "ids are in `posttrain show CAMPAIGN --json`"
        )
    if REWARD_MODEL_DESCRIPTION not in named.manifest.files:
        raise InputError(f"grading.graders: {label}: {named.id} is no reward model; `reward_model/...` are")
    from tasks._engines.chat import load_tokenizer

    base = resolve_policy(base_of(named)).base
    vocabularies = [load_tokenizer(folder).get_vocab() for folder in (base, convert_base(model))]
    if vocabularies[0] != vocabularies[1]:
        raise InputError(
            f"grading.graders: {label}: {named.id} stands on {base.name}, whose tokenizer isn't that of {model}; it "
            "scores token ids, so both must have the same"
        )


def print_plan(config: RunConfig, console: Console) -> None:
    """Validate the inputs, then print what a run would do and how much of it is there already."""
    check_inputs(config)
    root = config.resolved_root()
    done = Campaign(root, config.campaign).iterations()
    last = done[-1] if done else 0
    target = last + config.iterations_per_run if config.iterations_per_run else config.iterations
    todo = max(0, target - last)
    rollouts = config.select.prompts_per_iteration * config.select.samples_per_prompt
    most = config.rounds.most_prompts(config.select.prompts_per_iteration) * config.select.samples_per_prompt
    counted = f"{rollouts}" if most == rollouts else f"{rollouts} to {most}"
    longest = most * config.rollouts.sampling.max_tokens
    console.print(f"campaign {config.campaign}, root {root}: {last} of {target} iterations are committed")
    if config.sft is not None:
        sources = ", ".join(source.path for source in config.sft.sources)
        console.print(f"before the first iteration: sft on {sources}, {config.sft.epochs} epochs")
    for position, expansion in config.curate.expansions().items():
        asked, writer = expansion.expand, expansion.expand.model or config.model.path
        requests = asked.max_rounds * asked.requests_per_round
        console.print(
            f"before curate: expand-{position}, {asked.prompts} prompts by {writer}, at most {requests} requests"
        )
    table = Table("stage", "in every iteration", title=f"{todo} iterations to run")
    for name, what in [
        ("select", f"{config.select.prompts_per_iteration} prompts x {config.select.samples_per_prompt} samples"),
        *_rounds(config),
        ("rollouts", f"{counted} rollouts, at most {longest:,} tokens, engine {config.rollouts.engine.name}"),
        (
            "grading",
            ", ".join(f"{g.label} {g.weight:g} from iteration {g.from_iteration}" for g in config.grading.graders),
        ),
        ("filtering", ", ".join(rule.rule for rule in config.filtering.rules) + f"; {config.filtering.advantage}"),
        *_labelling(config),
        *reward_model_rows(config),
        ("reward_model", _reward_models(config, range(last + 1, target + 1))),
        ("reward_gate", _gate(config)),
        (
            "policy_update",
            f"{config.algorithm}: {config.policy_update.objective}, {config.policy_update.optimizer_steps} optimizer "
            f"steps x {config.policy_update.epochs}",
        ),
        ("evaluation", f"{config.evaluation.select.samples_per_prompt} samples per held-out prompt"),
    ]:
        table.add_row(name, what)
    console.print(table)
    for warning in config.warnings():
        console.print(f"warning: {warning}", style="yellow", highlight=False, soft_wrap=True)
    console.print(f"in all: at most {todo * longest:,} sampled tokens in training rollouts")
    console.print()
    print_budget_of(config, max(target, 1) * most, console)


def _rounds(config: RunConfig) -> list[tuple[str, str]]:
    """What an iteration samples beyond one batch, or less."""
    screening, refill, said = config.rounds.screening, config.rounds.refill, []
    if screening is not None:
        said.append(f"{screening.samples} samples of each prompt, the rest where they vary")
    if refill is not None:
        said.append(f"other prompts until {refill.groups} groups survive, in {refill.max_rounds} rounds at most")
    return [("rounds", "; ".join(said))] if said else []


def _reward_models(config: RunConfig, iterations: range) -> str:
    """When the reward models of these iterations are trained, by the state that the campaign is in."""
    last = Campaign(config.resolved_root(), config.campaign).last_state()
    present = short_id(last.reward_model) if last and last.reward_model else None
    return schedule(config.reward_model, iterations, present)


def reward_model_rows(config: RunConfig) -> list[tuple[str, str]]:
    """What a reward model is made of and by, where it isn't left out."""
    asked, heads, quality = config.reward_model, config.frozen_heads, config.pair_quality
    if not asked.enabled:
        return []
    rows = []
    if heads is not None or quality is not None:
        layers = "layers by its depth" if config.states.layers is None else f"layers {config.states.layers}"
        pairs = f"of at most {asked.max_pairs:,} + {asked.max_heldout_pairs:,} held-out pairs"
        rows.append(("states", f"{layers}, {', '.join(config.states.poolings)}, {pairs}"))
    if quality is not None:
        acts = f"the weakest {quality.lowest_share:.0%}: {quality.lowest}, next {quality.middle_share:.0%}: "
        rows.append(("pair_quality", f"{acts}{quality.middle}{', margins' if quality.margins else ''}"))
    kind = f"frozen: {heads.members} {heads.form} heads over states" if heads else _trained_kind(config)
    sources = f", of pairs of source {', '.join(asked.sources)}" if asked.sources else ""
    return [*rows, ("kind of reward model", f"{kind}{sources}")]


def _trained_kind(config: RunConfig) -> str:
    asked = config.reward_model
    heads = f", heads {asked.members}" if asked.kind == "lora" else ""
    return f"{asked.kind} on the {asked.base}{heads}, loss {asked.loss}"


def _gate(config: RunConfig) -> str:
    """What a newly trained one must hold."""
    gate = config.reward_gate
    if not config.reward_model.enabled:
        return "none"
    if not gate.enabled:
        return "none: whatever was trained grades from the next iteration on"
    first = "always" if gate.first == "always" else f"above {0.5 + gate.min_over_chance:g}"
    return f"accuracy of the first {first}, of others at most {gate.max_accuracy_loss:g} worse; gap, length, anchors"


def _labelling(config: RunConfig) -> list[tuple[str, str]]:
    asked = config.labelling
    if asked is None:
        return []
    waits = f", waits at most {asked.wait_s:g} s for them" if asked.wait_s else ""
    return [
        (
            "label-queue",
            f"at most {asked.size} pairs x {asked.labels_per_item} people{waits}: posttrain label {config.campaign}",
        )
    ]


def print_budget_of(config: RunConfig, rollouts: int, console: Console) -> None:
    """What the file's budget buys by the fits, and what the file takes instead."""
    campaign = Campaign(config.resolved_root(), config.campaign)
    request = Request(rollouts=float(rollouts), pool=pool_size(campaign))
    print_budget(plan_budget(request, throughput(campaign), pass_rates(campaign)), console)
    select, update = config.select, config.policy_update
    batch = select.prompts_per_iteration / update.optimizer_steps
    console.print(
        f"this file takes {select.samples_per_prompt} samples x {batch:g} prompts per optimizer step, learning rate "
        f"{update.rate:g} ({update.parameters})",
        highlight=False,
        soft_wrap=True,
    )

"""`posttrain check`: everything that can be known before work starts."""

from rich.console import Console
from rich.table import Table

from flows.budget import Request, plan_budget
from flows.budget_command import print_budget
from flows.config import RunConfig
from flows.measured import pass_rates, pool_size, throughput
from flows.reward_schedule import schedule
from flows.tables import short_id
from storage.campaigns import Campaign
from storage.models import find_base
from storage.store import check_root
from tasks.curate.decontaminate import check_sets
from tasks.curate.sources import check_sources, verifiers_of
from tasks.grading.checks import check_graders, check_iterations
from tasks.grading.judges.config import CHAMPION
from tasks.preferences.files import check_preference_files
from tasks.sft.demonstrations import check_demonstrations


def check_inputs(config: RunConfig) -> None:
    """Raise `InputError` for a model, a source, a grader or a store that can't be used."""
    find_base(config.model.path)
    for model in config.grading.local_models.values():
        if model != CHAMPION:
            find_base(model)
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


def print_plan(config: RunConfig, console: Console) -> None:
    """Validate the inputs, then print what a run would do and how much of it is there already."""
    check_inputs(config)
    root = config.resolved_root()
    done = Campaign(root, config.campaign).iterations()
    last = done[-1] if done else 0
    target = last + config.iterations_per_run if config.iterations_per_run else config.iterations
    todo = max(0, target - last)
    rollouts = config.select.prompts_per_iteration * config.select.samples_per_prompt
    longest = rollouts * config.rollouts.sampling.max_tokens
    console.print(f"campaign {config.campaign}, root {root}: {last} of {target} iterations are committed")
    if config.sft is not None:
        sources = ", ".join(source.path for source in config.sft.sources)
        console.print(f"before the first iteration: sft on {sources}, {config.sft.epochs} epochs")
    for position, expansion in config.curate.expansions().items():
        asked, writer = expansion.expand, expansion.expand.model or config.model.path
        most = asked.max_rounds * asked.requests_per_round
        console.print(f"before curate: expand-{position}, {asked.prompts} prompts by {writer}, at most {most} requests")
    table = Table("stage", "in every iteration", title=f"{todo} iterations to run")
    for name, what in [
        ("select", f"{config.select.prompts_per_iteration} prompts x {config.select.samples_per_prompt} samples"),
        ("rollouts", f"{rollouts} rollouts, at most {longest:,} tokens, engine {config.rollouts.engine.name}"),
        (
            "grading",
            ", ".join(f"{g.label} {g.weight:g} from iteration {g.from_iteration}" for g in config.grading.graders),
        ),
        ("filtering", ", ".join(rule.rule for rule in config.filtering.rules) + f"; {config.filtering.advantage}"),
        *_labelling(config),
        *before_training(config),
        ("reward_model", reward_models(config, range(last + 1, target + 1))),
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
    print_budget_of(config, max(target, 1) * rollouts, console)


def reward_models(config: RunConfig, iterations: range) -> str:
    """When the reward models of these iterations are trained, by the state that the campaign is in."""
    last = Campaign(config.resolved_root(), config.campaign).last_state()
    present = short_id(last.reward_model) if last and last.reward_model else None
    planned = schedule(config.reward_model, iterations, present)
    return f"{planned}; {_kind(config)}" if config.reward_model.enabled else planned


def _kind(config: RunConfig) -> str:
    """What a newly trained one is."""
    heads, model = config.frozen_heads, config.reward_model
    if heads is not None:
        return f"{heads.members} {heads.form} heads over frozen states"
    on = "the policy" if model.base == "policy" else "the base"
    if model.kind == "generative":
        return f"a generative judge: LoRA on {on}, {model.loss}"
    return f"LoRA on {on} with {model.members} {model.head} {'head' if model.members == 1 else 'heads'}, {model.loss}"


def before_training(config: RunConfig) -> list[tuple[str, str]]:
    """What is made of the pairs whenever a reward model is trained, before it is."""
    quality, states, rows = config.pair_quality, config.states, []
    if not config.reward_model.enabled:
        return []
    if quality is not None or config.frozen_heads is not None:
        layers = ", ".join(map(str, states.layers)) if states.layers else "about six"
        rows.append(("states", f"of both answers of every pair: layers {layers}; {', '.join(states.poolings)}"))
    if quality is not None:
        shares = (
            f"weakest {quality.lowest_share:.0%} {quality.lowest}, next {quality.middle_share:.0%} {quality.middle}"
        )
        rows.append(("pair_quality", f"{quality.members * quality.repeats} models judge the labels: {shares}"))
    return rows


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

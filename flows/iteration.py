"""One iteration: from the state after k iterations to the state after k + 1. This file is the pipeline."""

from prefect import flow, get_run_logger

from flows.config import RunConfig
from flows.inputs import make_pool
from flows.launches import LaunchContext, launched, shard_runner, tracked_iteration
from flows.people import ask_people
from flows.preference_pairs import gather_pairs
from flows.prompt_history import record_history
from flows.reward_models import Night, in_charge, read_anchors, refresh
from flows.rounds import Sampler, sample_iteration
from flows.slow_grades import Graded, settle_grades
from flows.steps import FIRST
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.fingerprints import derive_seed
from storage.policies import register_base
from storage.tracking import open_tracker
from tasks._engines import pool as engines
from tasks._stage import RunContext
from tasks.evaluation.stage import evaluate
from tasks.filtering.stage import filter_rollouts
from tasks.grading.config import GradingConfig
from tasks.grading.judges.config import CHAMPION
from tasks.grading.stage import grade
from tasks.policy_update.stage import update
from tasks.report.stage import report
from tasks.rollouts.stage import generate
from tasks.select.stage import select_held_out
from tasks.sft.stage import fine_tune

REPORTED_ITERATIONS = 60


@flow(
    name="iteration",
    flow_run_name="{config.campaign} after {state.iteration}",
    persist_result=True,
    task_runner=shard_runner(),
)
def iteration(state: State, config: RunConfig, launch: LaunchContext | None = None) -> State:
    """Make one iteration on top of a committed state and commit the next state.

    Every stage whose artifact exists is found instead of run. Raises `CampaignConflict` when another runner
    commits the same iteration first. Without `launch` this is a launch of its own.
    """
    if launch is None:
        with launched(config) as own:
            return _iterate(state, config, own)
    return _iterate(state, config, launch)


def _iterate(state: State, config: RunConfig, launch: LaunchContext) -> State:
    with tracked_iteration(launch, config, state.iteration + 1, force=frozenset(), stop_after=None) as run:
        pool = make_pool(config, run.root)
        after = take_steps(state, config, run, pool)
        committed = Campaign(run.root, config.campaign).commit(after.model_copy(update={"launch_id": launch.launch_id}))
    publish(committed, launch)
    return committed


def take_steps(state: State, config: RunConfig, run: RunContext, pool: Artifact) -> State:
    """The stages of one iteration, in order. Gives the state to commit."""
    k = run.iteration
    policy, champion = Artifact.at(run.root, state.policy), Artifact.at(run.root, state.champion)
    scorer = in_charge(state, run)

    graders = config.grading.active(k, scorer.reward_model is not None)
    earlier = _filtered(config, run, config.filtering.earlier_nights)
    judge_models = _judge_models(graders, run.root, champion)
    sampled, history = sample_iteration(
        Sampler(
            config=config,
            iteration=k,
            prompts=pool,
            history=_optional(run, state.prompt_history),
            policy=policy,
            reward_model=scorer.reward_model,
            reward_check=scorer.reward_check,
            judge_models=judge_models,
            graders=graders,
            earlier=tuple(earlier),
        )
    )
    rollouts, drawn, _ = sampled
    settled = settle_grades(state, config, run, sampled, graders)
    graded = [(rollouts, settled.rewards)]
    history = record_history(state, config, run, history, graded, graders, scorer, judge_models)
    kept = filter_rollouts(
        rollouts=rollouts,
        rewards=settled.rewards,
        earlier=earlier,
        config=config.filtering,
    )
    rewarded = Graded(rollouts, drawn, settled.rewards)
    labels = ask_people(state, config, run, rewarded)
    anchors = read_anchors(config)
    pairs = gather_pairs(config, run, rewarded, [labels] if labels else [], anchors)
    scorer = refresh(Night(state, config, run, policy, rewarded, pairs, anchors))
    challenger = update(
        trajectories=kept,
        replayed=_filtered(config, run, config.policy_update.replay_iterations),
        preferences=pairs if config.policy_update.on_stored_pairs else None,
        policy=policy,
        reference=_reference(policy, config, run),
        late=settled.late,
        config=config.policy_update,
        seed=derive_seed(config.seed, k, "update"),
    )
    scored = score_held_out(challenger, _champion_scores(state, champion, config, run, pool), config, pool)
    promoted = bool(scored.metrics["promoted"])
    after = State(
        campaign=config.campaign,
        iteration=k,
        policy=challenger.id,
        champion=challenger.id if promoted else champion.id,
        champion_evaluation=scored.id if promoted else state.champion_evaluation,
        **scorer.ids(),
        prompt_history=history.id,
        pending_grades=settled.pending,
        mlflow_run_id=run.mlflow_run_id,
        steps=dict(run.steps or {}),
    )
    report(history=_history(after, run), config=config.report)
    return after.model_copy(update={"steps": dict(run.steps or {})})


def score_held_out(
    policy: Artifact, champion_scores: Artifact | None, config: RunConfig, pool: Artifact, name: str = "evaluation"
) -> Artifact:
    """Sample a policy on the held-out prompts, grade by the verifiers alone, and judge it against the champion."""
    held_out = select_held_out(
        prompts=pool, config=config.evaluation.select, seed=derive_seed(config.seed, "held-out"), step=f"{name}-select"
    )
    seed = derive_seed(config.seed, "evaluation")
    rollouts = generate(batch=held_out, policy=policy, config=config.rollouts, seed=seed, step=f"{name}-rollouts")
    engines.free_accelerator()
    graders = config.grading.active(FIRST, has_reward_model=False)
    graded = grade(
        rollouts=rollouts,
        batch=held_out,
        reward_model=None,
        judge_models=_judge_models(graders, policy.root),
        config=graders,
        step=f"{name}-grading",
    )
    engines.free_accelerator()
    return evaluate(
        rollouts=rollouts,
        grading=graded,
        champion=champion_scores,
        config=config.evaluation.verdict,
        seed=seed,
        step=name,
    )


def first_state(config: RunConfig, launch: LaunchContext) -> State:
    """Make and commit the state before the first iteration."""
    with tracked_iteration(launch, config, FIRST, force=frozenset(), stop_after=None) as run:
        state = take_first_steps(config, run, make_pool(config, run.root))
        return Campaign(run.root, config.campaign).commit(state.model_copy(update={"launch_id": launch.launch_id}))


def take_first_steps(config: RunConfig, run: RunContext, pool: Artifact) -> State:
    """The first policy and champion, scored on the held-out prompts: the base model, or what demonstrations make of it.

    With demonstrations the base model is scored too, so that what they gained shows.
    """
    policy = register_base(run.root, config.model.path)
    if config.sft is not None:
        base_scored = score_held_out(policy, None, config, pool, name="base-evaluation")
        policy = fine_tune(base=policy, config=config.sft, seed=derive_seed(config.seed, "sft"))
    scored = score_held_out(policy, None, config, pool)
    if config.sft is not None:
        gained = base_scored.metrics["mean_score"], scored.metrics["mean_score"]
        get_run_logger().info("sft: the held-out score went from the base model's %.3f to %.3f", *gained)
    return State(
        campaign=config.campaign,
        iteration=FIRST,
        policy=policy.id,
        champion=policy.id,
        champion_evaluation=scored.id,
        steps=dict(run.steps or {}),
        mlflow_run_id=run.mlflow_run_id,
    )


def publish(state: State, launch: LaunchContext) -> None:
    """Show a committed iteration: its policy in MLflow's registry, its report,

    A launch does this first for the state that it finds, in case the one before was cut off between the two.
    """
    tracker, run_id = open_tracker(launch.tracking_uri, launch.experiment), state.mlflow_run_id or ""
    policy = Artifact.at(launch.root, state.policy)
    page = Artifact.at(launch.root, state.steps["report"]).files_folder() if "report" in state.steps else None
    champion = state.champion == state.policy
    trouble = tracker.publish(run_id, f"{state.campaign}-policy", policy, page, champion=champion)
    if trouble:
        get_run_logger().warning(
            "MLflow didn't take iteration %d (%s); the next launch tries again", state.iteration, trouble
        )


def _champion_scores(state: State, champion: Artifact, config: RunConfig, run: RunContext, pool: Artifact) -> Artifact:
    """The champion's evaluation as today's configuration makes it: the committed one unless something changed."""
    recorded = Artifact.at(run.root, state.champion_evaluation)
    seed = derive_seed(config.seed, "held-out")
    batch = select_held_out.artifact(run.root, prompts=pool, config=config.evaluation.select, seed=seed)
    seed = derive_seed(config.seed, "evaluation")
    rollouts = generate.artifact(run.root, batch=batch, policy=champion, config=config.rollouts, seed=seed)
    graders = config.grading.active(FIRST, has_reward_model=False)
    if rollouts.id == recorded.manifest.inputs["rollouts"]:
        judges = _judge_models(graders, run.root)
        graded = grade.artifact(
            run.root, rollouts=rollouts, batch=batch, reward_model=None, judge_models=judges, config=graders
        )
        if graded.id == recorded.manifest.inputs["grading"]:
            return recorded
    return score_held_out(champion, None, config, pool, name="champion")


def _judge_models(graders: GradingConfig, root: str, champion: Artifact | None = None) -> dict[str, Artifact]:
    """What the local judges among the graders are served from, and other reward models score by, by their labels."""
    found = {label: Artifact.at(root, model) for label, model in graders.other_reward_models.items()}
    for label, model in graders.local_models.items():
        found[label] = champion if champion is not None and model == CHAMPION else register_base(root, model)
    return found


def _reference(policy: Artifact, config: RunConfig, run: RunContext) -> Artifact | None:
    """The reference policy of the update, where it isn't the policy itself."""
    if not config.policy_update.needs_reference or config.policy_update.kl.reference == "start":
        return None
    first = Artifact.at(run.root, Campaign(run.root, config.campaign).state(FIRST).policy)
    return None if first.id == policy.id else first


def _filtered(config: RunConfig, run: RunContext, count: int) -> list[Artifact]:
    """What the filter made of the last `count` iterations before this one, the newest first."""
    campaign = Campaign(run.root, config.campaign)
    earlier = [k for k in campaign.iterations() if FIRST < k < run.iteration]
    kept = reversed(earlier[len(earlier) - min(count, len(earlier)) :])
    return [Artifact.at(run.root, campaign.state(k).steps["filtering"]) for k in kept]


def _history(after: State, run: RunContext) -> dict[str, Artifact]:
    """The artifacts of every iteration so far, as `00001.rollouts`."""
    campaign = Campaign(run.root, after.campaign)
    earlier = [k for k in campaign.iterations() if FIRST < k < after.iteration]
    states = [*(campaign.state(k) for k in [FIRST, *earlier[-REPORTED_ITERATIONS:]]), after]
    return {
        f"{state.iteration:05d}.{step}": Artifact.at(run.root, artifact_id)
        for state in states
        for step, artifact_id in state.steps.items()
        if step != "report"
    }


def _optional(run: RunContext, artifact_id: str | None) -> Artifact | None:
    return Artifact.at(run.root, artifact_id) if artifact_id else None

"""The records: Parquet schemas that are the contract between stages.

Read this file first. A record is complete when written; a stage that knows more writes another record
and joins by id. One class per record, its rules named; `RECORDS` maps the name of a table to its class.

Units stand in a column's `metadata["unit"]` and are copied to the Parquet field. Columns marked
`volatile` hold clocks: they are no part of an artifact's content digest.
"""

from typing import Any

import dataframely as dy
import polars as pl

CLOCK = {"volatile": True}
NATS = {"unit": "nat"}
SECONDS = {"unit": "s", "volatile": True}
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def _identifier(*, primary_key: bool = False, **options: Any) -> dy.String:
    return dy.String(min_length=1, primary_key=primary_key, **options)


def _tokens() -> dy.List:
    return dy.List(dy.Int32(min=0), metadata={"unit": "token id"})


def _logprobs() -> dy.List:
    return dy.List(dy.Float32(), metadata=NATS)


class Prompt(dy.Schema):
    """A chat that a policy is asked to continue, and how its answer is verified."""

    prompt_id = _identifier(primary_key=True, description="hash of the messages and the verifier's specification")
    messages = dy.List(dy.Struct({"role": dy.String(), "content": dy.String()}), min_length=1)
    answer = dy.String(nullable=True)
    verifier = dy.Struct({"name": dy.String(), "params": dy.String()}, description="params is a JSON object")
    domain = dy.String()
    tags = dy.List(dy.String())
    source = dy.String(description="where the row came from: path:row")
    split = dy.Enum(["train", "eval"])
    cluster_id = _identifier(description="near duplicates share one; a cluster is never split")
    rubric = dy.String(nullable=True)

    @dy.rule()
    def ends_with_user_turn(cls) -> pl.Expr:
        return pl.col("messages").list.last().struct.field("role") == "user"


class RejectedRow(dy.Schema):
    """A source row that was set aside, and why."""

    source = _identifier(description="path:row")
    row = dy.Int64(min=0, description="counted from 1; 0 where a whole file is meant")
    reason = dy.String(description="missing_field, bad_type, not_utf8, no_user_turn, empty, exact_duplicate, ...")
    field = dy.String(nullable=True)
    found = dy.String(nullable=True)
    expected = dy.String(nullable=True)


class ExpandedPrompt(dy.Schema):
    """An instruction that a model wrote after the pattern of others."""

    position = dy.Int32(min=0, primary_key=True)
    text = _identifier()
    policy_id = _identifier(description="fingerprint of the model that wrote it")
    seeds = dy.List(dy.String(), description="where the prompts came from that it was shown")
    round = dy.Int32(min=0)
    request = dy.Int32(min=0, description="within the round")
    item = dy.Int32(min=1, description="within the answer")
    similarity = dy.Float64(min=0, max=1, description="ROUGE-L F to the nearest prompt before it")
    nearest = dy.String(nullable=True, description="where that came from; null where no word is shared")


class CoverageMeasure(dy.Schema):
    """One number of what a pool covers: the share of a domain or topic, a quantile of lengths, how varied it is."""

    measure = dy.Enum(["domain", "length", "topic", "diversity"], primary_key=True)
    name = dy.String(primary_key=True, description="domain, quantile of words per prompt, number of the topic, vendi")
    prompts = dy.Int64(min=0, description="prompts that it was measured on; of a domain or topic those in it")
    value = dy.Float64(min=0, description="share of the prompts; words; effective number of different prompts")
    words = dy.List(dy.String(), description="what tells a topic from the rest; else empty")


class BatchEntry(dy.Schema):
    """A prompt of this iteration and how many samples it gets."""

    prompt_id = _identifier(primary_key=True)
    position = dy.Int32(min=0, description="order within the batch: shards are runs of it")
    samples = dy.Int32(min=1)
    messages = dy.List(dy.Struct({"role": dy.String(), "content": dy.String()}), min_length=1)
    answer = dy.String(nullable=True)
    verifier = dy.Struct({"name": dy.String(), "params": dy.String()})
    domain = dy.String()
    rubric = dy.String(nullable=True, description="criteria for a judge, JSON or plain text")
    cluster_id = _identifier()
    split = dy.Enum(["train", "eval"])


class SampledBefore(dy.Schema):
    """How many samples of a batch's prompt earlier rounds made: the batch's own are counted on from there."""

    prompt_id = _identifier(primary_key=True)
    samples = dy.Int32(min=1)


class PromptUse(dy.Schema):
    """What is known of a prompt: how often it was drawn, and how its rollouts did.

    What no outcome told yet is null: the prior holds. Outcomes are discounted, so the counts are no whole numbers.
    """

    prompt_id = _identifier(primary_key=True)
    times_drawn = dy.Int32(min=0)
    last_iteration = dy.Int32(min=0)
    alpha = dy.Float64(nullable=True, min_exclusive=0, description="Beta posterior of the pass rate: successes + prior")
    beta = dy.Float64(nullable=True, min_exclusive=0, description="failures + prior")
    last_outcome = dy.Int32(nullable=True, min=0, description="iteration of the newest outcomes in the posterior")
    outcome_key = dy.String(nullable=True, description="who made the outcomes: basis:grader:key@version, or reward:key")
    reward_weight = dy.Float64(nullable=True, min=0, description="discounted number of rewards in the next two")
    reward_mean = dy.Float64(nullable=True)
    reward_variance = dy.Float64(nullable=True, min=0)
    easy_streak = dy.Int32(nullable=True, min=0, description="groups without variance in a row, at the passing end")
    hard_streak = dy.Int32(nullable=True, min=0, description="groups without variance in a row, at the failing end")
    reward_key = dy.String(nullable=True, description="who made the rewards in the last five")


class Rollout(dy.Schema):
    """One sample of a policy on a prompt, with the engine's own log-probabilities."""

    rollout_id = _identifier(primary_key=True)
    prompt_id = _identifier()
    sample_index = dy.Int32(min=0)
    iteration = dy.Int32(min=0)
    policy_id = _identifier(description="fingerprint of the policy artifact that was served")
    prompt_token_ids = _tokens()
    token_ids = _tokens()
    logprobs = _logprobs()
    text = dy.String()
    finish_reason = dy.Enum(["stop", "length", "abort"])
    engine = dy.String()
    sampling = dy.String(description="JSON: temperature, top_p, top_k, max_tokens, seed")
    created_at = dy.Datetime(time_unit="us", time_zone="UTC", metadata=CLOCK)

    @dy.rule()
    def one_logprob_per_token(cls) -> pl.Expr:
        return pl.col("token_ids").list.len() == pl.col("logprobs").list.len()


# In a grade's detail: the probability with which its rollout was drawn to be graded.
PROPENSITY = "propensity"


class Grade(dy.Schema):
    """What one grader says of one rollout. A grader that fails leaves a failed row: never a zero.

    A slow grader's row is pending until its answer comes, or skipped where its budget didn't reach.
    """

    rollout_id = _identifier(primary_key=True)
    grader = _identifier(primary_key=True)
    grader_version = dy.String()
    status = dy.Enum(["ok", "pending", "failed", "skipped"])
    score = dy.Float64(nullable=True)
    passed = dy.Bool(nullable=True)
    uncertainty = dy.Float64(nullable=True, min=0)
    detail = dy.String(description="JSON object")
    latency_s = dy.Float64(nullable=True, min=0, metadata=SECONDS, description="null where nobody measured it")
    cost = dy.Float64(min=0, description="in the grader's own currency; 0 where it is free or was paid for before")
    policy_id = _identifier()

    @dy.rule()
    def score_only_when_ok(cls) -> pl.Expr:
        return (pl.col("status") == "ok") == pl.col("score").is_not_null()


class PendingGrade(dy.Schema):
    """A grade that was asked for and isn't there yet: the rollout that it belongs to, and where that lies."""

    rollout_id = _identifier(primary_key=True)
    grader = _identifier(primary_key=True)
    prompt_id = _identifier()
    policy_id = _identifier()
    truncated = dy.Bool(description="the length limit cut the rollout")
    ticket = _identifier(description="under which the grader gives the answer")
    iteration = dy.Int32(min=0, description="in which it was asked for")
    grader_version = dy.String()
    grader_key = _identifier(description="who grades, in the kept grades")
    row_key = _identifier(description="what is graded, in the kept grades")
    propensity = dy.Float64(min=0, max=1, description="the probability with which the rollout was chosen")
    rollouts = _identifier(description="artifact of the rollout")
    batch = _identifier(description="artifact of its prompt")
    grading = _identifier(description="artifact of its instant grades")


class Reward(dy.Schema):
    """The composite of a rollout's grades, by default their weighted mean."""

    rollout_id = _identifier(primary_key=True)
    reward = dy.Float64(nullable=True, description="null unless complete")
    components = dy.List(
        dy.Struct({"name": dy.String(), "value": dy.Float64()}),
        description="score per grader; then what each step of the composite added: grader/step to a score, step to "
        "the reward; fast_only 1 where only the instant graders count; grader/imputed the score that was taken instead",
    )
    complete = dy.Bool(description="every grader answered ok, or composite.missing made up for the slow ones")
    passed = dy.Bool(nullable=True, description="every judge's verdict holds; null without judges")

    @dy.rule()
    def reward_only_when_complete(cls) -> pl.Expr:
        return pl.col("complete") == pl.col("reward").is_not_null()


class GraderSummary(dy.Schema):
    """What one grader said of an artifact's rollouts, in numbers."""

    grader = _identifier(primary_key=True)
    rollouts = dy.Int64(min=0)
    ok = dy.Int64(min=0)
    failed = dy.Int64(min=0)
    pending = dy.Int64(min=0)
    skipped = dy.Int64(min=0, description="not asked about")
    score_mean = dy.Float64(nullable=True)
    score_std = dy.Float64(nullable=True, min=0)
    passed_fraction = dy.Float64(nullable=True, description="null where the grader draws no line")
    quantiles = dy.List(dy.Float64(), description=f"of the scores, at {QUANTILES}; empty without a score")
    low = dy.Float64(description="where the histogram begins")
    high = dy.Float64(description="where it ends")
    histogram = dy.List(dy.Int64(min=0), description="scores in even bins from low to high")
    latency_p50_s = dy.Float64(nullable=True, min=0, metadata=SECONDS)
    latency_p95_s = dy.Float64(nullable=True, min=0, metadata=SECONDS)
    cost = dy.Float64(min=0, description="of all answers, in the grader's own currency")


class GraderAgreement(dy.Schema):
    """How much two graders agree on the rollouts that both answered."""

    grader = _identifier(primary_key=True)
    other = _identifier(primary_key=True)
    rollouts = dy.Int64(min=0)
    spearman = dy.Float64(nullable=True, min=-1, max=1, description="of the scores; null where one never varies")
    kappa = dy.Float64(nullable=True, max=1, description="Cohen's, of the verdicts; null without verdicts to compare")


class Trajectory(dy.Schema):
    """A rollout that will train, with its reward, advantage and weight."""

    rollout_id = _identifier(primary_key=True)
    group_id = _identifier(description="the prompt whose samples are compared with each other")
    prompt_id = _identifier()
    policy_id = _identifier()
    prompt_token_ids = _tokens()
    token_ids = _tokens()
    logprobs = _logprobs()
    temperature = dy.Float64(min_exclusive=0)
    reward = dy.Float64()
    advantage = dy.Float64()
    weight = dy.Float64(min=0)
    age = dy.Int32(min=0, metadata={"unit": "iteration"}, description="iterations since its policy")
    passed = dy.Bool(nullable=True, description="every judge's verdict holds; null without judges")

    @dy.rule()
    def one_logprob_per_token(cls) -> pl.Expr:
        return pl.col("token_ids").list.len() == pl.col("logprobs").list.len()


class LedgerEntry(dy.Schema):
    """The filter's decision on a rollout. The ledger holds every rollout, kept or dropped."""

    rollout_id = _identifier(primary_key=True)
    kept = dy.Bool()
    rule = dy.String(description="the rule that dropped it, or 'kept'")
    value = dy.Float64(nullable=True, description="what the rule measured")
    threshold = dy.Float64(nullable=True, description="what the rule compared it with")


class OutputSignature(dy.Schema):
    """What later nights compare their outputs with: written for kept rollouts where a rule asks for it."""

    rollout_id = _identifier(primary_key=True)
    digest = dy.UInt64(nullable=True, description="64 bits of BLAKE2 of the text without case and extra blanks")
    signature = dy.List(dy.UInt8(), nullable=True, description="MinHash of the token 5-grams, a byte per slot")


class Preference(dy.Schema):
    """Two answers to one prompt, the better one first."""

    pair_id = _identifier(primary_key=True)
    prompt_id = _identifier()
    cluster_id = _identifier()
    messages = dy.List(dy.Struct({"role": dy.String(), "content": dy.String()}), min_length=1)
    chosen_rollout_id = dy.String(nullable=True)
    rejected_rollout_id = dy.String(nullable=True)
    chosen = dy.String()
    rejected = dy.String()
    source = dy.Enum(["human", "ai", "grader", "click", "counterexample"])
    strength = dy.Float64(nullable=True, description="the margin between the two, in the source's own scale")
    annotator = dy.String(nullable=True)
    human_score_chosen = dy.Float64(nullable=True)
    human_score_rejected = dy.Float64(nullable=True)
    split = dy.Enum(["train", "eval"])

    @dy.rule()
    def answers_differ(cls) -> pl.Expr:
        return pl.col("chosen") != pl.col("rejected")


class EvaluatedPrompt(dy.Schema):
    """How a policy did on one held-out prompt."""

    prompt_id = _identifier(primary_key=True)
    policy_id = _identifier()
    samples = dy.Int32(min=1)
    mean_score = dy.Float64()
    best_score = dy.Float64()
    worst_score = dy.Float64()
    passed = dy.Int32(min=0, nullable=True, description="samples that passed; null where a verifier doesn't say")


class TrainingStep(dy.Schema):
    """One metric of one optimizer step."""

    step = dy.Int32(min=0, primary_key=True)
    metric = _identifier(primary_key=True)
    value = dy.Float64(allow_nan=True, allow_inf=True)


class ScoredPair(dy.Schema):
    """What a reward model says of a held-out pair."""

    pair_id = _identifier(primary_key=True)
    chosen_score = dy.Float64()
    rejected_score = dy.Float64()


class GapMeasure(dy.Schema):
    """One number of how far a reward model is from people, on all held-out rows or a slice of them."""

    measure = _identifier(primary_key=True, description="heldout_accuracy, accuracy, ece, gap_bias, gap_mae, ...")
    slice = _identifier(primary_key=True, description="all, `domain: maths`, a decile, a bin of confidence")
    value = dy.Float64()
    low = dy.Float64(nullable=True, description="interval at 95 %, over all slices that are shown together")
    high = dy.Float64(nullable=True)
    count = dy.Int64(min=0, description="pairs or answers that it was measured on")


class CheckedPair(dy.Schema):
    """What a reward model says of a held-out pair, and whether it orders it as its source did."""

    pair_id = _identifier(primary_key=True)
    prompt_id = _identifier()
    cluster_id = _identifier()
    source = dy.String()
    annotator = dy.String(nullable=True)
    chosen_reward = dy.Float64(description="of the members together, in deviations of the training answers' scores")
    rejected_reward = dy.Float64()
    chosen_calibrated = dy.Float64(description="in the scale of the check's calibration.json")
    rejected_calibrated = dy.Float64()
    uncertainty = dy.Float64(min=0, description="deviation over the members of the difference of the two rewards")
    chosen_uncertainty = dy.Float64(min=0, description="deviation over the members of the reward")
    rejected_uncertainty = dy.Float64(min=0)
    chosen_length = dy.Float64(min=0, metadata={"unit": "token"})
    rejected_length = dy.Float64(min=0, metadata={"unit": "token"})
    probability = dy.Float64(
        min=0, max=1, description="that the chosen answer is preferred, from margin and uncertainty"
    )
    right = dy.Float64(min=0, max=1, description="1, or 0.5 where both rewards are equal")
    human_score_chosen = dy.Float64(nullable=True)
    human_score_rejected = dy.Float64(nullable=True)


RECORDS: dict[str, type[dy.Schema]] = {
    "prompts": Prompt,
    "rejected": RejectedRow,
    "expanded": ExpandedPrompt,
    "coverage": CoverageMeasure,
    "batch": BatchEntry,
    "sampled_before": SampledBefore,
    "prompt_history": PromptUse,
    "rollouts": Rollout,
    "grades": Grade,
    "late_grades": Grade,
    "pending": PendingGrade,
    "rewards": Reward,
    "grader_summary": GraderSummary,
    "grader_agreement": GraderAgreement,
    "trajectories": Trajectory,
    "ledger": LedgerEntry,
    "signatures": OutputSignature,
    "preferences": Preference,
    "evaluation": EvaluatedPrompt,
    "steps": TrainingStep,
    "scored_pairs": ScoredPair,
    "gap": GapMeasure,
    "checked_pairs": CheckedPair,
}
RECORD_VERSION = 1

"""One YAML file is one run: the whole configuration, composed of the stages' own.

Loading reaches no engine and no trainer, so checking a run file takes a second.
"""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args, get_origin
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from flows.algorithms import ALGORITHMS, apply_algorithm, under
from flows.history_check import check_history
from flows.labelling_check import check_labelling
from flows.preferences_check import check_preferences
from flows.reward_model_check import check_reward_model, gate_warnings
from flows.rounds_check import check_rounds
from flows.weights_check import check_weights
from storage.config_base import StrictConfig, unhashed
from storage.errors import InputError
from storage.home import home
from tasks._engines.config import EngineConfig
from tasks.curate.config import CurateConfig
from tasks.evaluation.config import EvaluationConfig
from tasks.filtering.config import FilteringConfig
from tasks.frozen_heads.config import FrozenHeadsConfig
from tasks.grading.config import OTHER_REWARD_MODEL, REWARD_MODEL, GraderConfig, GradingConfig
from tasks.label_queue.config import LabellingConfig
from tasks.pair_quality.config import PairQualityConfig
from tasks.policy_update.config import PolicyUpdateConfig
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.files_config import PreferenceFilesConfig, PreferenceSource
from tasks.report.config import ReportConfig
from tasks.reward_check.config import RewardCheckConfig
from tasks.reward_gate.config import RewardGateConfig
from tasks.reward_model.config import RewardModelConfig
from tasks.rollouts.config import RolloutsConfig, SamplingConfig
from tasks.select.config import EvalSelectConfig, SelectConfig
from tasks.select.rounds_config import RoundsConfig
from tasks.sft.config import SftConfig
from tasks.states.config import StatesConfig

ROOT_VARIABLE = "POSTTRAIN_ROOT"
OBJECTIVES = get_args(PolicyUpdateConfig.model_fields["objective"].annotation)
RIGHT_GRADIENT = {"loss": ("k2", "k3_corrected"), "reward": ("k1",)}
WRONG_GRADIENT = {
    ("loss", "k1"): "its expectation is 0: no penalty at all",
    ("loss", "k3"): "it is that of KL(reference || policy)",
    ("reward", "k2"): "it is biased",
    ("reward", "k3"): "it is biased",
    ("reward", "k3_corrected"): "it is biased",
}
CAMPAIGN_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


class ModelConfig(StrictConfig):
    """The base model: the policy before any training, and the reference of the KL penalty."""

    path: str = Field(description="folder of safetensors, GGUF file, or package:NAME for one inside a Python package")


class HeldOutConfig(StrictConfig):
    """The evaluation of each new policy: the held-out batch, and the verdict."""

    select: EvalSelectConfig = EvalSelectConfig()
    verdict: EvaluationConfig = EvaluationConfig()


class TrackingConfig(StrictConfig):
    """Where the run is tracked."""

    uri: str | None = Field(None, description="MLflow; default: $MLFLOW_TRACKING_URI, else SQLite in the home folder")
    experiment: str = Field("posttrain", min_length=1, description="MLflow experiment")

    @field_validator("uri")
    @classmethod
    def _no_credentials(cls, uri: str | None) -> str | None:
        if uri and "@" in urlsplit(uri).netloc:
            raise ValueError("holds credentials; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead")
        return uri


class RunConfig(StrictConfig):
    """A run: what is trained on what, for how many iterations, and where everything goes."""

    campaign: Annotated[str, Field(pattern=CAMPAIGN_PATTERN, description="names the states that iterations commit")]
    root: str | None = Field(None, description="folder or s3://bucket/prefix; default: $POSTTRAIN_ROOT, else the home")
    iterations: int = Field(1, ge=1, description="iterations to have in the end; those committed aren't repeated")
    iterations_per_run: int | None = Field(None, ge=1, description="instead: this many more with every run (nightly)")
    seed: int = Field(0, ge=0)
    algorithm: str = Field(
        "dr_grpo", description="sets what filtering and policy_update leave open: posttrain algorithms"
    )
    model: ModelConfig
    curate: CurateConfig
    sft: SftConfig | None = Field(None, description="demonstrations that make the first policy; none: it is the base")
    select: SelectConfig = SelectConfig()
    rounds: RoundsConfig = RoundsConfig()
    rollouts: RolloutsConfig = RolloutsConfig()
    grading: GradingConfig
    filtering: FilteringConfig = FilteringConfig()
    labelling: LabellingConfig | None = Field(
        None, description="pairs that people are asked to compare; none: nobody is"
    )
    preferences: PreferencesConfig = PreferencesConfig()
    reward_model: RewardModelConfig = RewardModelConfig()
    reward_check: RewardCheckConfig = RewardCheckConfig()
    reward_gate: RewardGateConfig = RewardGateConfig()
    anchors: list[PreferenceSource] = Field(
        [], description="files of pairs whose order is agreed on: never trained on, reward_gate asks for them"
    )
    states: StatesConfig = StatesConfig()
    pair_quality: PairQualityConfig | None = Field(
        None, description="acts on likely wrong labels before a reward model is trained; none: all labels are taken"
    )
    frozen_heads: FrozenHeadsConfig | None = Field(
        None, description="the reward model is heads over frozen states, fitted in seconds; none: it is trained"
    )
    policy_update: PolicyUpdateConfig = PolicyUpdateConfig()
    evaluation: HeldOutConfig = HeldOutConfig()
    report: ReportConfig = ReportConfig()
    tracking: TrackingConfig = TrackingConfig()
    stage_timeout_s: float = unhashed(4 * 3600.0, "longest that one stage may take, in seconds", gt=0)

    @model_validator(mode="before")
    @classmethod
    def _completed(cls, document: Any) -> Any:
        """What one section takes from another where the file says nothing: the algorithm, lengths, the dtype."""
        if not isinstance(document, dict):
            return document
        name = document.get("algorithm", "dr_grpo")
        if not isinstance(name, str) or name not in ALGORITHMS:
            near = difflib.get_close_matches(str(name), ALGORITHMS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(ALGORITHMS)}"
            raise ValueError(f"algorithm: {name!r} is unknown, {hint}")
        update = document.get("policy_update")
        objective = update.get("objective") if isinstance(update, dict) else None
        if objective in ALGORITHMS and objective not in OBJECTIVES:
            raise ValueError(f"policy_update.objective: {objective!r} is an algorithm; write algorithm: {objective}")
        return _with_derived(apply_algorithm(document, name))

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        update, graders = self.policy_update, self.grading.graders
        check_weights(update, self.filtering)
        needs = update.credit in ("crpg", "crraft") or (update.on_pairs and update.pairs.source == "judges")
        if needs and not any(grader.judge and grader.from_iteration <= 1 for grader in graders):
            raise ValueError(
                f"algorithm {self.algorithm} needs a judge from the first iteration on; set judge: true on one of "
                "grading.graders"
            )
        penalised = update.kl.coefficient > 0 and update.kl.place == "reward" and update.credit == "trajectory"
        if penalised and self.filtering.advantage != "leave_one_out":
            raise ValueError(
                "policy_update.kl.place is reward: it enters leave_one_out advantages, returns and gae; set "
                "filtering.advantage to leave_one_out, or the place to loss"
            )
        self._check_components()
        check_history(self.select, self.grading)
        check_preferences(self.preferences, self.grading)
        check_rounds(self.rounds, self.select, self.grading)
        check_labelling(self.labelling, self.grading)
        check_reward_model(self.reward_model, self.frozen_heads, self.pair_quality)
        return self

    def _check_components(self) -> None:
        """What the filter takes of single graders must be there."""
        labels = {grader.label for grader in self.grading.graders}
        unknown = set(self.filtering.component_weights) - labels
        if unknown:
            raise ValueError(f"filtering.component_weights: no grader is called {sorted(unknown)}")
        for rule in self.filtering.rules:
            absent = sorted(set(rule.named) - labels)
            if absent:
                raise ValueError(
                    f"filtering.rules: {rule.kind} reads grader {absent[0]!r}, and there is none; add it to "
                    f"grading.graders, or name one of {sorted(labels)}"
                )
            if rule.kind in ("uncertain", "signal_to_noise") and not rule.named and self.grading.other_reward_models:
                raise ValueError(
                    f"filtering.rules: {rule.kind} would take the uncertainty of {OTHER_REWARD_MODEL} too; name its "
                    f"grader, one of {sorted(labels)}"
                )
        if self.filtering.advantage == "per_component" and not self.grading.composite.is_default:
            raise ValueError(
                "filtering.advantage per_component normalises the graders' scores and leaves grading.composite out; "
                "use one of the two: the composite has {step: normalise}"
            )

    def warnings(self) -> list[str]:
        """What is allowed and rarely meant."""
        update, found = self.policy_update, []
        if update.replays_uncorrected:
            found.append(
                "policy_update.replay_iterations: replayed rollouts train as if today's policy had sampled them; set "
                "policy_update.correction to {kind: truncate}"
            )
        right = RIGHT_GRADIENT[update.kl.place]
        if update.kl.coefficient > 0 and update.kl.estimator not in right:
            found.append(
                f"policy_update.kl: {update.kl.estimator} in the {update.kl.place} has not the gradient of "
                f"KL(policy || reference) ({WRONG_GRADIENT[update.kl.place, update.kl.estimator]}); "
                f"{' or '.join(right)} has"
            )
        if self.report.gold and self.report.gold == self.preferences.grader:
            found.append(
                f"report.gold: {self.report.gold} also makes the pairs that the reward model learns from; name one "
                "that it can't learn from"
            )
        own = [grader.label for grader in self.grading.graders if grader.grader == REWARD_MODEL]
        if self.report.gold in own:
            found.append("report.gold is the run's own reward model, which would be compared with itself")
        return found + gate_warnings(self.reward_model, self.reward_gate, self.preferences)

    @property
    def anchor_files(self) -> PreferenceFilesConfig | None:
        """What the stage that reads the anchors takes; None where there are none."""
        return PreferenceFilesConfig(sources=self.anchors, eval_fraction=0) if self.anchors else None

    def resolved_root(self) -> str:
        """The root: the file's, else `$POSTTRAIN_ROOT`, else `store` in the home folder."""
        return self.root or default_root()

    def tracking_uri(self) -> str:
        """MLflow's address: the file's, else `$MLFLOW_TRACKING_URI`, else SQLite in the home folder."""
        return self.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow.db'}"


def _with_derived(document: dict[str, Any]) -> dict[str, Any]:
    """The rollouts' token limit and dtype, in the sections that count on them."""
    rollouts = document.get("rollouts") or {}
    sampling = (rollouts.get("sampling") or {}) if isinstance(rollouts, dict) else None
    engine = (rollouts.get("engine") or {}) if isinstance(rollouts, dict) else None
    if not isinstance(sampling, dict) or not isinstance(engine, dict):
        return document
    limit = sampling.get("max_tokens", SamplingConfig().max_tokens)
    update, filtering = document.get("policy_update") or {}, document.get("filtering") or {}
    if isinstance(update, dict):
        parity = {"engine_dtype": engine.get("dtype", EngineConfig().dtype)}
        update = under({"max_tokens": limit, "parity": parity}, update)
    if isinstance(filtering, dict) and isinstance(filtering.get("overlong"), dict) and isinstance(limit, int):
        longest = filtering["overlong"].get("max_tokens", limit)
        # DAPO's buffer is a fifth of the limit: 4,096 of 20,480 tokens.
        buffer = max(1, longest // 5) if isinstance(longest, int) else 1
        filtering = under({"overlong": {"max_tokens": longest, "buffer_tokens": buffer}}, filtering)
    if isinstance(filtering, dict) and filtering.get("advantage") == "per_component":
        filtering = under({"component_weights": _grader_weights(document.get("grading"))}, filtering)
    check = document.get("reward_check") or {}
    if isinstance(check, dict):
        check = under({"ensemble": _ensemble(document.get("grading"))}, check)
    return {**document, "policy_update": update, "filtering": filtering, "reward_check": check}


def _grader_weights(grading: Any) -> dict[str, float]:
    """The graders' weights by their labels, as far as the file's section is one."""
    named = _graders(grading)
    labels = [grader.get("name") or grader.get("grader") or GraderConfig().label for grader in named]
    return {label: grader.get("weight", 1.0) for label, grader in zip(labels, named, strict=True)}


def _ensemble(grading: Any) -> dict[str, Any]:
    """How the reward-model grader makes one score of the members: the check does it alike."""
    ensembles = [grader.get("ensemble") for grader in _graders(grading) if grader.get("grader") == REWARD_MODEL]
    given = next((each for each in ensembles if isinstance(each, dict)), {})
    return {name: given[name] for name in ("how", "strength") if name in given}


def _graders(grading: Any) -> list[dict[str, Any]]:
    """The graders of a file's section, as far as it is one."""
    graders = grading.get("graders") if isinstance(grading, dict) else None
    return [grader for grader in graders or [] if isinstance(grader, dict)]


def default_root() -> str:
    """The root where none is named: `$POSTTRAIN_ROOT`, else `store` in the home folder."""
    return os.environ.get(ROOT_VARIABLE) or str(home() / "store")


def load_config(path: Path, overrides: list[str] | None = None, changes: dict[str, Any] | None = None) -> RunConfig:
    """The run file with `--set key=value` overrides and the values of other options.

    Raises `InputError` naming the file, the key, what was expected and found, and the nearest known key.
    """
    document = _read_yaml(path)
    for override in overrides or []:
        key, separator, text = override.partition("=")
        if not separator or not key:
            raise InputError(f"--set {override!r}: expected key=value, for example rollouts.sampling.max_tokens=64")
        _assign(document, key.split("."), _parse(text, f"--set {key}"))
    document |= changes or {}
    return parse_config(document, str(path))


def parse_config(document: dict[str, Any], where: str) -> RunConfig:
    """A validated configuration from plain values; `where` names their origin in errors."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        lines = [_explain(problem) for problem in error.errors()]
        raise InputError(f"{where}: " + "; ".join(lines)) from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        document = _parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        beside = sorted(str(found) for found in path.parent.glob("*.yaml")) if path.parent.exists() else []
        raise InputError(f"{path}: no such run file. Here: {', '.join(beside) or 'no .yaml file'}") from None
    except IsADirectoryError:
        raise InputError(f"{path}: a folder, expected a run file in YAML") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start}; save it as UTF-8") from None
    if not isinstance(document, dict):
        raise InputError(f"{path}: expected a mapping of keys to values, found {type(document).__name__}")
    return document


def _parse(text: str, where: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{where}: not YAML ({' '.join(str(error).split())})") from None


def _assign(document: dict[str, Any], keys: list[str], value: Any) -> None:
    inner: Any = document
    for depth, key in enumerate(keys):
        where = ".".join(keys[:depth]) or "the file"
        index: Any = key
        if isinstance(inner, list):
            if not key.isdigit() or int(key) >= len(inner):
                raise InputError(
                    f"--set {'.'.join(keys)}: {where} is a list of {len(inner)}, expected an index below that"
                )
            index = int(key)
        elif not isinstance(inner, dict):
            raise InputError(f"--set {'.'.join(keys)}: {where} is {inner!r}, expected a mapping")
        if depth == len(keys) - 1:
            inner[index] = value
        else:
            inner = inner[index] if isinstance(inner, list) else inner.setdefault(key, {})


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location) or "the file"
    if problem["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        return f"unknown key {key!r}, {hint}"
    if problem["type"] == "missing":
        return f"{key}: required, not given"
    message = problem["msg"].removeprefix("Value error, ")
    if "credentials" in message:
        return f"{key}: {message}"  # what was found is a secret
    return f"{key}: {message}, found {_shown(problem['input'])}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _known_keys(location: list[str]) -> list[str]:
    """The keys of the section at a location; positions and keys of a mapping of one's own are no sections."""
    models: list[type[BaseModel]] = [RunConfig]
    for part in location:
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        if fields:
            models = _models_within(fields[0].annotation)
        else:
            # Of several forms of an entry pydantic names the one that its tag chose.
            models = [model for model in models if part in _tags(model)] or models
    return list(models[0].model_fields) if len(models) == 1 else []


def _tags(model: type[BaseModel]) -> set[str]:
    return {
        str(tag)
        for field in model.model_fields.values()
        if get_origin(field.annotation) is Literal
        for tag in get_args(field.annotation)
    }


def _models_within(annotation: Any) -> list[type[BaseModel]]:
    """The configuration models in an annotation such as `list[SourceConfig]` or `X | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for inner in get_args(annotation) for model in _models_within(inner)]

"""Whether a composite fits its graders: checked when a run file is loaded, before anything is graded."""

import difflib
from collections.abc import Collection, Iterator, Sequence
from typing import Protocol

from tasks.grading.composite_config import Clip, CompositeConfig, Gate, Phases, Product, Threshold, phases


class Audited(Protocol):
    """What is checked of a slow grader's budget."""

    @property
    def audit_fraction(self) -> float: ...


class Weighed(Protocol):
    """What is checked of a grader's configuration."""

    @property
    def label(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def judge(self) -> bool: ...
    @property
    def latency(self) -> str: ...
    @property
    def score_range(self) -> tuple[float, float] | None: ...
    @property
    def budget(self) -> Audited | None: ...


def check_composite(config: CompositeConfig, graders: Sequence[Weighed]) -> None:
    """Raises `ValueError`, naming the step and the nearest grader, for a composite that these graders can't have."""
    labels = [grader.label for grader in graders]
    for domain, own in config.domains.items():
        for name in own.weights:
            _known(name, labels, f"composite.domains.{domain}.weights")
    for where, found, weights in _variants(config, graders):
        _check_names(where, found, labels, judges=any(grader.judge for grader in graders))
        if not sum(weights.values()):
            raise ValueError(f"{where}: every grader has weight 0; give one of them a positive weight")
        if isinstance(found.combination, Product):
            _check_product(where, found, graders, weights)
    if config.missing != "hold":
        _check_missing(config, graders)


def _variants(config: CompositeConfig, graders: Sequence[Weighed]) -> Iterator[tuple[str, Phases, dict[str, float]]]:
    """Where it stands in the run file, the steps and the weights: of the composite, and of every domain."""
    usual = {grader.label: grader.weight for grader in graders}
    yield "composite", phases(config.steps), usual
    for domain in config.domains:
        found, weights = config.of_domain(domain)
        yield f"composite.domains.{domain}", found, usual | weights


def _check_names(where: str, found: Phases, labels: Collection[str], *, judges: bool) -> None:
    for step in (*found.components, *found.reward):
        for name in getattr(step, "graders", None) or ():
            _known(name, labels, f"{where}.{step.kind}.graders")
        if isinstance(step, Gate) and step.graders is None and not judges:
            raise ValueError(f"{where}.gate names no graders and none is a judge; name them, or set judge: true on one")
    for label in (each.label for each in (*found.components, found.combination, *found.reward)):
        if label in labels:
            raise ValueError(f"{where}: a step and a grader are both called {label!r}; give the step another name")


def _known(name: str, labels: Collection[str], where: str) -> None:
    if name not in labels:
        near = difflib.get_close_matches(name, labels, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(labels)}"
        raise ValueError(f"{where}: no grader is called {name!r}, {hint}")


def _check_product(where: str, found: Phases, graders: Sequence[Weighed], weights: dict[str, float]) -> None:
    """A power of a negative number is none: every score must be known to be 0 or more."""
    safe = {grader.label for grader in graders if grader.score_range is not None and grader.score_range[0] >= 0}
    for step in found.components:
        named = set(step.graders or weights)
        if isinstance(step, Threshold) and (step.binary or step.at >= 0):
            safe |= named
        elif isinstance(step, Clip):
            safe |= named if step.low is not None and step.low >= 0 else set()
            safe -= named if step.high is not None and step.high < 0 else set()
        elif not isinstance(step, Threshold):
            safe -= named
    unsafe = [name for name, weight in weights.items() if weight and name not in safe]
    if unsafe:
        raise ValueError(
            f"{where}: product needs scores of 0 or more, and those of {unsafe} may be below; set their score_range, "
            "or put {step: clip, graders: [...], low: 0} before it"
        )


def _check_missing(config: CompositeConfig, graders: Sequence[Weighed]) -> None:
    slow = {grader.label for grader in graders if grader.latency == "slow"}
    if not slow:
        raise ValueError(f"composite.missing is {config.missing}, but no grader has latency: slow; mark one, or hold")
    for where, found, weights in _variants(config, graders):
        if not sum(weight for name, weight in weights.items() if name not in slow):
            raise ValueError(
                f"{where}: missing is {config.missing}, but no instant grader has a weight; give one a weight, or hold"
            )
        if config.missing == "impute":
            _check_imputed(where, found, graders, slow)
    unaudited = [each.label for each in graders if each.budget is not None and not each.budget.audit_fraction]
    if config.missing == "impute" and unaudited:
        raise ValueError(
            f"composite.missing is impute, and the budget of {unaudited} draws no group at random (audit_fraction 0): "
            "nothing corrects what is imputed; give it an audit_fraction above 0, or use fast_only"
        )


def _check_imputed(where: str, found: Phases, graders: Sequence[Weighed], slow: set[str]) -> None:
    """An imputed score is right on average, not for its own rollout: nothing may draw a line through it."""
    if isinstance(found.combination, Product):
        raise ValueError(f"{where}: missing is impute, and imputed scores may be negative: product can't take them")
    judges = [grader.label for grader in graders if grader.judge]
    for step in found.components:
        if isinstance(step, Clip | Threshold) and slow & set(step.graders or slow):
            raise ValueError(
                f"{where}: missing is impute, and a {step.kind} of an imputed score biases it; leave it out"
            )
    for gate in found.reward:
        if isinstance(gate, Gate) and slow & set(gate.graders or judges):
            raise ValueError(f"{where}: missing is impute, and a gate can't judge by an imputed score; use fast_only")

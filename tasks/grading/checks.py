"""What can be known of a run's graders before anything is made: that they exist, and can grade every iteration."""

from collections.abc import Iterable

from tasks.grading.addresses import ADDRESS
from tasks.grading.config import COMMAND, FOLDER, HTTP_JOBS, PROMPT_VERIFIER, GraderConfig, GradingConfig
from tasks.grading.deferred import open_deferred, version_of
from tasks.grading.graders import version_of_grader
from tasks.grading.judges.client import key_of
from tasks.grading.own.command import command_of
from tasks.grading.own.endpoint import headers_of
from tasks.grading.own.signatures import batch_form, form_of, imported
from tasks.grading.sandbox import grader as python_code
from tasks.grading.sandbox.bubblewrap import SWITCH, check_sandbox
from tasks.grading.verifiers.registry import VERIFIERS, resolve_verifier


def check_iterations(grading: GradingConfig) -> None:
    """Raises `InputError` for an iteration that would have no graders, or a composite that they can't have."""
    numbers = sorted({0, 1, 2, *(grader.from_iteration for grader in grading.graders)})
    for number in numbers:
        # The first reward model is trained in iteration 1 at the earliest, and later ones may lack pairs.
        for has_reward_model in (False, True) if grading.needs_reward_model and number > 1 else (False,):
            active = grading.active(number, has_reward_model)
            if active.slow:
                active.instant()


def check_graders(grading: GradingConfig, prompt_verifiers: Iterable[str]) -> None:
    """Raises `InputError` for a grader that isn't there, can't be called, or lacks its key or its sandbox.

    `prompt_verifiers`: the verifiers that the prompts name, as far as they are known.
    """
    for grader in grading.graders:
        if grader.is_slow:
            _check_slow(grader)
        elif grader.grader != PROMPT_VERIFIER and not grader.is_reward_model:
            _check_instant(grader)
    by_prompt = [grader for grader in grading.graders if grader.grader == PROMPT_VERIFIER]
    names = sorted(set(prompt_verifiers)) if by_prompt else []
    for name in names:
        resolve_verifier(name)
    runs_code = [grader for grader in grading.graders if grader.grader == python_code.NAME]
    runs_code += by_prompt if python_code.NAME in names else []
    if any(grader.params.get(SWITCH) is not True for grader in runs_code):
        check_sandbox()


def _check_slow(grader: GraderConfig) -> None:
    version_of(grader)
    if grader.grader in (FOLDER, HTTP_JOBS):
        open_deferred(grader)


def _check_instant(grader: GraderConfig) -> None:
    version_of_grader(grader)
    if grader.judging is not None and grader.judging.endpoint is not None:
        key_of(grader.judging.endpoint)
    if ADDRESS.match(grader.grader):
        headers_of(grader)
    elif grader.grader == COMMAND:
        command_of(grader)
    elif ":" in grader.grader and grader.grader not in VERIFIERS:
        _check_own(grader)


def _check_own(grader: GraderConfig) -> None:
    named = imported(grader.grader)
    if isinstance(named, type):
        batch_form(grader.grader, named, grader.params)
    else:
        form_of(grader.grader, named)

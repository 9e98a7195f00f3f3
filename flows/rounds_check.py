"""What rounds within an iteration ask of the rest of a run file. Light: no engine, no Prefect."""

from tasks.grading.config import MAJORITY, GradingConfig
from tasks.select.config import SelectConfig
from tasks.select.rounds_config import RoundsConfig

# They compare all samples of a prompt: what they say of the first few isn't what they say of all.
COMPARING = (MAJORITY, "pairwise")


def check_rounds(rounds: RoundsConfig, select: SelectConfig, grading: GradingConfig) -> None:
    """Raises `ValueError` for rounds that can't be decided soundly, or never come to what they ask for."""
    if rounds.any and grading.slow:
        raise ValueError(
            f"rounds go by the rewards of the night that samples, and grader {grading.slow[0].label!r} is slow: a "
            "group without variance in the instant grades may vary in its own; leave rounds out, or make it instant"
        )
    if rounds.screening is not None:
        _check_screening(rounds.screening.samples, select, grading)
    if rounds.refill is not None:
        refill = rounds.refill
        further = (refill.max_rounds - 1) * (refill.prompts or select.prompts_per_iteration)
        most = select.prompts_per_iteration + further
        if refill.groups > most:
            raise ValueError(
                f"rounds.refill.groups is {refill.groups}, but {refill.max_rounds} rounds draw {most} prompts at most; "
                "lower it, or raise max_rounds, prompts or select.prompts_per_iteration"
            )


def _check_screening(samples: int, select: SelectConfig, grading: GradingConfig) -> None:
    if samples >= select.samples_per_prompt:
        raise ValueError(
            f"rounds.screening.samples is {samples}, expected less than select.samples_per_prompt "
            f"({select.samples_per_prompt}): the rest is what those prompts get whose first samples vary"
        )
    # The first rewards of a solved prompt don't vary, so these samples are all that it ever gets.
    select.check_retirement(samples, "rounds.screening.samples")
    comparing = [grader.label for grader in grading.graders if grader.grader in COMPARING]
    if comparing:
        raise ValueError(
            f"rounds.screening grades a group in two goes, and grader {comparing[0]!r} compares all samples of a "
            "prompt; leave screening out (refill goes with it), or take another grader"
        )

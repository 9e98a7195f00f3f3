"""What the prompt history asks of the graders in a run file. Light: no engine, no Prefect."""

from tasks.grading.config import GradingConfig
from tasks.select.config import SelectConfig
from tasks.select.strategy_config import UniformConfig


def check_history(select: SelectConfig, grading: GradingConfig) -> None:
    """Raises `ValueError` for outcomes that nobody makes, or that come too late for those who draw by them.

    The history takes what is known in the night that samples. What a slow grader answers later never enters it, nor
    does a reward that is held until then.
    """
    labels = {grader.label for grader in grading.graders}
    counting = select.history.grader
    if counting is not None and counting not in labels:
        raise ValueError(f"select.history.grader: no grader is called {counting!r}; known: {sorted(labels)}")
    slow = {grader.label for grader in grading.slow}
    if not slow or (isinstance(select.strategy, UniformConfig) and select.retire_from is None):
        return
    reader = "select.retire_from" if isinstance(select.strategy, UniformConfig) else f"strategy {select.strategy.name}"
    late = "answers in a later night, which the history never takes up"
    if select.history.outcome == "reward":
        if grading.composite.missing == "hold":
            raise ValueError(
                f"select.history.outcome is reward, and grader {min(slow)!r} {late}: {reader} would know nothing of "
                "any prompt; set outcome to verdict or score, grading.composite.missing to fast_only or impute, or "
                "select.strategy to uniform without retire_from"
            )
    elif counting in slow:
        instant = sorted(labels - slow)
        raise ValueError(
            f"select.history.grader {counting!r} is slow: it {late}, and {reader} would know nothing of any prompt; "
            f"name one that answers at once ({', '.join(instant)}), or set select.strategy to uniform without "
            "retire_from"
        )

"""What `labelling` asks of the rest of a run file."""

from tasks.grading.config import GradingConfig
from tasks.label_queue.config import LabellingConfig


def check_labelling(labelling: LabellingConfig | None, grading: GradingConfig) -> None:
    """Raise `ValueError` for a queue that is to be ordered by a grader that there isn't, or by one of several."""
    labels = sorted(grader.label for grader in grading.graders)
    if labelling is not None and labelling.grader is not None and labelling.grader not in labels:
        raise ValueError(f"labelling.grader: no grader is called {labelling.grader!r}; there are {', '.join(labels)}")
    others = sorted(grading.other_reward_models)
    if labelling is not None and labelling.grader is None and others:
        raise ValueError(
            f"labelling.grader: {others[0]} may give uncertainties beside the run's own reward model; name the one to "
            f"order the queue by, of {', '.join(labels)}"
        )

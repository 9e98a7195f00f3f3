"""Whether the grader whose scores become pairs is there from the first iteration on."""

from tasks.grading.config import REWARD_MODEL, GradingConfig
from tasks.preferences.config import PreferencesConfig


def check_preferences(preferences: PreferencesConfig, grading: GradingConfig) -> None:
    """Raises `ValueError` for a `preferences.grader` that no grader is called, that comes later or learns from it."""
    if preferences.grader is None:
        return
    graders = {grader.label: grader for grader in grading.graders}
    chosen = graders.get(preferences.grader)
    if chosen is None:
        raise ValueError(
            f"preferences.grader: no grader is called {preferences.grader!r}; expected one of {sorted(graders)}"
        )
    if chosen.grader == REWARD_MODEL:
        raise ValueError("preferences.grader is the reward model, which would learn its own opinion; name another one")
    if chosen.from_iteration > 1:
        raise ValueError(
            f"preferences.grader {chosen.label!r} grades from iteration {chosen.from_iteration} on, and pairs are made "
            "in every one; set its from_iteration to 1 or 0"
        )

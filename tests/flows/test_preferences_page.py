"""deployments/preferences.md: every snippet is a part of a run file that loads, and names all there is."""

import re
from pathlib import Path

import pytest
import yaml

from flows.config import parse_config
from storage.errors import InputError
from storage.fingerprints import hashed_part
from tasks.preferences.config import PreferencesConfig
from tasks.preferences.layouts import LAYOUTS

PAGE = (Path(__file__).parents[2] / "deployments" / "preferences.md").read_text(encoding="utf-8")
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
LATE = {"grader": "haiku", "name": "late", "from_iteration": 2}
REST = {
    "campaign": "page",
    "model": {"path": "model"},
    "curate": {"sources": [{"generator": "haiku"}]},
    "grading": {"graders": [{"grader": "verifier"}, {"grader": "reward_model", "from_iteration": 2}, LATE]},
}


@pytest.mark.parametrize("snippet", SNIPPETS, ids=str)
def test_a_snippet_loads(snippet):
    assert parse_config(REST | snippet, "page").preferences != PreferencesConfig()


def test_the_page_has_every_layout():
    shown = {source["layout"] for snippet in SNIPPETS for source in snippet["preferences"].get("sources", [])}
    assert shown == set(LAYOUTS)
    assert all(f"| `{layout}` |" in PAGE for layout in LAYOUTS)


@pytest.mark.parametrize(
    ("preferences", "message"),
    [
        ({"sources": [{"layout": "clicks", "path": "a", "over": "up"}]}, "over"),
        ({"sources": [{"layout": "dialogs", "path": "a"}]}, "dialogs"),
        ({"sources": [{"layout": "dialogues", "path": "a", "chosen": "b"}]}, "did you mean 'chosen_field'"),
        ({"sources": [{"layout": "pairs", "path": "a", "strengths": {"much": 3}}]}, "belongs to a strength_field"),
        ({"tie_margin": 0.2}, "can't be both"),
        ({"counterexamples": {"made": ["longer"]}}, "longer"),
        ({"grader": "style"}, "no grader is called 'style'; expected one of .*'late'"),
        ({"grader": "late"}, "from iteration 2 on"),
        ({"grader": "reward_model"}, "would learn its own opinion"),
    ],
)
def test_what_is_wrong_is_named(preferences, message):
    with pytest.raises(InputError, match=message):
        parse_config(REST | {"preferences": preferences}, "page")


def test_where_files_lie_is_no_part_of_the_fingerprint():
    one, other = (
        PreferencesConfig.model_validate({"sources": [{"layout": "dialogues", "path": path}]}) for path in "ab"
    )
    assert hashed_part(one) == hashed_part(other) == hashed_part(PreferencesConfig())
    assert hashed_part(one.files) == hashed_part(other.files)

"""deployments/verifiers.md: its table names what there is, and its run files are valid."""

import re
from pathlib import Path

import yaml

from tasks.curate.config import SourceConfig, VerifierConfig
from tasks.grading.config import GradingConfig
from tasks.grading.verifiers.registry import VERIFIERS, resolve_verifier

PAGE = (Path(__file__).parents[2] / "deployments" / "verifiers.md").read_text()
SNIPPETS = [yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)]


def test_the_table_has_every_verifier():
    named = re.findall(r"^\| `([a-z_]+)` \|", PAGE, re.MULTILINE)
    assert sorted(named) == sorted(VERIFIERS)


def test_the_run_files_are_valid():
    assert len(SNIPPETS) >= 6
    for snippet in SNIPPETS:
        for source in snippet.get("curate", {}).get("sources", []):
            SourceConfig.model_validate(source)
        if "grading" in snippet:
            GradingConfig.model_validate(snippet["grading"])
        if "verifier" in snippet:
            resolve_verifier(VerifierConfig.model_validate(snippet["verifier"]).name)

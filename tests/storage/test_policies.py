"""From a policy artifact to folders: a base, an adapter on it, or full weights of its own."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.models import merged_folder
from storage.policies import base_of, register_base, resolve_policy


def commit_policy(base: Artifact, files: dict[str, Path], scratch: Path, **facts: str) -> Artifact:
    policy = Artifact(root=base.root, stage="policy_update", fingerprint="f" * 32)
    recipe = Recipe(policy, step="policy_update", version=1, config={}, inputs={}, seed=None)
    outputs = Outputs(files=files, facts={"base": base.id, **facts})
    scratch.mkdir()
    commit_outputs(recipe, Attempt(datetime.now(UTC), scratch), outputs)
    return policy


def test_full_weights_are_served_by_the_folder_of_the_artifacts_files(tiny_model: Path, tmp_path: Path, root: str):
    trained = build_tiny_model(tmp_path / "trained", seed=1)
    base = register_base(root, str(tiny_model))
    files = {path.name: path for path in sorted(trained.iterdir())}
    policy = commit_policy(base, files, tmp_path / "scratch", weights="full")
    found = resolve_policy(policy)
    assert (found.base, found.adapter, found.policy_id) == (tiny_model, None, policy.fingerprint)
    assert found.weights == found.full != tiny_model
    assert merged_folder(found, "float32") == found.full
    for path in trained.iterdir():
        assert (found.weights / path.name).read_bytes() == path.read_bytes()
    assert base_of(policy) == base
    assert resolve_policy(base_of(policy)).weights == tiny_model


def test_files_that_are_no_whole_model_are_refused(tiny_model: Path, tmp_path: Path):
    base = register_base(str(tmp_path / "root"), str(tiny_model))
    files = {"adapter_model.safetensors": tiny_model / "model.safetensors"}
    policy = commit_policy(base, files, tmp_path / "scratch", weights="full")
    with pytest.raises(InputError, match=r"expected full weights .* it holds adapter_model.safetensors"):
        resolve_policy(policy)

"""Policies: the base model as an artifact, and from a policy artifact to folders that engines and trainers load."""

import json
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

from storage.artifacts import Artifact, Outputs
from storage.commits import Attempt, Recipe, commit_outputs
from storage.errors import InputError
from storage.fingerprints import digest
from storage.home import home
from storage.models import PolicyFiles, convert_base, weights_digest

BASE_STAGE = "base_model"
FULL = "full"  # of a policy's facts["weights"]: its files are a whole model; without it they are a LoRA adapter
_lock = threading.Lock()


def register_base(root: str, source: str) -> Artifact:
    """The artifact that stands for a base model: its fingerprint is that of its weights, which stay where they are.

    `source` is a folder, a GGUF file or `package:NAME`; `InputError` when it holds no usable weights.
    """
    folder = convert_base(source)
    weights = weights_digest(folder)
    base = Artifact(root=root, stage=BASE_STAGE, fingerprint=digest([BASE_STAGE, weights]))
    _remember(base.fingerprint, folder)
    if not base.exists():
        scratch = home() / "scratch" / base.id
        scratch.mkdir(parents=True, exist_ok=True)
        recipe = Recipe(base, step=BASE_STAGE, version=1, config={}, inputs={}, seed=None)
        commit_outputs(
            recipe, Attempt(datetime.now(UTC), scratch), Outputs(facts={"source": source, "weights": weights})
        )
    return base


def base_of(policy: Artifact) -> Artifact:
    """The base model that a policy began as: its architecture and tokenizer are the policy's."""
    if policy.stage == BASE_STAGE:
        return policy
    return Artifact.at(policy.root, policy.manifest.facts["base"])


def resolve_policy(policy: Artifact) -> PolicyFiles:
    """The local folders of a policy's base and of its adapter or full weights, fetched and checked.

    Raises `InputError` for a base that changed, and for full weights that no engine could load.
    """
    base = base_of(policy)
    source, expected = base.manifest.facts["source"], base.manifest.facts["weights"]
    remembered = _known().get(base.fingerprint)
    folder = Path(remembered) if remembered and Path(remembered).exists() else convert_base(source)
    found = weights_digest(folder)
    if found != expected:
        raise InputError(f"base model {source} in {folder}: weights expected {expected}, found {found}: another model")
    if remembered != str(folder):
        _remember(base.fingerprint, folder)
    if policy.stage == BASE_STAGE:
        return PolicyFiles(base=folder, adapter=None, policy_id=policy.fingerprint)
    own = policy.files_folder()
    if policy.manifest.facts.get("weights") != FULL:
        return PolicyFiles(base=folder, adapter=own, policy_id=policy.fingerprint)
    if not any(own.glob("*.safetensors")) or not (own / "config.json").is_file():
        held = ", ".join(sorted(policy.manifest.files)) or "no file"
        raise InputError(f"policy {policy.id}: expected full weights (*.safetensors and config.json), it holds {held}")
    return PolicyFiles(base=folder, adapter=None, policy_id=policy.fingerprint, full=own)


def _register() -> Path:
    return home() / "models" / "known.json"


def _known() -> dict[str, str]:
    return dict(json.loads(_register().read_text())) if _register().exists() else {}


def _remember(fingerprint: str, folder: Path) -> None:
    with _lock:
        known = {**_known(), fingerprint: str(folder)}
        _register().parent.mkdir(parents=True, exist_ok=True)
        temporary = _register().with_name(f".known-{uuid.uuid4().hex}.json")
        temporary.write_text(json.dumps(known, indent=1))
        temporary.replace(_register())

"""A campaign: the committed state after each iteration, and the launches that made them.

`campaigns/<name>/iterations/00003.json` is written once, conditionally: two runners can't both be iteration 3.
`campaigns/<name>/launches/<launch_id>.json` holds the configuration that a launch ran under.
"""

import uuid
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from storage.documents import read_document
from storage.errors import CampaignConflict, InputError
from storage.store import open_store

RERUN = "-rerun"
RECENT_LAUNCHES = 20


class State(BaseModel):
    """What iteration k leaves to iteration k + 1: ids of artifacts (`stage/fingerprint`), nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    campaign: str
    iteration: int = Field(ge=0, description="iterations done; 0 is the state before the first")
    policy: str
    champion: str
    reward_model: str | None = None
    reward_check: str | None = Field(None, description="the check that the reward model was promoted by")
    prompt_history: str | None = None
    pending_grades: str | None = None
    replay: str | None = None
    champion_evaluation: str = Field(description="the champion's scores on the held-out prompts")
    steps: dict[str, str] = Field(default_factory=dict, description="step -> artifact that it made or found")
    launch_id: str = ""
    committed_at: datetime | None = None
    mlflow_run_id: str | None = None


class Launch(BaseModel):
    """One run or rerun of a configuration, and where to watch it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    launch_id: str
    campaign: str
    started_at: datetime
    config: dict[str, Any]
    target: int | None = Field(None, description="iterations to have in the end")
    prefect_flow_run_id: str | None = None
    mlflow_run_id: str | None = None


def new_launch_id(*, rerun: bool) -> str:
    """An id that sorts by time and tells a rerun of one stage from a run."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:6]}{RERUN if rerun else ''}"


class Campaign:
    """The committed states and the launches of one campaign below a root."""

    def __init__(self, root: str, name: str) -> None:
        self.root = root
        self.name = name
        self._store = open_store(root)
        self._folder = f"campaigns/{name}"

    def exists(self) -> bool:
        """Whether anything was ever launched under this name."""
        return bool(self.launch_ids())

    def iterations(self) -> list[int]:
        """The committed iterations, ascending."""
        names = self._store.names(f"{self._folder}/iterations")
        return sorted(int(name.removesuffix(".json")) for name in names if _is_committed(name))

    def state(self, iteration: int) -> State:
        """The state after an iteration. Raises `InputError` when it isn't committed."""
        try:
            return read_document(self._store, self._path(iteration), State)
        except FileNotFoundError:
            committed = self.iterations()
            raise InputError(
                f"campaign {self.name!r}: iteration {iteration} isn't committed below {self.root}; only {committed}"
            ) from None

    def last_state(self) -> State | None:
        """The newest committed state."""
        committed = self.iterations()
        return self.state(committed[-1]) if committed else None

    def commit(self, state: State) -> State:
        """Commit a state. Raises `CampaignConflict` when another runner committed that iteration first."""
        stamped = state.model_copy(update={"committed_at": datetime.now(UTC)})
        if not self._store.create(self._path(state.iteration), stamped.model_dump_json(indent=1).encode()):
            winner = self.state(state.iteration)
            raise CampaignConflict(
                f"campaign {self.name!r}: iteration {state.iteration} was committed by launch {winner.launch_id} at "
                f"{winner.committed_at:%Y-%m-%d %H:%M:%S} UTC, while this launch ({state.launch_id}) worked on it. "
                "Nothing is lost: what this launch made stays in the store. Let the other one go on, or run again to "
                "continue after it."
            )
        return stamped

    def fork(self, name: str, iteration: int) -> "Campaign":
        """A campaign that begins with this one's states up to an iteration; forking again completes a fork.

        Nothing is copied but references: what both have in common is found in the store. Raises `InputError` when
        the name is taken by a campaign that began otherwise or went on.
        """
        self.state(iteration)
        states = [self.state(k) for k in self.iterations() if k <= iteration]
        fork = Campaign(self.root, name)
        taken = InputError(f"campaign {name!r} exists below {self.root}; fork under another name")
        if name == self.name or any(k > iteration for k in fork.iterations()):
            raise taken
        for state in states:
            launch = self.launch(state.launch_id).model_copy(update={"campaign": name, "target": None})
            fork.record_launch(launch)
            begun = state.model_copy(update={"campaign": name})
            content = begun.model_dump_json(indent=1).encode()
            if not self._store.create(fork._path(state.iteration), content) and fork.state(state.iteration) != begun:
                raise taken
        return fork

    def record_launch(self, launch: Launch) -> None:
        """Write down what a launch runs."""
        path = f"{self._folder}/launches/{launch.launch_id}.json"
        self._store.create(path, launch.model_dump_json(indent=1).encode())

    def launch_ids(self) -> list[str]:
        """The launches so far, oldest first."""
        names = self._store.names(f"{self._folder}/launches")
        return [name.removesuffix(".json") for name in names if _is_committed(name)]

    def launch(self, launch_id: str | None = None) -> Launch:
        """A launch, by default the newest that isn't a rerun of one stage."""
        known = [one for one in self.launch_ids() if not one.endswith(RERUN)]
        if not known:
            raise InputError(
                f"campaign {self.name!r}: nothing was launched below {self.root}; known: {names(self.root)}"
            )
        path = f"{self._folder}/launches/{launch_id or known[-1]}.json"
        return read_document(self._store, path, Launch)

    def earlier_target(self, prefect_flow_run_id: str | None) -> int | None:
        """The target that the same Prefect flow run had when it was tried before: a retry doesn't move it."""
        for launch_id in reversed(self.launch_ids()[-RECENT_LAUNCHES:]):
            launch = self.launch(launch_id)
            if prefect_flow_run_id and launch.prefect_flow_run_id == prefect_flow_run_id and launch.target:
                return launch.target
        return None

    def _path(self, iteration: int) -> str:
        return f"{self._folder}/iterations/{iteration:05d}.json"


def _is_committed(name: str) -> bool:
    """Not the leftover of a put that was cut off."""
    return name.endswith(".json") and not name.startswith(".")


def names(root: str) -> list[str]:
    """The campaigns below a root."""
    return open_store(root).names("campaigns")

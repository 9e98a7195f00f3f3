"""Sampling within an iteration: one batch, or rounds of it.

A round draws prompts, samples and grades them. Under screening it does so in two goes: a few samples of every prompt,
then the rest (`-rest` in the steps' names) where the first rewards vary. Under refill further rounds draw other prompts
while too few groups survive the filter. What follows an iteration's sampling sees the rounds joined.
"""

from dataclasses import dataclass

from prefect import get_run_logger

from flows.config import RunConfig
from flows.slow_grades import Graded
from storage.artifacts import Artifact
from storage.fingerprints import derive_seed
from tasks._engines import pool as engines
from tasks.filtering.rounds_stage import count_survivors
from tasks.grading.config import COMMAND, GradingConfig
from tasks.grading.stage import grade, join_grading
from tasks.rollouts.rounds_stage import join_rollouts
from tasks.rollouts.stage import generate
from tasks.select.rounds import Survival, prompts_wanted
from tasks.select.rounds_config import DrawMoreConfig, RefillConfig
from tasks.select.rounds_stage import NOTHING, go_on, join_drawn, screen, select_more
from tasks.select.stage import select


@dataclass(frozen=True)
class Sampler:
    """What an iteration samples from and grades by."""

    config: RunConfig
    iteration: int
    prompts: Artifact
    history: Artifact | None
    policy: Artifact
    reward_model: Artifact | None
    judge_models: dict[str, Artifact]
    graders: GradingConfig
    earlier: tuple[Artifact, ...] = ()
    """What the filter made of earlier nights, where its rules compare with them; the newest first."""
    reward_check: Artifact | None = None
    """The check that the reward model was promoted by: its calibration."""

    def seed(self, purpose: str, *labels: str | int) -> int:
        """The first round's seeds are those of an iteration without rounds: turning them on finds what is there."""
        return derive_seed(self.config.seed, self.iteration, purpose, *labels)

    def draw(self, step: str = "select") -> Artifact:
        """The batch of the first round."""
        return select(
            prompts=self.prompts,
            history=self.history,
            config=self.config.select,
            seed=self.seed("select"),
            step=step,
        )

    def sample(self, batch: Artifact, part: str = "", *labels: str | int) -> Graded:
        """Sample and grade a batch, in steps whose names end with `part`."""
        rollouts = generate(
            batch=batch,
            policy=self.policy,
            config=self.config.rollouts,
            seed=self.seed("rollouts", *labels),
            step=f"rollouts{part}",
        )
        self._make_room()
        graders = self.graders
        graded = grade(
            rollouts=rollouts,
            batch=batch,
            reward_model=self.reward_model if graders.needs_reward_model else None,
            reward_check=self.reward_check if graders.needs_reward_model else None,
            judge_models=self.judge_models,
            config=graders.instant() if graders.slow else graders,
            step=f"grading{part}",
        )
        self._make_room()
        return Graded(rollouts, batch, graded)

    def _make_room(self) -> None:
        """Sampling and grading take turns on the device where a grader may want it; else the engine stays for more."""
        own = any(":" in grader.grader or grader.grader == COMMAND for grader in self.graders.graders)
        if own or self.graders.scores_here or self.graders.local_models:
            engines.free_accelerator()


@dataclass(frozen=True)
class Rounds:
    """The rounds so far: what was drawn, what was sampled of it, what screening decided, how many groups survived."""

    drawn: tuple[Artifact, ...]
    sampled: tuple[Graded, ...]
    rests: tuple[Artifact, ...]
    survivors: tuple[Artifact, ...] = ()

    @property
    def stand(self) -> Survival:
        """How the iteration stands after the newest round's survivors were counted."""
        prompts = sum(int(each.metrics["prompts"]) for each in self.drawn)
        return Survival(len(self.drawn), prompts, int(self.survivors[-1].metrics["surviving"]))

    def and_then(self, later: "Rounds") -> "Rounds":
        """These rounds and a later one."""
        return Rounds(
            self.drawn + later.drawn,
            self.sampled + later.sampled,
            self.rests + later.rests,
            self.survivors + later.survivors,
        )


def sample_iteration(sampler: Sampler) -> tuple[Graded, Artifact]:
    """The iteration's rollouts with their grades, and the artifact with the prompt history after them."""
    try:
        if not sampler.config.rounds.any:
            drawn = sampler.draw()
            return sampler.sample(drawn), drawn
        rounds = _round(sampler, sampler.draw("select-1"), 1)
        refill = sampler.config.rounds.refill
        if refill is not None:
            rounds = _refill(sampler, rounds, refill)
        return _joined(sampler, rounds), rounds.drawn[-1]
    finally:
        engines.free_accelerator()


def _round(sampler: Sampler, drawn: Artifact, number: int) -> Rounds:
    """Sample one draw of prompts, in two goes under screening."""
    labels: tuple[int, ...] = () if number == 1 else (number,)
    screening = sampler.config.rounds.screening
    if screening is None:
        return Rounds((drawn,), (sampler.sample(drawn, f"-{number}", *labels),), ())
    first = screen(drawn=drawn, config=screening, step=f"screening-{number}")
    sampled = sampler.sample(first, f"-{number}", *labels)
    rest = go_on(
        drawn=drawn,
        first=first,
        rollouts=sampled.rollouts,
        grading=sampled.grading,
        config=screening,
        step=f"rest-{number}",
    )
    if not rest.metrics["prompts"]:
        return Rounds((drawn,), (sampled,), (rest,))
    return Rounds((drawn,), (sampled, sampler.sample(rest, f"-{number}-rest", number, "rest")), (rest,))


def _refill(sampler: Sampler, rounds: Rounds, refill: RefillConfig) -> Rounds:
    """Further rounds while too few groups survive; an iteration whose prompts or rounds run out goes on with fewer."""
    config, log = sampler.config, get_run_logger()
    pool = int(rounds.drawn[0].metrics["pool"])
    most = refill.prompts or config.select.prompts_per_iteration
    rounds = _counted(sampler, rounds)
    while wanted := prompts_wanted(rounds.stand, pool, most, refill):
        number = rounds.stand.rounds + 1
        log.info("refill: %d of %d groups survive; round %d", rounds.stand.groups, refill.groups, number)
        drawn = select_more(
            prompts=sampler.prompts,
            history=rounds.drawn[-1],
            drawn=list(rounds.drawn),
            config=DrawMoreConfig(select=config.select, prompts=wanted),
            seed=sampler.seed("select", number),
            step=f"select-{number}",
        )
        rounds = _counted(sampler, rounds.and_then(_round(sampler, drawn, number)))
    stand = rounds.stand
    if stand.groups < refill.groups:
        why = "the pool has no other prompts" if stand.prompts >= pool else "rounds.refill.max_rounds is reached"
        log.warning(
            "refill: %d of %d groups survive after round %d, and %s: the iteration goes on with these",
            stand.groups,
            refill.groups,
            stand.rounds,
            why,
        )
    return rounds


def _counted(sampler: Sampler, rounds: Rounds) -> Rounds:
    """The rounds with the number of groups that survive in all of them."""
    number, once = len(rounds.drawn), len(rounds.sampled) == 1
    counted = count_survivors(
        rollouts=[each.rollouts for each in rounds.sampled],
        rewards=rounds.sampled[0].grading if once else _graded(sampler, rounds, f"rewards-{number}"),
        config=sampler.config.filtering,
        earlier=list(sampler.earlier),
        step=f"survivors-{number}",
    )
    return rounds.and_then(Rounds((), (), (), (counted,)))


def _graded(sampler: Sampler, rounds: Rounds, step: str) -> Artifact:
    """The grades of all rounds and the rewards that follow from them together."""
    return join_grading(
        rollouts=[each.rollouts for each in rounds.sampled],
        batches=[each.batch for each in rounds.sampled],
        gradings=[each.grading for each in rounds.sampled],
        config=sampler.graders,
        step=step,
    )


def _joined(sampler: Sampler, rounds: Rounds) -> Graded:
    """The rounds as one batch with its rollouts and grades, in the steps that an iteration without rounds has."""
    batches = [each.batch for each in rounds.sampled]
    batch = join_drawn(
        batches=batches, rests=list(rounds.rests), survivors=list(rounds.survivors), config=NOTHING, step="select"
    )
    rollouts = join_rollouts(
        batch=batch,
        batches=batches,
        rollouts=[each.rollouts for each in rounds.sampled],
        config=NOTHING,
        step="rollouts",
    )
    return Graded(rollouts, batch, _graded(sampler, rounds, "grading"))

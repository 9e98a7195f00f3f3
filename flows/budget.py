"""What a budget of rollouts buys: how to cut it up, whether groups will teach, and what it takes. Pure.

`posttrain plan` and `posttrain check` print it.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from flows.measured import PassRates, Throughput
from storage.errors import InputError
from tasks._maths.compute_optimal import (
    BATCH_RANGE,
    EASY_PASS_RATES,
    FEW_PROMPTS,
    FEW_PROMPTS_CEILING,
    FITS,
    FITTED_SIZE_B,
    GRID_FLOOR,
    GROUP_SIZES,
    HARD_PASS_RATES,
    Allocation,
    Difficulty,
    allocate,
    band_of,
    informative_posterior,
    learning_rates,
    model_ceiling,
)
from tasks._maths.frontier import Frontier

HOUR_S = 3600.0
FEWEST_UPDATES = 10


@dataclass(frozen=True)
class Request:
    """What is asked: exactly one of rollouts, machine hours and dollars, and what is known beside it.

    `size_b` is the model's size in 1e9 parameters, `pool` the number of training prompts.
    """

    rollouts: float | None = None
    gpu_hours: float | None = None
    usd: float | None = None
    difficulty: Difficulty | None = None
    size_b: float | None = None
    prompts_per_batch: int | None = None
    pool: int | None = None
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class Budget:
    """The answer. Hours, dollars and tokens are None where nothing measured or given tells them."""

    rollouts: float
    difficulty: Difficulty
    allocation: Allocation
    fits: list[dict[str, Any]]
    rates: dict[str, float]
    informative: list[dict[str, float]]
    pass_rate: float | None
    pass_rate_source: str
    tokens: float | None
    hours: float | None
    usd: float | None
    speed_source: str
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """The answer for programs."""
        band = band_of(self.rollouts)._asdict()
        return asdict(self) | {"band": band, "rollouts_per_update": self.allocation.rollouts_per_update}


def plan_budget(
    request: Request, speed: Throughput | None, rates: PassRates | None, own_fit: Frontier | None = None
) -> Budget:
    """Answer a request from the fits, what was measured and what was given.

    Raises `InputError` where hours or dollars can't be turned into rollouts, saying what to give.
    """
    rollouts = _rollouts(request, speed)
    difficulty = request.difficulty or difficulty_of(rates) or "easy"
    tokens_each = speed.tokens_per_rollout if speed else None
    fits = [_fitted(name, rollouts, tokens_each) for name in FITS] + _own(own_fit, rollouts)
    best = fits[-1]["samples"] if own_fit else FITS[difficulty].samples(rollouts)
    ceiling, warnings = _ceiling(request, difficulty)
    allocation = allocate(
        rollouts, best, difficulty=difficulty, prompts=request.prompts_per_batch, ceiling=None if own_fit else ceiling
    )
    hours = rollouts / speed.rollouts_per_s / HOUR_S if speed and speed.rollouts_per_s else None
    if own_fit is None:
        warnings = [*_range_warnings(rollouts, difficulty), *warnings]
    elif not own_fit.low <= rollouts <= own_fit.high:
        warnings = [f"your own fit covers {own_fit.low:,.0f} to {own_fit.high:,.0f} rollouts: this is outside of it"]
    return Budget(
        rollouts=rollouts,
        difficulty=difficulty,
        allocation=allocation,
        fits=fits,
        rates=learning_rates(allocation.rollouts_per_update),
        informative=_informative(rates, allocation.samples),
        pass_rate=rates.mean if rates else None,
        pass_rate_source=rates.source if rates else "unknown: no campaign with rollouts that pass or fail",
        tokens=rollouts * tokens_each if tokens_each else None,
        hours=hours,
        usd=hours * request.usd_per_hour if hours is not None and request.usd_per_hour else None,
        speed_source=speed.source if speed else "unknown: give --rollouts-per-second, or a campaign that has run",
        notes=_notes(allocation, own_fit),
        warnings=[*warnings, *_batch_warnings(allocation), *_prompt_warnings(rates)],
    )


def difficulty_of(rates: PassRates | None) -> Difficulty | None:
    """Which of the paper's two kinds the prompts are; None between them and where pass rates are unknown."""
    if rates is None:
        return None
    if rates.mean >= EASY_PASS_RATES[0]:
        return "easy"
    return "hard" if rates.mean <= HARD_PASS_RATES[1] else None


def _rollouts(request: Request, speed: Throughput | None) -> float:
    given = {
        "--rollouts": request.rollouts,
        "--gpu-hours": request.gpu_hours,
        "--usd": request.usd,
    }
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise InputError(f"a budget is one of {', '.join(given)}; given: {', '.join(named) or 'none'}")
    if request.rollouts is not None:
        return request.rollouts
    if request.usd is not None and not request.usd_per_hour:
        raise InputError("--usd buys hours at a price: give --usd-per-hour, or the budget as --gpu-hours or --rollouts")
    if speed is None or not speed.rollouts_per_s:
        raise InputError(
            f"{named[0]} needs to know how many rollouts an hour gives: give --rollouts-per-second, or the name or run "
            "file of a campaign that has run an iteration"
        )
    hours = request.gpu_hours if request.gpu_hours is not None else (request.usd or 0) / (request.usd_per_hour or 1)
    return hours * HOUR_S * speed.rollouts_per_s


def _fitted(name: str, rollouts: float, tokens_each: float | None) -> dict[str, Any]:
    fit = FITS[name]
    compute = rollouts if fit.unit == "rollouts" else rollouts * tokens_each if tokens_each else None
    return {
        "fit": name,
        "label": fit.label,
        "samples": fit.samples(compute) if compute else None,
        "in_range": fit.covers(compute) if compute else None,
    }


def _own(frontier: Frontier | None, rollouts: float) -> list[dict[str, Any]]:
    if frontier is None:
        return []
    label = f"your own runs, n of {', '.join(str(samples) for samples in frontier.curves)}"
    inside = frontier.low <= rollouts <= frontier.high
    return [{"fit": "own", "label": label, "samples": frontier.samples(rollouts), "in_range": inside}]


def _ceiling(request: Request, difficulty: Difficulty) -> tuple[int | None, list[str]]:
    """The least ceiling of n that was measured for such a model or so few prompts, and what to say of the model."""
    ceilings, said = [], []
    known = model_ceiling(request.size_b, difficulty)
    if known:
        ceilings.append(known[1])
        said.append(
            f"n stops rising at {known[1]} for {known[0]}, the one model of about {request.size_b:g}B that was tried"
        )
    elif request.size_b is not None and abs(request.size_b - FITTED_SIZE_B) > 0.1 * FITTED_SIZE_B:
        said.append(
            f"the fits are of a 7B model and nothing says how n moves with size; of others, on easy prompts, Qwen3-4B "
            f"stops at 64 and Llama-3.1-8B at 16: with {request.size_b:g}B take more than 16 as something to test"
        )
    if request.pool is not None and request.pool <= FEW_PROMPTS:
        ceilings.append(FEW_PROMPTS_CEILING)
    return min(ceilings, default=None), said


def _range_warnings(rollouts: float, difficulty: Difficulty) -> list[str]:
    fit = FITS[difficulty]
    if rollouts < fit.low:
        return [
            f"{rollouts:,.0f} rollouts lie below the fitted range ({fit.low:,.0f} to {fit.high:,.0f}), where "
            "the fit is at its floor"
        ]
    if rollouts > fit.high:
        return [f"{rollouts:,.0f} rollouts lie above the fitted range ({fit.low:,.0f} to {fit.high:,.0f})"]
    return []


def _batch_warnings(allocation: Allocation) -> list[str]:
    said = []
    if not BATCH_RANGE[0] <= allocation.prompts <= BATCH_RANGE[1]:
        said.append(
            f"{allocation.prompts} prompts a batch: the fits hold from {BATCH_RANGE[0]} to {BATCH_RANGE[1]:,}, and "
            "small batches are unstable"
        )
    if allocation.updates < FEWEST_UPDATES:
        said.append(f"few updates ({allocation.updates}): expect to see that it runs, not what it can reach")
    return said


def _prompt_warnings(rates: PassRates | None) -> list[str]:
    if rates is None or rates.mean <= EASY_PASS_RATES[1]:
        return []
    return [f"the prompts pass at {rates.mean:.0%}: above {EASY_PASS_RATES[1]:.0%} they taught nothing in the paper"]


def _notes(allocation: Allocation, own_fit: Frontier | None) -> list[str]:
    if own_fit is not None or allocation.samples > GRID_FLOOR:
        return []
    return [
        f"{GRID_FLOOR} is the smallest n that was tried: this says that more doesn't pay yet, not that "
        f"{GRID_FLOOR} beats 2 or 4"
    ]


def _informative(rates: PassRates | None, samples: int) -> list[dict[str, float]]:
    """Per group size the expected share of informative groups, and the rollouts that one of them costs."""
    if rates is None:
        return []
    rows = []
    for size in sorted({*GROUP_SIZES, samples}):
        chance = float(informative_posterior(rates.alpha, rates.beta, size).mean())
        rows.append({"samples": size, "probability": chance, "rollouts_per_group": size / chance})
    return rows

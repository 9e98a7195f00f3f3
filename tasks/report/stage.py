"""The stage `report`: everything that a campaign made so far -> one page that opens without a network."""

import math
from dataclasses import asdict

from storage.artifacts import Artifact, Outputs
from tasks._maths.reward_curve import CurveFit
from tasks._stage import StageContext, stage
from tasks.report.config import ReportConfig
from tasks.report.gather import gather
from tasks.report.images import draw_images
from tasks.report.page import render
from tasks.report.reward_models import Watched


@stage("report", version=3)
def report(history: dict[str, Artifact], config: ReportConfig, *, context: StageContext) -> Outputs:
    """The page `report.html` and its main plots as images. `history` maps `00001.rollouts` to what that step made."""
    content = gather(history, config)
    path = context.scratch / "report.html"
    path.write_text(render(content), encoding="utf-8")
    images = draw_images(content, context.scratch)
    context.log.info("report: %d iterations, %.1f MB", len(content.iterations), path.stat().st_size / 1e6)
    metrics = {
        "iterations": float(len(content.iterations)),
        **curve_metrics(content.curve),
        **watch_metrics(content.honesty.watched),
    }
    for each in content.advice:
        context.log.info("advice: %s: %s; %s", each.rule, each.found, each.do)
    alarm = content.honesty.watched.alarm if content.honesty.watched else None
    if alarm is not None and alarm.raised:
        context.log.warning("over-optimisation: %s", alarm.found)
    return Outputs(
        volatile_files={"report.html": path, **images},
        metrics=metrics,
        facts={"advice": [asdict(each) for each in content.advice]},
    )


def curve_metrics(fit: CurveFit | None) -> dict[str, float]:
    """Where the curve of reward against compute ends and what is left to gain, once the scores tell."""
    if fit is None or not fit.determined:
        return {}
    found = {"asymptote": fit.asymptote, "gain_left": fit.gain_left}
    ends = {"": "value", "_low": "low", "_high": "high"}
    return {f"{name}{end}": getattr(each, field) for name, each in found.items() for end, field in ends.items()}


def watch_metrics(watched: Watched | None) -> dict[str, float]:
    """`overoptimisation_alarm` (0 or 1) once there are points enough, and the turning point if there is one."""
    metrics: dict[str, float] = {}
    if watched is not None and watched.alarm is not None:
        metrics["overoptimisation_alarm"] = float(watched.alarm.raised)
    turning = watched.turning if watched is not None else None
    if turning is not None and math.isfinite(turning.distance):
        metrics["turning_point"] = turning.distance
    return metrics

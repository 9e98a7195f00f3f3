"""The stage `report`: everything that a campaign made so far -> one page that opens without a network."""

from dataclasses import asdict

from storage.artifacts import Artifact, Outputs
from tasks._maths.reward_curve import CurveFit
from tasks._stage import StageContext, stage
from tasks.report.config import ReportConfig
from tasks.report.gather import gather
from tasks.report.images import draw_images
from tasks.report.page import render


@stage("report", version=2)
def report(history: dict[str, Artifact], config: ReportConfig, *, context: StageContext) -> Outputs:
    """The page `report.html` and its main plots as images. `history` maps `00001.rollouts` to what that step made."""
    content = gather(history, config)
    path = context.scratch / "report.html"
    path.write_text(render(content), encoding="utf-8")
    images = draw_images(content, context.scratch)
    context.log.info("report: %d iterations, %.1f MB", len(content.iterations), path.stat().st_size / 1e6)
    metrics = {"iterations": float(len(content.iterations)), **curve_metrics(content.curve)}
    for each in content.advice:
        context.log.info("advice: %s: %s; %s", each.rule, each.found, each.do)
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

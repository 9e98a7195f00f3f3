"""The stage `report`: everything that a campaign made so far -> one page that opens without a network."""

from storage.artifacts import Artifact, Outputs
from tasks._stage import StageContext, stage
from tasks.report.config import ReportConfig
from tasks.report.gather import gather
from tasks.report.images import draw_images
from tasks.report.page import render


@stage("report", version=1)
def report(history: dict[str, Artifact], config: ReportConfig, *, context: StageContext) -> Outputs:
    """The page `report.html` and its main plots as images. `history` maps `00001.rollouts` to what that step made."""
    content = gather(history, config)
    path = context.scratch / "report.html"
    path.write_text(render(content), encoding="utf-8")
    images = draw_images(content, context.scratch)
    context.log.info("report: %d iterations, %.1f MB", len(content.iterations), path.stat().st_size / 1e6)
    return Outputs(
        volatile_files={"report.html": path, **images}, metrics={"iterations": float(len(content.iterations))}
    )

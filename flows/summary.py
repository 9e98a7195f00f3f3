"""What `posttrain run` says in the end: the iterations in a table, the report, the two UIs."""

from pathlib import Path

from rich.console import Console

from flows.config import RunConfig
from flows.launches import prefect_url
from flows.tables import iteration_table, seconds_table
from storage.artifacts import Artifact
from storage.campaigns import Campaign, State
from storage.home import home
from storage.tracking import open_tracker


def print_summary(config: RunConfig, last: State, console: Console) -> None:
    """Print the campaign's iterations and where to look further."""
    campaign = Campaign(config.resolved_root(), config.campaign)
    states = [campaign.state(k) for k in campaign.iterations()]
    manifests = {
        made: Artifact.at(campaign.root, made).manifest for state in states for made in set(state.steps.values())
    }
    console.print(iteration_table(states, manifests))
    console.print()
    console.print(seconds_table(states, manifests))
    console.print()
    if "report" in last.steps:
        page = Artifact.at(campaign.root, last.steps["report"]).file("report.html")
        shown = home() / "reports" / f"{config.campaign}.html"
        shown.parent.mkdir(parents=True, exist_ok=True)
        shown.write_bytes(Path(page).read_bytes())
        console.print(f"report    {shown}", soft_wrap=True)
    launch = campaign.launch()
    console.print(f"Prefect   {prefect_url(launch.prefect_flow_run_id)}", soft_wrap=True)
    if launch.mlflow_run_id:
        tracker = open_tracker(config.tracking_uri(), config.tracking.experiment)
        console.print(f"MLflow    {tracker.url(launch.mlflow_run_id)}", soft_wrap=True)
    console.print("The two pages are served by `posttrain up` (ended by `posttrain down`).")

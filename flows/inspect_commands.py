"""`posttrain status`, `show`, `lineage` and `gc`: what is stored below a root, and how it came about."""

import json
import math
from collections import defaultdict
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.tree import Tree

from flows.config import ROOT_VARIABLE, default_root
from flows.environment import embedded
from flows.grader_tables import agreement_rows, grader_table
from flows.tables import (
    cell,
    iteration_rows,
    iteration_table,
    number,
    rows_table,
    scorer_text,
    seconds_table,
    short_id,
    size_text,
)
from storage import campaigns, collection
from storage.artifacts import Artifact, Manifest
from storage.campaigns import Campaign
from storage.errors import InputError
from storage.home import home
from storage.lineage import Lineage, Node, find, list_artifacts, read_manifests
from storage.lineage import lineage as trace

SHOWN_FILES = 40
GRADER_TABLES = ("grader_summary", "grader_agreement")
Root = Annotated[str | None, typer.Option(help=f"Folder or s3://bucket/prefix; ${ROOT_VARIABLE} by default.")]
AsJson = Annotated[bool, typer.Option("--json", help="Machine-readable, on standard output.")]


def register(app: typer.Typer) -> None:
    """Add the commands to an app."""
    for command in (status, show, lineage, gc):
        app.command()(command)


def status(
    campaign: Annotated[str | None, typer.Argument(help="Needed only where there are several.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """The iterations of a campaign in numbers, and what is under way."""
    where = _where(root)
    known = campaigns.names(where)
    if not known:
        raise InputError(f"no campaign below {where}. Start one with `posttrain run CONFIG --root {where}`.")
    if campaign is None and len(known) > 1:
        _campaign_list(where, known, as_json)
        return
    name = campaign or known[0]
    if name not in known:
        raise InputError(f"campaign {name!r}: unknown below {where}; there are {', '.join(known)}")
    chosen = Campaign(where, name)
    states = [chosen.state(iteration) for iteration in chosen.iterations()]
    manifests = read_manifests(where)
    flight = _in_flight(chosen, len(states), manifests)
    if as_json:
        _json({"campaign": name, "root": where, "iterations": iteration_rows(states, manifests), "in_flight": flight})
        return
    console = Console()
    console.print(iteration_table(states, manifests, title=f"campaign {name}"))
    console.print()
    console.print(seconds_table(states, manifests))
    if states:
        last = states[-1]
        console.print(f"champion {short_id(last.champion)}, policy {short_id(last.policy)}{scorer_text(states)}")
    _print_flight(console, flight)


def show(
    artifact: Annotated[str, typer.Argument(help="stage/fingerprint, or the beginning of a fingerprint.")],
    rows: Annotated[int, typer.Option(min=0, help="How many rows.")] = 5,
    table: Annotated[str | None, typer.Option(help="Which table; the artifact's first by default.")] = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """An artifact's manifest and some of its rows; of grades also what they say of the graders."""
    where = _where(root)
    subject = find(where, artifact)
    if subject.kind != "artifact":
        raise InputError(f"{artifact!r} is a {subject.kind}, not an artifact; try `posttrain lineage {artifact}`")
    found = Artifact.at(where, subject.id)
    manifest = found.manifest
    chosen = table or next(iter(manifest.tables), None)
    shown = found.scan(chosen).head(rows).collect().to_dicts() if chosen else []
    graders = {name: found.read(name).to_dicts() for name in GRADER_TABLES if name in manifest.tables}
    if as_json:
        document = {"id": found.id, "manifest": manifest.model_dump(mode="json"), "table": chosen, "rows": shown}
        _json(document | graders)
        return
    console = Console()
    _print_manifest(console, found, manifest)
    _print_graders(console, graders)
    if chosen:
        title = f"{chosen}: {len(shown)} of {manifest.tables[chosen].rows} rows"
        if len(shown) == 1 or console.width < 120:
            _print_records(console, shown, title)
        else:
            console.print(rows_table(shown, title=title))


def lineage(
    id: Annotated[str, typer.Argument(help="An artifact, policy, prompt, rollout, pair, campaign or iteration.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """What made something, up to its sources, and what was made of it."""
    found = trace(_where(root), id)
    if as_json:
        _json(found.model_dump(mode="json"))
        return
    console = Console()
    console.print(f"[bold]{found.subject.kind}[/] {cell(found.subject.id)}")
    for name, rows in found.sections.items():
        if rows:
            _print_records(console, rows[:10], f"{name.replace('_', ' ')} ({len(rows)})")
    if found.subject.kind in ("campaign", "iteration"):
        return
    console.print(_tree(found, "made from", upward=True))
    console.print(_tree(found, "was made into", upward=False))


def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List, remove nothing.")] = False,
    older_than: Annotated[float, typer.Option(min=0, help="Hours: younger files stay, a run may need them.")] = 24.0,
    root: Root = None,
) -> None:
    """Remove files that no manifest names: what cut-off attempts and replaced artifacts left behind."""
    where = _where(root)
    work = collection.plan if dry_run else collection.collect
    garbage = work(where, older_than * 3600)
    console = Console()
    sums: dict[str, list[int]] = defaultdict(list)
    for each in garbage[:SHOWN_FILES]:
        console.print(
            f"{each.path}  {size_text(each.size_bytes)}, {each.age_s / 3600:.1f} h: {each.reason}", markup=False
        )
    for each in garbage:
        sums[each.reason].append(each.size_bytes)
    if len(garbage) > SHOWN_FILES:
        console.print(f"... and {len(garbage) - SHOWN_FILES} more")
    for reason, sizes in sums.items():
        console.print(f"{len(sizes)} files, {size_text(sum(sizes))}: {reason}", markup=False)
    verb = "would be removed" if dry_run else "removed"
    total = size_text(sum(each.size_bytes for each in garbage))
    console.print(f"{len(garbage)} files {verb}, {total}, older than {older_than:g} h below {where}", markup=False)


def _where(root: str | None) -> str:
    """The root to look below; for S3 with the access to `posttrain up`'s own server, where it runs."""
    where = root or default_root()
    if where.startswith("s3://"):
        embedded(home())
    return where


def _campaign_list(root: str, names: list[str], as_json: bool) -> None:
    rows = []
    for name in names:
        last = Campaign(root, name).last_state()
        rows.append(
            {
                "campaign": name,
                "iteration": last.iteration if last else None,
                "committed_at": last.committed_at.isoformat(timespec="seconds") if last and last.committed_at else None,
                "champion": last.champion if last else None,
            }
        )
    if as_json:
        _json({"root": root, "campaigns": rows})
        return
    console = Console()
    console.print(rows_table(rows, title=f"campaigns below {root}"))
    console.print("One of them in numbers: posttrain status CAMPAIGN")


def _in_flight(campaign: Campaign, next_iteration: int, manifests: dict[str, Manifest]) -> dict[str, Any]:
    """The newest launch, the steps of the iteration that isn't committed yet, and artifacts that are only begun."""
    committed = set(campaign.iterations())
    steps = [
        {"step": manifest.step, "artifact": name, "seconds": round(manifest.duration_s, 2)}
        for name, manifest in sorted(manifests.items(), key=lambda item: item[1].started_at)
        if manifest.campaign == campaign.name and manifest.iteration not in committed
    ]
    launch = campaign.launch().model_dump(mode="json", exclude={"config"}) if campaign.exists() else None
    begun = [each for each in list_artifacts(campaign.root) if each not in manifests]
    return {"launch": launch, "iteration": next_iteration, "steps_done": steps, "uncommitted": begun}


def _print_flight(console: Console, flight: dict[str, Any]) -> None:
    launch = flight["launch"]
    if launch:
        started = str(launch["started_at"])[:19].replace("T", " ")
        console.print(f"newest launch {launch['launch_id']}, begun {started} UTC", markup=False)
        for name in ("prefect_flow_run_id", "mlflow_run_id"):
            if launch[name]:
                console.print(f"  {name.replace('_', ' ')} {launch[name]}", markup=False)
    if flight["steps_done"]:
        done = ", ".join(f"{each['step']} ({each['seconds']:.0f} s)" for each in flight["steps_done"])
        console.print(f"iteration {flight['iteration']}, not committed yet: {done}", markup=False)
    for artifact_id in flight["uncommitted"]:
        console.print(f"begun, not committed: {artifact_id}", markup=False)


def _print_manifest(console: Console, artifact: Artifact, manifest: Manifest) -> None:
    console.print(f"[bold]{artifact.id}[/]")
    facts = {
        "step": manifest.step,
        "campaign": f"{manifest.campaign}, iteration {manifest.iteration}" if manifest.campaign else None,
        "made": f"{manifest.started_at:%Y-%m-%d %H:%M:%S} UTC in {manifest.duration_s:.1f} s",
        "where": artifact.uri,
        "holds": ", ".join(f"{name} ({entry.rows} rows)" for name, entry in manifest.tables.items()),
        "files": ", ".join(f"{name} ({size_text(entry.size_bytes)})" for name, entry in manifest.files.items()),
        "size": size_text(manifest.size_bytes),
        "inputs": "\n".join(f"{name}: {made}" for name, made in manifest.inputs.items()),
        "why": manifest.facts.get("why"),
        "metrics": ", ".join(f"{name} {number(value, 4)}" for name, value in manifest.metrics.items()),
        "config": json.dumps(manifest.config),
        "seed": manifest.seed,
        "git commit": manifest.git_commit,
        "Prefect flow run": manifest.prefect_flow_run_id,
        "Prefect task run": manifest.prefect_task_run_id,
        "MLflow run": manifest.mlflow_run_id,
    }
    for name, value in facts.items():
        if value not in (None, ""):
            shown = str(value).replace("\n", "\n" + " " * 20)
            console.print(f"  {name:<18}{shown}", markup=False, highlight=False)


def _print_graders(console: Console, tables: dict[str, list[dict[str, Any]]]) -> None:
    """Distribution, failures, latency and cost per grader, then the agreement of each two."""
    if tables.get("grader_summary"):
        console.print(grader_table(tables["grader_summary"]))
    if tables.get("grader_agreement"):
        console.print(rows_table(agreement_rows(tables["grader_agreement"]), title="agreement of the graders"))


def _print_records(console: Console, rows: list[dict[str, Any]], title: str) -> None:
    """Rows one below the other, a field a line: rows are too wide for a table."""
    console.print(f"[bold]{title}[/]")
    for row in rows:
        lines = [(name, value) for name, value in row.items() if value not in (None, "", [])]
        for index, (name, value) in enumerate(lines):
            console.print(f"  {'-' if index == 0 else ' '} [dim]{name}[/] {cell(value, 400)}", highlight=False)


def _tree(found: Lineage, title: str, *, upward: bool) -> Tree:
    """Each artifact once, below the one that it is nearest to; seen again it is only named."""
    reached = set(found.upstream if upward else found.downstream)
    tree, seen = Tree(f"[bold]{title}[/]"), set()

    def neighbours(artifact_id: str) -> dict[str, str]:
        if upward:
            return {source: argument for argument, source in found.nodes[artifact_id].inputs.items()}
        return {node.id: "" for node in found.nodes.values() if artifact_id in node.inputs.values()}

    level = [(tree.add(_label(found.nodes[own], "", runs=True)), own) for own in found.subject.artifacts]
    while level:
        below = []
        for branch, artifact_id in level:
            for neighbour, argument in neighbours(artifact_id).items():
                if neighbour in reached and neighbour not in seen:
                    seen.add(neighbour)
                    below.append((branch.add(_label(found.nodes[neighbour], argument)), neighbour))
                elif neighbour in reached:
                    branch.add(
                        f"[dim]{argument} {short_id(neighbour)} (elsewhere in this tree)[/]".replace("dim] ", "dim]")
                    )
        level = below
    return tree


def _label(node: Node, argument: str, *, runs: bool = False) -> str:
    """One line of the tree; with `runs` also the commit and the runs that made it."""
    name = f"[dim]{argument}:[/] " if argument else ""
    if node.missing:
        return f"{name}{short_id(node.id)} [red]its manifest is gone[/]"
    facts = [node.step if node.step != node.stage else ""]
    facts.append(f"{node.campaign} iteration {node.iteration}" if node.campaign else "")
    facts.append(f"{node.rows} rows" if node.rows else "")
    if runs:
        facts.append(f"git {node.git_commit[:10]}" if node.git_commit else "")
        facts.append(f"MLflow run {node.mlflow_run_id}" if node.mlflow_run_id else "")
        facts.append(f"Prefect flow run {node.prefect_flow_run_id}" if node.prefect_flow_run_id else "")
    facts.append(cell(json.dumps(node.config), 120) if node.config else "")
    return f"{name}[cyan]{short_id(node.id)}[/]  {', '.join(fact for fact in facts if fact)}"


def _json(content: Any) -> None:
    typer.echo(json.dumps(_plain(content), indent=1, default=str, ensure_ascii=False, allow_nan=False))


def _plain(content: Any) -> Any:
    """The content with what JSON has no number for (NaN, infinities) as null."""
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, dict):
        return {key: _plain(value) for key, value in content.items()}
    return [_plain(item) for item in content] if isinstance(content, list | tuple) else content

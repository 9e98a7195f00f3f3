"""From frames and numbers to Plotly figures: plain dictionaries of traces and a layout, no colours of a theme."""

import polars as pl

from tasks.report.gather import Content, metric_names
from tasks.report.plotting import (
    PALETTE,
    Figure,
    Rows,
    bars,
    between,
    figure_spec,
    finite,
    histogram_figure,
    iteration_axis,
)
from tasks.report.reward_model_figures import reward_model_figures
from tasks.report.spending_figures import spending_figures

TRAINING_METRICS = ("loss", "grad_norm", "clip_fraction", "kl", "entropy", "ratio_mean", "learning_rate")
SHOWN_TRAINING_METRICS = 8


def figures(content: Content) -> list[Figure]:
    """The figures that the content has numbers for, in the order of the page."""
    candidates = [
        score_figure(content.evaluations),
        reward_figure(content.rewards),
        histogram_figure("reward-distribution", "Reward distribution", "reward", content.reward_histogram),
        histogram_figure("lengths", "Response lengths", "tokens", content.length_histogram),
        graders_figure(content.graders),
        *spending_figures(content),
        decisions_figure(content.decisions),
        seconds_figure(content.seconds),
        None if content.honesty.checks else reward_model_figure(content.reward_models),
        *reward_model_figures(content.honesty),
        *training_figures(content.training),
    ]
    return [figure for figure in candidates if figure is not None]


def score_figure(evaluations: Rows) -> Figure | None:
    """Held-out mean score per iteration with its bootstrap interval; a star where the policy was promoted."""
    rows = [row for row in evaluations if finite(row.get("mean_score")) is not None]
    if not rows:
        return None
    x, y = [row["iteration"] for row in rows], [finite(row["mean_score"]) for row in rows]
    low = [finite(row.get("mean_score_low")) for row in rows]
    high = [finite(row.get("mean_score_high")) for row in rows]
    above = [h - m if h is not None and m is not None else 0 for h, m in zip(high, y, strict=True)]
    below = [m - each if each is not None and m is not None else 0 for each, m in zip(low, y, strict=True)]
    symbols = ["star" if row.get("promoted") == 1 else "circle" for row in rows]
    trace = {
        "x": x,
        "y": y,
        "mode": "lines+markers",
        "name": "held-out score",
        "line": {"color": PALETTE[0], "width": 2.5},
        "marker": {"symbol": symbols, "size": [14 if symbol == "star" else 9 for symbol in symbols]},
        "error_y": {"type": "data", "array": above, "arrayminus": below, "color": PALETTE[0], "thickness": 1.5},
        "customdata": [[low, high] for low, high in zip(low, high, strict=True)],
        "hovertemplate": "iteration %{x}: %{y:.3f} [%{customdata[0]:.3f}, %{customdata[1]:.3f}]<extra></extra>",
    }
    layout = {"xaxis": iteration_axis(x), "yaxis": {"title": {"text": "mean score"}}, "showlegend": False}
    note = "Mean over the held-out prompts with its 95 % bootstrap interval. Iteration 0 is the base policy; a star "
    return Figure("score", "Held-out score", note + "marks a policy that was promoted.", figure_spec([trace], layout))


def reward_figure(rewards: Rows) -> Figure | None:
    """Mean reward of the training rollouts per iteration, and the mean score of each grader."""
    names = ["reward_mean", *metric_names(rewards, "score/", "_mean")]
    traces = []
    for index, name in enumerate(names):
        points = [(row["iteration"], finite(row[name])) for row in rewards if name in row]
        if not points:
            continue
        whole = name == "reward_mean"
        label = "reward" if whole else name.removeprefix("score/").removesuffix("_mean")
        line = {"color": PALETTE[index % len(PALETTE)], "width": 3 if whole else 1.5}
        traces.append(
            {
                "x": [x for x, _ in points],
                "y": [y for _, y in points],
                "mode": "lines+markers",
                "name": label,
                "line": line if whole else {**line, "dash": "dot"},
                "marker": {"size": 8 if whole else 6},
                "hovertemplate": "%{y:.3f}",
            }
        )
    if not traces:
        return None
    layout = {"xaxis": iteration_axis([row["iteration"] for row in rewards]), "yaxis": {"title": {"text": "mean"}}}
    note = "Training rollouts, before filtering: the composite reward, and dotted the score of each grader in it."
    return Figure("reward", "Reward", note, figure_spec(traces, {**layout, "hovermode": "x unified"}))


def graders_figure(rows: Rows) -> Figure | None:
    """A box per grader of the newest iteration: its scores' quartiles, whiskers over the middle 90 %."""
    boxes = [(row, row["quantiles"]) for row in rows if row["quantiles"]]
    if not boxes:
        return None
    names = [str(row["grader"]) for row, _ in boxes]
    points = zip(*(quantiles for _, quantiles in boxes), strict=True)
    _, low, lower, middle, upper, high, _ = ([finite(value) for value in each] for each in points)
    trace = {
        "type": "box",
        "x": names,
        "lowerfence": low,
        "q1": lower,
        "median": middle,
        "q3": upper,
        "upperfence": high,
        "mean": [finite(row["score_mean"]) for row, _ in boxes],
        "boxpoints": False,
        "line": {"color": PALETTE[3]},
    }
    layout = {"xaxis": {"title": {"text": "grader"}}, "yaxis": {"title": {"text": "score"}}, "showlegend": False}
    note = (
        f"Scores of the training rollouts of iteration {boxes[0][0]['iteration']}: quartiles, whiskers at 5 and 95 %."
    )
    return Figure("graders", "Graders", note, figure_spec([trace], layout))


def decisions_figure(decisions: pl.DataFrame) -> Figure | None:
    """Rollouts kept, and dropped by each rule, per iteration."""
    if decisions.is_empty():
        return None
    rules = decisions["rule"].unique(maintain_order=True).to_list()
    rules.sort(key=lambda rule: rule != "kept")
    traces = [bars(decisions.filter(rule=rule), "count", rule, index + 3) for index, rule in enumerate(rules)]
    layout = {"xaxis": iteration_axis(decisions["iteration"].to_list()), "yaxis": {"title": {"text": "rollouts"}}}
    note = "What became of the training rollouts: kept, or dropped by the first rule that they broke."
    return Figure("decisions", "Kept and dropped", note, figure_spec(traces, {**layout, "barmode": "stack"}))


def seconds_figure(seconds: pl.DataFrame) -> Figure | None:
    """Seconds of each step, stacked per iteration."""
    if seconds.is_empty():
        return None
    steps = seconds["step"].unique(maintain_order=True).to_list()
    traces = [bars(seconds.filter(step=step), "seconds", step, index) for index, step in enumerate(steps)]
    layout = {"xaxis": iteration_axis(seconds["iteration"].to_list()), "yaxis": {"title": {"text": "seconds"}}}
    note = "What each step took when it was made; one that was found and not made again shows its first time."
    return Figure("seconds", "Seconds per stage", note, figure_spec(traces, {**layout, "barmode": "stack"}))


def reward_model_figure(rows: Rows) -> Figure | None:
    """Held-out accuracy of the reward model per iteration."""
    points = [(row["iteration"], finite(row.get("heldout_accuracy"))) for row in rows]
    points = [(x, y) for x, y in points if y is not None]
    if not points:
        return None
    x, y = [x for x, _ in points], [y for _, y in points]
    bars = {
        "type": "bar",
        "x": x,
        "y": y,
        "width": 0.4,
        "marker": {"color": PALETTE[4]},
        "text": [f"{value:.2f}" for value in y if value is not None],
        "hovertemplate": "iteration %{x}: %{y:.3f}<extra></extra>",
    }
    chance = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 0.5, "y1": 0.5}
    layout = {
        "xaxis": iteration_axis(x),
        "yaxis": {"title": {"text": "accuracy"}, "range": [0, 1]},
        "shapes": [{**chance, "line": {"dash": "dot", "width": 1, "color": PALETTE[6]}}],
    }
    note = "Share of held-out pairs that the reward model orders as their source did; dotted is chance."
    return Figure("reward-model", "Reward model", note, figure_spec([bars], layout))


def training_figures(training: pl.DataFrame) -> list[Figure]:
    """One figure per training metric over all optimizer steps, a line per iteration."""
    known = training["metric"].unique(maintain_order=True).to_list()
    ordered = [name for name in TRAINING_METRICS if name in known]
    ordered += [name for name in known if name not in ordered]
    found: list[Figure] = []
    for name in ordered[:SHOWN_TRAINING_METRICS]:
        frames = training.filter(metric=name).sort("step").partition_by("iteration", maintain_order=True)
        traces = [
            {
                "x": frame["step"].to_list(),
                "y": [finite(value) for value in frame["value"].to_list()],
                "mode": "lines+markers",
                "name": f"iteration {frame['iteration'][0]}",
                "line": {"color": f"rgb{between(index, len(frames))}", "width": 2},
                "marker": {"size": 5},
                "hovertemplate": "step %{x}: %{y:.4~g}",
            }
            for index, frame in enumerate(frames)
        ]
        layout = {"xaxis": {"title": {"text": "optimizer step"}}, "showlegend": False}
        title = name.replace("_", " ")
        found.append(Figure(f"training-{len(found)}", title, "", figure_spec(traces, layout), small=True))
    return found

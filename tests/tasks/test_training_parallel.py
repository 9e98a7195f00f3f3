"""Two processes train as one does: LoRA and full weights, after a kill, and when a number isn't finite."""

import json
import shutil
from pathlib import Path

import joint_training
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from storage.errors import StageFailed
from tasks._training.launch import run_in_processes
from tasks._training.parallel import ALONE, World, deal

CPU = torch.device("cpu")
VARIANTS = {
    "lora": {"kind": "lora"},
    "full": {"kind": "full"},
    "recomputed": {"kind": "full", "gradient_checkpointing": True},
    "bfloat16": {"kind": "full", "dtype": "bfloat16"},
}
SPOILED = {
    f"{kind}-{spoil}": {"kind": kind, "spoil": spoil} for kind in ("lora", "full") for spoil in ("loss", "gradient")
}


def run_alone(model, folder, **job):
    joint_training.run(job | {"model": str(model), "folder": str(folder)}, ALONE, CPU)
    return folder


def run_two(model, folder, jobs):
    """All jobs in one start of two processes."""
    listed = [job | {"model": str(model), "folder": str(folder / name)} for name, job in jobs.items()]
    path = folder / f"jobs-{len(list(folder.iterdir()))}.json"
    path.write_text(json.dumps(listed))
    run_in_processes("joint_training", path, 2, folder / "two.log")


@pytest.fixture(scope="module")
def alone(tiny_model, tmp_path_factory):
    """Each variant in this process alone."""
    folder = tmp_path_factory.mktemp("alone")
    return {name: run_alone(tiny_model, folder / name, **job) for name, job in VARIANTS.items()}


@pytest.fixture(scope="module")
def together(tiny_model, tmp_path_factory):
    """Each variant in two processes, all in one start that ends in a kill; a second one goes on, and is killed too."""
    folder = tmp_path_factory.mktemp("together")
    full, lora = {"kind": "full"}, {"kind": "lora"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(joint_training.__file__).parent))
        with pytest.raises(StageFailed, match="joint_training failed in 2 processes"):
            run_two(tiny_model, folder, VARIANTS | SPOILED | {"killed-full": full | {"stop_before": 1}})
        shutil.copytree(folder / "killed-full", folder / "killed-full-then-alone")
        with pytest.raises(StageFailed, match="joint_training failed in 2 processes"):
            run_two(tiny_model, folder, {"killed-full": full, "killed-lora": lora | {"stop_before": 2}})
    return folder


def parameters(folder):
    return load_file(folder / "parameters.safetensors")


def history(folder):
    return json.loads((folder / "history.json").read_text())


def assert_same(found, expected, atol=1e-4):
    """AdamW divides each gradient by its own size: the rounding of a tiny one is a part of the learning rate 0.01."""
    assert set(found) == set(expected)
    for name, tensor in expected.items():
        torch.testing.assert_close(
            found[name], tensor, rtol=1e-5, atol=atol, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("name", ["lora", "full", "recomputed"])
def test_two_processes_end_where_one_does(alone, together, name):
    assert_same(parameters(together / name), parameters(alone[name]))
    for found, expected in zip(history(together / name), history(alone[name]), strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
        assert found["tokens"] == expected["tokens"]
        assert found["longest"] == expected["longest"]


def test_two_processes_of_a_bfloat16_model_end_near_one(alone, together):
    for found, expected in zip(history(together / "bfloat16"), history(alone["bfloat16"]), strict=True):
        assert found["grad_norm"] == pytest.approx(expected["grad_norm"], rel=0.02)


@pytest.mark.parametrize("name", ["lora", "full", "bfloat16"])
def test_what_two_processes_save_is_whole(alone, together, name):
    folders = [folder / "model" for folder in (together / name, alone[name])]
    files = [{path.name for path in folder.iterdir()} for folder in folders]
    assert files[0] == files[1]
    weights = "adapter_model.safetensors" if name == "lora" else "model.safetensors"
    found, expected = (load_file(folder / weights) for folder in folders)
    shapes = [{name: (tensor.shape, tensor.dtype) for name, tensor in part.items()} for part in (found, expected)]
    assert shapes[0] == shapes[1]
    if name != "bfloat16":
        assert_same(found, expected)
    trained = {name.removeprefix("policy."): tensor for name, tensor in parameters(together / name).items()}
    for key, tensor in found.items():
        name_in_model = key if key in trained else key.replace(".weight", ".default.weight")
        assert torch.equal(tensor, trained[name_in_model].to(tensor.dtype)), key


def test_full_weights_are_sharded_and_adapters_are_replicated(alone, together):
    held = {name: [json.loads((together / name / f"held-{r}.json").read_text()) for r in (0, 1)] for name in VARIANTS}
    whole = {name: json.loads((alone[name] / "held-0.json").read_text()) for name in VARIANTS}
    head = 65
    assert sum(held["full"]) == whole["full"] + head
    assert max(held["full"]) <= 0.51 * whole["full"]
    assert held["lora"] == [whole["lora"]] * 2


def test_two_killed_processes_end_where_undisturbed_ones_do(together):
    assert_same(parameters(together / "killed-full"), parameters(together / "full"))
    steps = history(together / "full")
    assert history(together / "killed-full") == [pytest.approx(step, rel=1e-5) for step in steps]


@pytest.mark.parametrize(("killed", "kind"), [("killed-lora", "lora"), ("killed-full-then-alone", "full")])
def test_one_process_goes_on_where_two_were_killed(tiny_model, together, killed, kind):
    before = (together / killed / "checkpoint.safetensors").stat().st_mtime_ns
    found = run_alone(tiny_model, together / killed, kind=kind)
    assert (together / killed / "checkpoint.safetensors").stat().st_mtime_ns > before
    assert_same(parameters(found), parameters(together / kind))
    assert history(found) == [pytest.approx(step, rel=1e-5) for step in history(together / kind)]


@pytest.mark.parametrize("spoil", ["loss", "gradient"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_all_processes_name_the_batch_that_is_not_finite(tiny_model, together, tmp_path, kind, spoil):
    folder = together / f"{kind}-{spoil}"
    errors = [(folder / f"error-{rank}.txt").read_text() for rank in (0, 1)]
    assert errors[0] == errors[1]
    run_alone(tiny_model, tmp_path / "alone", **SPOILED[f"{kind}-{spoil}"])
    expected = (tmp_path / "alone" / "error-0.txt").read_text()
    assert errors[0].replace(str(folder), "") == expected.replace(str(tmp_path / "alone"), "")
    batches = [json.loads((place / "not_finite.json").read_text()) for place in (folder, tmp_path / "alone")]
    assert batches[0] == batches[1]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_token_budget_changes_nothing(tiny_model, tmp_path, kind):
    found = [run_alone(tiny_model, tmp_path / str(budget), kind=kind, budget=budget) for budget in (20, 60, 1000)]
    cuts = [len(joint_training.example_steps(budget)[2]) for budget in (20, 60, 1000)]
    assert len(set(cuts)) == 3
    for other in found[1:]:
        assert_same(parameters(other), parameters(found[0]))
        assert [step["tokens"] for step in history(other)] == [step["tokens"] for step in history(found[0])]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_one_killed_process_ends_with_the_same_bits(tiny_model, tmp_path, alone, monkeypatch, kind):
    def die(code):
        raise InterruptedError

    monkeypatch.setattr(joint_training.os, "_exit", die)
    with pytest.raises(InterruptedError):
        run_alone(tiny_model, tmp_path, kind=kind, stop_before=1)
    found, expected = parameters(run_alone(tiny_model, tmp_path, kind=kind)), parameters(alone[kind])
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert history(tmp_path) == history(alone[kind])


@given(sizes=st.lists(st.integers(1, 50), min_size=1, max_size=12), processes=st.integers(1, 5))
def test_every_microbatch_counts_once_and_all_ranks_take_as_many_turns(sizes, processes):
    turns = [deal(sizes, float, World(rank, processes)) for rank in range(processes)]
    counted = [turn.number for rank in turns for turn in rank if turn.counts]
    assert sorted(counted) == list(range(len(sizes)))
    assert {len(rank) for rank in turns} == {-(-len(sizes) // processes)}
    loads = [sum(sizes[turn.number] for turn in rank if turn.counts) for rank in turns]
    assert max(loads) - min(loads) <= max(sizes)
    if processes == 1:
        assert counted == list(range(len(sizes)))


def test_what_is_computed_at_the_same_time_is_of_like_size():
    sizes = np.array([1, 9, 5, 10, 6, 2])
    turns = [deal(sizes.tolist(), float, World(rank, 2)) for rank in range(2)]
    assert [sorted(sizes[[a.number, b.number]].tolist()) for a, b in zip(*turns, strict=True)] == [
        [9, 10],
        [5, 6],
        [1, 2],
    ]

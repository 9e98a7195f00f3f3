"""A campaign that starts from demonstrations: the loop goes on from the policy that they made."""

import json

import pytest
from pipeline import contents, environment, manifests, posttrain, run_file, states


def haiku_chats(count=40):
    """Chats in the style that the prompts of the tiny campaign ask for."""
    words = ("sea", "pond", "frog", "water", "sound")
    return [
        {
            "messages": [
                {"role": "user", "content": f"Write a haiku about the {words[n % 5]}, number {n}."},
                {"role": "assistant", "content": f"The old {words[n % 5]} is still\na frog jumps in\nthe water sounds"},
            ]
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def campaign(tmp_path_factory, tiny_model, prefect_server):
    folder = tmp_path_factory.mktemp("sft")
    (folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in haiku_chats()))
    env = environment(folder / "home", PREFECT_API_URL=prefect_server)
    sft = {
        "sources": [{"path": str(folder / "chats.jsonl"), "messages_field": "messages"}],
        "learning_rate": 1e-2,
        "batch_rows": 8,
        "heldout_fraction": 0.2,
        "lora": {"rank": 8, "alpha": 16},
    }
    path, root = run_file(folder, tiny_model, iterations=1, sft=sft), str(folder / "root")
    posttrain("run", str(path), "--root", root, env=env)
    return {"env": env, "path": path, "root": root}


def test_the_first_policy_is_what_demonstrations_made_and_the_loop_goes_on_training_it(campaign):
    made, committed = manifests(campaign["root"]), states(campaign["root"])
    first = committed["00000.json"]
    assert first["policy"] == first["champion"] == first["steps"]["sft"]
    tuned = made[first["policy"]]
    assert tuned.metrics["heldout_loss"] < 0.7 * tuned.metrics["heldout_loss_before"]
    assert set(tuned.files) == {"adapter_model.safetensors", "adapter_config.json"}
    before, after = (made[first["steps"][step]] for step in ("base-evaluation", "evaluation"))
    assert made[before.inputs["rollouts"]].inputs["policy"] == tuned.inputs["base"]
    assert made[after.inputs["rollouts"]].inputs["policy"] == first["policy"]
    assert before.inputs["rollouts"] != after.inputs["rollouts"]
    update = made[committed["00001.json"]["steps"]["policy_update"]]
    assert update.inputs["policy"] == first["policy"]
    assert update.facts == tuned.facts == {"base": tuned.inputs["base"], "weights": "lora"}
    assert update.metrics["parity_mean_difference"] < 0.1


def test_sft_can_be_made_again_by_itself(campaign):
    before = contents(campaign["root"])
    posttrain("rerun", "tiny", "0", "sft", "--root", campaign["root"], env=campaign["env"])
    posttrain("rerun", "tiny", "0", "sft", "--force", "--root", campaign["root"], env=campaign["env"])
    assert contents(campaign["root"]) == before


def test_check_shows_the_demonstrations_and_refuses_a_file_that_is_not_there(campaign):
    shown = posttrain("check", str(campaign["path"]), "--root", campaign["root"], env=campaign["env"])
    assert "before the first iteration: sft on" in shown
    override = "sft.sources.0.path=nowhere.jsonl"
    refused = posttrain(
        "check", str(campaign["path"]), "--root", campaign["root"], "--set", override, env=campaign["env"], code=2
    )
    assert "nowhere.jsonl: no such file" in refused

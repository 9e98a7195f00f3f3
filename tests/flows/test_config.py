"""The run file: what is wrong is named, with the nearest known key, before anything runs."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from flows.algorithms import ALGORITHMS, under
from flows.config import RIGHT_GRADIENT, RunConfig, load_config
from storage.errors import InputError
from tasks._maths.kl import REVERSE_KL_IN_LOSS, REVERSE_KL_IN_REWARD

REPOSITORY = Path(__file__).parents[2]
QUICKSTART = REPOSITORY / "deployments" / "quickstart.yaml"


def edited(tmp_path, change):
    document = yaml.safe_load(QUICKSTART.read_text())
    change(document)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("name", ["quickstart.yaml", "nightly.yaml"])
def test_the_shipped_run_files_are_valid(name):
    config = load_config(REPOSITORY / "deployments" / name)
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(iteration=3), r"unknown key 'iteration', did you mean 'iterations'\?"),
        (
            lambda d: d["rollouts"]["sampling"].update(temprature=1),
            r"'rollouts.sampling.temprature', did you mean 'temp",
        ),
        (lambda d: d["curate"]["sources"][0].update(pth="x"), r"'curate.sources.0.pth', did you mean 'path'\?"),
        (lambda d: d.update(zzzzqq=1), "unknown key 'zzzzqq', known: campaign, root"),
        (lambda d: d.pop("model"), "model: required, not given"),
        (lambda d: d.update(iterations="many"), "iterations: Input should be a valid integer.*found 'many'"),
        (lambda d: d["rollouts"]["sampling"].update(temperature=-1), "rollouts.sampling.temperature: .* found -1"),
        (lambda d: d["rollouts"]["sampling"].update(max_tokens=256), "max_tokens is 256, expected less than engine"),
        (lambda d: d.update(campaign="No Spaces"), "campaign: String should match"),
        (
            lambda d: d.update(algorithm="kto", filtering={"rules": [{"rule": "oversample"}]}),
            "filtering.rules has oversample, which weighs rollouts, and policy_update.objective is kto",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        load_config(edited(tmp_path, change))


def test_overrides_reach_every_depth():
    config = load_config(
        QUICKSTART,
        ["rollouts.sampling.max_tokens=32", "curate.sources.0.domain=verse", "reward_model.train_every=5"],
        {"seed": 4, "iterations": 1},
    )
    assert config.rollouts.sampling.max_tokens == 32
    assert config.curate.sources[0].domain == "verse"
    assert (config.reward_model.train_every, config.seed, config.iterations) == (5, 4, 1)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "expected key=value"),
        ("seed.deep.down=1", "seed is 0, expected a mapping"),
        ("curate.sources.7.path=x", "a list of 1"),
        ("rollouts.samples=3", "unknown key 'rollouts.samples', did you mean 'sampling'"),
    ],
)
def test_overrides_that_cannot_be(override, message):
    with pytest.raises(InputError, match=message):
        load_config(QUICKSTART, [override])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a: [1", "not YAML"),
        (b"- 1", "expected a mapping"),
        (b"a: \xff\xfe", "not UTF-8 at byte 3"),
        (b"", "expected a mapp"),
    ],
)
def test_files_that_are_no_run_file(tmp_path, content, message):
    path = tmp_path / "run.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_config(path)


def test_a_missing_file_names_those_beside_it(tmp_path):
    (tmp_path / "other.yaml").write_text("")
    with pytest.raises(InputError, match=r"no such run file\. Here: .*other\.yaml"):
        load_config(tmp_path / "run.yaml")


def test_checking_a_run_file_loads_no_heavy_package():
    heavy = "{'torch', 'vllm', 'transformers', 'prefect', 'mlflow'} & set(sys.modules)"
    code = f"import sys, pathlib, flows.config as c; c.load_config(pathlib.Path({str(QUICKSTART)!r})); print({heavy})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("name", sorted(ALGORITHMS))
def test_an_algorithm_is_one_line_of_the_run_file(tmp_path, name):
    def change(document):
        document["algorithm"] = name
        document["grading"]["graders"][0]["judge"] = True

    config = load_config(edited(tmp_path, change))
    for section, settings in (
        ("policy_update", ALGORITHMS[name].policy_update),
        ("filtering", ALGORITHMS[name].filtering),
    ):
        found = getattr(config, section).model_dump(exclude_unset=True)
        assert under(settings, found) == found
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config


def test_what_the_file_says_wins_over_the_algorithm():
    config = load_config(
        QUICKSTART, ["algorithm=ppo", "policy_update.kl.coefficient=0.5", "filtering.advantage=group_mean"]
    )
    assert config.policy_update.kl.coefficient == 0.5
    assert config.policy_update.kl.place == "reward"
    assert config.filtering.advantage == "group_mean"


def test_dapos_buffer_is_a_fifth_of_the_token_limit():
    config = load_config(QUICKSTART, ["algorithm=dapo", "rollouts.sampling.max_tokens=100"])
    assert config.filtering.overlong.model_dump() == {"max_tokens": 100, "buffer_tokens": 20}
    config = load_config(QUICKSTART, ["algorithm=dapo", "filtering.overlong.max_tokens=10"])
    assert config.filtering.overlong.model_dump() == {"max_tokens": 10, "buffer_tokens": 2}


def test_gdpo_takes_the_graders_weights():
    config = load_config(QUICKSTART, ["algorithm=gdpo"])
    assert config.filtering.component_weights == {"verifier": 0.8, "reward_model": 0.2}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["algorithm=dapoo"], "algorithm: 'dapoo' is unknown, did you mean 'dapo'"),
        (["policy_update.objective=grpo"], "'grpo' is an algorithm; write algorithm: grpo"),
        (["algorithm=codpo"], "algorithm codpo needs a judge from the first iteration on; set judge"),
        (["filtering.component_weights={style: 1}"], r"no grader is called \['style'\]"),
        (["algorithm=crpg", "grading.graders=[{grader: reward_model, judge: true}]"], "give the judge a pass_score"),
        (
            ["algorithm=codpo", "grading.graders=[{judge: true, from_iteration: 2}, {grader: haiku}]"],
            "needs a judge from",
        ),
        (["algorithm=grpo", "policy_update.kl={coefficient: 0.1, place: reward}"], "enters leave_one_out advantages"),
        (["algorithm=iterated_dpo", "policy_update.correction.kind=mask"], "objective dpo has no correction.kind"),
        (["algorithm=dapo", "filtering.overlong={max_tokens: 8, buffer_tokens: 9}"], "expected at most max_tokens"),
    ],
)
def test_an_algorithm_that_cannot_run_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        load_config(QUICKSTART, settings)


@pytest.mark.parametrize(
    ("estimator", "place", "warned"),
    [
        ("k1", "loss", True),
        ("k2", "loss", False),
        ("k3", "loss", True),
        ("k3_corrected", "loss", False),
        ("k1", "reward", False),
        ("k2", "reward", True),
        ("k3", "reward", True),
    ],
)
def test_a_kl_without_the_reverse_gradient_is_warned_of(estimator, place, warned):
    settings = [f"policy_update.kl={{coefficient: 0.1, estimator: {estimator}, place: {place}}}"]
    found = load_config(QUICKSTART, [*settings, "filtering.advantage=leave_one_out"]).warnings()
    assert bool(found) == warned
    assert load_config(QUICKSTART).warnings() == []
    assert {place: frozenset(right) for place, right in RIGHT_GRADIENT.items()} == {
        "loss": REVERSE_KL_IN_LOSS,
        "reward": REVERSE_KL_IN_REWARD,
    }

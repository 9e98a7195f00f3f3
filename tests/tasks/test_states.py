"""Frozen states of the tiny model: equal to a plain forward pass of transformers, whatever is packed with them."""

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from storage.errors import InputError
from storage.records import RECORDS
from tasks._engines.chat import load_tokenizer, render
from tasks._training.states import StateReader, StatesSpec, read_states, spread_layers
from tasks.states.answers import distinct_answers
from tasks.states.config import StatesConfig
from tasks.states.spec import spec_of

CPU = torch.device("cpu")
QUESTION = (7, 8, 9)
POOLINGS = ("last", "answer", "mean-5", "mean-100", "question")


def spec(**changes) -> StatesSpec:
    base = dict(layers=(2, 1), poolings=POOLINGS, max_tokens=24, question_token_ids=QUESTION, end_token_id=2)
    return StatesSpec(**{**base, "dtype": "float32", **changes})


def rows(seed=0):
    """Two prompts with three answers each, one of them longer than a dialogue may be; one has its end token."""
    random = np.random.default_rng(seed)
    prompts = [random.integers(3, 300, size).astype(np.int32) for size in (12, 4)]
    answers = [random.integers(3, 300, size).astype(np.int32) for size in (3, 9, 40, 1, 6, 23)]
    answers[1][-1] = 2
    return [prompts[number // 3] for number in range(6)], answers


def by_transformers(model, prompt, answer, asked):
    """The features of one row: its hidden states alone, without anything of ours."""
    whole = [*prompt, *answer, *([] if answer[-1] == 2 else [2])]
    ended = len(whole) - len(prompt)
    dialogue = whole[-asked.max_tokens :]
    ids = torch.tensor([[*dialogue, *asked.question_token_ids]])
    hidden = model(ids, output_hidden_states=True).hidden_states
    end, features = len(dialogue), []
    for layer in asked.layers:
        states = hidden[layer][0]
        pooled = {
            "last": states[end - 1],
            "answer": states[max(0, end - ended) : end].mean(0),
            "mean-5": states[max(0, end - 5) : end].mean(0),
            "mean-100": states[:end].mean(0),
            "question": states[-1],
        }
        features += [pooled[name] for name in asked.poolings]
    return torch.cat(features).numpy()


@pytest.fixture(scope="module")
def plain(tiny_model):
    """The tiny model as transformers loads it; a layer's output stands one before the last normalisation."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32).eval()
    model.model.norm = torch.nn.Identity()
    return model


@pytest.mark.parametrize("tokens_per_microbatch", [16, 4096])
def test_states_are_those_of_each_row_alone(tiny_model, plain, tokens_per_microbatch):
    prompts, answers = rows()
    asked = spec()
    reader = StateReader(tiny_model, asked, CPU)
    found = read_states(reader, prompts, answers, tokens_per_microbatch=tokens_per_microbatch)
    assert found.shape == (6, reader.features) and reader.features == 2 * 5 * 64
    with torch.no_grad():
        expected = [by_transformers(plain, *row, asked) for row in zip(prompts, answers, strict=True)]
    # "answer" is the mean over the kept answer; where the cut leaves no prompt its first token counts as one.
    whole = [index for index in range(6) if index not in (2, 5)]
    np.testing.assert_allclose(found[whole], np.stack(expected)[whole], atol=2e-5)
    columns = np.arange(reader.features).reshape(2, 5, 64)[:, [0, 2, 3, 4]].ravel()
    np.testing.assert_allclose(found[:, columns], np.stack(expected)[:, columns], atol=2e-5)


def test_only_the_layers_that_are_read_are_computed(tiny_model):
    reader = StateReader(tiny_model, spec(layers=(1,)), CPU)
    assert len(reader.model.layers) == 1
    assert spread_layers(tiny_model) == (1, 2)
    with pytest.raises(InputError, match="layers: 3; the model in"):
        StateReader(tiny_model, spec(layers=(3,)), CPU)


def test_a_question_that_is_read_must_be_asked(tiny_model):
    with pytest.raises(InputError, match="there is none"):
        StateReader(tiny_model, spec(question_token_ids=()), CPU)
    for wrong in ({"poolings": ["question"]}, {"question": "Good?"}, {"layers": [1, 1]}, {"poolings": ["mean-0"]}):
        with pytest.raises(ValidationError):
            StatesConfig(**wrong)


def test_answers_are_read_once(tiny_model):
    tokenizer = load_tokenizer(tiny_model)
    schema = RECORDS["preferences"].create_empty().schema
    ask = [[{"role": "user", "content": f"question {number}"}] for number in range(2)]
    compared = [(0, "a", "b"), (0, "a", "c"), (1, "a", "b"), (0, "c", "b")]
    frame = pl.DataFrame(
        [
            dict(pair_id=f"p{index}", prompt_id=f"q{prompt}", cluster_id="c", messages=ask[prompt], source="human")
            | dict(chosen=chosen, rejected=rejected, split="train")
            for index, (prompt, chosen, rejected) in enumerate(compared)
        ],
        schema=schema,
    )
    found = distinct_answers(frame, tokenizer)
    assert len(found.answer_ids) == len(set(found.answer_ids)) == 5
    assert found.paired["chosen_answer_id"][0] == found.paired["chosen_answer_id"][1]
    assert found.paired["rejected_answer_id"][1] == found.paired["chosen_answer_id"][3]
    assert found.prompts[0].tolist() == render(tokenizer, ask[0])
    assert [tokenizer.decode(ids) for ids in found.responses] == ["a", "b", "c", "a", "b"]
    RECORDS["paired_answers"].validate(found.paired)
    asked = spec_of(StatesConfig(poolings=["question"], question=" Good?"), tiny_model, tokenizer)
    assert tokenizer.decode(list(asked.question_token_ids)) == " Good?" and asked.layers == (1, 2)

"""The supervised start on the tiny model: what is taught, what is set aside, and going on after a kill."""

import hashlib
import json
import math
from pathlib import Path

import datasets
import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from storage.errors import InputError
from storage.fingerprints import derive_seed
from storage.policies import register_base
from storage.records import RECORDS
from tasks._engines.chat import load_tokenizer, stop_token_ids
from tasks._sources.rows import Rejection, Row
from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, load_lora, trainable_parameters
from tasks.sft.config import DemonstrationSource, SftConfig
from tasks.sft.demonstrations import (
    Demonstration,
    Tokens,
    check_demonstrations,
    demonstrations_of_chat,
    demonstrations_of_row,
    read_demonstrations,
    split_held_out,
)
from tasks.sft.stage import fine_tune
from tasks.sft.train import fine_tune_on_demonstrations, loss_function, plan_steps

CPU = torch.device("cpu")
CHAT = [
    {"role": "system", "content": "one two three"},
    {"role": "user", "content": "What is 12 plus 30?"},
    {"role": "assistant", "content": "The answer is 42,\n  and nothing else."},
    {"role": "user", "content": "Write a haiku about the sea."},
    {"role": "assistant", "content": "the water sounds"},
]


def quiet(done, total, label):
    pass


def tokens_of(model: Path, max_tokens: int = 512) -> Tokens:
    tokenizer = load_tokenizer(model)
    return Tokens(tokenizer, frozenset(stop_token_ids(model, tokenizer)), max_tokens)


def lines(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def answers(count: int = 48) -> list[dict]:
    """Every question has the same kind of answer: something to learn, and to see on questions held out."""
    return [{"q": f"question {n} of {7 * n}", "a": f"The answer is {n % 3}, and nothing else."} for n in range(count)]


def config(*sources: dict, **changes) -> SftConfig:
    fields = dict(learning_rate=1e-2, batch_rows=8, heldout_fraction=0.2, dtype="float32", device="cpu")
    return SftConfig(sources=list(sources), **(fields | {"lora": {"rank": 4, "alpha": 8}} | changes))


def questions(folder: Path, rows: list | None = None) -> dict:
    return {"path": str(lines(folder / "d.jsonl", rows or answers())), "prompt_field": "q", "response_field": "a"}


def tune(base: Path, sft: SftConfig, scratch: Path, progress=quiet):
    return fine_tune_on_demonstrations(base, sft, seed=3, scratch=scratch, progress=progress)


def plain_logprobs(model, one: Demonstration) -> torch.Tensor:
    """log pi of each taught token by a plain forward of the one sequence."""
    ids = torch.tensor(one.token_ids[None].astype(np.int64))
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    return logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0][torch.tensor(one.taught[1:])]


def test_every_assistant_turn_is_taught_token_by_token_as_the_chat_template_renders_it(tiny_model):
    """Which characters the assistant writes is worked out on the rendered text, by the tokenizer's offsets."""
    [found] = demonstrations_of_chat(CHAT, "messages", tokens_of(tiny_model))
    text, spoken = "", np.zeros(1000, dtype=bool)
    for turn in CHAT:
        text += f"<|im_start|>{turn['role']}\n"
        begin = len(text)
        text += f"{turn['content']}<|im_end|>"
        spoken[begin : len(text)] = turn["role"] == "assistant"
        text += "\n"
    text = text.removesuffix("\n")
    encoded = AutoTokenizer.from_pretrained(tiny_model)(text, add_special_tokens=False, return_offsets_mapping=True)
    assert found.token_ids.tolist() == encoded["input_ids"]
    assert found.taught.tolist() == [bool(spoken[begin:end].all()) for begin, end in encoded["offset_mapping"]]
    assert 0 < found.taught_tokens < len(found.token_ids)


def test_a_template_that_rewrites_earlier_turns_gives_a_sequence_per_turn(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = (
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if message['role'] != 'assistant' or loop.last %}{{ message['content'] }}{% endif %}<|im_end|>\n"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    found = demonstrations_of_chat(CHAT, "messages", Tokens(tokenizer, frozenset([tokenizer.eos_token_id]), 512))
    taught = [tokenizer.decode(one.token_ids[one.taught]) for one in found]
    assert taught == [f"{turn['content']}<|im_end|>" for turn in CHAT if turn["role"] == "assistant"]
    assert CHAT[2]["content"] not in tokenizer.decode(found[1].token_ids)
    assert found[0].prompt_id == found[1].prompt_id


def test_loss_and_gradient_are_the_mean_over_the_taught_tokens_of_the_whole_step(tiny_model, tmp_path):
    """-1/T sum log pi, T over the optimizer batch, against float64 autograd through one plain forward a row."""
    sft = config(
        questions(tmp_path, answers(5)),
        {"path": str(lines(tmp_path / "chats.jsonl", [{"messages": CHAT}])), "messages_field": "messages"},
        {"path": str(lines(tmp_path / "text.jsonl", [{"t": "The old pond is still"}])), "text_field": "t"},
    )
    demonstrations, rejections = read_demonstrations(sft, tokens_of(tiny_model))
    assert not rejections
    policy = attach_lora(load_causal_model(tiny_model, "float32", CPU), LoraSpec(4, 8), seed=1)
    random = torch.Generator().manual_seed(2)
    for name, parameter in trainable_parameters(policy).items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=random)
    [step] = plan_steps(demonstrations, sft, seed=0, budget=128)
    assert len(step) > 2
    parts = [loss_function(policy, CPU)(microbatch) for microbatch in step]
    loss = sum(part.loss_sum for part in parts)
    loss.backward()
    ours = {name: parameter.grad.clone() for name, parameter in trainable_parameters(policy).items()}

    policy.zero_grad()
    policy.double()
    logprobs = torch.cat([plain_logprobs(policy, one) for one in demonstrations])
    expected = -logprobs.mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    for name, parameter in trainable_parameters(policy).items():
        torch.testing.assert_close(ours[name].double(), parameter.grad, rtol=1e-3, atol=1e-6)
    assert sum(part.metrics["tokens"].value for part in parts) == len(logprobs)


def test_all_of_a_plain_text_is_taught_and_its_end(tiny_model):
    tokens = tokens_of(tiny_model)
    source = DemonstrationSource(path="x", text_field="t")
    [found] = demonstrations_of_row(Row("x", 1, {"t": "The old pond is still"}), source, tokens)
    assert tokens.tokenizer.decode(found.token_ids).endswith("The old pond is still<|im_end|>")
    assert found.taught.tolist() == [False] + [True] * (len(found.token_ids) - 1)


USER, ANSWER = {"role": "user", "content": "one"}, {"role": "assistant", "content": "two"}


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": [USER]}, "not_ending_with_assistant"),
        ({"messages": [ANSWER]}, "not_beginning_with_user"),
        ({"messages": []}, "empty"),
        ({"messages": [USER, {"role": "assistant", "content": " \n"}]}, "empty"),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, "bad_type"),
        ({"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]}, "bad_role"),
        ({"messages": "one"}, "bad_type"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud800"}]}, "not_utf8"),
        ({"messages": None}, "missing_field"),
        ({"messages": [USER, {"role": "assistant", "content": "two " * 600}]}, "too_long"),
    ],
)
def test_a_row_that_cannot_be_taught_is_set_aside_with_its_reason(tiny_model, fields, reason):
    source = DemonstrationSource(path="x", messages_field="messages")
    found = demonstrations_of_row(Row("x.jsonl", 7, fields), source, tokens_of(tiny_model))
    assert isinstance(found, Rejection)
    assert (found.source, found.row, found.reason, found.field) == ("x.jsonl", 7, reason, "messages")


def test_a_template_that_never_ends_a_turn_is_told(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"
    source = DemonstrationSource(path="x", messages_field="messages")
    found = demonstrations_of_row(Row("x", 1, {"messages": CHAT}), source, Tokens(tokenizer, frozenset([2]), 512))
    assert found.reason == "no_end_of_turn"


def test_a_template_that_refuses_a_chat_is_told(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    source = DemonstrationSource(path="x", messages_field="messages")
    found = demonstrations_of_row(Row("x", 1, {"messages": CHAT}), source, Tokens(tokenizer, frozenset([2]), 512))
    assert (found.reason, "roles must alternate" in found.found) == ("template_refuses", True)


def test_too_many_bad_rows_are_refused_with_file_row_and_field(tiny_model, tmp_path):
    sft = config(questions(tmp_path, [*answers(4), {"q": "no answer"}]))
    with pytest.raises(InputError, match=r"d\.jsonl:5, field 'a': missing_field.*\n.*sft\.max_rejected_fraction"):
        read_demonstrations(sft, tokens_of(tiny_model))
    allowed = sft.model_copy(update={"max_rejected_fraction": 0.5})
    demonstrations, rejections = read_demonstrations(allowed, tokens_of(tiny_model))
    assert (len(demonstrations), [one.row for one in rejections]) == (4, [5])


def test_parquet_jsonl_and_a_saved_dataset_are_read_alike(tiny_model, tmp_path):
    frame = pl.DataFrame(answers(6))
    frame.write_parquet(tmp_path / "d.parquet")
    datasets.Dataset.from_list(answers(6)).save_to_disk(tmp_path / "saved")
    found = []
    for source in (
        questions(tmp_path, answers(6)),
        *(
            {"path": str(tmp_path / name), "prompt_field": "q", "response_field": "a"}
            for name in ("d.parquet", "saved")
        ),
    ):
        demonstrations, _ = read_demonstrations(config(source), tokens_of(tiny_model))
        found.append([(one.prompt_id, one.token_ids.tolist(), one.taught.tolist()) for one in demonstrations])
    assert found[0] == found[1] == found[2]
    assert len(found[0]) == 6


def test_a_missing_file_and_a_missing_column_are_named_before_work_starts(tmp_path):
    missing = {"path": str(tmp_path / "nowhere.jsonl"), "text_field": "t"}
    with pytest.raises(InputError) as error:
        check_demonstrations(config(questions(tmp_path) | {"response_field": "answer"}, missing))
    assert "d.jsonl: has no column 'answer'; it has a, q" in str(error.value)
    assert "nowhere.jsonl: no such file" in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [{}, {"prompt_field": "q"}, {"text_field": "t", "messages_field": "m"}, {"text_field": "t", "system": "s"}],
)
def test_a_source_has_one_form(fields):
    with pytest.raises(ValueError, match=r"one of|belong"):
        DemonstrationSource(path="x", **fields)


def test_rows_of_one_prompt_are_never_on_both_sides():
    rows = [Demonstration(f"p{number // 3}", np.arange(4, dtype=np.int32), np.arange(4) > 1) for number in range(60)]
    training, heldout = split_held_out(rows, 0.2, seed=1)
    assert len(heldout) == 12
    assert len(training) + len(heldout) == 60
    assert not {one.prompt_id for one in training} & {one.prompt_id for one in heldout}
    with pytest.raises(InputError, match=r"sft\.heldout_fraction"):
        split_held_out(rows[:3], 0.2, seed=1)


def test_it_learns_and_measures_on_what_was_held_out(tiny_model, tmp_path):
    sft = config(questions(tmp_path), epochs=2)
    found = tune(tiny_model, sft, tmp_path / "scratch")
    RECORDS["steps"].validate(found.steps)
    RECORDS["rejected"].validate(found.rejected)
    assert found.metrics["heldout_loss"] < 0.5 * found.metrics["heldout_loss_before"]
    assert found.metrics["heldout_perplexity"] == pytest.approx(math.exp(found.metrics["heldout_loss"]))
    assert (found.metrics["training_rows"], found.metrics["heldout_rows"]) == (38, 10)
    assert found.metrics["optimizer_steps"] == 10
    demonstrations, _ = read_demonstrations(sft, tokens_of(tiny_model))
    _, heldout = split_held_out(demonstrations, 0.2, derive_seed(3, "heldout"))
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    with torch.no_grad():
        before = -torch.cat([plain_logprobs(model, one) for one in heldout]).mean()
        adapted = load_lora(load_causal_model(tiny_model, "float32", CPU), found.adapter_folder, trainable=False)
        after = -torch.cat([plain_logprobs(adapted, one) for one in heldout]).mean()
    assert found.metrics["heldout_loss_before"] == pytest.approx(float(before), rel=1e-4)
    assert found.metrics["heldout_loss"] == pytest.approx(float(after), rel=1e-4)


def test_a_killed_training_goes_on_and_ends_with_the_same_bits(tiny_model, tmp_path):
    sft = config(questions(tmp_path), checkpoint_every_steps=2)

    def stop_at_four(done, total, label):
        if done == 4:
            raise KeyboardInterrupt

    whole = tune(tiny_model, sft, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        tune(tiny_model, sft, tmp_path / "killed", progress=stop_at_four)
    seen: list[int] = []
    resumed = tune(tiny_model, sft, tmp_path / "killed", progress=lambda done, total, label: seen.append(done))
    assert seen[0] == 4
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in found.adapter_folder.iterdir()}
        for found in (whole, resumed)
    ]
    assert digests[0] == digests[1]
    assert whole.metrics == resumed.metrics
    assert whole.steps.equals(resumed.steps)


def test_what_the_files_hold_makes_the_fingerprint_not_where_they_lie(tiny_model, tmp_path):
    base = register_base(str(tmp_path / "root"), str(tiny_model))
    (tmp_path / "elsewhere").mkdir()
    here, there = questions(tmp_path), questions(tmp_path / "elsewhere")
    first, second = (fine_tune.artifact(base.root, base=base, config=config(s), seed=1).id for s in (here, there))
    assert first == second
    lines(tmp_path / "d.jsonl", answers(47))
    assert fine_tune.artifact(base.root, base=base, config=config(here), seed=1).id != first

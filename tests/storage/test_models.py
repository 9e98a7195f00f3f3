"""A base in one format, adapters merged in float32, and errors that say what to do."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from storage import models
from storage.errors import InputError
from storage.models import PolicyFiles, convert_base, merged_folder, weights_digest


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("POSTTRAIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def adapter(tiny_model: Path, tmp_path: Path) -> Path:
    """A LoRA adapter with updates small enough that adding them in bf16 would lose them."""
    return save_adapter(tiny_model, tmp_path / "adapter")


def save_adapter(base: Path, folder: Path, **options) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    torch.manual_seed(1)
    config = LoraConfig(
        **({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False} | options)
    )
    lora = get_peft_model(model, config)
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_" in name:
                weight.mul_(0.05)
    lora.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("use_rslora", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_merge_is_peft_s_merge_in_float32_then_cast(
    tiny_model: Path, tmp_path: Path, use_rslora: bool, dtype: torch.dtype
) -> None:
    adapter = save_adapter(tiny_model, tmp_path / "adapter", use_rslora=use_rslora)
    folder = merged_folder(PolicyFiles(tiny_model, adapter, "update/1"), str(dtype).removeprefix("torch."))
    merged = load_file(folder / "model.safetensors")

    from peft import PeftModel

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    expected = PeftModel.from_pretrained(base, adapter).merge_and_unload().state_dict()
    original = load_file(tiny_model / "model.safetensors")
    for name, weight in merged.items():
        assert weight.dtype == dtype
        torch.testing.assert_close(weight, expected[name].to(dtype), rtol=0, atol=0)
    query = "model.layers.0.self_attn.q_proj.weight"
    assert not torch.equal(merged[query], original[query].to(dtype))
    assert AutoModelForCausalLM.from_pretrained(folder, dtype="auto").dtype == dtype


def test_merged_folder_serves_by_itself_and_is_made_once(tiny_model: Path, adapter: Path) -> None:
    policy = PolicyFiles(tiny_model, adapter, "update/2")
    folder = merged_folder(policy, "bfloat16")
    AutoModelForCausalLM.from_pretrained(folder)
    assert (folder / "chat_template.jinja").read_text() == (tiny_model / "chat_template.jinja").read_text()
    made = (folder / "model.safetensors").stat().st_mtime_ns
    assert merged_folder(policy, "bfloat16") == folder
    assert merged_folder(policy._replace(policy_id="update/3"), "bfloat16") == folder
    assert (folder / "model.safetensors").stat().st_mtime_ns == made
    assert not list(folder.parent.glob(".*")), "scratch is left over"


def test_a_policy_without_adapter_is_its_base(tiny_model: Path) -> None:
    assert merged_folder(PolicyFiles(tiny_model, None, "x"), "bfloat16") == tiny_model


def scale(adapter: Path, alpha: int) -> None:
    """Make another adapter of it, in place."""
    described = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(described | {"lora_alpha": alpha}))


def test_an_adapter_made_again_under_the_same_id_is_merged_again(tiny_model: Path, adapter: Path) -> None:
    policy = PolicyFiles(tiny_model, adapter, "update/1")
    before = merged_folder(policy, "bfloat16")
    scale(adapter, 800)
    after = merged_folder(policy, "bfloat16")
    query = "model.layers.0.self_attn.q_proj.weight"
    first, second = (load_file(folder / "model.safetensors")[query] for folder in (before, after))
    assert not torch.equal(first, second)


def test_many_at_once_merge_once(tiny_model: Path, adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads here: each opens the lock file itself, so the kernel parts them as it does processes."""
    policy = PolicyFiles(tiny_model, adapter, "update/1")
    merges: list[threading.Thread] = []
    merge = models._merge

    def counted(*arguments) -> None:
        merges.append(threading.current_thread())
        merge(*arguments)

    monkeypatch.setattr(models, "_merge", counted)
    with ThreadPoolExecutor(4) as threads:
        folders = set(threads.map(merged_folder, [policy] * 4, ["bfloat16"] * 4))
    assert len(folders) == len(merges) == 1


def test_digests_of_many_threads_are_all_remembered(tmp_path: Path, own_home: Path) -> None:
    files = [tmp_path / f"{number}.txt" for number in range(40)]
    for path in files:
        path.write_text(path.name)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(models._file_digest, files))
    assert len(set(found)) == 40
    assert sorted(json.loads((own_home / "models" / "digests.json").read_text()).values()) == sorted(found)
    assert not list((own_home / "models").glob(".*")), "scratch is left over"


def test_only_the_newest_merges_are_kept(tiny_model: Path, adapter: Path) -> None:
    folders = []
    for alpha in range(1, models.MERGED_KEPT + 3):
        scale(adapter, alpha)
        folders.append(merged_folder(PolicyFiles(tiny_model, adapter, "update/1"), "bfloat16"))
    assert [folder.exists() for folder in folders] == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("option", "value"), [("use_dora", True), ("modules_to_save", ["lm_head"]), ("peft_type", "IA3")]
)
def test_an_adapter_that_is_not_plain_lora_is_refused(
    tiny_model: Path, adapter: Path, option: str, value: object
) -> None:
    described = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(described | {option: value}))
    with pytest.raises(InputError, match=str(adapter)):
        merged_folder(PolicyFiles(tiny_model, adapter, "odd"), "bfloat16")


def test_an_adapter_of_another_base_leaves_no_folder(tiny_model: Path, adapter: Path, own_home: Path) -> None:
    tensors = load_file(adapter / "adapter_model.safetensors")
    renamed = {name.replace("layers.1.", "layers.7."): tensor for name, tensor in tensors.items()}
    save_file(renamed, adapter / "adapter_model.safetensors")
    with pytest.raises(InputError, match=r"layers\.7.*another base"):
        merged_folder(PolicyFiles(tiny_model, adapter, "odd"), "bfloat16")
    assert list((own_home / "models" / "merged").iterdir()) == []


def test_digest_follows_content_not_place(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    (copy / "README.md").write_text("about")
    assert weights_digest(copy) == weights_digest(tiny_model) == weights_digest(copy)
    weights = load_file(copy / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] * 2
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    assert weights_digest(copy) != weights_digest(tiny_model)


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes, indent=4))


def test_digest_stays_when_another_transformers_wrote_the_same_model(tiny_model: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tiny_model, copy)
    rewrite(copy / "config.json", transformers_version="9.0.0", _name_or_path="elsewhere", torch_dtype="bfloat16")
    rewrite(copy / "generation_config.json", transformers_version="9.0.0", use_cache=False)
    rewrite(copy / "tokenizer_config.json", is_local=True)
    assert weights_digest(copy) == weights_digest(tiny_model)
    for name, change in (
        ("config.json", {"rms_norm_eps": 0.1}),
        ("generation_config.json", {"eos_token_id": [2, 5]}),
        ("tokenizer_config.json", {"eos_token": "<|pad|>"}),
    ):
        shutil.copytree(tiny_model, copy, dirs_exist_ok=True)
        rewrite(copy / name, **change)
        assert weights_digest(copy) != weights_digest(tiny_model), name


def test_a_folder_of_safetensors_is_its_own_base(tiny_model: Path) -> None:
    assert convert_base(str(tiny_model)) == tiny_model


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ((), "no weights there"),
        (("pytorch_model.bin",), "pickled weights"),
        (("model.Q4_1.gguf",), "name one of them"),
        (("model.safetensors",), "config.json is missing"),
    ],
)
def test_a_folder_that_cannot_be_a_base_says_why(tmp_path: Path, files: tuple[str, ...], expected: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for name in files:
        (folder / name).write_bytes(b"x")
    with pytest.raises(InputError, match=expected) as error:
        convert_base(str(folder))
    assert str(folder) in str(error.value)


def test_missing_sources_say_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing is there; expected a folder"):
        convert_base(str(tmp_path / "none"))
    with pytest.raises(InputError, match="pip install no-such-model-package"):
        convert_base("package:no-such-model-package")


def test_gguf_is_converted_once_to_what_was_stored_in_it(tiny_model: Path, tmp_path: Path) -> None:
    gguf = write_gguf(tiny_model, tmp_path / "tiny.gguf")
    folder = convert_base(str(gguf))
    assert convert_base(str(gguf)) == folder
    found, original = load_file(folder / "model.safetensors"), load_file(tiny_model / "model.safetensors")
    assert found.keys() == original.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, original[name], rtol=0, atol=0)
    assert (folder / "tokenizer_config.json").is_file()


def write_gguf(model: Path, path: Path) -> Path:
    """The tiny Llama as llama.cpp stores one: float32, rows of the rotary projections interleaved per head."""
    import gguf

    config = json.loads((model / "config.json").read_text())
    vocabulary = json.loads((model / "tokenizer.json").read_text())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary["vocab"], key=vocabulary["vocab"].get))
    writer.add_token_merges([" ".join(pair) for pair in vocabulary["merges"]])
    writer.add_eos_token_id(config["eos_token_id"])
    for name, weight in load_file(model / "model.safetensors").items():
        for ours, theirs in GGUF_NAMES:
            name = name.replace(ours, theirs)
        heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
        for part, count in heads.items():
            if part + "." in name:
                rows, columns = weight.shape
                weight = weight.view(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        writer.add_tensor(name, weight.float().contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


GGUF_NAMES = (
    ("model.embed_tokens", "token_embd"),
    ("model.layers.", "blk."),
    ("model.norm", "output_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("post_attention_layernorm", "ffn_norm"),
    ("input_layernorm", "attn_norm"),
)

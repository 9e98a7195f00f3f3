"""A linear module with its adapter equals LoRA's formula in float64, and what PEFT makes of it."""

import pytest
import torch

from tasks._training.lora import LoraSpec, attach_lora, load_causal_model, trainable_parameters
from tasks._training.lora_linear import fuse_lora, lora_linear

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_module_with_an_adapter_is_the_formula_of_lora(bias):
    random = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    x, weight, down, up = drawn(2, 5, 6), drawn(7, 6), drawn(3, 6), drawn(7, 3)
    offset = drawn(7) if bias else None
    trained = [tensor.requires_grad_() for tensor in (x, down, up)]
    found = lora_linear(x, weight, offset, down, up, 0.5)
    expected = torch.einsum("bti,oi->bto", x, weight + 0.5 * up @ down) + (offset if bias else 0)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    factors = drawn(2, 5, 7)
    for own, formula in zip(
        torch.autograd.grad((found * factors).sum(), trained),
        torch.autograd.grad((expected * factors).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(own, formula, atol=1e-12, rtol=1e-12)


def tuned(tiny_model, dtype, fused):
    """The tiny model with an adapter that does something."""
    model = attach_lora(load_causal_model(tiny_model, dtype, CPU), LoraSpec(4, 8), seed=1)
    random = torch.Generator().manual_seed(2)
    for name, parameter in trainable_parameters(model).items():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1, generator=random)
    if not fused:
        for module in model.modules():
            module.__dict__.pop("forward", None)
    return model


def of_model(model, tokens):
    """Logits, and the gradient of a fixed function of them for every trained parameter as one vector."""
    logits = model(input_ids=tokens).logits
    random = torch.Generator().manual_seed(3)
    (logits * torch.randn(logits.shape, generator=random)).sum().backward()
    gradients = [parameter.grad for parameter in trainable_parameters(model).values()]
    assert all(gradient.dtype == torch.float32 for gradient in gradients)
    return logits.detach().double(), torch.cat([gradient.double().flatten() for gradient in gradients])


def test_adapters_compute_what_peft_computes(tiny_model):
    tokens = torch.arange(3, 43)[None]
    logits, gradient = of_model(tuned(tiny_model, "float32", fused=True), tokens)
    expected, expected_gradient = of_model(tuned(tiny_model, "float32", fused=False), tokens)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-4, rtol=1e-4)


def test_in_bf16_adapters_are_as_near_to_float32_as_pefts_are(tiny_model):
    tokens = torch.arange(3, 43)[None]
    exact = of_model(tuned(tiny_model, "float32", fused=False), tokens)
    own = of_model(tuned(tiny_model, "bfloat16", fused=True), tokens)
    pefts = of_model(tuned(tiny_model, "bfloat16", fused=False), tokens)
    for mine, others, truth in zip(own, pefts, exact, strict=True):
        assert (mine - truth).norm() <= 1.2 * (others - truth).norm()


def test_without_its_adapter_the_model_is_its_base(tiny_model):
    tokens = torch.arange(3, 43)[None]
    model = tuned(tiny_model, "float32", fused=True)
    base = load_causal_model(tiny_model, "float32", CPU)
    with torch.no_grad(), model.disable_adapter():
        torch.testing.assert_close(model(input_ids=tokens).logits, base(input_ids=tokens).logits, atol=0, rtol=0)


def test_a_module_with_dropout_stays_pefts(tiny_model):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(
        load_causal_model(tiny_model, "float32", CPU), LoraConfig(r=2, lora_dropout=0.5, target_modules="all-linear")
    )
    fuse_lora(model)
    assert not any("forward" in module.__dict__ for module in model.modules())

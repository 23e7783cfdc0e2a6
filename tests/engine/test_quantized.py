"""Weights in int8, against the weights that their codes stand for."""

import pytest
import torch
from torch import nn

from retrobench.core.spec import parse
from retrobench.engine import loader
from retrobench.engine.embedded.tokenizer import build_tokenizer
from retrobench.engine.model_config import ModelConfig
from retrobench.engine.quantized import Int8Linear


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1,), (3, 1), (2, 8), (1, 17), (2, 40)])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 96), (40, 7), (576, 192)])
def test_a_product_equals_that_of_the_weights_the_codes_stand_for(bias, shape, inputs, outputs):
    linear = nn.Linear(inputs, outputs, bias=bias, dtype=torch.bfloat16)
    linear.weight.data[0] = 0  # a channel without weights
    quantized, x = Int8Linear(linear), torch.randn(*shape, inputs, dtype=torch.bfloat16)
    assert (quantized.weight - linear.weight).abs().max() <= linear.weight.abs().max() / 150
    expected = x.double() @ quantized.weight.double().T + (linear.bias.double() if bias else 0)
    out = quantized(x)
    assert out.dtype == torch.bfloat16 and out.shape == expected.shape
    assert (out - expected).abs().max() <= 0.02 * expected.abs().max()


def config_of(folder, **options):
    base = {"name": "small", "source": "local", "path": str(folder), "dtype": "bfloat16"}
    return parse(ModelConfig, {**base, **options}, "model")


def test_a_quantized_model_is_another_one_of_half_the_bytes(model_factory, tmp_path):
    tokenizer = build_tokenizer()
    model_factory(vocab_size=len(tokenizer), hidden_size=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    plain = loader.load(config_of(tmp_path))
    small = loader.load(config_of(tmp_path, quantize="int8"))
    assert "quantize" not in plain.identity and small.identity["quantize"] == "int8"
    kinds = {type(m) for m in small.model.modules() if hasattr(m, "in_features")}
    assert kinds == {Int8Linear}
    held = small.model.get_memory_footprint()
    assert held == loader.describe(config_of(tmp_path, quantize="int8")).weight_bytes
    linear = sum(m.weight.nbytes for m in plain.model.modules() if isinstance(m, nn.Linear))
    assert plain.model.get_memory_footprint() - held == pytest.approx(linear / 2, rel=0.1)


@pytest.mark.parametrize("options", [{"dtype": "float32"}, {"dtype": "auto"}])
def test_other_dtypes_are_refused_with_the_fix(model_factory, tmp_path, options):
    tokenizer = build_tokenizer()
    model_factory(vocab_size=len(tokenizer), hidden_size=32).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="use model.dtype=bfloat16 model.device=cpu"):
        loader.describe(config_of(tmp_path, quantize="int8", **options))

"""Tests how the first block describes the precision of a model's layers."""

import keras
import pytest

from kresume.models import precision


@pytest.mark.parametrize(
    ("policies", "scaled", "words"),
    [
        (("float32", "float32"), False, ""),
        (("mixed_float16", "float32"), True, "compute in float16, weights stay float32; the loss is scaled"),
        (("mixed_bfloat16", "float32"), False, "compute in bfloat16, weights stay float32"),
        (("mixed_bfloat16", "mixed_float16"), True, "compute in float16 and bfloat16"),
    ],
)
def test_a_precision_is_named_and_float16_needs_a_loss_scale(policies, scaled, words):
    """Any layer of a nested model counts; float32 is not worth a line."""
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, dtype=policies[0])])
    model = keras.Sequential([keras.Input((2,)), inner, keras.layers.Dense(2, dtype=policies[1])])
    assert precision.needs_loss_scale(model) == scaled
    said = precision.describe(model)
    assert words in said
    assert bool(said) == bool(words)

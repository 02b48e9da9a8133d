"""CLIP's text transformer, by itself and against Hugging Face's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.convert import clip_text as tables
from clap_jax.convert import rules
from clap_jax.models import clip_text
from clap_jax.models.tower import complete
from tests.models.weights import fill

END = 29
SMALL = {"width": 8, "depth": 2, "heads": 2, "mlp": 16, "position_table": 9}


def make(**options):
    return clip_text.tower(
        complete("clip_text", SMALL | options, clip_text.DEFAULTS), 30
    )


@pytest.fixture(scope="module")
def texts():
    ids = jnp.asarray(np.random.default_rng(0).integers(1, 28, (3, 7)), jnp.int32)
    mask = jnp.arange(7) < jnp.array([[7], [4], [2]])
    ids = ids.at[jnp.arange(3), jnp.array([6, 3, 1])].set(END)
    return jnp.where(mask, ids, 0), mask


@pytest.fixture(scope="module")
def variables(texts):
    return fill(make(), texts, std=0.5)


def run(variables, ids, mask, **options):
    (pooled, aux), _ = jax.jit(make(**options).apply)(variables, (ids, mask))
    return np.asarray(pooled), np.asarray(aux["hidden"])


def test_the_highest_id_stands_for_the_text(texts, variables):
    ids, mask = texts
    pooled, hidden = run(variables, ids, mask)
    np.testing.assert_array_equal(pooled, hidden[range(3), [6, 3, 1]])
    # Padding may be the end token again, as in Hugging Face's tokenizer of CLIP.
    again, _ = run(variables, jnp.where(mask, ids, END), mask)
    np.testing.assert_array_equal(again, pooled)


def test_padding_has_no_influence(texts, variables):
    ids, mask = texts
    want, _ = run(variables, ids, mask)
    np.testing.assert_array_equal(run(variables, ids, ~mask)[0], want)
    longer = [jnp.pad(x, ((0, 0), (0, 2))) for x in texts]
    np.testing.assert_allclose(run(variables, *longer)[0], want, atol=1e-5)
    changed, _ = run(variables, ids.at[:, 0].set(28), mask)
    assert np.abs(changed - want).max(axis=1).min() > 1e-2


def test_too_long(texts):
    with pytest.raises(ValueError, match="texts of 7 tokens; this tower takes 6"):
        make(position_table=6).init(jax.random.key(0), texts)


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_hugging_face(texts, activation):
    """The same numbers, and every tensor of a strict load."""
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=30,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=9,
        hidden_act=activation,
        pad_token_id=0,
        bos_token_id=28,
        eos_token_id=END,
    )
    theirs = CLIPTextModel(config).eval()
    for i, weight in enumerate(theirs.parameters()):
        torch.nn.init.normal_(weight, 0.1, 0.5, torch.Generator().manual_seed(i))
    state = {key: x.numpy() for key, x in theirs.state_dict().items()}
    with torch.inference_mode():
        want = theirs(torch.tensor(np.asarray(texts[0], np.int64)))

    tower = make(activation=activation)
    # Whichever of its two generations of names this version has.
    prefix = next(iter(state)).removesuffix("embeddings.token_embedding.weight")
    table = tables.rules(SMALL, prefix, "hf")
    shapes = sharding.flatten(
        {
            "params": {
                "text": jax.eval_shape(tower.init, jax.random.key(0), texts)["params"]
            }
        }
    )
    old = {f"{prefix}embeddings.position_ids": np.arange(9)[None]}
    extras = tables.extras(prefix, "hf")
    filled, extra = rules.apply(table, extras, state | old, shapes)
    assert list(extra) == list(old)
    back = rules.invert(table, filled) | tables.buffers(SMALL, prefix, "hf")
    assert sorted(back) == sorted(state)

    params = sharding.unflatten(filled)["params"]["text"]
    pooled, hidden = run({"params": params, "state": {}}, *texts, activation=activation)
    np.testing.assert_allclose(hidden, want.last_hidden_state, atol=1e-5)
    np.testing.assert_allclose(pooled, want.pooler_output, atol=1e-5)


def test_unknown_style():
    with pytest.raises(ValueError, match="unknown style 'openai'.*laion"):
        tables.rules(SMALL, "", "openai")

"""The table of models: JSON, overrides, sentences for mistakes, whole models."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio.mel import FRONTENDS
from clap_jax.models import dual, heads, temporal, zoo

SHRINK = {"audio.options.depth": 1, "text.options.depth": 1, "vocab_size": 64}


@pytest.fixture(scope="module")
def small():
    spec = zoo.get_spec("small_transformer", SHRINK)
    model = zoo.build(spec)
    return spec, model, model.init(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    mel = rng.normal(-40, 20, (3, 129, 64)).astype(np.float32)
    ids = rng.integers(5, 64, (3, 24)).astype(np.int32)
    return mel, ids, np.arange(24) < np.array([[24], [9], [3]])


@pytest.mark.parametrize("name", list(zoo.SPECS))
def test_json_both_ways(name):
    spec = zoo.get_spec(name)
    assert spec.name == name
    assert zoo.Spec.from_json(spec.to_json()) == spec


def test_a_saved_spec_is_complete():
    """Defaults are written out, so that a later default cannot change a model."""
    saved = json.loads(zoo.get_spec("laion_htsat_tiny_roberta").to_json())
    assert saved["audio"]["options"]["drop_path"] == 0.1
    assert saved["text"]["options"]["eps"] == 1e-5
    assert saved["frontend"]["bank"] == "slaney"


def test_overrides_dotted_and_nested():
    dotted = {"audio.options.depth": 1, "embed_dim": 32, "frontend.clip_seconds": 1.0}
    nested = {
        "audio": {"options": {"depth": 1}},
        "embed_dim": 32,
        "frontend": {"clip_seconds": 1.0},
    }
    spec = zoo.get_spec("small_transformer", dotted)
    assert spec == zoo.get_spec("small_transformer", nested)
    assert spec.audio.options["depth"] == 1 and spec.audio.options["width"] == 96
    assert spec.frontend.clip_frames == 51
    assert zoo.get_spec("small_transformer").audio.options["depth"] == 3


def test_a_new_kind_starts_from_its_own_defaults():
    over = {"audio.kind": "convnet", "audio.options.groups": 4, "frontend": "small_22k"}
    spec = zoo.get_spec("small_transformer", over)
    conv = zoo.get_spec("small_conv")
    assert spec.audio.options == conv.audio.options | {"groups": 4}
    assert spec.frontend == FRONTENDS["small_22k"]


@pytest.mark.parametrize(
    "name, overrides, sentence",
    [
        ("small_tranformer", {}, "unknown model .* .did you mean 'small_transformer'"),
        ("small_conv", {"embed_dims": 3}, "'embed_dims' .did you mean 'embed_dim'"),
        (
            "small_conv",
            {"audio.options.width": (8,)},
            "option of convnet 'width' .did you mean 'widths'",
        ),
        ("small_conv", {"audio.opts.widths": 8}, "did you mean 'audio.options'"),
        ("small_conv", {"frontend.fmax": 8}, "did you mean 'frontend.fmax_hz'"),
        ("small_conv", {"frontend": "small_16"}, "front end .* small_16k"),
        ("small_conv", {"audio.kind": "swin"}, "unknown tower 'swin'"),
        ("small_conv", {"audio.kind": "bert"}, "unknown audio tower 'bert'"),
        ("small_conv", {"text.kind": "htsat"}, "unknown text tower 'htsat'"),
        ("small_conv", {"head": "liner"}, "'liner' .did you mean 'linear'"),
        ("small_conv", {"score": "dot"}, "unknown score 'dot'"),
        ("small_conv", {"audio": 3}, "audio must be a table, got 3"),
        ("small_conv", {"vocab_size": 0}, "vocab_size must be a positive integer"),
        ("small_conv", {"logit_scale_init": 0.0}, "logit_scale_init must be positive"),
    ],
)
def test_mistakes_get_a_sentence(name, overrides, sentence):
    with pytest.raises(ValueError, match=sentence):
        zoo.get_spec(name, overrides)


def test_mistakes_in_json_are_collected():
    saved = json.loads(zoo.get_spec("small_conv").to_json())
    del saved["head"], saved["frontend"]["mels"]
    saved["colour"] = "red"
    with pytest.raises(ValueError) as caught:
        zoo.Spec.from_json(json.dumps(saved))
    for part in ("'colour'", "needs the key 'head'", "needs the key 'frontend.mels'"):
        assert part in str(caught.value)


def test_build_checks_its_settings():
    spec = zoo.get_spec("small_conv")
    with pytest.raises(ValueError, match="unknown dtype 'float16'"):
        zoo.build(spec, dtype="float16")
    with pytest.raises(ValueError, match="remat 'block' .did you mean 'blocks'"):
        zoo.build(spec, remat="block")


def test_unknown_head():
    with pytest.raises(ValueError, match="unknown head 'mlp'"):
        heads.tower("mlp", 4)


def one_of_each() -> list[str]:
    """Rows that together have every audio tower and every text tower of the table."""
    seen, names = set(), []
    for name, spec in zoo.SPECS.items():
        towers = {json.dumps(dataclasses.asdict(t)) for t in (spec.audio, spec.text)}
        if towers - seen:
            names.append(name)
        seen |= towers
    return names


@pytest.mark.parametrize("name", one_of_each())
def test_every_model_has_its_shapes(name):
    """Traced, not computed: large models cost nothing here."""
    spec = zoo.get_spec(name)
    model = zoo.build(spec, dtype="bfloat16", remat="blocks")
    variables = jax.eval_shape(model.init, jax.random.key(0))
    mel = jax.tree.map(
        lambda one: jax.ShapeDtypeStruct((2, *one.shape[1:]), one.dtype),
        zoo.example_sound(spec),
    )
    ids = jax.ShapeDtypeStruct((2, spec.text_length), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, spec.text_length), jnp.bool_)
    key = jax.random.key(0)

    def run(variables, mel, ids, mask):
        (za, _), state = model.encode_audio(variables, mel, train=True, key=key)
        (zt, _), state = model.encode_text(
            variables | {"state": state}, ids, mask, train=True, key=key
        )
        return za, zt, model.score(variables["params"], za, zt), state

    za, zt, score, state = jax.eval_shape(run, variables, mel, ids, mask)
    za, zt = temporal.whole(za), temporal.whole(zt)
    assert za.shape == zt.shape == (2, spec.embed_dim)
    assert za.dtype == zt.dtype == score.dtype == jnp.float32
    assert score.shape == (2, 2)
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])
    assert {leaf.dtype for leaf in jax.tree.leaves(variables["params"])} == {
        np.dtype(np.float32)
    }


def test_parameter_tree(small):
    _, _, variables = small
    assert set(variables) == {"params", "state"}
    assert set(variables["params"]) == {
        "audio",
        "text",
        "audio_projection",
        "text_projection",
        "logit_scale_a",
    }
    assert variables["state"] == {"audio": {}, "text": {}}
    assert variables["params"]["logit_scale_a"] == pytest.approx(math.log(14.0))


def test_embeddings_and_score(small, batch):
    _, model, variables = small
    mel, ids, mask = batch
    (za, audio), _ = jax.jit(model.encode_audio)(variables, mel)
    (zt, text), _ = jax.jit(model.encode_text)(variables, ids, mask)
    np.testing.assert_allclose(np.linalg.norm(za, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(zt, axis=1), 1, atol=1e-6)
    assert audio["embedding"].shape == text["embedding"].shape == (3, 96)
    lengths = np.linalg.norm(audio["projection"], axis=1, keepdims=True)
    np.testing.assert_allclose(audio["projection"] / lengths, za, atol=1e-6)
    score = model.score(variables["params"], za, zt[:2])
    np.testing.assert_allclose(
        score, 14.0 * np.asarray(za) @ np.asarray(zt[:2]).T, 1e-4
    )


def test_half_precision_mels_are_taken(small, batch):
    _, model, variables = small
    half = jax.eval_shape(model.encode_audio, variables, batch[0].astype(np.float16))
    assert half[0][0].dtype == jnp.float32


def test_training_needs_a_key(small, batch):
    _, model, variables = small
    with pytest.raises(ValueError, match="needs a key"):
        model.encode_audio(variables, batch[0], train=True)


def test_constrain_clips_the_scale(small):
    _, model, variables = small
    params = variables["params"]
    for given, want in ((-1.0, 0.0), (2.0, 2.0), (9.0, math.log(100.0))):
        fixed = model.constrain(params | {"logit_scale_a": jnp.float32(given)})
        assert fixed["logit_scale_a"] == pytest.approx(want)
        assert fixed["audio"] is params["audio"]


def test_zero_projection_has_a_finite_gradient():
    gradient = jax.grad(lambda x: dual.l2_normalise(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(gradient).all()


def test_state_of_the_other_tower_is_kept(batch):
    """encode_audio renews the audio part of the state and nothing else."""
    options = {"width": 8, "depths": (1, 1), "heads": (2, 2), "image": 128, "window": 4}
    over = {"audio": {"kind": "htsat", "options": options}, **SHRINK}
    del over["audio.options.depth"]
    model = zoo.build(zoo.get_spec("small_transformer", over))
    variables = model.init(jax.random.key(0))
    key = jax.random.key(1)

    @jax.jit
    def run(mel):
        return model.encode_audio(variables, mel, train=True, key=key)[1]

    state = run(batch[0])
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])
    before = variables["state"]["audio"]["bn0"]["mean"]
    assert np.abs(state["audio"]["bn0"]["mean"] - before).min() > 1


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        zoo.get_spec("small_conv").head = "linear"

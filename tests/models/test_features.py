"""Features in place of an audio tower."""

import jax
import numpy as np
import pytest

from clap_jax.models import spec as spec_lib
from clap_jax.models import zoo
from clap_jax.models.segments import Segments
from clap_jax.models.tower import Sound

SMALL = {
    "audio": {"kind": "features", "options": {"width": 6}},
    "text": {"kind": "bert", "options": {"width": 8, "depth": 1, "heads": 2}},
    "text.options.mlp": 16,
    "embed_dim": 8,
    "temporal.heads": 2,
    "vocab_size": 16,
    "text_length": 4,
}


@pytest.fixture(scope="module")
def model():
    spec = zoo.get_spec("collap_roberta", SMALL)
    dual = zoo.build(spec, dtype="bfloat16")
    return spec, dual, dual.init(jax.random.key(0))


def clip(seed=0, segments=3):
    features = np.random.default_rng(seed).standard_normal((2, segments, 1, 6))
    begin = np.arange(segments) * 10.0
    seconds = np.broadcast_to(np.stack([begin, begin + 10], 1), (2, segments, 2))
    heard = np.ones((2, segments), bool)
    return Segments(Sound(features.astype(np.float32)), seconds, heard)


def test_spec_says_how_wide_they_are(model):
    spec, _, _ = model
    assert spec_lib.features_width(spec) == 6
    assert spec_lib.features_width(zoo.get_spec("collap_roberta")) == 0
    assert zoo.Spec.from_json(spec.to_json()) == spec
    # The window is still that of the tower that made them.
    assert spec.frontend == zoo.get_spec("collap_roberta").frontend
    sound, _, _ = zoo.examples(spec)
    assert sound.mel.shape == (1, 1, 6) and sound.frames is sound.longer is None


def test_embedding_is_their_layer_norm(model):
    _, dual, variables = model
    norm = variables["params"]["audio"]["norm"]
    assert {name: leaf.shape for name, leaf in norm.items()} == {
        "scale": (6,),
        "bias": (6,),
    }
    heard = clip()
    (_, aux), _ = dual.encode_audio(variables, heard)
    x = heard.sound.mel[:, :, 0].astype(np.float64)
    centred = x - x.mean(-1, keepdims=True)
    wanted = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    assert aux["embedding"].dtype == np.float32
    np.testing.assert_allclose(aux["embedding"], wanted, atol=1e-5)


def test_another_width_is_refused(model):
    spec, dual, variables = model
    with pytest.raises(ValueError, match=r"shape \[6, 1, 5\]; .* \[B, N, 6\]"):
        wrong = clip()
        sound = Sound(wrong.sound.mel[..., :5])
        dual.encode_audio(variables, wrong._replace(sound=sound))
    with pytest.raises(ValueError, match="features.*hears no mel"):
        zoo.build(spec, patch_drop=0.5)

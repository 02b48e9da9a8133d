"""Audio towers side by side: each as it is alone, joined as precomputed features are."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio.mel import FRONTENDS
from clap_jax.evals import hear
from clap_jax.models import features, joint, segments, zoo
from clap_jax.models import spec as spec_lib
from clap_jax.models.captioner import SPECS as CAPTIONERS
from clap_jax.models.tower import Sound
from tests.models.weights import fill

PARTS = {
    "whisper": {"width": 8, "depth": 1, "heads": 2, "mlp": 16},
    "beats": {
        **{"patch_width": 8, "width": 16, "depth": 1, "heads": 2, "mlp": 16},
        **{"taps": 4, "groups": 2},
    },
}
FRONTEND = dataclasses.replace(
    FRONTENDS["beats"], clip_seconds=1.0, beside=(FRONTENDS["whisper"],)
)
SMALL = {
    "audio.options.parts": PARTS,
    "frontend.clip_seconds": 1.0,
    "text.options": {"width": 8, "heads": 2, "depth": 1, "mlp": 8},
    "embed_dim": 8,
    "vocab_size": 20,
    "text_length": 12,
    "temporal.heads": 2,
}


@pytest.fixture(scope="module")
def heard():
    """Two waves as both hear them."""
    waves = 3000 * np.random.default_rng(0).standard_normal((2, 16_000))
    return hear.sound({"wave": jnp.asarray(waves.astype(np.int16))}, FRONTEND)


@pytest.fixture(scope="module")
def both(heard):
    options = zoo.TowerSpec("joint", {"parts": PARTS}).options
    tower = joint.tower(options)
    return options, tower, fill(tower, heard)


@pytest.fixture(scope="module")
def found(both, heard):
    _, tower, variables = both
    return jax.jit(tower.apply)(variables, heard)


def test_front_ends_hear_the_same_wave(heard):
    assert [mel.shape for mel in heard.mel] == [(2, 98, 128), (2, 101, 80)]
    wave = 0.1 * np.random.default_rng(1).standard_normal(16_000).astype(np.float32)
    for one, kind in zip(frontend_lib.log_mels(wave, FRONTEND), ("beats", "whisper")):
        np.testing.assert_array_equal(
            one, frontend_lib.log_mel(wave, FRONTENDS[kind]), err_msg=kind
        )
    longer = dataclasses.replace(FRONTEND, clip_seconds=3.0)
    assert longer.beside[0].clip_seconds == 3.0
    words = hear.front_end(FRONTEND)
    assert "128 kaldi mel bands" in words and "; beside it 80 slaney" in words


def test_each_part_is_what_it_is_alone(both, heard, found):
    options, _, variables = both
    (embedding, aux), _ = found
    assert list(options["parts"]) == list(aux["parts"]) == ["beats", "whisper"]
    for (kind, own), mel in zip(options["parts"].items(), heard.mel):
        alone = zoo.AUDIO_TOWERS[kind].tower(own)
        (wanted, _), _ = jax.jit(alone.apply)(
            {"params": variables["params"][kind], "state": {}}, Sound(mel)
        )
        np.testing.assert_allclose(aux["parts"][kind], wanted, atol=1e-6)
    assert embedding.shape == (2, 24) and embedding.dtype == np.float32


def test_joined_as_precomputed_features_are(both, found):
    _, _, variables = both
    (embedding, aux), _ = found
    made = np.concatenate(list(aux["parts"].values()), -1)
    norm = {"norm": variables["params"]["norm"]}
    (wanted, _), _ = features.tower({"width": 24}).apply(
        {"params": norm, "state": {}}, Sound(made[:, None])
    )
    np.testing.assert_allclose(embedding, wanted, atol=1e-6)


def test_in_training_parts_draw_for_themselves(both, heard):
    """BEATs alone has dropout here; the other part is what it is without."""
    _, tower, variables = both
    run = jax.jit(lambda key: tower.apply(variables, heard, train=True, key=key)[0][1])
    first, again, other = (run(jax.random.key(n))["parts"] for n in (0, 0, 1))
    np.testing.assert_array_equal(first["beats"], again["beats"])
    assert np.abs(first["beats"] - other["beats"]).max() > 1e-3
    np.testing.assert_array_equal(first["whisper"], other["whisper"])
    with pytest.raises(ValueError, match="needs a key"):
        tower.apply(variables, heard, train=True)


def test_a_part_that_is_frozen_has_no_dropout(both, heard, found):
    spec, _, variables = both
    tower = joint.tower(spec, frozen=("beats",))
    (_, aux), _ = jax.jit(functools.partial(tower.apply, train=True))(
        variables, heard, key=jax.random.key(0)
    )
    for kind, wanted in found[0][1]["parts"].items():
        np.testing.assert_allclose(aux["parts"][kind], wanted, atol=1e-6)


def test_running_statistics_are_each_parts_own():
    """Through segments in chunks; a part without any has no place among them."""
    parts = {"pann": {"widths": (4, 8)}, "whisper": PARTS["whisper"]}
    tower = joint.tower({"parts": parts})
    rng = np.random.default_rng(0)
    mels = tuple(
        jnp.asarray(rng.normal(-40, 20, (2, 4, *shape)), jnp.float32)
        for shape in ((64, 64), (32, 80))
    )
    variables = fill(tower, Sound(tuple(mel[:, 0] for mel in mels)))
    assert list(variables["state"]) == ["pann"]
    run = jax.jit(
        lambda key: segments.over(tower, 2)(variables, Sound(mels), train=True, key=key)
    )
    embedding, state = run(jax.random.key(0))
    assert embedding.shape[:2] == (2, 4)
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])
    before = variables["state"]["pann"]["bn0"]["mean"]
    assert np.abs(state["pann"]["bn0"]["mean"] - before).min() > 1


def test_another_number_of_mels_is_refused(both, heard):
    _, tower, variables = both
    for wrong, number in ((heard.mel[0], 1), (heard.mel + heard.mel[:1], 3)):
        message = rf"{number} log-mel\(s\) of 2 clips; .* beats, whisper takes 2"
        with pytest.raises(ValueError, match=message):
            tower.apply(variables, Sound(wrong))


def test_a_model_of_both():
    """JSON and options; compute goes to every part, and what it cannot do is said."""
    spec = zoo.get_spec("collap_joint_roberta", SMALL)
    assert zoo.Spec.from_json(spec.to_json()) == spec
    saved = json.loads(spec.to_json())
    assert saved["audio"]["options"]["parts"]["whisper"]["position_table"] == 1500
    assert saved["frontend"]["beside"][0]["mels"] == 80
    sound = zoo.example_sound(spec)
    assert [mel.shape for mel in sound.mel] == [(1, 98, 128), (1, 101, 80)]
    half = zoo.audio_tower(spec, dtype="bfloat16", remat="blocks")
    variables = jax.eval_shape(half.init, jax.random.key(0), sound)
    jaxpr = str(jax.make_jaxpr(half.apply)(variables, sound))
    assert "bf16[1,50,8]" in jaxpr and "bf16[1,48,16]" in jaxpr
    with pytest.raises(ValueError, match="beats.*convolution runs over all"):
        zoo.build(spec, patch_drop=0.5)


@pytest.mark.parametrize("long", [False, True])
def test_whole_models_hear_both(heard, long):
    """One window, with segments and without; nothing is computed."""
    changes = {name: x for name, x in SMALL.items() if name != "temporal.heads"}
    changes["temporal"] = {"heads": 2} if long else None
    dual = zoo.build(zoo.get_spec("collap_joint_roberta", changes))
    variables = jax.eval_shape(dual.init, jax.random.key(0))
    assert set(variables["params"]["audio"]) == {"beats", "whisper", "norm"}
    (za, _), state = jax.eval_shape(dual.encode_audio, variables, heard)
    assert (za.whole if long else za).shape == (2, 8)
    assert jax.tree.structure(state) == jax.tree.structure(variables["state"])


def test_the_published_sizes():
    """BEATs and Whisper large-v2, 768 and 1,280 wide."""
    spec = zoo.get_spec("collap_joint_roberta")
    tower = zoo.audio_tower(spec)
    made = jax.eval_shape(tower.init, jax.random.key(0), zoo.example_sound(spec))
    params = made["params"]
    assert params["norm"]["scale"].shape == (768 + 1280,)
    count = {
        kind: sum(leaf.size for leaf in jax.tree.leaves(params[kind]))
        for kind in ("beats", "whisper")
    }
    assert 90e6 < count["beats"] < 91e6 and 635e6 < count["whisper"] < 640e6


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"audio": {"options": {"parts": {"whispr": {}}}}}, "part .* 'whisper'"),
        ({"audio.options.parts.features": {}}, "unknown part of a joint tower"),
        ({"audio.options.parts.beats": 3}, "part beats must be a table of options"),
        ({"audio.options.parts.beats.depht": 3}, "option of beats 'depht' .*'depth'"),
        ({"audio.options.parts.whisper.depth": "1"}, "of whisper must be int, got '1'"),
        ({"audio.options.parts.convnet": {}}, "2 front end.* expected 3: beats, convn"),
        ({"frontend.beside": ()}, "1 front end.* expected 2: beats, whisper"),
        ({"audio.kind": "beats"}, "2 front end.* expected 1: beats"),
        ({"audio.kind": "joint", "audio.options": {"parts": 1}}, "must be dict, got 1"),
        ({"frontend.beside": ("wisper",)}, "unknown front end 'wisper' .* 'whisper'"),
        ({"frontend.beside": "whisper"}, "'whisper', expected several front ends"),
        ({"frontend.beside": (3,)}, r"beside\[0\] is 3, expected a table"),
        ({"frontend.beside": ({"mel": 3},)}, r"beside\[0\] 'mel' .*'mels'"),
        ({"frontend.beside": ("small_22k",)}, r"\[0\] has rate_hz 22050, expected 160"),
        ({"frontend.whole_clip": True}, "take windows, without views"),
    ],
)
def test_mistakes_get_a_sentence(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        zoo.get_spec("collap_joint_roberta", changes)


def test_two_parts_at_least():
    for parts, found in (({}, "none"), ({"beats": {}}, "beats")):
        with pytest.raises(ValueError, match=f"found {found}, expected two or more"):
            zoo.TowerSpec("joint", {"parts": parts})


def test_other_models_count_front_ends_too():
    spec = CAPTIONERS["small_captioner"]
    beside = dataclasses.replace(FRONTENDS["small_22k"])
    frontend = dataclasses.replace(spec.frontend, beside=(beside,))
    with pytest.raises(ValueError, match="2 front end.* expected 1: convnet"):
        dataclasses.replace(spec, frontend=frontend)


def test_parts_of_a_spec():
    assert list(spec_lib.parts(zoo.get_spec("collap_joint_gpt2"))) == [
        "beats",
        "whisper",
    ]
    assert spec_lib.parts(zoo.get_spec("collap_gpt2")) == {}

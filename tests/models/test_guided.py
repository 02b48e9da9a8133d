"""Tag-guided captioners: small ones that hear, and write."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio.mel import FRONTENDS
from clap_jax.models import captioner, decode, recurrent
from clap_jax.models.captioner import CaptionerSpec
from clap_jax.models.spec import TowerSpec
from clap_jax.models.tower import Sound

TAGS = ("dog", "rain", "speech")
SMALL = CaptionerSpec(
    name="small",
    captioner="guided",
    frontend=FRONTENDS["blat"],
    audio=TowerSpec(
        "pann",
        {
            "widths": (4, 8, 8),
            "spec_augment": "none",
            "length_mask": "every_layer",
        },
    ),
    head="",
    embed_dim=12,
    mapper={"width": 6, "depth": 2},
    decoder=TowerSpec(
        "caption_decoder",
        {"width": 8, "heads": 2, "mlp": 16, "guide": "event", "position_table": 12},
    ),
    tokenizer="",
    vocab_size=30,
    text_length=10,
    start_id=4,
).with_tags(TAGS)
FRAMES = [64, 40]


def test_json_both_ways():
    for spec in (
        SMALL,
        *map(captioner.get_spec, ("blat_captioner", "small_captioner")),
    ):
        assert CaptionerSpec.from_json(spec.to_json()) == spec
    assert SMALL.tag_names == TAGS and SMALL.decoder.options["tags"] == 3
    named = captioner.get_spec(
        "small_captioner", {"tag_names": ["a", "b"], "decoder.options.tags": 2}
    )
    assert named.tag_names == ("a", "b") and named.is_guided


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"decoder": TowerSpec("gpt2")}, "unknown decoder of a captioner 'gpt2'"),
        ({"head": "linear"}, "unknown head 'linear'"),
        ({"embed_dim": 6}, "embed_dim is 6, expected 12: two directions"),
        ({"start_id": 30}, "start_id is 30, expected one of 30 tokens"),
        ({"tag_names": ("dog",)}, "1 tag_names; the decoder takes 3 tags"),
        ({"tag_names": ("dog", "dog", "rain")}, "tag_names has a name twice"),
        ({"mapper": {"length": 3}}, "unknown option of a mapper 'length'"),
    ],
)
def test_bad_specs(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        dataclasses.replace(SMALL, **changes)


def test_rows_of_the_table():
    blat = captioner.SPECS["blat_captioner"]
    model = captioner.build(blat)
    shapes = jax.eval_shape(model.init, jax.random.key(0))["params"]
    sizes = {
        name: sum(leaf.size for leaf in jax.tree.leaves(tree))
        for name, tree in shapes.items()
    }
    # The published sizes: Cnn14 without its classifier; GRU 2048 -> 3 x 2 x 256.
    assert sizes["audio"] == 79_673_792
    assert sizes["mapper"] == 2 * 3 * (
        256 * (2048 + 2 * 512) + 3 * 256 * 256 + 3 * 2 * 256
    )
    assert shapes["decoder"]["events"].shape == (527, 256)
    small = captioner.build(captioner.SPECS["small_captioner"])
    shapes = jax.eval_shape(small.init, jax.random.key(0))["params"]
    total = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert 600_000 < total < 1_050_000


@pytest.fixture(scope="module")
def small():
    """A captioner, its variables (large enough to differ) and two clips with tags."""
    model = captioner.build(SMALL)
    variables = model.init(jax.random.key(0))
    variables["params"] = jax.tree.map(lambda x: 3 * x, variables["params"])
    mel = np.random.default_rng(0).normal(-30, 14, (2, 64, 64)).astype(np.float32)
    mel[1, FRAMES[1] :] = -100.0
    sound = Sound(mel, frames=np.array(FRAMES, np.int32))
    tags = np.array([[1, 0, 1], [0, 1, 0]], np.float32)
    (heard, aux), _ = jax.jit(model.encode_audio)(variables, sound, tags=tags)
    return model, variables, heard, (sound, tags), aux


def test_what_is_heard(small):
    model, variables, heard, (sound, tags), aux = small
    assert set(variables["params"]) == {"audio", "mapper", "decoder"}
    assert set(variables["state"]) == {"audio", "decoder"}
    # Two poolings leave a frame of four.
    assert heard.memory.shape == (2, 16, 12)
    np.testing.assert_array_equal(heard.frames, [16, 10])
    np.testing.assert_array_equal(heard.tags, tags)
    assert not np.asarray(heard.memory)[1, 10:].any()
    assert aux["embedding"].shape == (2, 8)
    vectors = jax.jit(model.prefix)(variables, sound)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)


def test_a_clip_is_the_same_however_far_it_is_padded(small):
    model, variables, heard, (sound, tags), _ = small
    encode = jax.jit(model.encode_audio)
    alone = Sound(sound.mel[1:, :40], frames=sound.frames[1:])
    (short, _), _ = encode(variables, alone, tags=tags[1:])
    np.testing.assert_allclose(short.memory[0], heard.memory[1, :10], atol=1e-5)
    noisy = sound.mel.copy()
    noisy[1, 40:] = 20.0
    (other, _), _ = encode(variables, sound._replace(mel=noisy), tags=tags)
    np.testing.assert_allclose(other.memory, heard.memory, atol=1e-6)
    # What the decoder writes does not depend on the memory behind the clip either.
    loud = heard._replace(memory=heard.memory.at[1, 10:].set(9.0))
    options = decode.Options("beam", 8, 2, beams=3, count=2)
    caption = jax.jit(model.caption, static_argnums=2)
    found, want = (caption(variables, x, options) for x in (loud, heard))
    np.testing.assert_array_equal(found.ids, want.ids)
    np.testing.assert_array_equal(found.scores, want.scores)


def test_cached_and_uncached_agree(small):
    """Greedy captions from the cache are the likeliest tokens of whole captions."""
    model, variables, heard, _, _ = small
    ids = jax.jit(model.greedy, static_argnums=2)(variables, heard, 9)
    logits = jax.jit(model.token_logits)(variables, heard, ids)
    np.testing.assert_array_equal(logits.argmax(-1), ids)
    prompt = jnp.array([7, 8])
    behind = jax.jit(model.greedy, static_argnums=2)(variables, heard, 7, prompt)
    row = jnp.concatenate([jnp.tile(prompt, (2, 1)), behind], axis=1)
    logits = jax.jit(model.token_logits)(variables, heard, row)
    np.testing.assert_array_equal(logits.argmax(-1)[:, 2:], behind)
    assert (behind != ids[:, :7]).any()


def test_scores_of_captions_are_those_of_their_tokens(small):
    model, variables, heard, _, _ = small
    options = decode.Options("sample", 8, 2, pad_id=1, count=3, top_p=0.9)
    found = jax.jit(model.caption, static_argnums=2)(
        variables, heard, options, jax.random.key(0)
    )
    for n in range(3):
        ids = found.ids[:, n]
        logits = jax.jit(model.token_logits)(variables, heard, ids)
        each = jnp.take_along_axis(jax.nn.log_softmax(logits), ids[..., None], axis=2)[
            ..., 0
        ]
        own = jnp.arange(8) < found.lengths[:, n, None]
        want = jnp.where(own, each, 0).sum(1) / found.lengths[:, n]
        np.testing.assert_allclose(found.scores[:, n], want, atol=1e-5)


def test_sound_and_tags_decide(small):
    model, variables, heard, _, _ = small
    logits = jax.jit(model.token_logits)
    ids = jnp.array([[3, 5, 6, 1], [6, 7, 8, 1]])
    want = np.asarray(logits(variables, heard, ids))
    for other in (
        heard._replace(tags=heard.tags.at[0, 1].set(1.0)),
        heard._replace(memory=heard.memory.at[0, 3].set(1.0)),
    ):
        got = np.asarray(logits(variables, other, ids))
        assert np.abs(got - want)[0].max(axis=1).min() > 1e-4
        np.testing.assert_allclose(got[1], want[1], atol=1e-6)
    # The token itself, and what follows it, say nothing of its logits.
    got = np.asarray(logits(variables, heard, ids.at[0, 2].set(9)))
    np.testing.assert_array_equal(got[0, :3], want[0, :3])
    assert np.abs(got - want)[0, 3].max() > 1e-4


def test_training_has_chance_and_a_frozen_tower_none(small):
    model, variables, heard, (sound, tags), _ = small
    encode = jax.jit(model.encode_audio, static_argnames=("train", "frozen"))
    (first, _), state = encode(
        variables, sound, tags=tags, train=True, key=jax.random.key(0)
    )
    before, after = (
        jax.tree.leaves(tree["audio"]) for tree in (variables["state"], state)
    )
    assert any((a != b).any() for a, b in zip(before, after))
    jax.tree.map(
        np.testing.assert_array_equal, state["decoder"], variables["state"]["decoder"]
    )
    (frozen, aux), state = encode(
        variables, sound, tags=tags, train=True, frozen=True, key=jax.random.key(0)
    )
    jax.tree.map(np.testing.assert_array_equal, state, variables["state"])
    (_, want), _ = encode(variables, sound, tags=tags)
    np.testing.assert_array_equal(aux["time"], want["time"])
    # Dropout between the layers of the GRU.
    assert np.abs(frozen.memory - heard.memory).max() > 1e-3
    with pytest.raises(ValueError, match="needs a key"):
        jax.eval_shape(
            functools.partial(model.encode_audio, tags=tags, train=True),
            variables,
            sound,
        )


def test_without_tags():
    """The guide "none", and a tower without a mask: all steps count."""
    spec = dataclasses.replace(
        SMALL,
        frontend=FRONTENDS["small_16k"],
        audio=TowerSpec("convnet", {"widths": (8, 8)}),
        decoder=TowerSpec("caption_decoder", {"width": 8, "heads": 2, "mlp": 16}),
        tag_names=(),
    )
    model = captioner.build(spec)
    variables = model.init(jax.random.key(0))
    mel = np.zeros((2, 128, 64), np.float32)
    (heard, aux), _ = jax.jit(model.encode_audio)(variables, mel)
    assert heard.tags is None
    assert heard.memory.shape == (2, *aux["fine_grained"].shape[1:2], 12)
    np.testing.assert_array_equal(heard.frames, heard.memory.shape[1])
    ids = jax.jit(model.greedy, static_argnums=2)(variables, heard, 3)
    assert ids.shape == (2, 3) and ids.dtype == jnp.int32
    with pytest.raises(ValueError, match="small has tags given, but none guide it"):
        model.encode_audio(variables, mel, tags=np.zeros((2, 3)))


@pytest.mark.parametrize("tags, found", [(None, "none"), (np.zeros((2, 5)), "5")])
def test_wrong_tags(small, tags, found):
    model, variables, _, (sound, _), _ = small
    with pytest.raises(ValueError, match=f"small takes 3 tags a clip, got {found}"):
        jax.eval_shape(
            functools.partial(model.encode_audio, tags=tags), variables, sound
        )


def test_too_long_captions(small):
    model, variables, heard, _, _ = small
    with pytest.raises(
        ValueError, match="captions of 13 tokens; this decoder takes 12"
    ):
        model.greedy(variables, heard, 13)


def test_over_time():
    aux = {"time": jnp.ones((2, 5, 3)), "fine_grained": jnp.zeros((2, 4, 3))}
    found = recurrent.over_time(aux)
    assert found.x.shape == (2, 5, 3) and found.frames.tolist() == [5, 5]
    found = recurrent.over_time(aux | {"steps": jnp.array([2, 5])})
    assert found.frames.tolist() == [2, 5]
    del aux["time"]
    assert recurrent.over_time(aux).x.shape == (2, 4, 3)

"""Whole models with PANN: conversion, the log-mel, one pass, exact gradients."""

from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from clap_jax import sharding
from clap_jax.audio import crop
from clap_jax.convert import rules, trees
from clap_jax.losses import contrastive
from clap_jax.models import heads, layers, pann, zoo

# The reference's float32 is rounding in cells below.
LOUD_DB = -60


def check_round_trip(check, table, shapes):
    """The reference's weights in the tree of `shapes`, and the extras.

    All of them come back unchanged.
    """
    weights = check.reference.weights()
    tree, extra = trees.fill(*table, weights, shapes)
    back = rules.invert(table[0], sharding.flatten(tree)) | extra
    assert sorted(back) == sorted(weights)
    for key, array in weights.items():
        np.testing.assert_array_equal(back[key], array, err_msg=key)
    check.note("tensors", len(weights))
    return tree, extra


def check_buffers(check, table, buffers):
    """With these a strict load has all it needs; what is computed is equal in bits."""
    keys = {entry["key"]: entry for entry in check.reference.spec["tensors"]}
    assert {key for key in keys if not any(r.forward(key) for r in table[0])} == {
        *buffers
    }
    weights = check.reference.weights()
    for key, array in buffers.items():
        assert list(array.shape) == keys[key]["shape"], key
        assert array.dtype == keys[key]["dtype"], key
        if key in weights and "pooler" not in key:
            error = np.abs(array - weights[key]).max()
            # torchaudio computes in float32, librosa and we in float64.
            assert error <= (3e-8 if "melspec" in key else 0), key


def prepared_waves(reference, front):
    """The clips: short ones filled up, long ones cropped where the reference did."""
    waves = []
    for name, wave in reference.inputs().items():
        start = reference.spec.get("crop_start", {}).get(name, 0)
        wave = wave[start : start + front.clip_samples]
        waves.append(crop.fill(wave, front.clip_samples, front.fill))
    return np.stack(waves)


def texts(reference):
    """Token ids and their mask. Our BERT has no types: every token is of type 0."""
    assert not reference.io["in/token_type_ids"].any()
    ids = reference.io["in/input_ids"].astype(np.int32)
    return ids, reference.io["in/attention_mask"].astype(bool)


def check_log_mel(check, mel):
    """README of the oracles: 3e-6 dB in the median, 5e-4 dB where it is not silent.

    Single cells of the reference's float32 are up to 3e-3 dB from its float64.
    """
    reference = check.reference
    want = reference.io["audio/logmel"]
    error, loud = np.abs(reference.take(mel, "audio/logmel") - want), want > LOUD_DB
    assert np.median(error) <= 2e-5
    assert np.sqrt(np.mean(error[loud] ** 2)) <= 5e-4
    check.note("mel", error[loud].max() / np.abs(want).max())
    if "audio/logmel_f64" in reference.io:
        want = reference.io["audio/logmel_f64"]
        error = np.abs(reference.take(mel, "audio/logmel_f64") - want)
        assert error[want > LOUD_DB].max() <= 1e-3


def check_map(check, key, x, tolerance=5e-5):
    """Root mean square of the error over that of the reference's intermediate.

    The largest error would be that of the nearest quiet cell of the log-mel.
    """
    want = check.reference.io[key].astype(np.float64)
    got = check.reference.take(x, key)
    assert got.shape == want.shape
    error = np.sqrt(np.mean((got - want) ** 2) / np.mean(want**2))
    assert check.note("tower", error) <= tolerance, (key, error)


def check_stages(check, audio, blocks):
    """From bn0 to the last block, which the references have as [B, C, N, F]."""
    check_map(check, "audio/bn0", audio["bn0"])
    for i in range(1, blocks + 1):
        x = np.asarray(audio[f"conv_block{i}"]).transpose(0, 3, 1, 2)
        check_map(check, f"audio/conv_block{i}", x)


def check_embedding(check, side, outputs, names, tolerance):
    """Embedding, projection and so on of a side, also in float64 where it is stored."""
    for name in names:
        for key in (f"{side}/{name}", f"{side}/{name}_f64"):
            if not key.endswith("_f64") or key in check.reference.io:
                check.check("embedding", key, outputs[name], tolerance)


def encode(spec, variables, sound, ids, mask):
    """Embeddings of a batch and their scaled scores."""
    dual = zoo.build(spec)

    @jax.jit
    def forward(variables):
        (za, audio), _ = dual.encode_audio(variables, sound)
        (zt, text), _ = dual.encode_text(variables, ids, mask)
        return za, audio, zt, text, dual.score(variables["params"], za, zt)

    za, audio, zt, text, logits = jax.device_get(forward(variables))
    return SimpleNamespace(
        audio=audio | {"embed": za, "proj": audio["projection"]},
        text=text
        | {"embed": zt, "proj": text["projection"], "pooled": text["embedding"]},
        logits=logits,
    )


def exact_log_mel(extra, waves, front):
    """The log-mel in float64, by the transform and bank that came with the weights."""

    def find(ending):
        return next(x for key, x in extra.items() if key.endswith(ending)).astype(float)

    half, hop = front.n_fft // 2, front.hop_samples
    padded = np.pad(waves.astype(float), ((0, 0), (half, half)), mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, front.n_fft, -1)
    frames = frames[:, ::hop].reshape(-1, front.n_fft)
    if any(key.endswith("conv_real.weight") for key in extra):
        real, imag = (find(f"conv_{name}.weight")[:, 0].T for name in ("real", "imag"))
        power = (frames @ real) ** 2 + (frames @ imag) ** 2
        bank = find("melW")
    else:
        power = np.abs(np.fft.rfft(frames * find("spectrogram.window"))) ** 2
        bank = find("mel_scale.fb")
    mel = 10 * np.log10(np.maximum(power @ bank, 1e-10))
    return mel.reshape(len(waves), -1, front.mels)


class _ExactNorm(nn.Module):
    """`layers.BatchNorm` outside training, in the precision of what it gets."""

    @nn.compact
    def __call__(self, x, train):
        assert not train
        shape = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape).value
        var = self.variable("batch_stats", "var", jnp.ones, shape).value
        return (x - mean) * (scale * jax.lax.rsqrt(var + 1e-5)) + bias


@jax.custom_vjp
def _convolve(x, kernel):
    """A convolution of [B, N, F, C] in float64, as matrix products.

    XLA's own of this precision takes minutes on a CPU. Backwards it is in float32:
    only what is decided on the way forwards needs more, see `loss_and_gradients`.
    """
    (_, frames, bins, _), (tall, wide, *_) = x.shape, kernel.shape
    x = jnp.pad(x, ((0, 0), (tall // 2,) * 2, (wide // 2,) * 2, (0, 0)))
    moved = [
        x[:, i : i + frames, j : j + bins] for i in range(tall) for j in range(wide)
    ]
    kernels = kernel.reshape(-1, *kernel.shape[2:])
    if bins > 16:
        # Side by side they would take gigabytes.
        return sum(part @ kernels[i] for i, part in enumerate(moved))
    return jnp.concatenate(moved, -1) @ jnp.concatenate(kernels, 0)


def _convolve_float32(x, kernel):
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=layout
    )


def _forwards(x, kernel):
    return _convolve(x, kernel), (x.astype(np.float32), kernel.astype(np.float32))


def _backwards(kept, gradient):
    _, backwards = jax.vjp(_convolve_float32, *kept)
    return tuple(x.astype(np.float64) for x in backwards(gradient.astype(np.float32)))


_convolve.defvjp(_forwards, _backwards)


class _ExactConv(nn.Module):
    """`nn.Conv` in float64."""

    features: int
    size: tuple
    use_bias: bool
    dtype: Any
    kernel_init: Any

    @nn.compact
    def __call__(self, x):
        assert not self.use_bias
        shape = (*self.size, x.shape[-1], self.features)
        return _convolve(x, self.param("kernel", self.kernel_init, shape))


def loss_and_gradients(spec, variables, sound, ids, mask):
    """Loss, gradients by our paths and the audio embedding, with PANN in float64.

    In float32 the gradients are not to be had: which of two steps is the maximum over
    time and which ReLU is open depends on rounding. The reference's own float32
    gradients of laion_pann14_bert are up to 8e-3 from its float64.
    """
    text = zoo.build(spec)
    audio = pann.tower(spec.audio.options, dtype="float64")
    head = heads.tower(spec.head, spec.embed_dim, dtype="float64")
    exact = {side: dict(tree) for side, tree in variables.items()}
    for side, name in (
        ("params", "audio"),
        ("params", "audio_projection"),
        ("state", "audio"),
    ):
        exact[side][name] = jax.tree.map(np.float64, variables[side][name])

    def loss(params, state, sound):
        tower = {"params": params["audio"], "state": state["audio"]}
        (embedding, _), _ = audio.apply(tower, sound)
        projection = {"params": params["audio_projection"], "state": {}}
        (projected, _), _ = head.apply(projection, embedding)
        za = projected / jnp.linalg.norm(projected, axis=-1, keepdims=True)
        both = {"params": params, "state": state}
        (zt, _), _ = text.encode_text(both, ids, mask)
        logits = jnp.exp(params["logit_scale_a"]) * za @ zt.T
        total, count = contrastive.softmax_pair_loss(logits)
        return total / count, embedding

    with jax.enable_x64(True), pytest.MonkeyPatch.context() as patch:
        patch.setattr(layers, "BatchNorm", _ExactNorm)
        patch.setattr(nn, "Conv", _ExactConv)
        both = jax.jit(jax.value_and_grad(loss, has_aux=True))
        (value, embedding), gradients = jax.device_get(
            both(exact["params"], exact["state"], sound)
        )
    return SimpleNamespace(loss=value, embedding=embedding, gradients=gradients)


def check_trained(check, table, state, found):
    """What `loss_and_gradients` found, with the gradients by source key."""
    check.check_close("loss", found.loss, check.reference.spec["grad"]["loss"], 1e-6)
    if "audio/embedding_f64" in check.reference.io:
        check.check("embedding", "audio/embedding_f64", found.embedding, 1e-6)
    tree = {"params": found.gradients, "state": state}
    gradients = rules.invert(table[0], sharding.flatten(tree))
    # A key bias shifts all scores of a query alike: its gradient is rounding.
    check.check_gradients(gradients, absolute=["attention.self.key.bias"])

"""Hugging Face's ClapModel (transformers 5.23, fused and not) on random weights."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from clap_jax import sharding
from clap_jax.audio import crop, views
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio import mel as mel_lib
from clap_jax.convert import hf_clap, laion_clap, rules, trees
from clap_jax.models import htsat, zoo
from clap_jax.models.tower import Sound
from tests.parity import laion

ORACLES = ("hf_clap_unfused", "hf_clap_fused")
# Weights of another oracle after the published renaming, on that oracle's inputs.
FROM_LAION = {
    "laion_tiny_unfused": "laion_htsat_tiny_roberta",
    "laion_tiny_fused_aff2d": "laion_htsat_tiny_fusion_roberta",
}


def exact_log_mel(wave, frontend):
    """Our log-mel in float64."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(frontend.n_fft) / frontend.n_fft)
    frames = frontend_lib.frame(wave, frontend) * hann
    power = np.abs(np.fft.rfft(frames)) ** 2 @ mel_lib.mel_bank(frontend)
    return (10 * np.log10(np.maximum(power, 1e-10))).astype(np.float32)


def features(waves, frontend, starts, log_mel=frontend_lib.log_mel):
    """Log-mels [B, N, F] or [B, 4, N, F] of clips, and which are longer than a window.

    starts: crop starts that the reference drew, in its order; three frames for a fused
    clip that is longer, one sample for any other.
    """
    starts, mels, longer = iter(starts), [], []
    for wave in waves:
        samples = frontend.clip_samples
        longer.append(len(wave) > samples)
        if frontend.views == 1:
            start = next(starts) if longer[-1] else 0
            wave = wave[start : start + samples]
        mel = log_mel(crop.fill(wave, samples, frontend.fill), frontend)
        if frontend.views > 1:
            drawn = [next(starts) for _ in range(3)] if longer[-1] else None
            mel, fused = views.views(mel, frontend.clip_frames, drawn)
            assert fused == longer[-1]
        mels.append(mel)
    return np.stack(mels), np.array(longer)


def clips(oracle):
    return [x for name, x in oracle.inputs().items() if len(name) == 1]


def as_views(mel):
    """Log-mels as Hugging Face shapes them, [B, 1 | 4, N, F]."""
    return mel if mel.ndim == 4 else mel[:, None]


def one_way_loss(logits_per_audio, logits_per_text):
    """Hugging Face's loss: both terms ask for the audio of a text (its port's slip)."""
    rows = jnp.arange(len(logits_per_text))
    terms = [
        optax.softmax_cross_entropy_with_integer_labels(logits, rows).mean()
        for logits in (logits_per_text, logits_per_audio.T)
    ]
    return sum(terms) / 2


class Model:
    """One of the two models, and every output for inputs of one shape."""

    def __init__(self, check):
        self.check, self.reference = check, check.reference
        weights = self.reference.weights()
        self.spec, self.notes = hf_clap.spec(weights, self.reference.spec["config"])
        self.dual, self.table = zoo.build(self.spec), hf_clap.table(self.spec)
        shapes = trees.shapes(self.spec)
        self.variables, extra = trees.fill(*self.table, weights, shapes)
        self.log_scale_t = jnp.asarray(extra["logit_scale_t"])
        back = rules.invert(self.table[0], sharding.flatten(self.variables)) | extra
        assert back.keys() == weights.keys()
        for key, array in weights.items():
            np.testing.assert_array_equal(back[key], array, err_msg=key)
        check.note("tensors", len(weights))
        # One program for outputs and gradients: it takes longer to compile than to run.
        self._run = jax.jit(jax.value_and_grad(self._loss, (0, 1), has_aux=True))

    def run(self, variables, mel, longer, texts, resize=htsat.bicubic_matrix):
        """Outputs by their names in the oracles, with "loss", and gradients by key.

        mel, longer: of either shape of features. texts: ids and mask.
        """
        mel = mel[:, 0] if self.spec.frontend.views == 1 and mel.ndim == 4 else mel
        longer = longer.reshape(-1) if self.spec.frontend.views > 1 else None
        ids, mask = texts
        (value, outputs), gradients = jax.device_get(
            self._run(
                variables["params"],
                self.log_scale_t,
                variables["state"],
                resize(1024, self.spec.frontend.clip_frames),
                Sound(mel, longer),
                ids.astype(np.int32),
                mask.astype(bool),
            )
        )
        flat = sharding.flatten({"params": gradients[0]})
        by_key = rules.invert(self.table[0], flat) | {"logit_scale_t": gradients[1]}
        return outputs | {"loss": value}, by_key

    def _loss(self, params, log_scale_t, state, matrix, audio, ids, mask):
        both = {"params": params, "state": state}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(htsat, "bicubic_matrix", lambda out, size: matrix)
            outputs = forward(self.dual, both, audio, ids, mask)
        cosine = outputs["text/embed"] @ outputs["audio/embed"].T
        outputs["logits_per_text"] = jnp.exp(log_scale_t) * cosine
        value = one_way_loss(outputs["logits_per_audio"], outputs["logits_per_text"])
        return value, outputs


@pytest.fixture(scope="module", params=ORACLES)
def model(request, parity):
    """Weights, features and outputs, computed once."""
    found = Model(parity(request.param))
    reference = found.reference
    found.starts = [start for _, start in reference.spec["feature_random"]]
    found.texts = [reference.io[f"in/{key}"] for key in ("input_ids", "attention_mask")]
    frontend = found.spec.frontend
    found.mel, found.longer = features(clips(reference), frontend, found.starts)
    found.outputs, _ = found.run(found.variables, found.mel, found.longer, found.texts)
    return found


def forward(dual, variables, audio, ids, mask):
    """Every output that the oracles hold, by its name there."""
    (za, heard), _ = dual.encode_audio(variables, audio)
    (zt, read), _ = dual.encode_text(variables, ids, mask)
    tokens = heard["tokens"]
    # Theirs are [B, D, 2, 32]: two bins, and the four stretches' columns in a row.
    grid = tokens.reshape(len(tokens), 4, 2, 8, -1).transpose(0, 4, 2, 1, 3)
    return {
        "audio/hidden": grid.reshape(len(tokens), -1, 2, 32),
        "audio/pooled": heard["embedding"],
        "audio/proj": heard["projection"],
        "audio/embed": za,
        "text/hidden": read["hidden"],
        "text/pooled": read["embedding"],
        "text/proj": read["projection"],
        "text/embed": zt,
        "logits_per_audio": dual.score(variables["params"], za, zt),
    }


def test_spec(model):
    """The spec of LAION's model, but for what Hugging Face does in its own way."""
    assert model.notes[0] == (
        "no preprocessor_config.json: assumed the published one, 50 to 14000 Hz"
    )
    ours = zoo.get_spec(
        "laion_htsat_tiny_fusion_roberta"
        if model.reference.name == "hf_clap_fused"
        else "laion_htsat_tiny_roberta",
        {
            "frontend.int16_trip": False,
            "text.options.eps": 1e-12,
            "audio.options.drop_path": 0.0,
        },
    )
    assert dataclasses.replace(model.spec, name=ours.name) == ours


def check_mel(model, key, mel):
    """They transform in float64, we in float32: the digits of cells far below the
    loudest of their frame are lost, so those are compared as powers."""
    reference = model.reference
    loudest = np.broadcast_to(mel.max(-1, keepdims=True), mel.shape)
    got, want, loudest = (
        np.asarray(x, np.float64)
        for x in (reference.take(mel, key), reference.io[key], loudest)
    )
    loudest = reference.take(loudest, key)
    near = want > loudest - 60
    assert np.abs(got - want)[near].max() < 5e-4
    model.check.check_close("mel", got[near], want[near], 1e-5)
    error = np.abs(10 ** (got / 10) - 10 ** (want / 10))
    assert (error / 10 ** (loudest / 10)).max() < 5e-6


def test_features(model):
    check_mel(model, "features/input_features", as_views(model.mel))
    check_mel(model, "features/clip0_full", as_views(model.mel)[0, 0])
    flags = model.reference.io["features/is_longer"]
    np.testing.assert_array_equal(model.longer[:, None], flags)


@pytest.mark.parametrize("fill", ["repeat", "pad"])
def test_features_of_short_clips(model, fill):
    frontend = dataclasses.replace(model.spec.frontend, fill=fill)
    mel, _ = features(clips(model.reference)[:1], frontend, [])
    check_mel(model, f"features/{fill}_clip0", as_views(mel))


def test_audio(model):
    for key in ("hidden", "pooled"):
        key = f"audio/{key}"
        model.check.check("tower", key, model.outputs[key], 1e-5)
    for key in ("proj", "embed"):
        key = f"audio/{key}"
        model.check.check("embedding", key, model.outputs[key], 1e-5)


def test_text(model):
    for key in ("hidden", "pooled"):
        key = f"text/{key}"
        model.check.check("tower", key, model.outputs[key], 1e-5)
    for key in ("proj", "embed"):
        key = f"text/{key}"
        model.check.check("embedding", key, model.outputs[key], 1e-5)


def test_float64(model):
    """Their float64, which is stored for some models only."""
    for key in model.reference.io:
        if key.endswith("_f64"):
            got = model.outputs[key.removesuffix("_f64")]
            model.check.check("embedding", key, got, 1e-5)


def test_audio_on_the_same_mel(model):
    """Without the front end; is_longer is mixed where the model is fused."""
    mel, longer = model.reference.inputs()["mel"], model.reference.io["mel/is_longer"]
    # A fourth row, so that nothing is compiled for three.
    mel, longer = (np.concatenate([x, x[:1]]) for x in (mel, longer))
    outputs, _ = model.run(model.variables, mel, longer, model.texts)
    got = outputs["audio/embed"][:3]
    model.check.check("embedding", "mel/audio_embed", got, 1e-5)


def test_logits(model):
    """`logit_scale_t` is not trained; it scales what they call logits_per_text."""
    for key in ("logits_per_audio", "logits_per_text"):
        model.check.check("logits", key, model.outputs[key], 1e-5)


def test_loss(model):
    want = model.reference.spec["loss_f32"]
    model.check.check_close("loss", [model.outputs["loss"]], [want], 1e-6)


def test_gradients(model):
    """Theirs are in float64. Which ReLU of a fusion is open depends on the fifth digit
    of what it gets, so front end and resize are those of float64 here."""
    if "grad" not in model.reference.spec:
        return
    mel, longer = features(
        clips(model.reference), model.spec.frontend, model.starts, exact_log_mel
    )
    inputs = (model.variables, mel, longer, model.texts)
    outputs, gradients = model.run(*inputs, laion.exact_bicubic_matrix)
    model.check.check_gradients(gradients, absolute=("attention.self.key.bias",))
    want = model.reference.spec["grad"]["loss"]
    model.check.check_close("loss", [outputs["loss"]], [want], 1e-6)


def test_weights_from_laion(model, oracle):
    """LAION's file as a ClapModel: the text's LayerNorm eps is another one there."""
    source = oracle(model.reference.spec["from_laion"]["source"])
    spec = zoo.get_spec(FROM_LAION[source.name])
    variables, _ = trees.fill(
        *laion_clap.table(spec), source.weights(), trees.shapes(spec)
    )
    # What their extractor makes of the waves: no antialias in the global view.
    starts = (
        [start for kind, start in source.spec["front_random"] if kind == "choice"]
        if spec.frontend.views > 1
        else source.spec["crop_start"].values()
    )
    mel, longer = features(clips(source), model.spec.frontend, starts)
    texts = [source.io[f"in/{key}"] for key in ("input_ids", "attention_mask")]
    outputs, _ = model.run(variables, mel, longer, texts)
    for key in ("audio/pooled", "audio/embed", "text/embed"):
        name = f"from_laion/{key.replace('/', '_')}"
        model.check.check("embedding", name, outputs[key], 1e-5)

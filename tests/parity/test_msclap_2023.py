"""MS-CLAP 2023 (msclap 1.3.4: HTSAT, GPT-2, heads) on random weights."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.audio import crop, frontend, mel
from clap_jax.convert import gpt2, htsat, parts, rules
from clap_jax.convert.rules import Rule
from clap_jax.losses import contrastive
from clap_jax.models import zoo

AUDIO, TEXT = "audio_encoder.base.htsat.", "caption_encoder.base."


def tables(spec):
    """Rules and extras of the whole model."""
    found = htsat.rules(spec.audio.options, AUDIO)
    found += gpt2.rules(spec.text.options, TEXT)
    for side, source in (("audio", "audio"), ("text", "caption")):
        head, ours = rf"{source}_encoder\.projection", f"params/{side}_projection"
        found += parts.linear(rf"{head}\.linear1", f"{ours}/linear1", bias=False)
        found += parts.linear(rf"{head}\.linear2", f"{ours}/linear2", bias=False)
        found += parts.norm(rf"{head}\.layer_norm", f"{ours}/norm")
    found.append(Rule("logit_scale", "params/logit_scale_a"))
    return found, htsat.extras(AUDIO) + gpt2.extras(TEXT)


@pytest.fixture(scope="module")
def model(parity):
    """Weights, outputs and gradients, computed once."""
    check = parity("msclap_2023")
    reference = check.reference
    spec = zoo.get_spec(
        "msclap2023", {"audio.options.classes": 527, "text.options.pool": "msclap"}
    )
    dual = zoo.build(spec)
    weights = reference.weights()
    shapes = jax.eval_shape(dual.init, jax.random.key(0))
    table, extras = tables(spec)
    filled, extra = rules.apply(table, extras, weights, sharding.flatten(shapes))
    variables = sharding.unflatten(filled) | {"state": {"audio": {}, "text": {}}}
    variables["state"] |= sharding.unflatten(filled)["state"]
    waves = []
    for name, wave in reference.inputs().items():
        start = reference.spec["crop_start"].get(name, 0)
        wave = wave[start : start + spec.frontend.clip_samples]
        waves.append(crop.fill(wave, spec.frontend.clip_samples, spec.frontend.fill))
    waves = np.stack(waves[:4])
    log_mel = frontend.log_mel(waves, spec.frontend)
    ids = reference.io["in/input_ids"].astype(np.int32)
    mask = reference.io["in/attention_mask"].astype(bool)

    def loss(params):
        both = {"params": params, "state": variables["state"]}
        (za, audio), _ = dual.encode_audio(both, log_mel)
        (zt, text), _ = dual.encode_text(both, ids, mask)
        logits = dual.score(params, za, zt)
        total, count = contrastive.softmax_pair_loss(logits)
        return total / count, (audio, text, logits)

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, outputs), gradients = jax.device_get(run(variables["params"]))
    audio, text, logits = outputs
    gradients = {"params": gradients, "state": variables["state"]}
    return SimpleNamespace(
        check=check,
        spec=spec,
        dual=dual,
        weights=weights,
        variables=variables,
        back=rules.invert(table, filled) | extra,
        extra=extra,
        waves=waves,
        mel=log_mel,
        audio=audio,
        text=text,
        logits=logits,
        loss=value,
        gradients=rules.invert(table, sharding.flatten(gradients)),
    )


def test_every_tensor_is_used_and_comes_back(model):
    assert sorted(model.back) == sorted(model.weights)
    for key, array in model.weights.items():
        np.testing.assert_array_equal(model.back[key], array, err_msg=key)
    model.check.note("tensors", len(model.weights))


def test_waveform_and_log_mel(model):
    reference = model.check.reference
    take = reference.take(model.waves, "in/prepared_wave")
    np.testing.assert_array_equal(take, reference.io["in/prepared_wave"])
    # The bank that the reference builds, though its sound has another rate.
    bank = model.weights[f"{AUDIO}logmel_extractor.melW"]
    np.testing.assert_allclose(mel.mel_bank(model.spec.frontend), bank, atol=1e-7)
    want = reference.io["audio/logmel"]
    error = np.abs(reference.take(model.mel, "audio/logmel") - want)
    # The reference's float32 is up to 1e-3 dB from its float64 in quiet cells.
    assert np.median(error) < 1e-5
    assert error[want > -60].max() < 2e-3
    model.check.note("mel", error[want > -60].max() / np.abs(want).max())


@pytest.mark.parametrize(
    "stage", ["bn0", "patch_embed", *map("stage{}".format, range(4))]
)
def test_stages(model, stage):
    # The mel of near-silent cells limits the first of these.
    model.check.check("tower", f"audio/{stage}", model.audio[stage], 1e-4)


def test_audio_embedding(model):
    model.check.check("tower", "audio/norm", model.audio["tokens"], 1e-5)
    model.check.check("tower", "audio/clipwise", model.audio["clipwise"], 1e-5)
    for key, column in (("embedding", "tower"), ("proj", "embedding")):
        got = model.audio["projection" if key == "proj" else key]
        for name in (f"audio/{key}", f"audio/{key}_f64"):
            model.check.check(column, name, got, 1e-5)
    model.check.check("embedding", "api/audio_embed", model.audio["projection"], 1e-5)


def test_a_long_clip_in_windows(model):
    """14 s straight into the tower: its windows of 689 frames, averaged."""
    wave = model.check.reference.inputs()["long14"]
    log_mel = jnp.asarray(frontend.log_mel(wave[None], model.spec.frontend))
    (_, aux), _ = jax.jit(model.dual.encode_audio)(model.variables, log_mel)
    for key in ("embedding", "clipwise"):
        model.check.check("tower", f"long14/{key}", aux[key], 1e-5)


def test_text_embedding(model):
    hidden, io = model.text["hidden"], model.check.reference.io
    # The reference masks padding, which only changes the states of padding.
    take = model.check.reference.take
    visible = np.broadcast_to(io["in/attention_mask"][..., None] > 0, hidden.shape)
    visible = take(visible, "text/hidden")
    got, want = take(hidden, "text/hidden"), io["text/hidden"]
    model.check.check_close("tower", got[visible], want[visible], 1e-5)
    # A text with id 0 inside gives the state of a token before the end.
    index = io["in/pooled_index"]
    assert (io["in/input_ids"][np.arange(4), index] != 50256).any()
    np.testing.assert_array_equal(hidden[np.arange(4), index], model.text["embedding"])
    for key, column in (("pooled", "tower"), ("proj", "embedding")):
        got = model.text["projection" if key == "proj" else "embedding"]
        for name in (f"text/{key}", f"text/{key}_f64"):
            model.check.check(column, name, got, 1e-5)


def test_logits_loss_and_gradients(model):
    check = model.check
    check.check("logits", "logits_per_audio", model.logits, 1e-5)
    check.check_close("loss", model.loss, check.reference.spec["grad"]["loss"], 1e-6)
    check.check_gradients(model.gradients)

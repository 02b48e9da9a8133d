"""LAION-CLAP (laion-clap 1.1.7, HTSAT tiny and base with RoBERTa) on random weights.

Differences are relative: largest absolute difference over largest absolute value.
The reference's own float32 is 3.5e-6 from its float64.
"""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import crop, frontend
from clap_jax.convert import laion_clap
from clap_jax.losses import contrastive
from clap_jax.models import zoo

MODELS = {
    "laion_tiny_unfused": "laion_htsat_tiny_roberta",
    "laion_base_unfused": "laion_htsat_base_roberta",
}


def difference(got, want) -> float:
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert got.shape == want.shape
    return np.abs(got - want).max() / np.abs(want).max()


def prepared_waves(oracle, front) -> np.ndarray:
    """The four clips, short ones repeated and padded, the long one cropped."""
    waves = []
    for name, wave in oracle.inputs().items():
        start = oracle.spec["crop_start"].get(name, 0)
        wave = wave[start : start + front.clip_samples]
        waves.append(crop.fill(wave, front.clip_samples, front.fill))
    return np.stack(waves)


@pytest.fixture(scope="module", params=list(MODELS))
def model(request, oracle):
    """One family member: its weights, outputs and gradients, computed once."""
    reference = oracle(request.param)
    spec = zoo.get_spec(MODELS[request.param], {"audio.options.classes": 527})
    dual = zoo.build(spec)
    variables = laion_clap.to_variables(reference.weights(), spec)
    waves = prepared_waves(reference, spec.frontend)
    mel = frontend.log_mel(waves, spec.frontend)
    ids = reference.io["in/input_ids"].astype(np.int32)
    mask = reference.io["in/attention_mask"].astype(bool)

    def loss(params):
        both = {"params": params, "state": variables["state"]}
        (za, audio), _ = dual.encode_audio(both, mel)
        (zt, text), _ = dual.encode_text(both, ids, mask)
        logits = dual.score(params, za, zt)
        total, count = contrastive.softmax_pair_loss(logits)
        return total / count, (za, audio, zt, text, logits)

    value_and_grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, outputs), gradients = jax.device_get(value_and_grad(variables["params"]))
    za, audio, zt, text, logits = outputs
    gradients = {"params": gradients, "state": variables["state"]}
    return SimpleNamespace(
        reference=reference,
        spec=spec,
        dual=dual,
        variables=variables,
        waves=waves,
        mel=mel,
        loss=value,
        audio=audio | {"embed": za, "proj": audio["projection"]},
        text=text | {"embed": zt, "proj": text["projection"]},
        logits=logits,
        gradients=laion_clap.to_state_dict(gradients, spec),
    )


def check(model, key, x, tolerance):
    reference = model.reference
    assert difference(reference.take(x, key), reference.io[key]) <= tolerance


def test_waveform_and_log_mel(model):
    check(model, "in/prepared_wave", model.waves, 0.0)
    want = model.reference.io["audio/logmel"]
    got = model.reference.take(model.mel, "audio/logmel")
    # The reference's float32 is up to 1.1e-3 dB from its float64 in quiet cells.
    error = np.abs(got - want)
    assert np.median(error) < 1e-5
    assert error[want > -60].max() < 2e-3


@pytest.mark.parametrize(
    "stage", ["bn0", "patch_embed", *(f"stage{i}" for i in range(4))]
)
def test_stages(model, stage):
    # The mel of near-silent cells limits the first of these; compare the next test.
    check(model, f"audio/{stage}", model.audio[stage], 1e-4)


@pytest.mark.parametrize("model", ["laion_tiny_unfused"], indirect=True)
def test_stages_on_the_reference_mel(model):
    """The one mel that is stored whole takes the front end out of the comparison."""
    mel = model.reference.io["audio/logmel_clip0_full"][None]
    encode = jax.jit(model.dual.encode_audio)
    (_, aux), _ = encode(model.variables, jnp.asarray(mel))
    for key in ("bn0", "patch_embed", "stage0", "stage1", "stage2", "stage3"):
        got = model.reference.take(aux[key], f"audio/{key}")
        assert difference(got, model.reference.io[f"audio/{key}"][:1]) <= 1e-5, key


def test_audio_embedding(model):
    check(model, "audio/norm", model.audio["tokens"], 1e-5)
    for key in ("embedding", "proj", "embed"):
        check(model, f"audio/{key}", model.audio[key], 1e-5)
    check(model, "audio/embedding_f64", model.audio["embedding"], 1e-5)
    check(model, "audio/embed_f64", model.audio["embed"], 1e-5)


def test_audio_in_time(model):
    """The reference repeats each of 32 positions 32 times."""
    for key in ("fine_grained", "framewise"):
        check(model, f"audio/{key}", np.repeat(model.audio[key], 32, axis=1), 1e-5)
    check(model, "audio/clipwise", model.audio["clipwise"], 1e-5)


def test_text_embedding(model):
    check(model, "text/hidden", model.text["hidden"], 1e-5)
    check(model, "text/pooled", model.text["embedding"], 1e-5)
    for key in ("proj", "embed"):
        check(model, f"text/{key}", model.text[key], 1e-5)
        check(model, f"text/{key}_f64", model.text[key], 1e-5)


def test_logits_and_loss(model):
    check(model, "logits_per_audio", model.logits, 1e-5)
    assert model.loss == pytest.approx(model.reference.spec["grad"]["loss"], rel=1e-6)


def test_gradient_norms(model):
    for key, want in model.reference.spec["grad"]["norms"].items():
        if want is None:
            # No gradient: either not in our model, or the unused AudioSet head.
            assert not np.any(model.gradients.get(key, 0)), key
            continue
        norm = np.linalg.norm(model.gradients[key].astype(np.float64))
        # A key bias shifts all scores of a query alike: its gradient is rounding.
        zero = key.endswith("attention.self.key.bias")
        assert norm == pytest.approx(want, rel=1e-3, abs=1e-6 if zero else 0), key


def test_gradients(model):
    keys = [key for key in model.reference.io if key.startswith("grad/")]
    assert len(keys) >= 7
    for key in keys:
        gradient = model.gradients[key.removeprefix("grad/")]
        assert difference(gradient, model.reference.io[key]) <= 1e-3, key

"""Log-mels of every front end against those of the reference systems.

Those of Hugging Face's extractor are with its models, in `test_hf_clap.py`.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax.audio import crop, io, mel, views
from clap_jax.audio import frontend as front
from clap_jax.convert import laion_clap, trees
from clap_jax.models import zoo
from clap_jax.models.tower import Sound

NAMESPACES = pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
REFERENCES = {
    "laion_tiny_unfused": "laion_unfused",
    "laion_base_unfused": "laion_unfused",
    "laion_pann14_bert": "laion_unfused",
    "msclap_2022": "msclap2022",
    "msclap_2023": "msclap2023",
    "blat": "blat",
}
# Under which end of its key a reference saves its bank.
BANKS = {
    "laion_tiny_unfused": "logmel_extractor.melW",
    "msclap_2022": "logmel_extractor.melW",
    "msclap_2023": "logmel_extractor.melW",
    "blat": "melspec_extractor.mel_scale.fb",
}


def prepared(reference, frontend):
    """The four clips of an oracle at one length, with the crops that it drew."""
    waves = {name: x for name, x in reference.inputs().items() if len(name) == 1}
    if "in/wave_length" in reference.io:  # BLAT pads with zeros to the longest
        longest = max(map(len, waves.values()))
        return np.stack([crop.fill(x, longest, "pad") for x in waves.values()])
    samples = frontend.clip_samples
    starts = {name: 0 for name in waves} | reference.spec["crop_start"]
    waves = [x[starts[name] :][:samples] for name, x in waves.items()]
    return np.stack([crop.fill(x, samples, frontend.fill) for x in waves])


def check_log_mel(parity, key, log_mel, loudest):
    """Within 1e-4 of the range, and 5e-4 dB within 60 dB of the loudest band.

    `loudest` is the loudest band of each cell's frame: float32 transforms, the
    reference's as well, lose further digits more than 60 dB below it.
    """
    reference = parity.reference
    expected = reference.io[key]
    ours, loudest = reference.take(log_mel, key), reference.take(loudest, key)
    error, loud = np.abs(ours - expected), expected > loudest - 60
    assert error.max() < 1e-4 * np.abs(expected).max()
    assert error[loud].max() < 5e-4
    assert np.median(error) < 2e-5
    parity.note("mel", error[loud].max() / np.abs(expected).max())


def loudest_bands(log_mel):
    return np.broadcast_to(log_mel.max(-1, keepdims=True), log_mel.shape)


@NAMESPACES
@pytest.mark.parametrize("name", REFERENCES)
def test_log_mel(name, xp, parity):
    parity, frontend = parity(name), mel.FRONTENDS[REFERENCES[name]]
    reference = parity.reference
    wave = prepared(reference, frontend)
    if "in/prepared_wave" in reference.io:
        parity.check("mel", "in/prepared_wave", wave, 0.0)
    log_mel = np.asarray(front.log_mel(xp.asarray(wave), frontend, xp))
    for key in {"audio/logmel", "audio/logmel_f64"} & set(reference.io):
        check_log_mel(parity, key, log_mel, loudest_bands(log_mel))
    clip0 = next((key for key in reference.io if key.startswith("audio/logmel_cl")), "")
    if clip0:
        first = log_mel[0, : len(reference.io[clip0])]
        check_log_mel(parity, clip0, first, loudest_bands(first))


@pytest.mark.parametrize("name", BANKS)
def test_a_stored_bank_gives_the_same_mels(name, parity):
    """The bank and window that come with a checkpoint, in place of our own."""
    parity, ours = parity(name), mel.FRONTENDS[REFERENCES[name]]
    weights = parity.reference.weights()
    bank = next(x for key, x in weights.items() if key.endswith(BANKS[name]))
    window = [x for key, x in weights.items() if key.endswith("spectrogram.window")]
    stored = dataclasses.replace(
        ours,
        bank="stored",
        bank_values=mel.pack(bank),
        window_values=mel.pack(window[0]) if window else "",
    )
    np.testing.assert_array_equal(mel.mel_bank(stored), bank)
    # A range that the stored bank must not depend on.
    stored = dataclasses.replace(stored, fmin_hz=0.0, fmax_hz=1000.0)
    wave = prepared(parity.reference, ours)
    log_mel = front.log_mel(wave, stored)
    check_log_mel(parity, "audio/logmel", log_mel, loudest_bands(log_mel))
    if not window:
        # All but BLAT's, which torchaudio rounds otherwise, are ours bit for bit.
        np.testing.assert_array_equal(log_mel, front.log_mel(wave, ours))


def fused_views(reference, frontend, antialias, quantise=False):
    """Views [4, 4, N, F] of the four clips, with the starts that the reference drew,
    and which are longer."""
    chosen = [x for kind, x in reference.spec["front_random"] if kind == "choice"]
    found = []
    for name, wave in reference.inputs().items():
        if name not in "abcd":
            continue
        wave = crop.fill(wave, frontend.clip_samples, frontend.fill)
        log_mel = front.log_mel(io.quantise(wave) if quantise else wave, frontend)
        starts = None
        if len(log_mel) > frontend.clip_frames:
            starts, chosen = chosen[:3], chosen[3:]
        length = frontend.clip_frames
        found.append(views.views(log_mel, length, starts, antialias=antialias))
    assert not chosen
    stacked, longer = zip(*found, strict=True)
    return np.stack(stacked), np.array(longer)


@pytest.mark.parametrize("bank", ["htk", "stored"])
@pytest.mark.parametrize("antialias", [True, False], ids=["antialias", "plain"])
def test_views_of_fused_models(antialias, bank, parity):
    """The HTK bank on whole clips, and the crops that the reference drew.

    With antialias, what its package computes today; without, what it was trained on.
    """
    parity, frontend = parity("laion_tiny_fused_aff2d"), mel.FRONTENDS["laion_fused"]
    reference = parity.reference
    if bank == "stored":
        values = mel.pack(mel.mel_bank(frontend))
        frontend = dataclasses.replace(frontend, bank="stored", bank_values=values)
    found, longer = fused_views(reference, frontend, antialias)
    np.testing.assert_array_equal(longer, reference.io["front/longer"][:, 0])
    key = f"front{'' if antialias else '_noantialias'}/mel_fusion"
    check_log_mel(parity, key, found, loudest_bands(found))
    clip0 = "front/mel_clip0_full"
    check_log_mel(parity, clip0, found[0, 0], loudest_bands(found[0, 0]))


def test_from_the_wave_to_the_embedding(parity):
    """The whole way, as trained, as the package computes today, and as its API does,
    which sends arrays through 16 bits."""
    parity = parity("laion_tiny_fused_aff2d")
    spec = zoo.get_spec(
        "laion_htsat_tiny_fusion_roberta", {"audio.options.classes": 527}
    )
    weights = parity.reference.weights()
    variables, _ = trees.fill(*laion_clap.table(spec), weights, trees.shapes(spec))
    encode = jax.jit(zoo.build(spec).encode_audio)
    for antialias, quantise, key in (
        (False, False, "front_noantialias/embed"),
        (True, False, "front/embed"),
        (True, True, "api/embed_int16"),
    ):
        sound = Sound(
            *fused_views(parity.reference, spec.frontend, antialias, quantise)
        )
        (za, _), _ = encode(variables, sound)
        parity.check("embedding", key, za, 1e-5)


def test_antialias_matters(parity):
    """By decibels: the two are told apart by the test above."""
    one, other = (
        parity("laion_tiny_fused_aff2d").reference.io[f"{name}/mel_fusion"]
        for name in ("front", "front_noantialias")
    )
    assert np.abs(one - other).max() > 1

"""Filter banks, windows and sizes of the front ends."""

import dataclasses

import numpy as np
import pytest

from clap_jax.audio import mel

STORED_BANKS = {
    "laion_unfused": ("laion_tiny_unfused", "audio_branch.logmel_extractor.melW"),
    "msclap2022": ("msclap_2022", "audio_encoder.base.logmel_extractor.melW"),
    "msclap2023": ("msclap_2023", "audio_encoder.base.htsat.logmel_extractor.melW"),
    "blat": ("blat", "audio_encoder.melspec_extractor.mel_scale.fb"),
}


@pytest.mark.parametrize("name", STORED_BANKS)
def test_bank_is_the_reference_one(name, oracle):
    reference, key = STORED_BANKS[name]
    reference = oracle(reference)
    stored = np.load(reference._path.parent / "stored.npz")
    rules = {entry["key"]: entry for entry in reference.spec["tensors"]}
    bank = stored[rules[key]["name"]]
    ours = mel.mel_bank(mel.FRONTENDS[name])
    assert ours.shape == bank.shape == (513, 64)
    # torchaudio, behind BLAT, computes the bank in float32: librosa, behind the
    # others, does not.
    np.testing.assert_allclose(ours, bank, rtol=0, atol=3e-8 if name == "blat" else 0)


def test_banks_of_laion_are_22_db_apart_for_noise():
    """The quirk that matters most: fused and unfused models have different banks."""
    slaney = mel.mel_bank(mel.FRONTENDS["laion_unfused"]).sum(0)
    htk = mel.mel_bank(mel.FRONTENDS["laion_fused"]).sum(0)
    difference_db = 10 * np.log10(htk / slaney)
    assert 20 < difference_db.mean() < 24


def test_msclap2023_bank_believes_in_32_khz():
    """The quirk: the bank is built for 32 kHz and fed with 44.1 kHz audio."""
    frontend = mel.FRONTENDS["msclap2023"]
    assert (frontend.rate_hz, frontend.bank_rate_hz) == (44_100, 32_000)
    touched = np.nonzero(mel.mel_bank(frontend).any(1))[0]
    assert (touched[0], touched[-1]) == (2, 447)


@pytest.mark.parametrize("name", mel.FRONTENDS)
def test_no_filter_is_empty(name):
    bank = mel.mel_bank(mel.FRONTENDS[name])
    assert bank.dtype == np.float32
    # Of BEATs, one lies between two bins.
    assert (bank.sum(0) == 0).sum() == (1 if name == "beats" else 0)
    assert not bank.flags.writeable


def test_sizes():
    sizes = {
        name: (frontend.clip_samples, frontend.clip_frames)
        for name, frontend in mel.FRONTENDS.items()
    }
    assert sizes == {
        "laion_unfused": (480_000, 1001),
        "laion_fused": (480_000, 1001),
        "msclap2022": (220_500, 690),
        "msclap2023": (308_700, 965),
        "blat": (320_000, 1001),
        "whisper": (480_000, 3001),
        "beats": (160_000, 998),
        "small_16k": (40_960, 129),
        "small_22k": (110_250, 251),
    }


def test_window_is_periodic_and_centred():
    frontend = mel.FRONTENDS["laion_unfused"]
    window = mel.window(frontend)
    assert window[0] == 0 and window[512] == 1 and window.dtype == np.float32
    assert window.sum() == 512  # a symmetric window would give 511.5
    short = mel.window(dataclasses.replace(frontend, window_samples=400))
    assert short.shape == (1024,)
    assert (short[:312] == 0).all() and (short[712:] == 0).all() and short[512] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bank": "bark"}, "bank is 'bark'"),
        ({"fill": "zeros"}, "fill is 'zeros'"),
        ({"hop_samples": 0}, "hop_samples is 0"),
        ({"n_fft": 1023}, "even"),
        ({"window_samples": 2048}, "window_samples is 2048"),
        ({"fmax_hz": 30_000.0}, "within 0 to 24000.0 Hz"),
        ({"fmin_hz": 15_000.0}, "15000.0 to 14000.0 Hz"),
    ],
)
def test_nonsense_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(mel.FRONTENDS["laion_unfused"], **change)


def test_stored_values_must_fit():
    frontend = mel.FRONTENDS["small_16k"]
    bank = mel.pack(np.ones((256, 64), np.float32))
    wrong = dataclasses.replace(frontend, bank="stored", bank_values=bank)
    with pytest.raises(ValueError, match="16384 numbers, expected 257 x 64"):
        mel.mel_bank(wrong)
    window = mel.pack(np.ones(400, np.float32))
    wrong = dataclasses.replace(frontend, window_values=window)
    with pytest.raises(ValueError, match="400 numbers, expected n_fft, which is 512"):
        mel.window(wrong)


def test_who_needs_the_mel_of_the_whole_clip():
    needy = {name for name, front in mel.FRONTENDS.items() if front.whole_mel}
    assert needy == {"laion_fused", "blat"}

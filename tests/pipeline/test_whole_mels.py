"""Front ends that need the mel of the whole clip: four views, and clips of any length."""

import dataclasses
import json

import numpy as np
import pytest

from clap_jax.audio import crop, frontend, io, views
from clap_jax.pipeline import loader, once
from clap_jax.pipeline.ops import Clips, Prepare, example_generator
from tests.pipeline.clips import RATE_HZ, TinySource, make_tokenizer, wave
from tests.pipeline.test_loader import all_same, take
from tests.whole_mel_models import FUSED, WHOLE, UnequalSource

VIEWS, CLIPS = FUSED.frontend, WHOLE.frontend
FRAMES = VIEWS.clip_frames
FRONTENDS = pytest.mark.parametrize("front", [VIEWS, CLIPS], ids=["views", "clips"])


def batches(front, count, take_at=0, **options):
    """The first batches, or those after a stop at batch `take_at`."""
    cache_gib = options.pop("cache_gib", 0.0)
    prepare, tokenizer = Prepare(front, cache_gib=cache_gib), make_tokenizer()
    dataset = loader.train_dataset(
        [(UnequalSource(16), None)],
        prepare,
        tokenizer,
        batch_size=4,
        seed=0,
        **{"threads": 2} | options,
    )
    iterator = iter(dataset)
    state = None
    if take_at:
        take(iterator, take_at)
        state = json.loads(json.dumps(iterator.get_state()))
        iterator.close()
        iterator = iter(dataset)
        iterator.set_state(state)
    found = take(iterator, count - take_at)
    iterator.close()
    fields = loader.batch_fields(prepare, tokenizer.length)
    assert fields == {
        key: (value.shape[1:], value.dtype) for key, value in found[0].items()
    }
    return found


# --- four views ---


def test_views_of_a_long_clip():
    """In training random, in evaluation fixed; of one mel, computed once."""
    audio = (wave(3, 2.0), RATE_HZ)
    training = Prepare(VIEWS)
    whole = training(audio)
    assert whole.dtype == np.float16 and len(whole) == VIEWS.frames(16_000)
    quantised = frontend.log_mel(io.quantise(audio[0]), VIEWS)
    np.testing.assert_array_equal(whole, quantised.astype(np.float16))
    clips = [training.example(whole, example_generator(0, n)) for n in range(20)]
    for clip in clips:
        assert clip["mel"].shape == training.shape == (4, FRAMES, 16)
        assert clip["mel"].dtype == np.float16 and clip["longer"] is True
        np.testing.assert_array_equal(clip["mel"][0], clips[0]["mel"][0])
    assert len({clip["mel"].tobytes() for clip in clips}) == 20
    again = training.example(whole, example_generator(0, 7))
    np.testing.assert_array_equal(again["mel"], clips[7]["mel"])

    exact = Prepare(VIEWS, mel="exact", random_crop=False)
    clip = exact.example(exact(audio))
    assert clip["mel"].dtype == np.float32
    expected, _ = views.views(quantised, FRAMES)
    np.testing.assert_array_equal(clip["mel"], expected)


@pytest.mark.parametrize("seconds", [0.3, 0.64, 0.645])
def test_views_of_a_short_clip_are_equal(seconds):
    """So are those of a clip that is longer than a window by less than a hop."""
    prepare = Prepare(VIEWS, mel="exact")
    audio = wave(3, seconds)
    clip = prepare.example(prepare((audio, RATE_HZ)), example_generator(0, 0))
    assert clip["longer"] is False
    filled = crop.fill(io.quantise(audio), VIEWS.clip_samples, "repeatpad")
    for view in clip["mel"]:
        np.testing.assert_array_equal(view, frontend.log_mel(filled, VIEWS))


def test_antialias_is_an_option_of_the_front_end():
    plain, smooth = (
        Prepare(dataclasses.replace(VIEWS, antialias=antialias), random_crop=False)
        for antialias in (False, True)
    )
    whole = plain((wave(0, 3.0), RATE_HZ))
    one, other = plain.finish(whole), smooth.finish(whole)
    np.testing.assert_array_equal(one[1:], other[1:])
    np.testing.assert_array_equal(other[0], views.resize(whole, FRAMES, antialias=True))
    assert np.abs(one[0] - other[0]).max() > 1


# --- whole clips ---


@pytest.mark.parametrize("seconds", [0.1, 0.3, 0.64])
def test_a_short_clip_keeps_its_length(seconds):
    """Its mel ends where it ends, reflected there as if alone; then comes silence."""
    prepare = Prepare(CLIPS, mel="exact")
    audio = wave(2, seconds)
    clip = prepare.example(prepare((audio, RATE_HZ)), example_generator(0, 0))
    alone = frontend.log_mel(audio, CLIPS)
    assert clip["frames"] == len(alone) and clip["mel"].shape == (65, 16)
    np.testing.assert_array_equal(clip["mel"][: len(alone)], alone)
    assert (clip["mel"][len(alone) :] == frontend.FLOOR_DB).all()


def test_a_long_clip_is_cut_at_random_in_training_only():
    prepare = Prepare(CLIPS)
    audio = (wave(2, 2.0), RATE_HZ)
    whole = prepare(audio)
    starts = set()
    for draw in range(40):
        clip = prepare.example(whole, example_generator(0, draw))
        assert clip["frames"] == len(clip["mel"]) == FRAMES
        found = [
            start
            for start in range(len(whole) - FRAMES + 1)
            if np.array_equal(whole[start : start + FRAMES], clip["mel"])
        ]
        assert found
        starts.update(found)
    assert len(starts) > 15
    exact = Prepare(CLIPS, mel="exact", random_crop=False)
    clip = exact.example(exact(audio))
    assert clip["frames"] == len(clip["mel"]) == 201


@pytest.mark.parametrize("samples", [9, 100, 128, 129])
def test_a_clip_too_short_to_be_reflected_is_filled(samples):
    prepare = Prepare(CLIPS, mel="exact")
    audio = np.linspace(-0.5, 0.5, samples, dtype=np.float32)
    clip = prepare.example(prepare((audio, RATE_HZ)), example_generator(0, 0))
    filled = np.pad(audio, (0, 129 - samples))
    np.testing.assert_array_equal(clip["mel"][:2], frontend.log_mel(filled, CLIPS))
    assert clip["frames"] == 2


# --- both ---


@FRONTENDS
def test_the_device_cannot_make_these_mels(front):
    with pytest.raises(ValueError, match="mel is 'device', expected 'host'"):
        Prepare(front, mel="device")


@FRONTENDS
def test_batches(front):
    batch = batches(front, 1)[0]
    shapes = {key: (x.shape[1:], x.dtype.name) for key, x in batch.items()}
    if front.whole_clip:
        assert shapes["mel"] == ((65, 16), "float16")
        assert shapes["frames"] == ((), "int32") and "longer" not in shapes
    else:
        assert shapes["mel"] == ((4, 65, 16), "float16")
        assert shapes["longer"] == ((), "bool") and "frames" not in shapes


def test_batches_say_which_clips_are_longer_and_how_long():
    source = UnequalSource(16)
    known = {loader.group_number(source.name, source.group(i)): i for i in range(16)}
    for front in (VIEWS, CLIPS):
        for batch in batches(front, 4):
            for row, group in enumerate(batch["group"].tolist()):
                frames = front.frames(len(source.wave(known[group])))
                if front.whole_clip:
                    assert batch["frames"][row] == min(max(frames, 2), FRAMES)
                    continue
                mel, longer = batch["mel"][row], batch["longer"][row]
                assert longer == (frames > FRAMES)
                assert longer != all(np.array_equal(view, mel[0]) for view in mel)


@FRONTENDS
@pytest.mark.parametrize(
    "options", [{"threads": 0}, {"cache_gib": 0.01}, {"cache_gib": 1e-5}]
)
def test_same_bits_however_it_is_run(front, options):
    all_same(batches(front, 6), batches(front, 6, **options))


@FRONTENDS
def test_going_on_is_exact(front):
    all_same(batches(front, 7)[3:], batches(front, 7, take_at=3))


@FRONTENDS
def test_the_cache_holds_whole_mels(front):
    source = TinySource(2)
    clips = Clips(source, Prepare(front, cache_gib=0.01))
    one, again = clips.fetch(0).whole, clips.fetch(0).whole
    assert one is again and source.reads == 1
    assert one.dtype == np.float16 and clips.prepare.cache.used_bytes == one.nbytes


# --- evaluation ---


def test_eval_batches_of_views():
    prepare = Prepare(VIEWS, mel="exact", random_crop=False)
    source = UnequalSource()
    first, second = once.batches(source, prepare, 5)
    assert first["longer"].tolist() == [False, False, False, True, True]
    assert second["longer"].tolist() == [False, True, True, False, False]
    assert second["valid"].tolist() == [True, True, True, False, False]
    whole = prepare(source[6]["audio"])
    np.testing.assert_array_equal(second["mel"][1], prepare.finish(whole))


def test_eval_clips_come_as_long_as_they_are():
    prepare = Prepare(CLIPS, mel="exact", random_crop=False)
    source = UnequalSource(3)
    parts = list(once.clips_of(source, prepare, 2))
    assert [index.tolist() for index, _ in parts] == [[0, 1], [2, -1]]
    found = [clip for _, clips in parts for clip in clips]
    assert found.pop() is None
    for index, clip in enumerate(found):
        expected = frontend.log_mel(source.wave(index), CLIPS)
        np.testing.assert_array_equal(clip["mel"], expected)
        assert clip["frames"] == len(expected)
    with pytest.raises(ValueError, match="no common length"):
        once.batches(source, prepare, 2)


def test_a_damaged_clip_is_none():
    prepare = Prepare(CLIPS, mel="exact", random_crop=False)
    source = TinySource(3, broken={1: np.zeros(0)})
    ((_, clips),) = once.clips_of(source, prepare, 3)
    assert [clip is None for clip in clips] == [False, True, False]


def test_random_crops_at_evaluation_are_an_option():
    """As references do it; a crop depends on the seed and on the clip alone."""
    source, prepare = UnequalSource(), Prepare(VIEWS, mel="exact")

    def mels(seed, rows=4):
        found = once.batches(source, prepare, rows, crop_seed=seed)
        return np.concatenate([batch["mel"] for batch in found])

    np.testing.assert_array_equal(mels(0), mels(0, rows=8))
    fixed = Prepare(VIEWS, mel="exact", random_crop=False)
    (batch,) = once.batches(source, fixed, 8)
    other = (mels(0) != mels(1)).any(axis=(1, 2, 3))
    np.testing.assert_array_equal(other, batch["longer"])
    np.testing.assert_array_equal(mels(0)[:, 0], batch["mel"][:, 0])
    for refused, seed in ((prepare, None), (fixed, 0)):
        with pytest.raises(ValueError, match="or else a crop_seed"):
            once.batches(source, refused, 4, crop_seed=seed)

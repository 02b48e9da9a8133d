"""Preparing one clip: crops, mels, cache, replacement, chance."""

import pickle
import threading

import numpy as np
import pytest

from clap_jax.audio import crop, frontend, io, mel
from clap_jax.pipeline.ops import (
    Cache,
    Clips,
    Prepare,
    example_generator,
    pick_caption,
)
from tests.pipeline.clips import FRONTEND, RATE_HZ, TinySource, wave


def test_host_mel_is_the_mel_of_the_clip():
    prepare = Prepare(FRONTEND, random_crop=False)
    audio = wave(3)
    clip = prepare.finish(prepare((audio, RATE_HZ)))
    middle = audio[(len(audio) - FRONTEND.clip_samples) // 2 :][: FRONTEND.clip_samples]
    wanted = frontend.log_mel(middle, FRONTEND).astype(np.float16)
    assert clip.dtype == np.float16 and clip.shape == prepare.shape == (26, 16)
    np.testing.assert_array_equal(clip, wanted)


def test_device_wave_is_int16_of_the_clip():
    prepare = Prepare(FRONTEND, mel="device", random_crop=False)
    audio = wave(3)
    clip = prepare.finish(prepare((audio, RATE_HZ)))
    assert clip.dtype == np.int16 and clip.shape == prepare.shape
    wanted = io.to_int16(crop.center_crop(audio, FRONTEND.clip_samples))
    np.testing.assert_array_equal(clip, wanted)


def test_host_and_device_agree_after_the_int16_trip():
    laion = mel.FRONTENDS["laion_unfused"]
    audio = (wave(0, 0.5, 48_000), 48_000)
    host = Prepare(laion, random_crop=False)(audio)
    device = Prepare(laion, mel="device", random_crop=False)(audio)
    mels = frontend.log_mel(device, laion).astype(np.float16)
    np.testing.assert_array_equal(host, mels)


@pytest.mark.parametrize("where", ["host", "device"])
def test_random_crops_are_parts_of_the_whole(where):
    prepare = Prepare(FRONTEND, mel=where)
    whole = prepare((wave(1), RATE_HZ))
    assert len(whole) == (FRONTEND.frames(3200) if where == "host" else 3200)
    crops = [prepare.finish(whole, example_generator(0, draw)) for draw in range(40)]
    starts = set()
    for clip in crops:
        assert clip.shape == prepare.shape
        places = [
            start
            for start in range(len(whole) - len(clip) + 1)
            if np.array_equal(whole[start : start + len(clip)], clip)
        ]
        assert places
        starts.update(places)
    assert len(starts) > 10
    again = prepare.finish(whole, example_generator(0, 7))
    np.testing.assert_array_equal(again, crops[7])


def test_short_clips_are_filled():
    prepare = Prepare(FRONTEND, mel="device")
    whole = prepare((wave(1, seconds=0.1), RATE_HZ))
    wanted = crop.fill(io.to_int16(wave(1, seconds=0.1)), 2000, "repeatpad")
    np.testing.assert_array_equal(whole, wanted)
    np.testing.assert_array_equal(
        prepare.finish(whole, example_generator(0, 0)), wanted
    )


def test_other_rates_are_resampled():
    prepare = Prepare(FRONTEND, mel="device")
    whole = prepare((wave(1, rate_hz=16_000), 16_000))
    assert abs(len(whole) - 3200) <= 1


def test_settings_are_checked():
    with pytest.raises(ValueError, match="mel is 'gpu'"):
        Prepare(FRONTEND, mel="gpu")
    with pytest.raises(ValueError, match="cache_gib is -1"):
        Prepare(FRONTEND, cache_gib=-1)


def test_cache_keeps_to_its_budget():
    cache = Cache(100)
    for key in range(5):
        cache.put(key, np.zeros(30, np.uint8))
    assert len(cache) == 3 and cache.used_bytes == 90
    cache.put(0, np.ones(10, np.uint8))
    assert cache.get(0).sum() == 0 and cache.get(4) is None
    copy = pickle.loads(pickle.dumps(cache))
    assert len(copy) == 0 and copy.used_bytes == 0


def test_cache_in_threads():
    cache = Cache(1000)

    def fill(start):
        for key in range(start, start + 300):
            cache.put(key, np.zeros(10, np.uint8))

    threads = [threading.Thread(target=fill, args=(n * 100,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(cache) == 100 and cache.used_bytes == 1000


def test_cached_or_not_gives_the_same_bits():
    source = TinySource(5)
    plain = Clips(source, Prepare(FRONTEND))
    cached = Clips(source, Prepare(FRONTEND, cache_gib=0.001))
    for _ in range(2):
        for index in range(5):
            one, two = plain.fetch(index), cached.fetch(index)
            np.testing.assert_array_equal(one.whole, two.whole)
    assert source.reads == 10 + 5
    assert plain.cached(0) is None and cached.cached(0).index == 0


def test_sources_of_one_name_share_a_cache_but_no_clips():
    prepare = Prepare(FRONTEND, cache_gib=0.001)
    one, other = (Clips(TinySource(2), prepare) for _ in range(2))
    one.fetch(0)
    assert one.cached(0) is not None and other.cached(0) is None
    assert Clips(one.source, prepare).cached(0) is not None


def test_clips_can_be_pickled():
    clips = Clips(TinySource(3), Prepare(FRONTEND, cache_gib=0.001))
    wanted = clips.fetch(1)
    copy = pickle.loads(pickle.dumps(clips))
    assert copy.cached(1) is None
    np.testing.assert_array_equal(copy.fetch(1).whole, wanted.whole)


def test_captions_are_picked_evenly():
    captions = ["a", "b", "c"]
    picks = [pick_caption(captions, example_generator(5, n)) for n in range(600)]
    assert all(160 < picks.count(caption) < 240 for caption in captions)
    assert picks[:3] == [
        pick_caption(captions, example_generator(5, n)) for n in (0, 1, 2)
    ]

"""Features of segments: by any towers, in any batches, stopped anywhere."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile

from clap_jax import cli, convert
from clap_jax.audio import frontend as frontend_lib
from clap_jax.audio import io
from clap_jax.convert.starts import TowerStart
from clap_jax.embed import segments, towers
from clap_jax.embed.job import Interrupted
from clap_jax.embed.parts import PartsError
from clap_jax.models import zoo
from clap_jax.models.tower import Sound
from clap_jax.pipeline.feature_files import FeaturesSource

OPTIONS = {
    "beats": {
        **{"patch_width": 8, "width": 16, "depth": 1, "heads": 2, "mlp": 16},
        **{"taps": 4, "groups": 2},
    },
    "whisper": {"width": 8, "depth": 1, "heads": 2, "mlp": 16},
}
SECONDS = (0.5, 2.0, 5.3, 3.0, 2.05)
SILENT = 3


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of a small BEATs and a small Whisper alone."""
    folder, mels = tmp_path_factory.mktemp("models"), {"beats": 128, "whisper": 80}
    for kind, options in OPTIONS.items():
        options = zoo.TowerSpec(kind, options).options
        tower = zoo.AUDIO_TOWERS[kind].tower(options)
        example = Sound(jax.ShapeDtypeStruct((1, 32, mels[kind]), np.float32))
        found = tower.init(jax.random.key(0), example)
        params = jax.tree.map(np.asarray, {"audio": dict(found["params"])})
        start = TowerStart("audio", kind, options)
        variables = {"params": params, "state": {}}
        convert.write(convert.Converted(start, variables), folder / kind)
    return [folder / kind for kind in OPTIONS]


@pytest.fixture(scope="module")
def both(models):
    """Both towers side by side, in windows of a second."""
    return towers.load_all(models, window_seconds=1.0)


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A table of noise, of which a part is silent, and of a file that is no sound."""
    folder, rng = tmp_path_factory.mktemp("sounds"), np.random.default_rng(0)
    lines = ["path,caption"]
    for number, seconds in enumerate(SECONDS):
        wave = 0.1 * rng.standard_normal((round(seconds * 22_050), 2))
        if number == SILENT:
            wave[22_050 : 2 * 22_050] = 0
        soundfile.write(folder / f"{number}.wav", wave, 22_050)
        lines.append(f"{number}.wav,song {number}")
    (folder / "bad.wav").write_text("no sound")
    lines.insert(3, "bad.wav,none")
    (folder / "sounds.csv").write_text("\n".join(lines) + "\n")
    return folder / "sounds.csv"


def options(hop_seconds=1.0, **changes):
    small = {"batch_size": 4, "threads": 2, "shard_clips": 2}
    return segments.Options(hop_seconds, **{**small, **changes})


@pytest.fixture(scope="module")
def written(both, sounds, tmp_path_factory):
    """The features of all, float32, and what was said."""
    out = tmp_path_factory.mktemp("out") / "features"
    said = []
    source = segments.source_of([str(sounds)])
    summary = segments.run(
        source, both, out, options(dtype="float32"), lambda *now: said.append(now)
    )
    return out, summary, said


def contents(out):
    return {
        path.name: path.read_bytes()
        for path in [*sorted(out.iterdir()), out.with_name("features.bad.csv")]
    }


def test_what_is_written(written, sounds):
    out, summary, said = written
    source = FeaturesSource(out)
    assert source.features_width == 16 + 8
    clips = {source.id(i): source[i] for i in range(len(source))}
    assert [clip["captions"] for clip in clips.values()] == [
        [f"song {number}"] for number in range(5)
    ]
    counts = [len(clip["audio"].heard) for clip in clips.values()]
    assert counts == [1, 2, 6, 3, 3]
    # A second of silence, and what is left of 2.05 s.
    heard = [clip["audio"].heard.tolist() for clip in clips.values()]
    assert heard[SILENT] == [True, False, True] and heard[4] == [True, True, False]
    assert all(all(row) for row in heard[:3])
    np.testing.assert_allclose(
        clips[source.id(2)]["audio"].seconds[[0, 5]], [[0, 1], [5, 5.3]], atol=1e-4
    )
    assert summary[:4] == (5, 15, 2, 1) and not summary.was_there
    assert summary.seconds == pytest.approx(sum(SECONDS), abs=1e-3)
    assert said[0] == (0, 0, 6) and said[-1] == (6, 1, 6)
    name, reason = (
        (out.parent / "features.bad.csv").read_text().splitlines()[1:][0].split(",", 1)
    )
    assert name.endswith("bad.wav") and "not decodable" in reason


def test_features_are_the_towers_own(written, models, sounds):
    out, _, _ = written
    wave = io.load(str(sounds.parent / "2.wav"), 16_000)[16_000:32_000]
    wave = io.to_int16(wave)[None]
    found = FeaturesSource(out)[2]["audio"].features[1]
    for path, columns in zip(models, (slice(0, 16), slice(16, 24))):
        start = convert.load(path)
        front_end = towers.load(path, window_seconds=1.0).frontend
        tower = zoo.AUDIO_TOWERS[start.spec.kind].tower(start.spec.options)
        (wanted, _), _ = tower.apply(
            {"params": start.variables["params"]["audio"], "state": {}},
            Sound(jnp.asarray(frontend_lib.log_mel(wave, front_end))),
        )
        np.testing.assert_allclose(found[columns], wanted[0], rtol=1e-4, atol=2e-5)


def test_batches_do_not_matter(written, both, sounds, tmp_path):
    source = segments.source_of([str(sounds)])
    other = options(dtype="float32", batch_size=32, shard_clips=100)
    segments.run(source, both, tmp_path / "features", other)
    for mine, yours in zip(
        FeaturesSource(tmp_path / "features"), FeaturesSource(written[0])
    ):
        assert mine["id"] == yours["id"]
        np.testing.assert_allclose(
            mine["audio"].features, yours["audio"].features, atol=1e-5
        )


@pytest.mark.parametrize("limit", [0, 1, 3, 5])
def test_a_stopped_job_goes_on(written, both, sounds, tmp_path, limit):
    out, whole = tmp_path / "features", contents(written[0])
    source = segments.source_of([str(sounds)])

    def stop(done, bad, total):
        if done == limit + 1:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted, match=f"{limit // 2 * 2} of 6 are done"):
        segments.run(source, both, out, options(dtype="float32"), stop)
    (out / "features-00002-of-00003.array_record.part1").write_bytes(b"killed")
    segments.run(source, both, out, options(dtype="float32"))
    assert contents(out) == whole
    again = segments.run(source, [*both], out, options(dtype="float32"))
    assert again.was_there and again[:5] == written[1][:5]


def test_what_is_refused(written, both, models, sounds, tmp_path):
    out, source = written[0], segments.source_of([str(sounds)])
    with pytest.raises(PartsError, match="dtype 'float32' there, 'float16' now"):
        segments.run(source, both, out, options())
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(ValueError, match="holds no features"):
        segments.run(source, both, tmp_path / "mine", options())
    with pytest.raises(ValueError, match="more than 0, and no more than a window"):
        segments.run(source, both, tmp_path / "new", options(hop_seconds=2.0))
    with pytest.raises(ValueError, match="windows of 1 s, 10 s, expected one length"):
        pair = [both[1], towers.load(models[0])]
        segments.run(source, pair, tmp_path / "new", options())
    with pytest.raises(ValueError, match="cannot hear windows of 40 s: a mel of 4001"):
        towers.load(models[1], window_seconds=40.0)
    with pytest.raises(ValueError, match="has no projection"):
        towers.load(models[0], "projection")
    with pytest.raises(ValueError, match="is a source of clips, expected no other"):
        segments.source_of([str(sounds), str(sounds.parent)])


def test_the_command(models, sounds, tmp_path, capsys):
    out = tmp_path / "features"
    command = [
        *("embed", "--segments", "--window=1", "--hop=0.5", f"--out={out}"),
        *(f"--model={path}" for path in models),
        *(str(sounds.parent / f"{number}.wav") for number in range(2)),
    ]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert "2 clips, 4 segments (0 silent), float16 [24] each, 0:00:02 of sound" in said
    assert FeaturesSource(out).captions(0) == []
    assert cli.main(command) == 0
    assert "was complete already" in capsys.readouterr().out

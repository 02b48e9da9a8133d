"""The measurement of the pipeline: what it prints, and which stage it blames."""

import json
import os
import re
import subprocess
import sys
import time

import numpy as np
import pytest

from clap_jax.pipeline import measure
from clap_jax.pipeline.measure import STAGES, Options, Stage
from clap_jax.pipeline.ops import Prepare
from clap_jax.pipeline.sources import section
from clap_jax.pipeline.tars import LaionTarSource
from clap_jax.train import measure as command
from tests.pipeline.clips import FRONTEND, TinySource, make_tokenizer, write_table
from tests.pipeline.shards import write_shards

QUICK = {"clips": 6, "seconds": 0.01, "threads": 1, "prefetch": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


class Slow(TinySource):
    """Waits for each clip, as for a distant disk."""

    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)


def test_every_stage_is_timed(tokenizer):
    source = TinySource(20, broken={3: np.zeros(0), 4: np.zeros(0)})
    options = Options(**QUICK | {"clips": 19, "seconds": 0.5})
    report = measure.measure([(source, None)], Prepare(FRONTEND), tokenizer, options)
    assert tuple(report.stages) == STAGES
    assert report.clips + report.bad_clips == 19 and report.bad_clips in (1, 2)
    assert sum(stage.share for stage in report.stages.values()) == pytest.approx(1)
    assert all(stage.milliseconds > 0 for stage in report.stages.values())
    assert report.clips_per_s > 0
    # 20 clips of 41 frames of 16 mels in 16 bits.
    assert report.cache_gib == pytest.approx(20 * 41 * 16 * 2 / 2**30)
    text = str(report)
    for word in (*STAGES, "one thread", "end to end", "bottleneck", "bad clips"):
        assert word in text
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["stages"]["decode"]["clips_per_s"] > 0
    assert plain["options"]["threads"] == 1 and plain["bottleneck"] in STAGES


def test_a_slow_disk_is_blamed(tokenizer):
    options = Options(**QUICK)
    report = measure.measure([(Slow(20), None)], Prepare(FRONTEND), tokenizer, options)
    assert report.bottleneck == "read"
    assert "raise data.threads (now 1)" in report.advice


def test_shards_are_read_as_in_training(tokenizer, tmp_path, monkeypatch):
    write_shards(tmp_path, shards=2, clips=8)
    source = LaionTarSource(tmp_path, cache_folder=str(tmp_path / "c"))
    sizes, read = [], LaionTarSource.read
    monkeypatch.setattr(
        LaionTarSource,
        "read",
        lambda self, indices: sizes.append(len(indices)) or read(self, indices),
    )
    options = Options(**QUICK | {"clips": 15, "seconds": 5.0, "read_together": 4})
    monkeypatch.setattr(measure, "_end_to_end", lambda *_: 100.0)
    report = measure.measure([(source, None)], Prepare(FRONTEND), tokenizer, options)
    assert sizes == [4] * 4 and report.clips == 15


def test_nothing_to_measure(tokenizer):
    source = TinySource(3, broken={index: np.zeros(0) for index in range(3)})
    with pytest.raises(ValueError, match="none of the 4 clips drawn first can be read"):
        measure.measure(
            [(source, None)], Prepare(FRONTEND), tokenizer, Options(**QUICK)
        )


@pytest.mark.parametrize(
    ("slow", "options", "rate", "mel", "said"),
    [
        ("decode", {}, 300, "host", "data.cache_gib=2 holds all), store clips as FLAC"),
        ("resample", {}, 300, "host", "store clips at 8000 Hz"),
        ("mel", {}, 300, "host", "data.mel='device'"),
        ("mel", {}, 300, "device", "keep decoded clips in memory"),
        ("decode", {"threads": 1}, 90, "host", "only 1 of 4 cores are used: raise"),
        ("decode", {}, 50, "host", "hold up each other .* set data.workers to 1"),
        ("decode", {"workers": 2}, 50, "host", "store clips as FLAC"),
        ("tokenise", {}, 300, "host", "shorten the captions"),
        ("batch", {}, 300, "host", "raise data.workers"),
        ("read", {}, 300, "host", "pack the clips into ArrayRecord"),
    ],
)
def test_advice(slow, options, rate, mel, said):
    stages = {name: Stage(0.5, 0.5, 0.05) for name in STAGES}
    stages[slow] = Stage(7.5, 7.5, 0.75)
    settings = Options(**{"threads": 4, "cores": 4} | options)
    name, advice = measure._advice(
        stages, rate, Prepare(FRONTEND, mel=mel), settings, 2.0
    )
    assert name == slow and advice.startswith("75% of a clip's 10.00 ms")
    assert re.search(said.replace("(", r"\(").replace(")", r"\)"), advice)


# --- the command ---


def test_the_command(tmp_path, request):
    """As a user starts it, with a worker process."""
    config = request.config.rootpath / "configs" / "quickstart.py"
    arguments = ["--measure", f"--config={config}:smoke", "--config.data.workers=1"]
    quick = ["--seconds=0.1", "--clips=3", "--prefetch=1", "--threads=1"]
    done = subprocess.run(
        [sys.executable, "-m", "clap_jax.pipeline.loader", *arguments, *quick],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=request.config.rootpath,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert done.returncode == 0, done.stderr
    for word in (*STAGES, "data.workers=1", "bottleneck: "):
        assert word in done.stdout
    assert "leaked" not in done.stderr


def test_paths_and_options(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(measure, "_end_to_end", lambda *_: 100.0)
    table = write_table(tmp_path / "sounds", 12)
    quick = ["--clips=2", "--frontend=small_16k", "--json"]
    assert command.main([str(table), *quick, "--read-together=4", "--batch=9"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert set(report["stages"]) == set(STAGES) and report["mels"] == "device"
    assert report["options"]["read_together"] == 4
    assert report["options"]["batch_size"] == 9
    assert report["options"]["threads"] == 4
    assert command.main([str(tmp_path / "sounds"), *quick, "--mel=host"]) == 0
    assert json.loads(capsys.readouterr().out)["mels"] == "host"


def test_the_kind_of_a_path(tmp_path):
    write_shards(tmp_path / "a" / "b", shards=1)
    assert section(str(tmp_path / "a"))["kind"] == "laion_tar"
    assert section("x/{000..003}.tar")["kind"] == "laion_tar"
    assert section("gs://b/x*.array_record")["kind"] == "array_record"
    assert section("x.csv")["kind"] == "manifest"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give a --config, or a path of data"),
        (["x.csv", "--config=y.py"], "give a --config, or a path of data"),
        (["x.csv", "--treads=4"], "unexpected argument '--treads=4'"),
        (["x.csv", "--config.data.treads=4"], "data.treads"),
        (["x.csv"], "x.csv: No such file"),
        (["--config=y.py"], "there is no file y.py"),
    ],
)
def test_what_is_wrong_is_one_sentence(arguments, message, capsys):
    assert command.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("error: ") and message in said

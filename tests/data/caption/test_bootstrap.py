"""Captions by a captioner: killed anywhere, by one worker or two; what is reported."""

import functools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

import clap_jax
from clap_jax import remote
from clap_jax.captions import Caption, CaptionWriter
from clap_jax.pipeline.sources import build_source, section
from data.caption import __main__ as command
from data.caption import blocks, criteria, sift
from data.caption.clips import Clip
from data.caption.criteria import FILTERS
from data.caption.filters import Filters
from tests import small_models
from tests.data.caption import cases
from tests.test_api_classifier import save as save_classifier

TAGS = ("dog", "rain", "church bell", "bird", "bell", "buzzer")
SCENES = {"kind": "synthetic", "split": "kinds", "examples": 80}
DRAWN = ("--n=2", "--method=sample", "--temperature=0.7", "--length=10", "--seed=3")
# Of every filter, and captions of which each has something to drop.
THRESHOLDS = {
    "min_words": 3,
    "max_words": 9,
    "max_run": 2,
    "max_phrase": 1,
    "min_clap_score": -0.03,
    "min_tag_share": 0.5,
    "near_words": 0.7,
    "near_edits": 0.7,
    "max_clips": 1,
    "top": 2,
}
CANNED = (
    "{}",
    "a {} sounds near a wall and then it goes on",
    "very very very loud {}",
    "a {} and a {} and a {} and",
    "something makes a noise",
    "the sound of {}",
    "the {} of sound",
    "{} is heard twice here",
    "{} is heard thrice here",
    "there {} goes again somewhere",
    "listen to {} number {number}",
    "quietly, {} ends as number {number}",
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A captioner, a CLAP and a tagger, of random weights."""
    folder = tmp_path_factory.mktemp("models")
    words = small_models.tokenizer("plain", 12)
    spec = small_models.captioner_spec("guided", words.vocab_size).with_tags(TAGS)
    variables = small_models.captioner_variables(spec)
    CaptionWriter(spec, variables, words).save(folder / "captioner")
    small_models.save("small_conv", folder / "clap")
    save_classifier(folder / "tagger", "sounds")  # cat, dog, rain
    return folder


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """A table of nine clips: two are no sounds, one is silent, one is not there."""
    folder = tmp_path_factory.mktemp("sounds")
    rows = []
    for number in range(9):
        wave, rate_hz = small_models.sound(0.5 + number / 4, 16_000, seed=number)
        soundfile.write(folder / f"{number}.wav", wave, rate_hz)
        tags = [TAGS[number % 3]] if number % 2 else []
        rows.append({"path": f"{number}.wav", "caption": "a sound", "tags": tags})
    rows[1]["tags"] = ["Church_bell", "unicorn"]
    soundfile.write(folder / "2.wav", np.zeros(8000), 16_000)
    (folder / "3.wav").write_bytes(b"no sound")
    (folder / "4.wav").unlink()
    table = folder / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows) + "no JSON\n")
    return table


# Of no filter, so that whatever is written stays.
ALL = (
    "--max-words=99",
    *(
        f"--{row.option.replace('_', '-')}=off"
        for row in FILTERS
        if row.option != "max_words"
    ),
)


def run(models, data, out, *arguments):
    data = data if isinstance(data, str) else str(data)
    model = f"--model={models / 'captioner'}"
    return command.main([data, f"--out={out}", "--by=captioner", model, *arguments])


def report_of(out):
    return json.loads(Path(sift.beside(str(out), sift.REPORT)).read_text())


def left_out_of(out):
    return Path(sift.beside(str(out), sift.LEFT_OUT)).read_text().splitlines()


def three(out):
    """The bytes of all that a run gives."""
    names = (
        str(out),
        *(sift.beside(str(out), n) for n in (sift.REPORT, sift.LEFT_OUT)),
    )
    return [Path(name).read_bytes() for name in names]


@pytest.fixture(scope="module")
def scenes(models, tmp_path_factory):
    """What an undisturbed run makes of scenes: two blocks."""
    out = tmp_path_factory.mktemp("scenes") / "heard.jsonl"
    assert run(models, json.dumps(SCENES), out, *DRAWN) == 0
    return out


def test_scenes_get_captions_that_a_config_trains_on(scenes, models):
    lines = cases.lines(scenes)
    source = build_source(
        "synthetic", "synthetic", {k: SCENES[k] for k in ("split", "examples")}
    )
    ids = [source.id(i) for i in range(len(source))]
    assert sorted([line["id"] for line in lines] + left_out_of(scenes)) == sorted(ids)
    first = lines[0]
    assert "path" not in first and first["tags_from"] == "source"
    assert first["tags"] == source.tags(ids.index(first["id"]))
    assert first["seed"] == blocks.clip_seed(3, first["id"])
    assert len(first["captions"]) == len(first["log_likelihoods"])
    origin = first["origin"]
    assert origin["kind"] == "captioner"
    assert origin["model"] == str(models / "captioner")
    wanted = {"method": "sample", "n": 2, "temperature": 0.7, "length": 10, "seed": 3}
    assert wanted.items() <= origin["settings"].items()
    # Only these captions, for all clips that have any.
    more = {"generated": str(scenes), "captions": "only"}
    rest = {key: SCENES[key] for key in ("split", "examples")}
    made = build_source("synthetic", "synthetic", rest | more)
    assert [made.id(i) for i in range(len(made))] == [line["id"] for line in lines]
    assert [made.captions(i) for i in range(len(made))] == [
        line["captions"] for line in lines
    ]


def test_captions_are_those_of_the_clip_alone(scenes, models):
    """With its seed and its tags, whatever was beside it."""
    writer = clap_jax.load(models / "captioner")
    rest = {key: SCENES[key] for key in ("split", "examples")}
    source, lines = build_source("synthetic", "synthetic", rest), cases.lines(scenes)
    place = {source.id(i): i for i in range(len(source))}
    known = next(line for line in lines if set(line["tags"]) & set(TAGS))
    for line in (known, lines[-1]):
        audio = source[place[line["id"]]]["audio"]
        tags = [[tag for tag in line["tags"] if tag in TAGS]]
        options = {"n": 2, "method": "sample", "temperature": 0.7, "length": 10}
        (alone,) = writer.caption([audio], tags=tags, seeds=[line["seed"]], **options)
        found = {one.text: one.score for one in alone}
        for text, score in zip(line["captions"], line["log_likelihoods"], strict=True):
            assert found[text] == pytest.approx(score, abs=1e-4)


class Canned:
    """Writes of each clip the same captions, with its first tag in them."""

    is_captioner = True
    digest = staticmethod(lambda: "canned")

    def __init__(self):
        names = ("buzzer", "engine hum", "bird", "bell")
        self.spec = small_models.captioner_spec("guided", 300).with_tags(names)

    def caption(self, audio, n, tags, seeds, **_):
        names = [
            [*self.spec.tag_names, "thing"][row.argmax() if row.any() else -1]
            for row in tags
        ]
        return [
            [
                Caption(text.format(name, name, name, number=seed), -float(place))
                for place, text in enumerate(CANNED[:n])
            ]
            for name, seed in zip(names, seeds, strict=True)
        ]


def test_every_filter_is_reported(models, tmp_path, capsys, monkeypatch):
    """All ten drop some; other thresholds sift anew, and no model writes again."""
    monkeypatch.setattr(blocks, "_model", functools.lru_cache(lambda path: Canned()))
    scenes, out = json.dumps(SCENES | {"examples": 52}), tmp_path / "heard.jsonl"
    arguments = ("--n=12", "--method=sample", f"--clap={models / 'clap'}")
    chosen = [f"--{k.replace('_', '-')}={v}" for k, v in THRESHOLDS.items()]
    assert run(models, scenes, out, *arguments, *chosen) == 0
    said, report = capsys.readouterr().out, report_of(out)
    files = sorted(Path(f"{out}.parts").glob("*/*.json"))
    rows = [row for file in files for row in json.loads(file.read_text())]
    clips = [(Clip(row["id"], tuple(row["tags"])), row["candidates"]) for row in rows]
    judge, source = (
        clap_jax.load(models / "clap"),
        build_source("synthetic", "synthetic", {"split": "kinds"}),
    )
    texts = [one["caption"] for one in rows[40]["candidates"]]
    wanted = judge.embed_text(texts) @ judge.embed_audio([source[40]["audio"]])[0]
    scores = [one["clap_score"] for one in rows[40]["candidates"]]
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    sifted, expected = Filters(THRESHOLDS).apply(clips)
    names = [row["name"] for row in report["filters"]]
    assert names == [row.name for row in FILTERS] and len(names) == 10
    for row in report["filters"]:
        assert row["dropped"] == expected.dropped[row["name"]] > 0, row["name"]
        assert row["examples"] and f"{row['name']} (" in said
    dropped = sum(row["dropped"] for row in report["filters"])
    assert report["candidates"] == dropped + report["kept"] == 12 * 52
    kept = {
        clip.id: [one["caption"] for one in own.kept]
        for (clip, _), own in zip(clips, sifted, strict=True)
    }
    lines = cases.lines(out)
    assert lines[0]["origin"]["settings"]["clap"].startswith(f"{models / 'clap'} ")
    assert {line["id"]: line["captions"] for line in lines} == {
        name: own for name, own in kept.items() if own
    }
    assert left_out_of(out) == [name for name, own in kept.items() if not own]
    assert (
        f"{report['captions']} captions of {report['clips_with_captions']} of" in said
    )
    monkeypatch.setattr(blocks, "_captioned", None)
    assert run(models, scenes, out, *arguments, *ALL) == 0
    assert report_of(out)["kept"] == 12 * 52 and not left_out_of(out)


class Killed(BaseException):
    """Nothing catches it, as nothing catches SIGKILL."""


def test_killed_at_any_write(scenes, models, tmp_path, monkeypatch):
    """Before and after each of the files of a run, half of one written; then it goes on."""
    out = tmp_path / "heard.jsonl"
    write, replace = remote.write, os.replace
    left, made = [0], []

    def dying(function):
        def step(path, *rest):
            left[0] -= 1
            if left[0] < 0:
                half = Path(f"{path}.half")
                half.parent.mkdir(parents=True, exist_ok=True)
                half.write_bytes(b"half of it")
                raise Killed
            function(path, *rest)
            made.append(str(path))
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        return step

    monkeypatch.setattr(remote, "write", dying(write))
    monkeypatch.setattr(sift.os, "replace", dying(replace))
    for deaths in range(30):
        left[0] = deaths
        try:
            run(models, json.dumps(SCENES), out, *DRAWN)
            break
        except (Killed, SystemExit):  # the latter where Beam catches everything
            assert not out.exists() or three(out) == three(scenes)
    # Before and after each of two blocks and of the three files at the end.
    assert deaths >= 8 and three(out) == three(scenes)


def test_two_workers_killed_from_outside(scenes, models, tmp_path):
    """SIGKILL when one of two blocks is there; one process does what is left."""
    out = tmp_path / "heard.jsonl"
    arguments = [json.dumps(SCENES), f"--out={out}", "--by=captioner", *DRAWN]
    arguments += [f"--model={models / 'captioner'}"]
    program = [sys.executable, "-m", "data.caption", *arguments, "--workers=2"]
    process = subprocess.Popen(program, cwd=Path(__file__).parents[3])
    try:
        while process.poll() is None and len(list(tmp_path.glob("*/*/*.json"))) < 1:
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL and not out.exists()
    assert command.main(arguments) == 0
    assert three(out) == three(scenes)


def test_what_is_wrong_is_reported_and_stops_nothing(models, sounds, tmp_path, capsys):
    """A table with bad rows; tags of a file, of the table, and of a tagger."""
    tags = tmp_path / "tags.csv"
    tags.write_text(
        "id,dog,rain,fog\n0.wav,0.9,0.2,0.31\n5.wav,0.1,0.1,0.1\nx.wav,1,1,1\n"
    )
    out = tmp_path / "heard.jsonl"
    arguments = (
        f"--tags={tags}",
        f"--tagger={models / 'tagger'}",
        "--tag-rule=0.3_top2",
    )
    assert run(models, sounds, out, *arguments, *ALL) == 0
    said, report = capsys.readouterr().out, report_of(out)
    assert "left out by the source: 1, as line 10: is not JSON" in said
    assert report["tags_from"] == {"file": 2, "none": 2, "source": 3, "tagger": 2}
    assert report["unknown_tags"]["unicorn"] == report["unknown_tags"]["fog"] == 1
    assert "tags that the captioner does not know: " in said and "'unicorn' 1" in said
    assert report["missing_from_tag_file"] == 7
    assert f"not in {tags}: 7 clips, as 1.wav, 2.wav" in said
    problems = report["problems"]
    assert {k: v["clips"] for k, v in problems.items()} == {"broken": 2, "silent": 1}
    assert "silent: 1 clips, as 2.wav: its peak is digital silence" in said
    assert any(
        "no such file" in reason.lower() for reason in problems["broken"]["examples"]
    )
    assert {"2.wav", "3.wav", "4.wav"} <= set(left_out_of(out))
    rows = {line["id"]: line for line in cases.lines(out)}
    assert rows["0.wav"]["tags"] == ["dog", "fog"]
    assert rows["0.wav"]["tag_probabilities"] == [0.9, 0.31]
    assert rows["5.wav"]["tags"] == [] and rows["5.wav"]["tags_from"] == "file"
    assert rows["1.wav"]["tags"] == ["Church_bell", "unicorn"]
    assert rows["6.wav"]["tags_from"] == rows["8.wav"]["tags_from"] == "tagger"
    # As configs/blat.py reads it, from any folder.
    options = section(str(out))
    source = build_source(options.pop("kind"), "x", options)
    assert [source.id(i) for i in range(len(source))] == list(rows)
    assert source.captions(0) == rows["0.wav"]["captions"]
    assert source[0]["audio"] == str(sounds.parent / "0.wav")


def test_a_file_of_tags_that_is_not_there(models, sounds, tmp_path, capsys):
    out = tmp_path / "heard.jsonl"
    assert run(models, sounds, out, f"--tags={tmp_path / 'no.csv'}") == 0
    said = capsys.readouterr()
    assert f"warning: there is no file {tmp_path / 'no.csv'}" in said.err
    assert f"file of tags: there is none at {tmp_path / 'no.csv'}" in said.out
    assert report_of(out)["tag_file"]["found"] is False
    assert report_of(out)["tags_from"] == {"none": 5, "source": 4}


def test_without_tags(models, sounds, tmp_path, capsys):
    """The ablation: nothing guides, and no filter sees tags."""
    out = tmp_path / "heard.jsonl"
    assert run(models, sounds, out, "--no-tags", *ALL, "--min-tag-share=1") == 0
    assert "\ntags: off\n" in capsys.readouterr().out
    assert report_of(out)["tags_from"] == {"none": 9}
    assert {tuple(line["tags"]) for line in cases.lines(out)} == {()}
    dropped = {row["name"]: row["dropped"] for row in report_of(out)["filters"]}
    assert dropped["tags not named"] == 0


def test_sounds_alone(models, sounds, tmp_path):
    """A table with neither captions nor labels, for which a tagger is made."""
    table = tmp_path / "alone.csv"
    table.write_text(f"path\n{sounds.parent / '0.wav'}\n{sounds.parent / '6.wav'}\n")
    out = tmp_path / "heard.jsonl"
    tagger = f"--tagger={models / 'tagger'}"
    assert run(models, table, out, tagger, "--tag-rule=top1", *ALL) == 0
    assert report_of(out)["tags_from"] == {"tagger": 2}
    assert all(len(line["tags"]) == 1 for line in cases.lines(out))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model="], "--by=captioner needs --model"),
        (["--n=0"], "--n is 0, expected 1 or more"),
        (["--workers=0"], "--workers is 0"),
        (["--method=best"], "unknown method of decoding 'best'"),
        (["--n=3", "--beams=2"], "count is 3, expected at most 2"),
        (["--top-p=2", "--method=sample"], "top_p is 2.0, expected in (0, 1]"),
        (["--tag-rule=some"], "tags are to be chosen by 'some'"),
        (["--min-clap-score=0.1"], "--min-clap-score needs --clap"),
        (["--min-words=0"], "min_words is 0, expected a whole number from 1"),
        (["--min-words=few"], "'few' is no number, nor off"),
        (["--no-tags", "--tags=x.csv"], "--tags and --no-tags exclude each other"),
        (["--rules=none"], "--rules is not for --by=captioner"),
        (["--soft-tags"], "only a captioner with the guide 'keyword'"),
        (["--tagger=nowhere"], "there is no tagger nowhere"),
        (["--clap=nowhere"], "nowhere does not exist"),
        (["--of_its_own=1"], "unknown option --of_its_own=1"),
    ],
)
def test_options_that_cannot_be(models, sounds, tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit):
        run(models, sounds, tmp_path / "out.jsonl", *arguments)
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_what_is_not_written_over(models, sounds, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run(models, sounds, sounds)
    assert "exists, and was not written by --by=captioner" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run(models, sounds, tmp_path / "x.jsonl", f"--model={models / 'clap'}")
    assert "holds small_conv, which is no captioner" in capsys.readouterr().err


def test_criteria_are_options():
    """So that a new filter is an option at once."""
    options = command.make_parser().parse_args(["synthetic", "--out=y"])
    assert all(hasattr(options, row.option) for row in criteria.FILTERS)

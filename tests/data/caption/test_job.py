"""Captioning jobs: the same file, however often they are stopped."""

import json
import os
import random

import pytest

from data.caption import job
from data.caption.answers import Answer
from data.caption.clips import Clip
from data.caption.rules import Rules
from data.caption.templates import Templates
from tests.data.caption import cases

CLIPS = [Clip(name, tuple(tags)) for name, tags in cases.clips(50)]


class Stop(Exception):
    """What a writer of a test raises where it is killed."""


class FakeWriter:
    """Captions groups: every caption names the clips of its group. Clip 7's and every
    tenth clip's answers are no good."""

    def __init__(self, group=4, stop_after=None, model="fake", tries=2):
        self.group, self.asked = group, 0
        self._stop_after, self._model, self._tries = stop_after, model, tries

    def origin(self):
        settings = {"tries": self._tries}
        return {
            "kind": "t5",
            "model": self._model,
            "version": "1",
            "settings": settings,
        }

    def answers(self, clips):
        for start in range(0, len(clips), self.group):
            group = clips[start : start + self.group]
            for clip in group:
                if self.asked == self._stop_after:
                    raise Stop
                self.asked += 1
                number = int(clip.id[6:-4])
                text = f"His {clip.tags[0]} among {', '.join(c.id for c in group)}"
                if number % 10 == 0:
                    yield Answer("", ("empty", "too long"))
                else:
                    yield Answer(text, ("empty",) if number == 7 else (), "1.5")


def run(out, writer=None, clips=CLIPS, rules="neutral", template="laion"):
    writer = writer or FakeWriter()
    return job.run(clips, writer, Templates(template), Rules(rules), out)


@pytest.fixture
def whole(tmp_path):
    """The bytes of a result that was never stopped."""
    run(tmp_path / "whole.jsonl")
    return (tmp_path / "whole.jsonl").read_bytes()


def test_every_caption_has_an_origin(tmp_path):
    out = tmp_path / "made" / "captions.jsonl"
    summary = run(out)
    lines = cases.lines(out)
    assert [line["id"] for line in lines] == [clip.id for clip in CLIPS]
    rules = Rules("neutral").origin()
    own = {"kind": "t5", "model": "fake", "version": "1", "settings": {"tries": 2}}
    assert lines[7] == {
        "id": "clips/7.wav",
        "tags": list(CLIPS[7].tags),
        "caption": f"Their {CLIPS[7].tags[0]} among "
        + ", ".join(f"clips/{n}.wav" for n in range(4, 8)),
        "origin": own
        | {"version": "1.5", "broken": ["empty"]}
        | {"rules": {**rules, "applied": {"his > their": 1}}},
    }
    laion = Templates("laion")
    assert lines[10]["caption"] == Rules("neutral")(laion(CLIPS[10]))[0]
    origin = lines[10]["origin"]
    assert origin["kind"] == "template" and origin["model"] == "laion"
    assert origin["instead_of"] == own and origin["broken"] == ["empty", "too long"]

    assert summary.captions == 50
    assert summary.kinds == {"t5": 45, "template": 5} and summary.instead == 5
    assert summary.broken == {"empty": 6, "too long": 5}
    assert summary.changes["his > their"] == 45 and summary.changed >= 45
    assert sorted(os.listdir(tmp_path / "made")) == ["captions.jsonl"]


def test_stopped_anywhere_it_gives_the_same_file(tmp_path, whole):
    out = tmp_path / "captions.jsonl"
    part = tmp_path / "captions.jsonl.part"
    rng = random.Random(0)
    for stop_after in (0, 1, 5, 13):
        with pytest.raises(Stop):
            run(out, FakeWriter(stop_after=stop_after))
        assert not out.exists()
        # The last line may be torn, or the disk may have lost its end.
        content = part.read_bytes()
        part.write_bytes(content[: len(content) - rng.randrange(1 + len(content) // 3)])
    part.write_bytes(part.read_bytes() + b"\0\0\0\n")
    done = part.read_bytes().count(b"\n") - 1
    writer = FakeWriter()
    run(out, writer)
    assert out.read_bytes() == whole and not part.exists()
    # What was in whole groups was not asked for again.
    assert 50 - writer.asked == done - done % 4 > 0


def test_a_finished_job_is_not_done_again(tmp_path, whole):
    writer = FakeWriter(stop_after=0)
    summary = run(tmp_path / "whole.jsonl", writer)
    assert summary.captions == 50 and not writer.asked
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


@pytest.mark.parametrize(
    "options, message",
    [
        ({"writer": FakeWriter(model="other")}, "line 1 has model 'fake', not 'other'"),
        ({"writer": FakeWriter(tries=3)}, "line 1 has tries 2, not 3"),
        ({"rules": "none"}, "line 1 has rules {'table': 'neutral', .*, not {}"),
        ({"template": "plain"}, "line 1 has model 'laion', not 'plain'"),
        ({"clips": CLIPS[1:]}, "clip 'clips/0.wav' where 'clips/1.wav' is now"),
        ({"clips": CLIPS[:20]}, "line 21 has more than 20 captions"),
        (
            {"clips": [CLIPS[0]._replace(tags=("cat",)), *CLIPS[1:]]},
            "line 1 has clip 'clips/0.wav' with other labels",
        ),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_another_jobs_file_is_left_alone(tmp_path, options, message, finished):
    out = tmp_path / "captions.jsonl"
    if finished:
        run(out)
    else:
        with pytest.raises(Stop):
            run(out, FakeWriter(stop_after=30))
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(job.JobError, match=f"{message}: remove it to begin anew, or"):
        run(out, **options)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_a_finished_file_of_fewer_clips(tmp_path, whole):
    more = [*CLIPS, Clip("new.wav", ("dog",))]
    with pytest.raises(job.JobError, match="captions of 50 of the 51 clips"):
        run(tmp_path / "whole.jsonl", clips=more)
    assert (tmp_path / "whole.jsonl").read_bytes() == whole


def test_one_process_at_a_time(tmp_path):
    out = tmp_path / "captions.jsonl"

    class Second(FakeWriter):
        def answers(self, clips):
            with pytest.raises(job.JobError, match="another process is writing to"):
                run(out)
            return super().answers(clips)

    run(out, Second())
    assert len(cases.lines(out)) == 50


def test_names_of_files_that_are_no_text(tmp_path):
    clips = [Clip(os.fsdecode(b"caf\xe9.wav"), ("Café",))]
    out = tmp_path / "captions.jsonl"
    run(out, Templates("laion"), clips)
    (line,) = cases.lines(out)
    assert line["id"] == clips[0].id and line["caption"] == "The sound of café"
    assert run(out, Templates("laion"), clips).captions == 1
    assert json.loads(out.read_bytes()) == line

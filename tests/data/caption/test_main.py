"""The command, end to end: 10,000 clips, killed and run again, then trained on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clap_jax.pipeline.sources import build_source
from data.caption import __main__ as command
from data.caption.rules import Rules
from data.caption.templates import Templates
from tests.data.caption import cases

CLIPS = 10_000
T5 = ("--by=t5", "--beams=1", "--max-new-tokens=6", "--batch-size=128", "--max-words=5")


@pytest.fixture(scope="module")
def table(tmp_path_factory):
    """Ten thousand clips with labels, one in a hundred of them of 1.5 s."""
    path = tmp_path_factory.mktemp("table") / "clips.jsonl"
    seconds = [1.5 if number % 100 == 99 else 10.0 for number in range(CLIPS)]
    return cases.write_table(path, CLIPS, seconds=seconds)


def test_ten_thousand_by_template(table, tmp_path, capsys):
    out = tmp_path / "captions.jsonl"
    assert command.main([str(table), f"--out={out}"]) == 0
    lines = cases.lines(out)
    assert [(line["id"], line["tags"]) for line in lines] == cases.clips(CLIPS)
    laion = Templates("laion").origin()
    assert all(line["origin"] == laion for line in lines)
    assert lines[0]["caption"].startswith("The sound of ")
    assert lines[3]["caption"].startswith("The sounds of ")
    assert f"10,000 captions (template 10,000): {out}" in capsys.readouterr().out


def test_ten_thousand_by_t5_killed_and_run_again(table, tiny_t5, tmp_path, capsys):
    arguments = [str(table), f"--model={tiny_t5}", *T5]
    whole, out = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    assert command.main([*arguments, f"--out={whole}"]) == 0
    said = capsys.readouterr().out
    assert "9,900 captions (t5 " in said and "left out: 100 clips below 2 s" in said

    group = 16 * 128
    size = sum(map(len, whole.read_bytes().splitlines(keepends=True)[:group]))
    killed = kill_behind([*arguments, f"--out={out}"], Path(f"{out}.part"), size)
    assert group < killed < 9900 and not out.exists()
    assert command.main([*arguments, f"--out={out}"]) == 0
    assert out.read_bytes() == whole.read_bytes()

    lines = cases.lines(whole)
    wanted = [name for n, (name, _) in enumerate(cases.clips(CLIPS)) if n % 100 != 99]
    assert [line["id"] for line in lines] == wanted
    rules = Rules("neutral").origin()
    kinds = {line["origin"]["kind"] for line in lines}
    assert kinds == {"t5", "template"}
    for line in lines:
        origin = line["origin"]
        assert line["caption"].strip() and rules.items() <= origin["rules"].items()
        assert "man " not in line["caption"]
        if origin["kind"] == "t5":
            assert origin["model"] == str(tiny_t5) and len(origin.get("broken", ())) < 3
        else:
            assert origin["instead_of"]["kind"] == "t5" and len(origin["broken"]) == 3

    # And trained on, beside the table's own labels.
    options = {"path": str(table), "check_files": False, "generated": str(whole)}
    source = build_source("manifest", "x", options | {"captions": "augment_only"})
    assert source.captions(0) == [lines[0]["caption"]]
    assert source.captions(99) == list(cases.clips(CLIPS)[99][1])
    assert "for 9,900 clips, none for 100; 0 more" in source.description()


def kill_behind(arguments, part, size):
    """Run the command, kill it once it has written more than so many bytes; returns how
    many lines there were."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-m", "data.caption", *arguments]
    process = subprocess.Popen(program, env=environment, cwd=Path(__file__).parents[3])
    try:
        while process.poll() is None:
            if part.exists() and part.stat().st_size > size:
                break
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert process.returncode == -signal.SIGKILL
    return part.read_bytes().count(b"\n")


def test_by_an_endpoint(serve, tmp_path, capsys, monkeypatch):
    server = serve({1: [500, b"no JSON", "A man hears sound 1."], 2: [""] * 3})
    table = tmp_path / "clips.csv"
    rows = [f"{n}.wav,sound {n}" for n in range(5)]
    table.write_text("\n".join(["path,label", *rows]) + "\n")
    (tmp_path / "prompt.txt").write_text("Say {}, please, in a sentence\n")
    monkeypatch.setenv("MY_KEY", "secret")
    out = tmp_path / "captions.jsonl"
    arguments = [str(table), f"--out={out}", "--by=endpoint", f"--url={server.url}"]
    arguments += ["--model=tiny", "--key-variable=MY_KEY", "--patience-seconds=5"]
    arguments += ['--body={"top_p": 0.5}']
    arguments += [f"--prompt=@{tmp_path / 'prompt.txt'}"]
    assert command.main(arguments) == 0
    assert [line["caption"] for line in cases.lines(out)] == [
        "One hears sound 0 and rain.",
        "A person hears sound 1.",
        "The sound of sound 2",
        "One hears sound 3 and rain.",
        "One hears sound 4 and rain.",
    ]
    assert (
        server.requests[0]["key"] == "Bearer secret" and "secret" not in out.read_text()
    )
    assert server.requests[0]["body"]["messages"][0]["content"].startswith("Say sound ")
    said = capsys.readouterr().out
    assert "broken answers: empty 3, no JSON of a chat completion 1\n" in said
    assert "captions of the template, where no answer was good: 1\n" in said
    assert "by the rules neutral: 1 in 1 captions: man > person 1\n" in said
    assert "clips of unknown length, not left out: 5\n" in said
    assert said.endswith(f"5 captions (endpoint 4, template 1): {out}\n")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--by=t5"], "--by=t5 needs --model"),
        (["--by=endpoint", "--model=x"], "--by=endpoint needs --url"),
        (["--templates=lion"], "did you mean 'laion'"),
        (["--rules=neutrl"], "did you mean 'neutral'"),
        (["--prompt=no place"], "must have {} in it exactly once"),
        (["--tries=0"], "--tries is 0, expected 1 or more"),
        (["--temperature=-1"], "--temperature is -1, expected 0 or more"),
        (["--timeout-seconds=0"], "--timeout-seconds is 0"),
        (
            ["--by=endpoint", "--model=x", "--url=x"],
            "expected one such as http://local",
        ),
        (
            ["--by=endpoint", "--model=x", "--url=http://x/v1", "--body=[]"],
            "--body is '[]', expected an object",
        ),
        (["--by=poem"], "invalid choice: 'poem'"),
    ],
)
def test_mistakes_are_sentences(tmp_path, capsys, arguments, message):
    table = cases.write_table(tmp_path / "clips.jsonl", 2)
    with pytest.raises(SystemExit) as caught:
        command.main([str(table), f"--out={tmp_path / 'out.jsonl'}", *arguments])
    assert caught.value.code in (1, 2)
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error
    assert not (tmp_path / "out.jsonl").exists()


def test_progress_and_a_stop(tmp_path, capsys, monkeypatch):
    table = cases.write_table(tmp_path / "clips.jsonl", 3)
    arguments = [str(table), f"--out={tmp_path / 'out.jsonl'}"]

    def stop(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(command.job, "run", stop)
        assert command.main(arguments) == 130
    assert "stopped; the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(command, "PROGRESS_SECONDS", 0.0)
    assert command.main(arguments) == 0
    said = capsys.readouterr().err
    assert "template: 0 of 3" in said and "template: 3 of 3" in said


def test_data_that_is_not_there(tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(tmp_path / "no.csv"), f"--out={tmp_path / 'out.jsonl'}"])
    assert "no.csv: No such file" in capsys.readouterr().err

"""A stand-in for a machine: the launch scripts, and programs that only write down calls."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]

# What the scripts may use; no other program of this machine can be reached.
TOOLS = (
    "bash cat cksum cp cut dirname env find flock git grep gzip head hostname kill "
    "mkdir mv nohup rm setsid sh sleep tail tar tee touch tr wc"
)

# Arguments that a shell, YAML or Kubernetes would change if they were not quoted.
HARD_ARGUMENTS = [
    "--config=configs/a b.py:x=1",
    """--config.data.sources=[{"kind": "manifest", "path": 'it''s'}]""",
    "$HOME ${NAME} $(date) `date` $$ \\n \\",
    "* ? ~ # & | ; < > !! %j",
    "",
    "two\nlines\tand a tab",
    "-- --dry-run",
    "ä",
]

PROGRAM = """#!{python} -IS
import json, os, subprocess, sys
name, arguments = os.path.basename(sys.argv[0]), sys.argv[1:]
with open({folder!r} + "/answers.json") as file:
    rules = json.load(file).get(name, [])
line = " ".join(arguments)
number = next((n for n, (part, _) in enumerate(rules) if part in line), None)
log = {folder!r} + "/calls"
before = 0
if os.path.exists(log):
    with open(log) as file:
        before = sum(json.loads(l)[:2] == [name, number] for l in file)
piped = sys.stdin.read() if arguments[-1:] == ["--filename=-"] else ""
with open(log, "a") as file:
    file.write(json.dumps([name, number, arguments, piped]) + "\\n")
status, text = 0, ""
if number is not None:
    answers = rules[number][1]
    status, text = answers[min(before, len(answers) - 1)]
if text == "shell":  # what ssh would do on the other side
    command = next(a for a in arguments if a.startswith("--command="))
    worker = {folder!r} + "/worker"
    os.environ["HOME"] = worker
    sys.exit(subprocess.run(["sh", "-c", command[10:]], cwd=worker).returncode)
sys.stdout.write(text)
sys.exit(status)
"""


class Machine:
    """A clone of the launch folder, and fake programs beside the tools it needs."""

    def __init__(self, folder: Path):
        self.folder, self.bin = folder, folder / "bin"
        self.clone = folder / "some where" / "clap_jax"
        self.bin.mkdir()
        (folder / "worker").mkdir()
        shutil.copytree(REPOSITORY / "launch", self.clone / "launch")
        shutil.copy(REPOSITORY / "setup.cfg", self.clone)
        for tool in TOOLS.split():
            (self.bin / tool).symlink_to(shutil.which(tool) or "missing")
        (self.bin / "python3").symlink_to(sys.executable)
        self._answers = {}

    def add(self, name: str, *rules, at: Path | None = None) -> None:
        """A program that writes down its calls.

        rules: (part of the command line, answer, answer ...), the first that fits; an
            answer is a status, a text on standard output, both, or "shell" (run
            --command). The last answer stays.
        """
        program = (at or self.bin) / name
        program.parent.mkdir(parents=True, exist_ok=True)
        program.write_text(
            PROGRAM.format(python=sys.executable, folder=f"{self.folder}")
        )
        program.chmod(0o755)
        both = {int: lambda a: (a, ""), str: lambda a: (0, a), tuple: tuple}
        pairs = [(part, [both[type(a)](a) for a in rest]) for part, *rest in rules]
        self._answers[name] = pairs
        (self.folder / "answers.json").write_text(json.dumps(self._answers))

    def add_python(self, *statuses: int, clone: Path | None = None) -> None:
        """An installed .venv whose Python ends with these statuses, one after another."""
        binaries = (clone or self.clone) / ".venv" / "bin"
        self.add("python", ("clap_jax.main", *(statuses or (0,))), at=binaries)

    def commit(self) -> None:
        git = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", "-C", self.clone]
        subprocess.run([*git, "init", "--quiet"], check=True)
        (self.clone / ".gitignore").write_text("dist/\n.venv/\n")
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "--quiet", "-m", "all"], check=True)

    def start(self, command, **variables):
        environ = {"PATH": str(self.bin), "HOME": str(self.folder / "home")} | variables
        return subprocess.run(
            [str(word) for word in command],
            capture_output=True,
            check=False,
            text=True,
            cwd=self.folder,
            env={"LANG": os.environ.get("LANG", "C.UTF-8")} | environ,
            timeout=60,
        )

    def run(self, script: str, *arguments: str, **variables):
        return self.start([self.clone / "launch" / script, *arguments], **variables)

    def calls(self, name: str = "") -> list[list[str]]:
        """Arguments of the calls of one fake program, or [program, *arguments] of all."""
        log = self.folder / "calls"
        lines = log.read_text().splitlines() if log.exists() else []
        calls = [json.loads(line) for line in lines]
        if name:
            return [arguments for program, _, arguments, _ in calls if program == name]
        return [[program, *arguments] for program, _, arguments, _ in calls]

    def piped(self) -> list[str]:
        """What came on standard input, call by call."""
        lines = (self.folder / "calls").read_text().splitlines()
        return [text for *_, text in map(json.loads, lines) if text]

    def installation(self, extras: str) -> list[str]:
        """The lines of --dry-run that make .venv."""
        python, pins = f"{self.clone}/.venv/bin/python", "launch/constraints.txt"
        quiet = "--quiet --disable-pip-version-check"
        constrained = f"-c '{self.clone}/{pins}' -e"
        return [
            f"python3 -m venv '{self.clone}/.venv'",
            f"'{python}' -m pip install {quiet} {constrained} '{self.clone}{extras}'",
        ]

    def forget(self) -> None:
        (self.folder / "calls").unlink(missing_ok=True)

    def files(self) -> dict[str, bytes]:
        """Every file below, to see that nothing was touched."""
        return {
            str(path.relative_to(self.folder)): path.read_bytes()
            for path in sorted(self.folder.rglob("*"))
            if path.is_file() and path.parent != self.bin
        }


def main_arguments(calls: list[list[str]]) -> list[list[str]]:
    """What clap_jax.main got, in those calls that started it."""
    return [c[2:] for c in calls if c[:2] == ["-m", "clap_jax.main"]]

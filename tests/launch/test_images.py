"""The Dockerfiles, read: no image is built here."""

import json
import re
import shutil
from fnmatch import fnmatch

import pytest

from tests.launch.machine import REPOSITORY

IMAGES = ["cuda", "tpu"]
# What a RUN line starts with is there in a slim Python image.
PROGRAMS = {"useradd", "python", "touch"}


def instructions(image):
    text = (REPOSITORY / "launch" / f"Dockerfile.{image}").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip()]
    return [(name, " ".join(rest.split())) for name, rest in lines]


def ignored():
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def is_ignored(path):
    parts = path.split("/")
    return any(
        fnmatch("/".join(parts[: n + 1]), pattern.removeprefix("**/"))
        or (pattern.startswith("**/") and parts[n] == pattern[3:])
        for pattern in ignored()
        for n in range(len(parts))
    )


@pytest.mark.parametrize("image", IMAGES)
def test_runs_main_as_an_ordinary_user(image):
    steps = instructions(image)
    assert steps[0] == ("FROM", "python:3.11-slim")
    assert steps[-1][0] == "ENTRYPOINT"
    assert json.loads(steps[-1][1]) == ["python", "-m", "clap_jax.main"]
    [user] = [rest for name, rest in steps if name == "USER"]
    assert user == "clap"
    assert steps[-2] == ("USER", user)
    made = [rest for name, rest in steps if name == "RUN" and "useradd" in rest]
    assert made[0].split()[-1] == user
    for name, rest in steps:
        assert name != "RUN" or rest.split()[0] in PROGRAMS


@pytest.mark.parametrize("image", IMAGES)
def test_installs_the_pinned_versions(image):
    [install] = [r for name, r in instructions(image) if name == "RUN" and "pip" in r]
    assert "--constraint=launch/constraints.txt" in install
    assert f'--editable=".[{image}]"' in install
    for file in re.findall(r"--constraint=(\S+)", install):
        pins = (REPOSITORY / file).read_text().splitlines()
        pins = [pin for pin in pins if not pin.startswith("#")]
        assert all(pin.count("==") == 1 for pin in pins)


@pytest.mark.parametrize("image", IMAGES)
def test_what_is_copied_is_there_and_not_ignored(image, tmp_path):
    """And what is there before the installation is enough to read the package's data."""
    steps = instructions(image)
    copies = [rest.split() for name, rest in steps if name == "COPY"]
    assert copies[-1] == [".", "."]
    for *sources, target in copies[:-1]:
        for source in sources:
            assert (REPOSITORY / source).is_file(), source
            assert not is_ignored(source), source
            (tmp_path / target).mkdir(exist_ok=True)
            shutil.copy(REPOSITORY / source, tmp_path / target)
    # An edit of the README is no reason to install again.
    assert not (tmp_path / "README.md").exists()
    for name, rest in steps:
        if name == "RUN" and rest.startswith("touch "):
            (tmp_path / rest.removeprefix("touch ")).touch()
    assert (tmp_path / "clap_jax" / "__init__.py").is_file()
    project = (tmp_path / "setup.cfg").read_text()
    for named in re.findall(r"(?:file: |license_files = )(\S+)", project):
        assert (tmp_path / named).is_file(), named
    for file in ("clap_jax/main.py", "configs/quickstart.py", "launch/worker.sh"):
        assert not is_ignored(file)
    for file in (".git/HEAD", ".venv/bin/python", "clap_jax/audio/__pycache__/a.pyc"):
        assert is_ignored(file)

"""The parts of COCO's caption evaluation that are programs in Java: the Penn Treebank
tokenizer, METEOR and SPICE. All are optional.

The programs come with the package pycocoevalcap, but for Stanford CoreNLP 3.6.0, which
SPICE parses with. They are started here and not through the package's classes, which
write beside their own code, ignore how a program ended, and wait for ever when it died.
"""

import contextlib
import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from clap_jax.evals.caption_words import PUNCTUATION

PACKAGE = "pycocoevalcap"
INSTALL = "pip install -e .[caption_metrics]"
TOKENIZER = "tokenizer/stanford-corenlp-3.4.1.jar"
METEOR = "meteor/meteor-1.5.jar"
SPICE = "spice/spice-1.0.jar"
SPICE_PARSER = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
_GET_PARSER = (
    "from pycocoevalcap.spice.get_stanford_models import get_stanford_models as get"
)

# Beyond it a program hangs: SPICE, the slowest, does ten captions a second.
TIMEOUT_SECONDS = 3600


class JavaError(RuntimeError):
    """A program that is missing, or that failed; says what would help."""


def tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The words of captions by Stanford's tokenizer, as COCO's evaluation takes them.

    Raises JavaError.
    """
    # A caption is a line.
    lines = [" ".join(caption.split()) for caption in captions]
    arguments = ["-cp", _file(TOKENIZER), "edu.stanford.nlp.process.PTBTokenizer"]
    options = ["-preserveLines", "-lowerCase", "-encoding", "UTF-8"]
    text = "".join(f"{line}\n" for line in lines).encode(errors="replace")
    ran = _run([*arguments, *options], "the tokenizer", text)
    found = ran.decode().split("\n")[:-1]
    if len(found) != len(lines):
        raise JavaError(
            f"the tokenizer gave {len(found)} lines for {len(lines)} captions"
        )
    return [
        [word for word in line.split() if word not in PUNCTUATION] for line in found
    ]


def meteor(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> tuple[float, np.ndarray]:
    """METEOR 1.5 (Denkowski and Lavie 2014), with its tables for English.

    Args:
        candidates: the words of a caption for each clip.
        references: of each clip, the words of its captions.

    Returns:
        METEOR of all clips together, which is not the mean, and of each, float64 [n].

    Raises JavaError.
    """
    scores = []
    with _meteor_process() as ask:
        statistics = []
        for caption, own in zip(candidates, references, strict=True):
            parts = [*own, caption]
            statistics.append(ask(" ||| ".join(["SCORE", *map(_spaced, parts)])))
        scores.append(ask(" ||| ".join(["EVAL", *statistics])))
        # The last one is of all together.
        scores += [ask() for _ in candidates]
    *each, together = map(float, scores)
    return together, np.array(each)


def _spaced(caption: Sequence[str]) -> str:
    """Words as METEOR reads them; what it takes for a separator is left out."""
    return " ".join(word for word in caption if "|||" not in word)


@contextlib.contextmanager
def _meteor_process() -> Iterator:
    """METEOR as a function from a line (none: to read on) to the next line it says."""
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    command = [_java(), "-Xmx2G", "-jar", _file(METEOR), *options]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
        ) as process,
    ):

        def ask(line: str = "") -> str:
            with contextlib.suppress(BrokenPipeError):
                if line:
                    process.stdin.write(f"{line}\n")
                    process.stdin.flush()
            said = process.stdout.readline()
            if not said:
                process.wait()
                errors.seek(0)
                raise JavaError(_words("METEOR", errors.read()))
            return said.strip()

        try:
            yield ask
        finally:
            process.kill()
            # What it did not read is no further error.
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()


def spice(
    candidates: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]
) -> np.ndarray:
    """SPICE (Anderson et al. 2016, arXiv 1607.08822) of each clip, float64 [n].

    The F1 of objects, attributes and relations; 0 where a caption has none. Arguments as
    for `meteor`. Needs `SPICE_PARSER` beside the package's own libraries, and up to 8 GB.

    Raises JavaError.
    """
    problem = spice_problem()
    if problem:
        raise JavaError(problem)
    rows = [
        {"image_id": i, "test": _spaced(caption), "refs": [_spaced(one) for one in own]}
        for i, (caption, own) in enumerate(zip(candidates, references, strict=True))
    ]
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "in.json"), Path(folder, "out.json")
        asked.write_text(json.dumps(rows))
        arguments = ["-Xmx8G", "-jar", _file(SPICE), str(asked), "-out", str(answered)]
        _run([*arguments, "-silent"], "SPICE")
        try:
            found = json.loads(answered.read_text())
            scores = {row["image_id"]: row["scores"]["All"]["f"] for row in found}
            values = [float(scores[i]) for i in range(len(rows))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaError(f"SPICE wrote no scores of all clips: {error!r}") from None
    return np.nan_to_num(np.array(values, np.float64))


def problem() -> str:
    """What the programs lack, "" for nothing."""
    try:
        _java(), _file(TOKENIZER), _file(METEOR)
    except JavaError as error:
        return str(error)
    return ""


def spice_problem() -> str:
    """What SPICE lacks, "" for nothing."""
    missing = problem()
    if missing:
        return missing
    folder = Path(_file(SPICE)).with_name("lib")
    lacking = [name for name in SPICE_PARSER if not (folder / name).is_file()]
    if lacking:
        return (
            f"SPICE needs Stanford CoreNLP 3.6.0: {' and '.join(lacking)} in {folder}; "
            f'python -c "{_GET_PARSER}; get()" downloads them'
        )
    return ""


def package_problem() -> str:
    """Why the package cannot be used, "" if it can."""
    if importlib.util.find_spec(PACKAGE) is None:
        return f"the package {PACKAGE} is missing: {INSTALL}"
    return ""


def _java() -> str:
    """The program; JAVA_HOME comes before PATH."""
    home = os.environ.get("JAVA_HOME", "")
    found = home and shutil.which("java", path=os.path.join(home, "bin"))
    found = found or shutil.which("java")
    if not found:
        raise JavaError(
            "Java is missing (no java in PATH, nor in JAVA_HOME): install a Java runtime, "
            "such as Debian's default-jre-headless"
        )
    return found


def _file(name: str) -> str:
    """The path of a file of the package."""
    missing = package_problem()
    if missing:
        raise JavaError(missing)
    (folder, *_) = importlib.util.find_spec(PACKAGE).submodule_search_locations
    path = Path(folder, name)
    if not path.is_file():
        raise JavaError(f"{path} is missing: install {PACKAGE} again")
    return str(path)


def _run(arguments: Sequence[str], what: str, text: bytes = b"") -> bytes:
    """What a program writes to standard output."""
    try:
        ran = subprocess.run(
            [_java(), *arguments],
            input=text,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(f"{what} did not run: {error}") from None
    if ran.returncode:
        raise JavaError(_words(what, ran.stderr))
    return ran.stdout


def _words(what: str, errors: bytes) -> str:
    """The first thing that a program which failed complained of."""
    said = errors.decode(errors="replace").strip().splitlines()
    return f"{what} failed: {said[0]:.200}" if said else f"{what} ended without a word"

"""From the table of tasks to the config's `evals`, with what is absent listed as such."""

import json
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clap_jax import config as config_lib
from clap_jax import remote
from clap_jax.evals import bootstrap
from clap_jax.evals.task import Task
from clap_jax.evals.tasks import NO_CAPTIONER, SUITES, TASKS
from clap_jax.pipeline import tfds

ALL = "all"


def sections(
    suite: str = "msclap",
    *,
    data_dir: str = "",
    tasks: Sequence[str] = (),
    sources: Mapping[str, Mapping[str, Any]] | None = None,
    fold: int = 0,
    accept: Sequence[str] = (),
    crop_seed: int | None = None,
    batch_size: int = 64,
    draws: int = bootstrap.DRAWS,
) -> dict[str, dict[str, Any]]:
    """The entries of `evals` for the tasks of a suite.

    suite: a key of `SUITES`, several joined by "+", or "all" but the small ones.
    data_dir: where data sets are; "": TFDS_DATA_DIR, or ~/tensorflow_datasets.
    tasks: these tasks alone, of whatever suite.
    sources: task -> the section of its source, in place of the table's.
    fold: one fold of those data sets that have some, in place of all.
    accept: known traps that are no reason to refuse, from `traps.TRAPS`.
    crop_seed: random crops of longer clips, as LAION's and MS-CLAP's scripts take them.

    Tasks whose data is not there, or that cannot be done yet, are entries of kind
    "absent". Raises ConfigError for unknown suites, tasks and sources of no task.
    """
    sources = dict(sources or {})
    chosen = _chosen(suite, tasks)
    unknown = [name for name in sources if name not in TASKS]
    if unknown:
        raise config_lib.ConfigError(
            config_lib.unknown("task in sources", unknown[0], TASKS)
        )
    data_dir = os.path.expanduser(data_dir or tfds.default_data_dir())
    found = {}
    for task in chosen:
        section = {"about": about(task)}
        if task.kind == "captioning":
            found[task.name] = section | {"kind": "absent", "reason": NO_CAPTIONER}
            continue
        source = dict(sources.get(task.name) or _source(task, data_dir, fold))
        missing = what_is_missing(source)
        if missing:
            section |= {"kind": "absent", "reason": missing}
            if source["kind"] == "tfds":
                section["prepare"] = _command(source)
            found[task.name] = section
            continue
        section |= {"kind": task.kind, "source": {"name": task.dataset} | source}
        section |= {"batch_size": batch_size, "draws": draws, **task.options}
        section |= {} if crop_seed is None else {"crop_seed": crop_seed}
        clips = task.clips or _listed_clips(source)
        numbers = {"clips": clips, "classes": task.classes}
        official = {name: number for name, number in numbers.items() if number}
        section["official"] = official | dict(task.options.get("official", {}))
        section["accept"] = tuple(accept)
        found[task.name] = section
    return found


def read_sources(path: str) -> dict[str, dict[str, Any]]:
    """The JSON file that gives tasks other sources. Raises ConfigError."""
    try:
        content = json.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise config_lib.ConfigError(f"sources={path}: {error}") from None
    for name, source in content.items() if isinstance(content, dict) else [("", None)]:
        if not isinstance(source, dict) or "kind" not in source:
            raise config_lib.ConfigError(
                f"sources={path}: expected {{task: source}}, each source a table with "
                f"kind, found {name or content!r}: {source!r:.60}"
            )
    return content


def about(task: Task) -> dict[str, Any]:
    """What a result says of its task: metric, official data, reasons, published."""
    said = {
        "metric": task.metric,
        "dataset": f"{task.dataset} {task.split}".strip(),
        "covers": task.covers,
        "reasons": dict(task.reasons),
        "published": dict(task.published),
    }
    return {name: value for name, value in said.items() if value}


def what_is_missing(source: Mapping[str, Any]) -> str:
    """A sentence if the data of a source is not there at all; "" if it is.

    Data that is there but broken is no matter of this: reading it raises.
    """
    if source["kind"] == "tfds":
        return _missing_tfds(source)
    path = source.get("path")
    if not isinstance(path, str) or remote.is_remote(path) or set("*?[{") & set(path):
        return ""
    there = os.path.exists(os.path.expanduser(path))
    return "" if there else f"there is no {path}"


def _missing_tfds(source: Mapping[str, Any]) -> str:
    """A sentence if the data set is not there, or lacks a split; "" if it is whole."""
    data_dir, dataset, folder = _place(source)
    if folder is None:
        return f"{dataset} is not prepared in {data_dir}"
    there = _splits_there(folder)
    missing = [name for name in _splits(source) if name not in (*there, ALL)]
    if missing:
        return (
            f"{dataset} in {data_dir} has no split {missing[0]} "
            f"(there: {', '.join(sorted(there))})"
        )
    return ""


def _place(source: Mapping[str, Any]) -> tuple[str, str, Path | None]:
    """Where data sets are, which one is meant, and its folder if it is prepared."""
    data_dir = os.path.expanduser(source.get("data_dir") or tfds.default_data_dir())
    try:
        folder = Path(tfds.find(source["dataset"], data_dir))
    except tfds.TfdsError:
        folder = None
    return data_dir, source["dataset"], folder


def _splits_there(folder: Path) -> list[str]:
    """The splits of a prepared data set."""
    return [
        own["name"] for own in json.loads((folder / tfds.INFO).read_text())["splits"]
    ]


def _splits(source: Mapping[str, Any]) -> list[str]:
    """The splits that a source takes something of."""
    wanted = source.get("split", "train")
    return [part.partition("[")[0] for part in wanted.split("+")]


def _command(source: Mapping[str, Any]) -> str:
    """What prepares a source that is missing, and keeps the splits that are there."""
    data_dir, dataset, folder = _place(source)
    command = ["python", "-m", "data.prepare", dataset, f"--data_dir={data_dir}"]
    if folder is not None:
        splits = dict.fromkeys((*_splits_there(folder), *_splits(source)))
        command += ["--overwrite", f"--splits={','.join(splits)}"]
    return shlex.join(command)


def _listed_clips(source: Mapping[str, Any]) -> int:
    """How many clips a prepared set's own list names, of which some may not be there;
    0 where that is not known."""
    if source["kind"] != "tfds":
        return 0
    *_, folder = _place(source)
    listed = tfds.listed_clips(folder)
    splits = _splits(source)
    if ALL in splits:
        splits = _splits_there(folder)
    return sum(listed.get(name, 0) for name in splits)


def _chosen(suite: str, tasks: Sequence[str]) -> list[Task]:
    """The tasks that are asked for, in the order of the table."""
    for name in tasks:
        if name not in TASKS:
            raise config_lib.ConfigError(config_lib.unknown("task", name, TASKS))
    if tasks:
        return [task for task in TASKS.values() if task.name in tasks]
    suites = set(suite.split("+"))
    for name in sorted(suites - {ALL}):
        if name not in SUITES:
            raise config_lib.ConfigError(
                config_lib.unknown("suite", name, (*SUITES, ALL))
            )
    if ALL in suites:
        suites |= set(SUITES) - {"small"}
    return [task for task in TASKS.values() if suites & set(task.suites)]


def _source(task: Task, data_dir: str, fold: int) -> dict[str, Any]:
    """The table's own source of a task, all of it or one fold."""
    if task.fold_splits and not 0 <= fold <= task.fold_splits:
        raise config_lib.ConfigError(
            f"{task.name} has the folds 1 to {task.fold_splits}, no fold {fold}"
        )
    if task.source:
        source = dict(task.source)
        source["path"] = source["path"].format(data_dir=data_dir)
        if fold and task.fold_splits:
            source["where"] = {"fold": (str(fold),)}
        return source
    split = f"fold{fold}" if fold and task.fold_splits else task.split
    return {
        "kind": "tfds",
        "dataset": task.dataset,
        "split": split,
        "data_dir": data_dir,
    }

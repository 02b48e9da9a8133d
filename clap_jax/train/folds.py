"""Cross-validation: the run of a config once for each of its folds, and their means."""

import copy
import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from clap_jax import checkpoint, hosts
from clap_jax import config as config_lib
from clap_jax.evals import Result, report, runs, tables
from clap_jax.train import examine, loop

# In a fold's folder once its run has ended: the config that it was trained by.
TRAINED = "trained.json"


@dataclasses.dataclass(frozen=True)
class Fold:
    """One entry of `config.folds`, see there."""

    name: str
    train: Any
    test: Any

    @property
    def folder(self) -> str:
        """Where its run lies in the workdir."""
        return "fold_" + re.sub(r"[^\w.-]+", "_", self.name)


def train(config: ConfigDict, workdir: Path) -> dict[str, Result]:
    """Train as the config says: one run or, where it has `folds`, one of each.

    Every fold has a workdir of its own inside `workdir`, a run like any other: what was
    stopped goes on, and what has ended is not run again. Returns the evaluations, of
    folds their means and each. Raises as `loop.train`, and ConfigError for folds that
    cannot be and for a workdir that is one run's.
    """
    if not config.folds:
        return loop.train(config, workdir)

    def once(own: ConfigDict, folder: Path) -> None:
        trained, text = folder / TRAINED, config_lib.to_json(own)
        known = trained.is_file() and trained.read_text() == text
        if hosts.from_first(np.array([known]))[0]:
            logging.info("it has ended before")
            return
        loop.train(own, folder)
        if jax.process_index() == 0:
            config_lib.write_text(trained, text)

    return _each(config, workdir, once)


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Result]:
    """`--mode=eval`, likewise: of each fold the newest model is evaluated again."""
    if not config.folds:
        return examine.evaluate(config, workdir)
    return _each(config, workdir, examine.evaluate)


def _each(
    config: ConfigDict, workdir: Path, once: Callable[[ConfigDict, Path], Any]
) -> dict[str, Result]:
    """Do something in the workdir of each fold, then report on all."""
    folds = read(config)
    if checkpoint.has_steps(workdir):
        raise config_lib.ConfigError(
            f"{workdir} has the checkpoints of one run, and the config has "
            f"{len(folds)} folds: use another --workdir"
        )
    for number, fold in enumerate(folds, 1):
        folder = workdir / fold.folder
        logging.info(
            "fold %s, %d of %d: in %s", fold.name, number, len(folds), fold.folder
        )
        once(of_fold(config, fold), folder)
    if jax.process_index() != 0:
        return {}
    found = {fold.name: runs.read(workdir / fold.folder) for fold in folds}
    results = summary(found)
    first = found[folds[0].name]
    context = {
        **{key: first.context.get(key) for key in ("model", "seed", "clip")},
        "folds": [fold.folder for fold in folds],
    }
    report.write_results(workdir, results, context)
    report.write_report(workdir, results, None, context, title=str(context["model"]))
    report.print_table(results)
    logging.info("all %d folds are in %s", len(folds), workdir)
    return results


def read(config: ConfigDict) -> list[Fold]:
    """The folds of a config. Raises ConfigError where they cannot be."""
    folds = [
        config_lib.build(Fold, section, f"folds[{number}]")
        for number, section in enumerate(config.folds)
    ]
    folders = [fold.folder for fold in folds]
    twice = {fold.name for fold in folds if folders.count(fold.folder) > 1}
    if twice:
        raise config_lib.ConfigError(
            f"folds {', '.join(sorted(twice))} have one folder: give each its own name"
        )
    return folds


def of_fold(config: ConfigDict, fold: Fold) -> ConfigDict:
    """The config of a fold's run."""
    own = copy.deepcopy(config)
    own.folds = ()
    own.data.sources = tuple(
        _chosen(section, fold.train) for section in config.data.sources
    )
    for name, section in config.evals.items():
        if "source" in section:
            own.evals[name].source = _chosen(section["source"], fold.test)
    return own


def _chosen(source: Mapping[str, Any], where: Mapping[str, Any]) -> dict[str, Any]:
    """A source, of rows that `where` asks for as well."""
    source = config_lib.plain(source)
    return source | {"where": {**source.get("where", {}), **config_lib.plain(where)}}


def summary(found: Mapping[str, runs.Run]) -> dict[str, Result]:
    """Of each evaluation the means over folds, and those of each fold behind them.

    Every fold counts as much as any other; bad clips are added up. The first metric
    that is a share has its deviation between folds (root of the mean square), under its
    name with `_deviation`.
    """
    results = {}
    for evaluation in runs.evaluations_of(list(found.values())):
        entries = {
            fold: run.evals[evaluation]
            for fold, run in found.items()
            if evaluation in run.evals
        }
        results[evaluation] = _mean(entries)
        for fold, entry in entries.items():
            results[f"{evaluation}, fold {fold}"] = Result(
                entry["metrics"],
                intervals={key: tuple(v) for key, v in entry["intervals"].items()},
                protocol=entry["protocol"],
            )
    return results


def _mean(entries: Mapping[str, Mapping[str, Any]]) -> Result:
    """The means over the folds of one evaluation."""
    each = [entry["metrics"] for entry in entries.values()]
    values = {
        key: [metrics[key] for metrics in each if key in metrics]
        for key in dict.fromkeys(key for metrics in each for key in metrics)
    }
    bad = values.pop("bad_clips", None)
    metrics = {key: float(np.mean(own)) for key, own in values.items()}
    headline = tables.headline(list(metrics))
    if headline and len(entries) > 1:
        metrics[f"{headline}_deviation"] = float(np.std(values[headline]))
    if bad is not None:
        metrics["bad_clips"] = float(sum(bad))
    protocols = [entry["protocol"] for entry in entries.values()]
    common = {
        key: value
        for key, value in protocols[0].items()
        if all(protocol.get(key) == value for protocol in protocols)
    }
    if all("clips" in protocol for protocol in protocols):
        common["clips"] = sum(protocol["clips"] for protocol in protocols)
    return Result(metrics, protocol=common | {"means_over_folds": list(entries)})

"""`--mode=eval`, and what training and it do with results."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

import clap_jax
from clap_jax import checkpoint, hosts, sharding
from clap_jax import config as config_lib
from clap_jax.evals import Result, hear, kept, report
from clap_jax.evals.absent import Absent
from clap_jax.train import evaluations, starts
from clap_jax.train import experiment as experiment_lib
from clap_jax.train.experiment import Experiment
from clap_jax.writer import METRICS_FILE

FINISHED = "finished"
"""Where `--mode=eval` keeps each result, in the workdir, until all are there."""


class Refused(RuntimeError):
    """Some evaluations of several could not be done; the others were."""


def evaluate(config: ConfigDict, workdir: Path) -> dict[str, Result]:
    """`--mode=eval`: every evaluation of the config on the workdir's newest model, or
    where it has none, on that of `init_from`, just as it is; with `model` "none" on no
    model at all.

    Stopped or killed, it goes on behind the last evaluation that was finished (without a
    model it begins again). Of several
    evaluations, one that cannot be done (a trap, clips that cannot be read) is listed
    with its reason, as those without data are.

    Raises CheckpointError where there is no model, ConfigError where `init_from` has
    towers, but no whole model; Refused at the end, when the results are written, where
    an evaluation could not be done.
    """
    hosts.check_shared(workdir)
    if config.model == evaluations.NO_MODEL:
        return _without_model(config, workdir)
    step = None
    if checkpoint.has_steps(workdir) or not starts.names(config):
        step = int(checkpoint.find_step(workdir).name)
    experiment = experiment_lib.build(config, workdir, training=False)
    check_hosts(experiment, None, step)
    if step is None:
        variables = experiment.init_variables()
    else:
        variables = checkpoint.load_variables(workdir)
    with hosts.Preemption() as preemption:
        interruptible(experiment, preemption)
        results = _results(experiment, variables, workdir / FINISHED)
    if jax.process_index() == 0:
        write_report(experiment, results, step)
        shutil.rmtree(workdir / FINISHED, ignore_errors=True)
        logging.info("results are in %s", workdir / "results.json")
    _check_refused(results, workdir)
    return results


def _without_model(config: ConfigDict, workdir: Path) -> dict[str, Result]:
    """`evaluate` of what lies on disk, and needs no model."""
    if starts.names(config):
        raise config_lib.ConfigError(
            f"init_from is {config.init_from!r}, and model '{evaluations.NO_MODEL}' takes "
            "nothing from it: leave one of them out"
        )
    tolerant = evaluations.lists_refused(config)
    no_model = evaluations.NoModel()
    wanted = evaluations.build(config.evals, lambda *_: no_model, None, tolerant)
    results = {}
    for number, (name, evaluation) in enumerate(wanted.items(), start=1):
        logging.info("evaluation %d of %d: %s", number, len(wanted), name)
        results[name] = evaluation.run(no_model, tolerant)
    if jax.process_index() == 0:
        context = {"model": evaluations.NO_MODEL, "seed": config.train.seed}
        _write(workdir, results, wanted, context, title="Features of segments")
        logging.info("results are in %s", workdir / report.RESULTS)
    _check_refused(results, workdir)
    return results


def _check_refused(results: dict[str, Result], workdir: Path) -> None:
    refused = [name for name, result in results.items() if evaluations.refused(result)]
    if refused:
        raise Refused(
            f"{len(refused)} of {len(results)} evaluations could not be done: "
            f"{', '.join(refused)}; {workdir / report.RESULTS} says why, and has the others"
        )


def _results(experiment: Experiment, variables: Any, folder: Path) -> dict[str, Result]:
    """All results, from files in `folder` where a run before this one finished them."""
    wanted = experiment.evaluations
    tolerant = evaluations.lists_refused(experiment.config)
    model = _digest(experiment, variables)
    hearing = evaluations.hearing(wanted, variables)
    found: dict[str, Result] = {}
    for number, (name, evaluation) in enumerate(wanted.items(), start=1):
        digest = hashlib.blake2b(
            f"{model}{evaluation.digest()}".encode(), digest_size=8
        )
        path = folder / f"{name}-{digest.hexdigest()}.npz"
        known = kept.read(path) if jax.process_index() == 0 else None
        if hosts.from_first(np.array([known is not None]))[0]:
            found[name] = Result({}) if known is None else known
            logging.info("%s: as it was finished before", name)
            continue
        if not isinstance(evaluation.evaluator, Absent):
            logging.info("evaluation %d of %d: %s", number, len(wanted), name)
        found[name] = evaluation.run(hearing[id(evaluation.encoder)], tolerant)
        if jax.process_index() == 0 and not evaluations.refused(found[name]):
            kept.write(path, found[name])
    return found


def _digest(experiment: Experiment, variables: Any) -> str:
    """Short hex of all that results depend on besides clips and protocols."""
    tokenizer = experiment.tokenizer
    words = hashlib.blake2b(digest_size=8)
    for text in (
        clap_jax.__version__,
        experiment.config.precision,
        experiment.spec.to_json(),
        tokenizer.to_json() if tokenizer else "",
        sharding.digest(variables),
    ):
        words.update(f"{len(text)} {text}".encode())
    return words.hexdigest()


def check_hosts(experiment: Experiment, iterator: Any, step: int | None) -> None:
    """Raise where the processes of a run were not given the same."""
    tokenizer = experiment.tokenizer
    hosts.check_equal(
        {
            "the config": config_lib.to_json(experiment.config),
            "the model": experiment.spec.to_json(),
            "the tokenizer": tokenizer.to_json() if tokenizer else "",
            "the data": json.dumps(iterator.get_state() if iterator else {}),
            "the newest checkpoint in --workdir": str(step),
        }
    )


def interruptible(experiment: Experiment, preemption: hosts.Preemption) -> None:
    """Let evaluations, which may take long, be dropped when the run is to end."""
    for evaluation in experiment.evaluations.values():
        evaluation.encoder.before_batch = preemption.check


def scores(results: dict[str, Result]) -> dict[str, float]:
    """Metrics under their logged names, `eval/<name>/<metric>`."""
    return {
        f"eval/{name}/{metric}": value
        for name, result in results.items()
        for metric, value in result.metrics.items()
    }


def write_report(
    experiment: Experiment, results: dict[str, Result], step: int | None
) -> None:
    """Table on the terminal, `plots/`, `results.json` (and what each clip adds to it,
    `per_clip.npz`) and `report.html`.

    step: None for a model that `init_from` gave.
    """
    workdir, config = experiment.workdir, experiment.config
    origin = {"init_from": starts.names(config)} if step is None else {"step": step}
    context = {
        "model": experiment.spec.name,
        **origin,
        "seed": config.train.seed,
        "clip": hear.hearing(
            experiment.spec.frontend,
            temporal=getattr(experiment.spec, "temporal", None),
        ),
    }
    _write(
        workdir, results, experiment.evaluations, context, title=experiment.spec.name
    )


def _write(
    workdir: Path,
    results: dict[str, Result],
    wanted: dict[str, evaluations.Evaluation],
    context: dict[str, Any],
    title: str,
) -> None:
    """As `write_report`. wanted: the evaluations that the results are of."""
    # An evaluation of no source, or of features, is shown without sounds.
    sources = {name: wanted[name].evaluator.source for name in results}
    heard = {name: any(wanted[name].sounds()) for name in results}
    report.write_results(workdir, results, context)
    report.write_report(
        workdir,
        results,
        workdir / METRICS_FILE,
        context,
        title=title,
        sources={name: source for name, source in sources.items() if heard[name]},
    )
    report.print_table(results)

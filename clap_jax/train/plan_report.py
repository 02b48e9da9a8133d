"""A plan as tables on the terminal, and the command that makes one."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from clap_jax.train import plan, plan_search, topology

FILE = "plan.json"

_SIZES = ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))
_SCALES = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def run(
    config: ConfigDict,
    workdir: Path,
    *,
    topology_name: str,
    hosts: int = 0,
    search: bool = True,
    command: str = "",
) -> dict[str, Any]:
    """`--mode=plan`: compile, print, and write `workdir/plan.json`.

    search: also look for the largest batch that fits, and longer for what helps a step
    that does not fit. command: kept in the file.
    Raises ValueError and ImportError in sentences.
    """
    began = time.perf_counter()
    found = topology.find(topology_name, hosts)
    compile_for = plan.compiler(found)
    made = compile_for(config)
    described: dict[str, Any] = {"command": command, "versions": plan.versions()}
    described |= plan.describe(made, found)
    if made.fits is False:
        most = plan_search.MOST_CHANGES if search else plan_search.FEW_CHANGES
        described["what_helps"] = plan_search.what_helps(
            made, config, found, compile_for, most
        )
    if search and made.fits is not None:
        described["search"] = plan_search.largest_batch(
            made, config, found, compile_for
        )
    described["formulas"] = plan.FORMULAS
    described = plan.rounded(described)
    print("\n".join(lines(described)))
    path = workdir / FILE
    plan.write(path, described)
    logging.info(
        "planned in %.0f s: everything is in %s", time.perf_counter() - began, path
    )
    return described


def lines(described: dict[str, Any]) -> list[str]:
    """The plan for people, most important first."""
    parts = [_what(described), _memory(described)]
    if "flops" in described:
        parts += [_work(described), _collectives(described)]
    if "roofline" in described:
        parts.append(_roofline(described))
    if "what_helps" in described:
        parts.append(_what_helps(described["what_helps"]))
    if "search" in described:
        parts.append(_search(described))
    return [line for part in parts for line in (*part, "")]


def _what(described: dict[str, Any]) -> list[str]:
    model, mesh, batch = (described[key] for key in ("model", "mesh", "batch"))
    parts = f" in {batch['accumulate']} parts" if batch["accumulate"] > 1 else ""
    what = (
        f"{model['name']}: {model['parameters'] / 1e6:.2f} M parameters, "
        f"{model['precision']}, remat {model['remat']}, {model['optimizer']}"
    )
    where = (
        f"{mesh['topology']}: {mesh['devices']} x {mesh['device_kind']} on "
        f"{mesh['hosts']} host(s), data {mesh['data']} x fsdp {mesh['fsdp']}"
    )
    how = (
        f"batch {batch['clips']}: {batch['clips_per_chip']} a chip{parts}, "
        f"{batch['clips_per_host']} a host"
    )
    return [what, where, how, described["loss"]["reason"]]


def _memory(described: dict[str, Any]) -> list[str]:
    memory = described["memory_per_chip"]
    rows = [("memory of a chip", "")]
    arguments = ("parameters", "optimizer", "average", "batch")
    for name in (*arguments, "arguments", "outputs", "temporaries", "program"):
        label = f"  {name}" if name in arguments else name
        rows.append((label, size(memory[f"{name}_bytes"])))
    rows.append(("peak", size(memory["peak_bytes"])))
    if "usable_bytes" in memory:
        rows.append(("there is (of HBM)", size(memory["usable_bytes"])))
        rows.append(("head-room", size(memory["headroom_bytes"])))
    verdict = {
        True: "It fits.",
        False: "It does not fit.",
        None: "Nobody knows what there is: this device is not in clap_jax/chips.py.",
    }
    return [*columns(rows), verdict[described["fits"]]]


def _work(described: dict[str, Any]) -> list[str]:
    flops, traffic = described["flops"], described["hbm_traffic_per_chip"]
    rows = [
        ("FLOPs", "a clip", "a chip and step", "a step"),
        (
            "model (3 x forward)",
            *(
                scaled(flops[f"model_{key}"])
                for key in ("per_clip", "per_chip_and_step", "per_step")
            ),
        ),
        (
            "hardware (compiled)",
            *(
                scaled(flops[f"hardware_{key}"])
                for key in ("per_clip", "per_chip_and_step", "per_step")
            ),
        ),
        (
            "  of it in float32",
            "",
            scaled(flops["hardware_float32_per_chip_and_step"]),
            "",
        ),
        ("HBM traffic", "", size(traffic["bytes"]), ""),
    ]
    return columns(rows)


def _collectives(described: dict[str, Any]) -> list[str]:
    found = described["collectives_per_chip"]
    rows = [
        ("collectives of a step", "for", "chips", "type", "count", "put in", "sent")
    ]
    rows += [
        (
            row["kind"],
            row["purpose"],
            str(row["group_chips"]),
            row["dtype"],
            f"{row['count']:g}",
            size(row["operand_bytes"]),
            size(row["sent_bytes"]),
        )
        for row in found["rows"]
    ]
    rows.append(("all", "", "", "", "", "", size(found["sent_bytes"])))
    notes = []
    if found["loops_of_unknown_length"]:
        names = ", ".join(found["loops_of_unknown_length"])
        notes.append(f"(taken to run once, their length is not known: {names})")
    return [*columns(rows), *notes]


def _roofline(described: dict[str, Any]) -> list[str]:
    found = described["roofline"]
    rows = [("a step takes at least", "")]
    for name in ("compute", "memory", "interconnect"):
        mark = "  <- bounds it" if found["bound"] == name else ""
        rows.append((f"  {name}", f"{seconds(found[f'{name}_seconds'])}{mark}"))
    rows.append(("clips/s at most", f"{found['clips_per_s_at_most']:,.0f}"))
    rows.append(("MFU at most", f"{found['mfu_at_most']:.1%}"))
    return columns(rows, align=(str.ljust, str.ljust))


def _what_helps(found: dict[str, Any]) -> list[str]:
    rows = [
        ("what helps", "temporaries", "peak", "saves", "fits", "FLOPs / model", "step")
    ]
    for row in found["tried"]:
        if "cannot_be" in row:
            rows.append((row["overrides"], "cannot be", "", "", "no", "", ""))
            continue
        ratio, least = (
            row.get(key)
            for key in ("hardware_over_model_flops", "step_seconds_at_least")
        )
        rows.append(
            (
                row["overrides"],
                size(row["temporaries_bytes"]),
                size(row["peak_bytes"]),
                size(row["saved_bytes"]),
                "yes" if row["fits"] else "no",
                "" if ratio is None else f"{ratio:.2f}",
                "" if least is None else seconds(least),
            )
        )
    best = found["cheapest_that_fits"]
    advice = (
        f"The cheapest that fits: {best}"
        if best
        else ("None of these fits: use a smaller train.batch_size or more chips.")
    )
    if found["stopped"]:
        advice += (
            f" (Stopped after {len(found['tried'])} changes; more could be tried.)"
        )
    return [*columns(rows), advice]


def _search(described: dict[str, Any]) -> list[str]:
    found = described["search"]
    sizes = ", ".join(
        f"{row['batch']} ({size(row['peak_bytes'])})" for row in found["compiled"]
    )
    largest, refused = (
        found["largest_batch_that_fits"],
        found["smallest_batch_that_does_not"],
    )
    if largest is None:
        answer = "no batch that was tried fits"
    elif refused is None:
        answer = f"{largest} fits, and nothing larger was tried"
    else:
        answer = f"{largest} fits, {refused} does not"
    return [f"largest global batch: {answer}", f"compiled: {sizes}"]


def columns(rows: Sequence[Sequence[str]], align: Iterable | None = None) -> list[str]:
    """Rows as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    align = list(align or [str.ljust] + [str.rjust] * (len(widths) - 1))
    return [
        "  ".join(
            place(cell, width)
            for place, cell, width in zip(align, row, widths, strict=True)
        ).rstrip()
        for row in rows
    ]


def size(number: float | None) -> str:
    """Bytes for people."""
    if number is None:
        return "?"
    for unit, name in _SIZES:
        if abs(number) >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:.0f} B"


def seconds(number: float) -> str:
    """A time for people."""
    scale, unit = (1e3, "ms") if number < 1 else (1, "s")
    return f"{number * scale:.3g} {unit}"


def scaled(number: float) -> str:
    """FLOPs for people."""
    for unit, name in _SCALES:
        if number >= unit:
            return f"{number / unit:.2f} {name}"
    return f"{number:.0f}"

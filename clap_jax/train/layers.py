"""Layer-wise rate decay: how deep each parameter of a tower lies.

Layers near the sound, or the words, have learnt what is of use anywhere; in a finetune
they may change least (Clark et al. 2020, ELECTRA, arXiv 2003.10555; Bao et al. 2021,
BEiT, arXiv 2106.08254). With L blocks, what comes before the first has depth 0, block i
depth i, and what follows the last L + 1; the rate of depth d is multiplied by
decay^(L + 1 - d). Projections, mappers, heads, an auxiliary decoder and scales have the whole rate.
"""

import re
from collections.abc import Iterable
from typing import Any

from clap_jax import sharding

TOWERS = ("audio", "text", "decoder")

# Blocks of every tower, in the order of their numbers.
_BLOCK = re.compile(r"(?:stage(\d+)_)?(?:conv_)?block(\d+)")
# What leads from one stage to the next belongs to the stage's last block.
_MERGE = re.compile(r"stage(\d+)_merge")
# Parts before the first block ...
_FIRST = {
    *("bn0", "conv", "fusion", "norm_embed", "norm_patch", "patch", "patch_local"),
    *("positions", "stem", "tokens", "types"),
}
# ... and behind the last.
_LAST = {"fc1", "norm", "pooler", "tag"}


def rate_table(params: Any, decay: float) -> tuple[tuple[str, float], ...]:
    """[regex, factor] for every part of the towers that are in `params`, as
    `optim.lr_multipliers` takes them; it ends with everything else at 1.

    params: parameters, or their shapes. Raises ValueError for a part of a tower whose
    depth is not known here.
    """
    rules = []
    for tower in TOWERS:
        parts = params.get(tower, {})
        rules += [
            (rf"{tower}/{re.escape(name)}(/.*)?", decay**below)
            for name, below in _below_the_top(tower, parts).items()
        ]
    return (*rules, (".*", 1.0))


def _below_the_top(tower: str, parts: Iterable[str]) -> dict[str, int]:
    """L + 1 less the depth of every part of a tower, by its name."""
    parts = list(parts)
    blocks = {name: _number(name) for name in parts if _BLOCK.fullmatch(name)}
    order = {name: i for i, name in enumerate(sorted(blocks, key=blocks.get), 1)}
    depths, unknown = {}, []
    for name in parts:
        merge = _MERGE.fullmatch(name)
        if name in order:
            depths[name] = order[name]
        elif merge:
            stage = [n for n in order if blocks[n][0] == int(merge[1])]
            depths[name] = max(order[n] for n in stage)
        elif name in _FIRST:
            depths[name] = 0
        elif name in _LAST:
            depths[name] = len(order) + 1
        else:
            unknown.append(f"{tower}/{name}")
    if unknown:
        raise ValueError(
            f"optim.layer_decay: how deep {', '.join(unknown)} lies is not known: add "
            "it to clap_jax/train/layers.py, or give optim.lr_multipliers instead"
        )
    return {name: len(order) + 1 - depth for name, depth in depths.items()}


def _number(name: str) -> tuple[int, int]:
    """Stage and number of a block."""
    stage, number = _BLOCK.fullmatch(name).groups()
    return int(stage or 0), int(number)


def factors(params: Any, decay: float) -> Any:
    """The factor of every parameter, as a tree."""
    return sharding.match(rate_table(params, decay), params, "optim.layer_decay")

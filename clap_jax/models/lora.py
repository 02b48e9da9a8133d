"""Low-rank changes to a frozen decoder (LoRA, Hu et al. 2021, arXiv 2106.09685).

Of every query and value kernel W of the decoder's attentions, W + down @ up is used; only
the factors learn. `up` starts with zeros, so that training starts from W itself. What is
loaded has plain weights again (`merged`).
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from clap_jax.models.captioner_spec import Captioner, CaptionerSpec

# Those that the paper changes (section 4.2).
_KERNELS = re.compile(r"block\d+/(attention|cross)/(query|value)/kernel")
# What a captioner's functions read of its variables are plain weights.
_FUNCTIONS = ("encode_audio", "prefix", "prefix_embeddings", "logits")
_FUNCTIONS += ("token_logits", "caption", "greedy")


def adapt(model: Captioner, rank: int) -> Captioner:
    """`model` with factors of this rank at "lora" among its parameters."""

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        variables = model.init(key)
        params = dict(variables["params"])
        flat = traverse_util.flatten_dict(params["decoder"], sep="/")
        kernels = {path: x for path, x in flat.items() if _KERNELS.fullmatch(path)}
        keys = jax.random.split(jax.random.fold_in(key, len(params)), len(kernels))
        factors = {}
        for own, (path, kernel) in zip(keys, kernels.items(), strict=True):
            rows, columns = kernel.shape
            down = jax.random.normal(own, (rows, rank)) * rows**-0.5
            factors[path] = {"down": down, "up": jnp.zeros((rank, columns))}
        params["lora"] = traverse_util.unflatten_dict(factors, sep="/")
        return {**variables, "params": params}

    def plainly(function: Callable[..., Any] | None) -> Callable[..., Any] | None:
        if function is None:
            return None

        @functools.wraps(function)
        def read(variables: Mapping[str, Any], *given: Any, **options: Any) -> Any:
            return function(_plain(variables), *given, **options)

        return read

    changed = {name: plainly(getattr(model, name)) for name in _FUNCTIONS}
    return model._replace(init=init, **changed)


def merged(
    spec: CaptionerSpec, variables: Mapping[str, Any]
) -> tuple[CaptionerSpec, dict[str, Any]]:
    """The same captioner with plain weights, as numpy arrays."""
    plain = jax.device_get(_plain(variables))
    return dataclasses.replace(spec, lora_rank=0), plain


def _plain(variables: Mapping[str, Any]) -> dict[str, Any]:
    params = dict(variables["params"])
    decoder = traverse_util.flatten_dict(params["decoder"], sep="/")
    factors = traverse_util.flatten_dict(params.pop("lora"), sep="/")
    for path in {name.rpartition("/")[0] for name in factors}:
        change = jnp.matmul(
            factors[f"{path}/down"], factors[f"{path}/up"], precision="highest"
        )
        decoder[path] = decoder[path] + change
    params["decoder"] = traverse_util.unflatten_dict(decoder, sep="/")
    return {**variables, "params": params}

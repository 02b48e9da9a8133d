"""A decoder of captions that learns beside the contrast, and is used for nothing else.

It attends to what the audio tower hears over time, so that this has to hold what a
caption says, in order, and not only what tells clips of a batch apart (CoCa, Yu et al.
2022, arXiv 2205.01917; Cacophony, Zhu et al. 2024, arXiv 2402.06986).
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models import caption_decoder
from clap_jax.models.caption_decoder import Draft
from clap_jax.models.dual import Dual, heard
from clap_jax.models.recurrent import over_time
from clap_jax.models.tower import Tower


def add(
    dual: Dual,
    audio: Tower,
    sound: Any,
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
) -> Dual:
    """`dual` with a decoder at "caption" among its parameters, and `caption_logits`.

    audio: the tower of `dual`. sound: the shapes of a clip that `init` traces. options:
    of `caption_decoder`.
    """
    decoder = caption_decoder.tower(options, vocab_size, dtype=dtype)

    @jax.jit
    def init(key: jax.Array) -> dict[str, Any]:
        variables = dual.init(key)
        params, state = dict(variables["params"]), dict(variables["state"])
        own = {"params": params["audio"], "state": state["audio"]}
        (_, aux), _ = jax.eval_shape(lambda: audio.apply(own, heard(_zeros(sound))))
        memory, frames = _zeros(jax.eval_shape(over_time, aux))
        one = jnp.ones((len(memory), 1), jnp.int32)
        made = decoder.init(
            jax.random.fold_in(key, len(params)), Draft(one, one > 0, memory, frames)
        )
        params["caption"], state["caption"] = made["params"], made["state"]
        return {"params": params, "state": state}

    def caption_logits(
        variables: Mapping[str, Any],
        aux: Mapping[str, Any],
        ids: Int[Any, "B L"],
        mask: Bool[Any, "B L"],
        *,
        train: bool = False,
        key: jax.Array | None = None,
    ) -> Float[Array, "B L-1 C"]:
        own = {kind: trees["caption"] for kind, trees in variables.items()}
        # The last token is read by nobody: nothing comes behind it.
        draft = Draft(
            jnp.asarray(ids)[:, :-1], jnp.asarray(mask)[:, :-1], *over_time(aux)
        )
        (logits, _), _ = decoder.apply(own, draft, train=train, key=key)
        return logits

    return dual._replace(init=init, caption_logits=caption_logits)


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

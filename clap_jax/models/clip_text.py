"""CLIP's causal text transformer, in LAION-CLAP (`transformer`) and by itself.

Sources: Radford et al. 2021 (arXiv 2103.00020); LAION-AI/CLAP `clap_module/model.py`;
Hugging Face's `modeling_clip.py`.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from clap_jax.models import drop, layers
from clap_jax.models.tower import Tower, defaults, from_linen


class _ClipText(nn.Module):
    """See `tower`."""

    vocab_size: int
    width: int = 512
    depth: int = 12
    heads: int = 8
    mlp: int = 2048
    position_table: int = 77
    eps: float = 1e-5
    activation: str = "gelu"
    dropout: float = 0.0
    dtype: Any = jnp.float32
    remat: str = "none"
    token_drop: float = 0.0
    full_length: int = 0

    @nn.compact
    def __call__(
        self, x: tuple[Int[Array, "B L"], Bool[Array, "B L"]], train: bool
    ) -> tuple[Float[Array, "B D"], dict[str, Any]]:
        ids, _ = x
        length = ids.shape[1]
        if length > self.position_table:
            raise ValueError(
                f"texts of {length} tokens; this tower takes {self.position_table}"
            )
        # CLIP's end token has the highest id of its vocabulary. Padding is either 0 or,
        # in Hugging Face's tokenizer, the end token again: the first one counts.
        end, positions = jnp.argmax(ids, axis=1).astype(jnp.int32), jnp.arange(length)
        if train and self.token_drop:
            kept = drop.tokens_kept(self.token_drop, length, self.full_length)
            seen = positions <= end[:, None]
            positions = drop.token_index(self.make_rng("augment"), seen, end, kept)
            (ids,) = drop.take_tokens(positions, ids)
            end, length = drop.place_of(end, positions), kept
        table = layers.table(self.position_table, self.width, "positions")
        hidden = layers.table(self.vocab_size, self.width, "tokens")(ids)
        hidden = (hidden + table(positions)).astype(self.dtype)
        hidden = nn.Dropout(self.dropout, deterministic=not train)(hidden)
        bias = layers.causal_bias(length, length)
        block = layers.rematerialised(layers.Block, self.remat)
        for i in range(self.depth):
            hidden = block(
                heads=self.heads,
                mlp=self.mlp,
                eps=self.eps,
                dropout=self.dropout,
                dtype=self.dtype,
                activation=self.activation,
                name=f"block{i}",
            )(hidden, bias, train)
        hidden = layers.layer_norm(self.eps, self.dtype, "norm")(hidden)
        pooled = jnp.take_along_axis(hidden, end[:, None, None], axis=1)[:, 0]
        return pooled, {"hidden": hidden}


DEFAULTS = defaults(_ClipText)


def tower(
    options: Mapping[str, Any],
    vocab_size: int,
    *,
    dtype: str = "float32",
    remat: str = "none",
    token_drop: float = 0.0,
    full_length: int = 0,
) -> Tower:
    """CLIP's text encoder; `options` override `DEFAULTS`.

    Input `(ids i32 [B, L], mask bool [B, L])`. The mask is not used: blocks are
    pre-norm and causal, and padding stands behind the text. Embedding [B, D] is the
    state, after the final norm, of the first token with the highest id of its text,
    which is the end token in CLIP's vocabulary; with another tokenizer this tower makes
    no sense. aux["hidden"] [B, L, D] has all states. `activation` is "gelu" in LAION's
    models and "quick_gelu" in OpenAI's weights. In training, `dropout` applies to the
    embeddings, the attention weights and both residual branches (0 in both).
    token_drop: the share of tokens, of `full_length`, that is left out in training, see
    `drop.tokens_kept`. The first and the end token always stay, positions are those of
    the whole text, and aux["hidden"] has fewer of them.
    Errors: ValueError on texts longer than the position table, and when too few tokens
    would stay.
    """
    return from_linen(
        _ClipText(
            vocab_size,
            **options,
            dtype=jnp.dtype(dtype),
            remat=remat,
            token_drop=token_drop,
            full_length=full_length,
        )
    )

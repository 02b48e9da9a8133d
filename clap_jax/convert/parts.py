"""Rules for layers that many models share.

`source` is a regex for the layer's name in the reference, `target` our path of it.
"""

from clap_jax.convert.rules import LINEAR, LINEAR_THIRDS, THIRDS, Rule

QKV = ("query", "key", "value")

# Classes of AudioSet, for a head that a model does not have.
AUDIOSET_CLASSES = 527


def linear(source: str, target: str, bias: bool = True) -> list[Rule]:
    """torch's Linear to a Dense layer."""
    kernel = Rule(rf"{source}\.weight", f"{target}/kernel", LINEAR)
    return [kernel, Rule(rf"{source}\.bias", f"{target}/bias")] if bias else [kernel]


def norm(source: str, target: str) -> list[Rule]:
    """torch's LayerNorm to ours."""
    return [
        Rule(rf"{source}\.weight", f"{target}/scale"),
        Rule(rf"{source}\.bias", f"{target}/bias"),
    ]


def qkv(attention: str, part: str) -> tuple[str, str, str]:
    """Paths of a `part`, kernel or bias, of an attention's query, key and value."""
    query, key, value = (f"{attention}/{name}/{part}" for name in QKV)
    return query, key, value


def in_proj(source: str, target: str) -> list[Rule]:
    """The stacked query, key and value of torch's MultiheadAttention."""
    return [
        Rule(rf"{source}\.in_proj_weight", qkv(target, "kernel"), LINEAR_THIRDS),
        Rule(rf"{source}\.in_proj_bias", qkv(target, "bias"), THIRDS),
    ]

"""Keys of LAION's `feature_fusion.py`, which HTSAT and PANN share."""

import re

from clap_jax.convert import rules
from clap_jax.convert.rules import Rule, Transform

# Place of convolution, norm, convolution, norm in the reference's nn.Sequential; the
# global branch starts with a pooling layer.
_PLACES = {"local_att": (0, 1, 3, 4), "global_att": (1, 2, 4, 5)}
_OURS = ("down", "norm_down", "up", "norm_up")


def _pointwise(axes: int) -> Transform:
    """A 1x1 convolution [O, I, 1, ...] to a Dense kernel [I, O]."""
    return Transform(
        f"pointwise convolution over {axes} axes to [I, O]",
        lambda x: (x.reshape(x.shape[0], -1).T,),
        lambda x: x.T.reshape(*x.T.shape, *[1] * axes),
    )


def norm_rules(source: str, name: str) -> list[Rule]:
    """A BatchNorm of the audio tower: plain source prefix, our path below `audio`."""
    key = re.escape(source)
    return [
        Rule(rf"{key}\.weight", f"params/audio/{name}/scale"),
        Rule(rf"{key}\.bias", f"params/audio/{name}/bias"),
        Rule(rf"{key}\.running_mean", f"state/audio/{name}/mean"),
        Rule(rf"{key}\.running_var", f"state/audio/{name}/var"),
    ]


def fusion_rules(fusion: str, prefix: str, name: str = "fusion") -> list[Rule]:
    """Rules of `models.fusion.Fusion`, called `name` in the tower.

    fusion: the tower's option. prefix: plain text up to the parts, such as
    "audio_branch.fusion_model.". Empty for none, channel_map and daf, which have no
    parameters.
    """
    table = []
    for branch in _branches(fusion):
        for place, ours in zip(_PLACES[branch.rstrip("2")], _OURS, strict=True):
            source, target = f"{prefix}{branch}.{place}", f"{name}/{branch}/{ours}"
            if ours.startswith("norm"):
                table += norm_rules(source, target)
                continue
            pointwise = _pointwise(1 if fusion.endswith("1d") else 2)
            key, target = re.escape(source), f"params/audio/{target}"
            table += [
                Rule(rf"{key}\.weight", f"{target}/kernel", pointwise),
                Rule(rf"{key}\.bias", f"{target}/bias", rules.IDENTITY),
            ]
    return table


def _branches(fusion: str) -> tuple[str, ...]:
    method = fusion.partition("_")[0]
    once = ("local_att", "global_att")
    twice = (*once, "local_att2", "global_att2")
    return {"aff": once, "iaff": twice}.get(method, ())


def norms(fusion: str, prefix: str) -> list[str]:
    """The source's names of the norms in a fusion, each of which has a counter."""
    return [
        f"{prefix}{branch}.{place}"
        for branch in _branches(fusion)
        for place in _PLACES[branch.rstrip("2")][1::2]
    ]

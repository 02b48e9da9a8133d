"""How a probe is fitted: recipes by name. `fitting` does it."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from clap_jax import config as config_lib

SOLVERS = ("lbfgs", "adam")


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How a head is fitted.

    solver: "lbfgs" (a linear head, to its optimum, on all clips at once) or "adam"
        (minibatches in random order, of a fixed number of epochs).
    strengths: of the L2 penalty, strength / 2 * the sum of squared weights (biases are
        free) beside the mean loss; several are tried on validation clips.
    standardise: vectors get mean 0 and deviation 1 over the training clips, dimension by
        dimension.
    hidden, dropout: of the head, see `models.heads.classes`.
    learning_rate, epochs, batch_size, seed: of Adam.
    """

    solver: str = "lbfgs"
    strengths: tuple[float, ...] = tuple(float(f"1e{k}") for k in range(-6, 2))
    standardise: bool = True
    hidden: tuple[int, ...] = ()
    dropout: float = 0.0
    learning_rate: float = 1e-3
    epochs: int = 30
    batch_size: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("strengths", "hidden"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.solver not in SOLVERS:
            raise ValueError(config_lib.unknown("solver", self.solver, SOLVERS))
        if self.solver == "lbfgs" and self.hidden:
            raise ValueError("solver 'lbfgs' fits linear heads; use 'adam' for hidden")
        if not self.strengths or min(self.strengths) < 0:
            raise ValueError(
                f"strengths are {self.strengths}, expected one or more, 0 or above"
            )
        if min(self.epochs, self.batch_size) < 1 or self.learning_rate <= 0:
            raise ValueError(
                f"epochs {self.epochs} and batch_size {self.batch_size} must be 1 or "
                f"more, learning_rate {self.learning_rate} above 0"
            )


_ADAM = {"solver": "adam", "strengths": (0.0,), "standardise": False}

RECIPES = {
    # Ours: no rate and no number of epochs to choose, one strength swept.
    "linear": Recipe(),
    # LAION-CLAP, `evaluate/eval_linear_probe.py` and its scripts for ESC-50 and FSD50K:
    # Adam 1e-4, 100 epochs, 160 clips on each GPU, no warm-up; `--lp-mlp`: 1024 wide.
    "laion_linear": Recipe(
        **_ADAM, learning_rate=1e-4, epochs=100, batch_size=160, dropout=0.1
    ),
    "laion_mlp": Recipe(
        **_ADAM,
        learning_rate=1e-4,
        epochs=100,
        batch_size=160,
        hidden=(1024,),
        dropout=0.1,
    ),
    # MS-CLAP (arXiv 2206.04769, section 4): one or three layers, Adam 1e-3 on frozen
    # features, 30 epochs. Batch, widths and dropout are not stated: 64, 512, none.
    "msclap_linear": Recipe(**_ADAM, learning_rate=1e-3, epochs=30, batch_size=64),
    "msclap_mlp": Recipe(
        **_ADAM, learning_rate=1e-3, epochs=30, batch_size=64, hidden=(512, 512)
    ),
}
"""By name; the default of the evaluator is "linear"."""

# Fields of a recipe that a solver looks at.
_USED = {
    "lbfgs": ("solver", "strengths", "standardise"),
    "adam": tuple(field.name for field in dataclasses.fields(Recipe)),
}


def get(name: str, options: Mapping[str, Any] | None = None) -> Recipe:
    """A row of `RECIPES` with changes to its fields. Raises ValueError for an unknown
    name, and options that cannot be."""
    if name not in RECIPES:
        raise ValueError(config_lib.unknown("recipe of a probe", name, RECIPES))
    base = dataclasses.asdict(RECIPES[name])
    return config_lib.build(Recipe, base | dict(options or {}), "options")


def says(name: str, recipe: Recipe) -> dict[str, Any]:
    """A recipe for a result's protocol: its name, and all that is used of it."""
    fields = dataclasses.asdict(recipe)
    return {"name": name, **{key: fields[key] for key in _USED[recipe.solver]}}

"""The training state: where it lives, what it is made of, the same on every mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from clap_jax import sharding
from clap_jax.models import zoo
from clap_jax.train import experiment, optim
from clap_jax.train import state as state_lib
from tests.train.test_loop import small_config

RULES = ((".*/mlp/up/kernel", -1), ("audio/.*/query/kernel", "none"), (".*/bias", 0))
KERNEL = "audio/block0/mlp/up/kernel"


def make(built):
    """The state before the first step."""
    shapes = state_lib.abstract_variables(built.dual, built.config, built.mesh)
    optimizer = optim.make_optimizer(
        built.config.optim, shapes["params"], lambda step: 1e-3
    )
    variables = built.init_variables()
    return state_lib.fresh_state(variables, optimizer, built.config, built.mesh)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The parts of a run on 2 x 4 devices."""
    config = small_config(mesh__fsdp=4, mesh__rules=RULES)
    config.optim.momentum_dtype = "bfloat16"
    return experiment.build(config, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def state(built):
    return make(built)


def leaves(tree):
    """Path -> leaf."""
    found = {}
    sharding.map_with_path(found.__setitem__, tree)
    return found


def test_the_same_bits_on_every_mesh(built, state):
    one = sharding.make_mesh(devices=jax.devices()[:1])
    alone = leaves(make(built._replace(mesh=one)))
    for path, leaf in leaves(state).items():
        assert leaf.dtype == alone[path].dtype, path
        np.testing.assert_array_equal(leaf, alone[path], err_msg=path)


def test_moments_and_average_live_where_their_parameter_lives(state):
    found = leaves(state)
    for path, leaf in found.items():
        owner = next(
            (
                p
                for p in found
                if p.startswith("params/") and path.endswith(p.removeprefix("params"))
            ),
            None,
        )
        if owner:
            assert leaf.sharding == found[owner].sharding, path
    copies = [path for path in found if path.endswith(KERNEL)]
    kinds = {path.removesuffix(KERNEL).split("/")[-2] for path in copies}
    assert {"params", "average", "mu", "nu"} <= kinds
    for path in copies:
        whole, part = found[path].shape, found[path].addressable_shards[0].data.shape
        assert part == (whole[0], whole[1] // 4), path
    assert {found[path].dtype.name for path in copies if "/mu/" in path} == {"bfloat16"}
    query = found["params/audio/block0/attention/query/kernel"]
    assert query.sharding.is_fully_replicated


def test_the_abstract_state_is_that_of_the_state(built, state):
    abstract = state_lib.abstract_state(built.dual, built.config, built.mesh)
    assert jax.tree.structure(abstract) == jax.tree.structure(state)
    there = leaves(state)
    for path, leaf in leaves(abstract).items():
        assert isinstance(leaf, jax.ShapeDtypeStruct)
        assert (leaf.shape, leaf.dtype) == (there[path].shape, there[path].dtype), path
        assert leaf.sharding.is_equivalent_to(there[path].sharding, leaf.ndim), path


def test_weights_that_are_read_are_cut_on_the_way(built):
    """As `init_from` gives them: numpy arrays among fresh ones."""
    shapes = state_lib.abstract_variables(built.dual, built.config, built.mesh)
    read = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), shapes)
    optimizer = optim.make_optimizer(built.config.optim, read["params"], lambda _: 0.1)
    made = state_lib.fresh_state(read, optimizer, built.config, built.mesh)
    kernel = leaves(made.params)[KERNEL]
    assert kernel.addressable_shards[0].data.shape[1] == kernel.shape[1] // 4
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(made.params))
    assert all(np.all(leaf == 1) for leaf in jax.tree.leaves(made.average))


def test_a_new_line_of_the_log(built, state):
    one = jax.tree.map(lambda leaf: leaf + 1, state.totals)
    again = state_lib.reset_totals(state._replace(totals=one), built.mesh)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    for leaf in jax.tree.leaves(again.totals):
        assert leaf == 0 and leaf.dtype == jnp.float32
        assert leaf.sharding.is_fully_replicated


def test_a_bias_is_logged_where_there_is_one(built, state):
    assert "logit_bias" not in state.totals
    biased = zoo.build(dataclasses.replace(built.spec, logit_bias_init=-10.0))
    abstract = state_lib.abstract_state(biased, built.config, built.mesh)
    assert set(abstract.totals) == {*state.totals, "logit_bias"}


def test_a_rule_that_does_not_fit_the_model(built):
    config = built.config.copy_and_resolve_references()
    config.mesh.rules = (("audio/.*/query/kernl", 0),)
    with pytest.raises(ValueError, match=r"mesh.rules: no parameter matches 'audio/"):
        state_lib.abstract_state(built.dual, config, built.mesh)


def test_evaluation_leaves_parameters_where_they_are(built, state):
    variables = state_lib.evaluation_variables(state)
    encoder = built.evaluations["kinds"].encoder.using(variables)
    for path, leaf in leaves(encoder._variables).items():
        assert leaf.sharding == leaves(variables)[path].sharding, path
    read = jax.tree.map(np.asarray, variables)
    placed = built.evaluations["kinds"].encoder.using(read)._variables
    assert {leaf.sharding.mesh for leaf in jax.tree.leaves(placed)} == {built.mesh}

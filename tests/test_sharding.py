"""The mesh, the regex rules and where arrays live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from clap_jax import sharding


def test_mesh_takes_every_device():
    mesh = sharding.make_mesh()
    assert dict(mesh.shape) == {"data": 8, "fsdp": 1}
    assert dict(sharding.make_mesh(fsdp=4).shape) == {"data": 2, "fsdp": 4}


def test_mesh_that_does_not_divide():
    with pytest.raises(ValueError, match="needs 6 devices, found 8"):
        sharding.make_mesh(data=3, fsdp=2)


def test_batch_that_does_not_divide_names_two_that_do():
    mesh = sharding.make_mesh()
    sharding.check_batch(64, mesh)
    with pytest.raises(ValueError, match=r"batch_size=63 .* 8 devices.* use 56 or 64"):
        sharding.check_batch(63, mesh)


TREE = {"audio": {"kernel": np.ones((2, 3)), "bias": np.ones(3)}, "scale": np.ones(())}


def test_first_match_wins():
    rules = [("audio/bias", 0.0), ("audio/.*", 0.5), (".*", 1.0)]
    matched = sharding.match(rules, TREE, "lr")
    assert matched == {"audio": {"kernel": 0.5, "bias": 0.0}, "scale": 1.0}


def test_an_uncovered_parameter_is_an_error():
    with pytest.raises(ValueError, match=r"lr: 1 parameter.* e.g. scale"):
        sharding.match([("audio/.*", 0.5)], TREE, "lr")


def test_a_rule_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match="no parameter matches 'adio/"):
        sharding.match([("adio/.*", 0.5), (".*", 1.0)], TREE, "lr")


def test_paths_of_dicts_lists_and_tuples():
    paths = []
    sharding.map_with_path(lambda path, _: paths.append(path), {"a": [1, (2, 3)]})
    assert paths == ["a/0", "a/1/0", "a/1/1"]


def test_flatten_and_back():
    flat = {"audio/kernel": 1, "scale": 2}
    assert sharding.flatten(sharding.unflatten(flat) | {"empty": {}}) == flat
    assert sharding.flatten({"a": {"b": 1}}, ".") == {"a.b": 1}


def test_fsdp_shards_the_longest_axis_of_large_leaves():
    mesh = sharding.make_mesh(fsdp=4)
    tree = {"large": jnp.zeros((256, 512)), "odd": jnp.zeros((511, 513)), "small": 0.0}
    specs = jax.tree.map(lambda s: s.spec, sharding.fsdp_sharding(tree, mesh))
    assert specs["large"] == PartitionSpec(None, "fsdp")
    assert specs["odd"] == PartitionSpec() == specs["small"]


def test_to_global_splits_rows_over_the_mesh():
    mesh = sharding.make_mesh(fsdp=2)
    rows = np.arange(16 * 3, dtype=np.float32).reshape(16, 3)
    array = sharding.to_global({"rows": rows}, mesh)["rows"]
    assert len(array.addressable_shards) == 8
    assert array.addressable_shards[0].data.shape == (2, 3)
    np.testing.assert_array_equal(np.asarray(array), rows)

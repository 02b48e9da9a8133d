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


def test_batch_that_does_not_divide_into_parts():
    mesh = sharding.make_mesh()
    sharding.check_batch(96, mesh, accumulate=4)
    message = r"batch_size=80 .* 8 devices x train\.accumulate=4 \(1 host.*use 64 or 96"
    with pytest.raises(ValueError, match=message):
        sharding.check_batch(80, mesh, accumulate=4)
    with pytest.raises(ValueError, match=r"train\.accumulate=0, expected 1 or more"):
        sharding.check_batch(64, mesh, accumulate=0)


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


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("(", 0), r"lr: '\(' is no regular expression \("),
        ((7, 0), r"lr: 7 is no regular expression"),
        (("audio/.*",), r"lr: \('audio/\.\*',\) is no rule, expected \[regex, value\]"),
        ("audio/.*", r"lr: 'audio/\.\*' is no rule"),
    ],
)
def test_what_is_no_rule_is_a_sentence(rule, message):
    with pytest.raises(ValueError, match=message):
        sharding.match([rule, (".*", 1.0)], TREE, "lr")


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


WIDE = {"kernel": np.ones((512, 256)), "odd": np.ones((6, 9)), "bias": np.ones(8)}
STATE = {
    "params": {"audio": WIDE},
    "moments": ({"audio": WIDE}, {"audio": {"kernel": np.ones(512)}}),
    "state": {"audio": {"mean": np.ones(8)}},
}


def specs(rules):
    placed = sharding.state_sharding(STATE, sharding.make_mesh(fsdp=4), rules)
    found = {}
    sharding.map_with_path(lambda path, x: found.__setitem__(path, x.spec), placed)
    return found


def test_rules_say_which_axis_is_split():
    rules = [("audio/kernel", -1), ("audio/b.*", 0), (".*", "none")]
    found = specs(rules)
    for place in ("params", "moments/0"):
        assert found[f"{place}/audio/kernel"] == PartitionSpec(None, "fsdp")
        assert found[f"{place}/audio/bias"] == PartitionSpec("fsdp")
        assert found[f"{place}/audio/odd"] == PartitionSpec()
    # The name of a parameter, but another shape: rows of a factored moment.
    assert found["moments/1/audio/kernel"] == PartitionSpec()
    assert found["state/audio/mean"] == PartitionSpec()


def test_what_no_rule_names_is_auto():
    assert specs([]) == specs([("audio/kernel", "auto")])
    found = specs([("audio/odd", "none")])
    assert found["params/audio/kernel"] == PartitionSpec("fsdp", None)
    assert found["moments/0/audio/kernel"] == PartitionSpec("fsdp", None)
    assert found["params/audio/bias"] == PartitionSpec()


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (("adio/.*", 0), r"mesh.rules: no parameter matches 'adio/"),
        (("audio/kernel", 2), r"audio/kernel has no axis 2, its shape is \(512, 256\)"),
        (("audio/kernel", -3), r"audio/kernel has no axis -3"),
        (("audio/odd", 1), r"axis 1 of audio/odd has size 9, which mesh.fsdp=4 does"),
        (("audio/odd", "rows"), r"'rows' for audio/odd is no number of an axis"),
        (("audio/odd", True), r"True for audio/odd is no number of an axis"),
    ],
)
def test_a_rule_that_cannot_be(rule, message):
    with pytest.raises(ValueError, match=message):
        specs([rule])


def test_put_cuts_numpy_and_moves_arrays():
    mesh = sharding.make_mesh(fsdp=4)
    tree = {"read": np.arange(8.0), "made": jnp.arange(8), "one": np.float32(3)}
    wanted = {
        "read": jax.NamedSharding(mesh, PartitionSpec("fsdp")),
        "made": sharding.replicated(mesh),
        "one": sharding.replicated(mesh),
    }
    found = sharding.put(tree, wanted)
    assert all(found[name].sharding == wanted[name] for name in tree)
    assert found["read"].addressable_shards[1].data.tolist() == [2.0, 3.0]
    jax.tree.map(np.testing.assert_array_equal, found, tree)


def test_rows_of_a_host():
    mesh = sharding.make_mesh(4, 2)
    assert sharding.host_rows(16, mesh) == list(range(16))


def test_hosts_without_equal_shares_are_a_sentence(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ValueError, match=r"8 of 8 devices belong to process 0 of 2"):
        sharding.host_rows(16, sharding.make_mesh())

"""Costs that are read from compiled programs, against programs whose costs are known."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from clap_jax import chips
from clap_jax.train import collectives, hlo, roofline, topology
from tests.train.slices import needs_libtpu, on_slice

CHIPS = 4


@functools.cache
def mesh_of(name, shape=(CHIPS,)):
    devices = topology.find(name).devices
    axes = ("data", "fsdp")[: len(shape)]
    auto = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(shape, axes, devices=devices, axis_types=auto)


def compiled(function, mesh, *arguments):
    """arguments: (shape, dtype, partition spec)."""
    structs = [
        jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, spec))
        for shape, dtype, spec in arguments
    ]
    return jax.jit(function).lower(*structs).compile()


PLACES = pytest.mark.parametrize("place", ["cpu:4", on_slice("v5e:2x2")])
ROWS = PartitionSpec("data")
WHOLE = PartitionSpec()


@PLACES
def test_collectives_of_a_known_program(place):
    mesh = mesh_of(place)
    ring = [(i, (i + 1) % CHIPS) for i in range(CHIPS)]

    def local(x):
        def hop(_, x):
            return jnp.sin(jax.lax.ppermute(x, "data", ring))

        x = jax.lax.fori_loop(0, 5, hop, x)
        everything = jax.lax.all_gather(jnp.cos(x), "data", tiled=True)
        total = jax.lax.psum(jnp.tan(x), "data")
        part = jax.lax.psum_scatter(jnp.exp(everything), "data", tiled=True)
        return total + part + everything[:8]

    def step(x):
        return jax.shard_map(local, mesh=mesh, in_specs=ROWS, out_specs=ROWS)(x)

    # [8, 256] float32 a chip: 8 KiB.
    text = compiled(step, mesh, ((32, 256), jnp.float32, ROWS)).as_text()
    found = collectives.find(hlo.parse(text), CHIPS)
    rows = {row["kind"]: row for row in collectives.table(found)}
    small, large = 8 * 256 * 4, 32 * 256 * 4
    expected = {
        "collective-permute": (5, 5 * small, 5 * small),
        "all-gather": (1, small, 3 * small),
        "all-reduce": (1, small, 2 * 3 / 4 * small),
        "reduce-scatter": (1, large, 3 / 4 * large),
    }
    measured = {
        kind: (row["count"], row["operand_bytes"], row["sent_bytes"])
        for kind, row in rows.items()
    }
    if "reduce-scatter" not in rows:  # a CPU may sum all and keep a part
        assert place == "cpu:4"
        del expected["reduce-scatter"]
        expected["all-reduce"] = (2, small + large, 1.5 * (small + large))
    assert measured == expected
    assert {row["group_chips"] for row in rows.values()} == {CHIPS}
    assert {row["dtype"] for row in rows.values()} == {"f32"}
    assert {row["purpose"] for row in rows.values()} == {"loss"}  # as in a shard_map


@PLACES
def test_gradients_are_told_from_parameters_that_are_gathered(place):
    mesh = mesh_of(place, (2, 2))

    def step(w, x):
        def loss(w):
            # A name, as every tower has one.
            with jax.named_scope("tower"):
                return jnp.tanh(x @ w).sum()

        gradient = jax.grad(loss)(w)
        gradient = jax.lax.with_sharding_constraint(
            gradient, NamedSharding(mesh, PartitionSpec("fsdp"))
        )
        return w - gradient

    text = compiled(
        step,
        mesh,
        ((512, 512), jnp.float32, PartitionSpec("fsdp")),
        ((64, 512), jnp.float32, PartitionSpec(("data", "fsdp"))),
    ).as_text()
    found = collectives.find(hlo.parse(text), CHIPS, fsdp=2)
    sent = collectives.by(found, "purpose")
    half = 512 * 512 * 4 / 2
    # The other half of w, once. A TPU's products take bfloat16, and so it gathers that.
    assert sent["fsdp"] == {"cpu:4": half, "v5e:2x2": half / 2}[place]
    # Summed over fsdp (each keeps its half) and over data, in either order.
    assert half * 1.5 <= sent["gradients"] <= half * 3
    assert set(sent) == {"fsdp", "gradients"}


@PLACES
def test_flops_count_loops_as_often_as_they_run(place):
    mesh = mesh_of(place)

    def step(w, x):
        def body(x, _):
            return jnp.tanh(x @ w), None

        x, _ = jax.lax.scan(body, x, length=7)
        scores = jnp.einsum("bld,bmd->blm", x, x)
        return jnp.einsum("blm,bmd->bld", scores, x, precision="highest")

    made = compiled(
        step,
        mesh,
        ((128, 128), jnp.float32, WHOLE),
        ((8, 32, 128), jnp.float32, ROWS),
    )
    program = hlo.parse(made.as_text())
    work = roofline.work(program)
    rows = 8 / CHIPS * 32
    product, attention = 2 * rows * 128 * 128, 2 * rows * 32 * 128
    assert work.flops + work.float32_flops == 7 * product + 2 * attention
    assert work.float32_flops == attention
    assert program.unknown_loops == ()
    # XLA counts the loop once, and sums and tanh as well.
    once = made.cost_analysis()["flops"]
    assert product + 2 * attention <= once < 2 * product + 2 * attention


# A CPU does no groups, it fills the kernel up with zeros.
@pytest.mark.parametrize(
    ("place", "groups"), [("cpu:4", 1), on_slice("v5e:2x2", 1), on_slice("v5e:2x2", 4)]
)
def test_flops_of_convolutions_leave_out_the_padding(place, groups):
    mesh = mesh_of(place)

    def step(x, kernel):
        def convolve(x):
            return jax.lax.conv_general_dilated(
                x,
                kernel,
                (2, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
                feature_group_count=groups,
            )

        y, pull = jax.vjp(convolve, x)
        return y, pull(y)[0]

    made = compiled(
        step,
        mesh,
        ((4, 9, 8, 16), jnp.float32, ROWS),
        ((3, 5, 16 // groups, 32), jnp.float32, WHOLE),
    )
    work = roofline.work(hlo.parse(made.as_text()))
    # Places of kernel and input that meet: rows 2 + 3 + 3 + 3 + 2, columns alike.
    rows, columns = 2 + 3 + 3 + 3 + 2, 3 + 4 + 5 + 5 + 5 + 5 + 4 + 3
    forward = 2 * rows * columns * 16 // groups * 32
    assert work.flops == 2 * forward


def test_memory_traffic_counts_what_enters_and_leaves():
    mesh = mesh_of("cpu:4")
    size = 2**20

    def step(x):
        def body(total, row):
            return jnp.sin(total + row), None

        return jax.lax.scan(body, x[0], x)[0]

    made = compiled(step, mesh, ((16, size), jnp.float32, WHOLE))
    moved = roofline.work(hlo.parse(made.as_text())).hbm_bytes
    # Each of 16 rounds reads a row and the sum and writes the sum; a copy or two more.
    assert 16 * 3 * 4 * size <= moved <= 16 * 5 * 4 * size


def line(attributes, opcode="all-reduce"):
    text = f"  %x = f32[4]{{0}} {opcode}(%y), channel_id=1, {attributes}, metadata={{}}"
    return hlo._instruction(text)


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ("replica_groups={{0,2},{1,3}}", (0, 2)),
        ("replica_groups={}", tuple(range(8))),
        ("replica_groups=[4,2]<=[8]", (0, 1)),
        ("replica_groups=[2,4]<=[4,2]T(1,0)", (0, 2, 4, 6)),
        ("replica_groups=mesh['a'=4,'b'=2] {'b'}", (0, 1)),
        ("replica_groups=mesh['a'=4,'b'=2] {'a','b'}", tuple(range(8))),
        (
            "replica_groups=mesh['a'=2,'b'=1,'c'=4], device_ids=([4,2]T(1,0)) {'a'}",
            (0, 1),
        ),
        ("replica_groups=mesh['a'=8] {'a':(2)2}", (0, 2)),
        ("source_target_pairs={{0,1},{1,2},{2,3},{3,0}}", (0, 1, 2, 3)),
        ("source_target_pairs={{0,1},{2,3}}", (0, 1)),
    ],
)
def test_groups_are_read_in_every_form(attributes, expected):
    assert collectives.first_group(line(attributes), 8) == expected


@pytest.mark.parametrize(
    ("kind", "share"),
    [
        ("all-reduce", 1.5),
        ("all-gather", 3.0),
        ("reduce-scatter", 0.75),
        ("all-to-all", 0.75),
        ("collective-permute", 1.0),
    ],
)
def test_the_ring_model(kind, share):
    assert collectives.sent_share(kind, 4) == share
    if kind != "collective-permute":
        assert collectives.sent_share(kind, 1) == 0


SPREAD = """
%first (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4], \
dimensions={0}, frontend_attributes={chain_id="0"}
}

%between (p: f32[8]) -> f32[32] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[32]{0} all-gather(%p), channel_id=3, replica_groups=[1,4]<=[4], \
dimensions={0}, frontend_attributes={chain_id="0"}
}

%region (q: (s32[], f32[8])) -> (s32[], f32[8]) {
  %q = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %v = f32[8]{0} get-tuple-element(%q), index=1
  %async-collective-start = f32[32]{0} fusion(%v), kind=kCustom, calls=%first
  %work = f32[32]{0} fusion(%v), kind=kCustom, calls=%between
  ROOT %t = (s32[], f32[8]{0}) tuple(%i, %v)
}

%limit (q: (s32[], f32[8])) -> pred[] {
  %q = (s32[], f32[8]{0}) parameter(0)
  %i = s32[] get-tuple-element(%q), index=0
  %c = s32[] constant(9)
  ROOT %lt = pred[] compare(%i, %c), direction=LT
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0:T(128)S(1)} parameter(0)
  %z = s32[] constant(2)
  %t = (s32[], /*index=1*/f32[8]{0}) tuple(%z, %x)
  %loop = (s32[], f32[8]{0}) while(%t), condition=%limit, body=%region
  ROOT %o = f32[8]{0} get-tuple-element(%loop), index=1
}
"""


def test_a_collective_that_is_spread_over_fusions_counts_once():
    program = hlo.parse(SPREAD)
    (found,) = collectives.find(program, 4)
    # From 2 up to 9, where the condition's constant ends it.
    assert (found.kind, found.count, found.operand_bytes) == ("all-gather", 7, 7 * 32)
    assert program.computations["main"].instructions["x"].arrays[0].space == 1


ASYNC = """
%wrapped (p: f32[8]) -> f32[2] {
  %p = f32[8]{0} parameter(0)
  ROOT %r = f32[2]{0} reduce-scatter(%p), replica_groups={{0,1,2,3}}, to_apply=%add
}

ENTRY %main (x: f32[8]) -> f32[2] {
  %x = f32[8]{0} parameter(0)
  %s = ((f32[8]), f32[2]{0}, u32[]) async-start(%x), calls=%wrapped
  %u = ((f32[8]), f32[2]{0}, u32[]) async-update(%s), calls=%wrapped
  ROOT %d = f32[2]{0} async-done(%u), calls=%wrapped
}
"""


def test_what_is_started_counts_and_not_its_end():
    (found,) = collectives.find(hlo.parse(ASYNC), 4)
    assert (found.kind, found.count, found.sent_bytes) == ("reduce-scatter", 1, 24)


MERGED = """
ENTRY %main (x: f32[8], y: f32[64]) -> f32[64] {
  %x = f32[8]{0} parameter(0)
  %y = f32[64]{0} parameter(1)
  %a = f32[8]{0} negate(%x), metadata={op_name="jit(f)/jvp(Tower)/bn0/reduce_sum"}
  %b = f32[64]{0} negate(%y), metadata={op_name="jit(f)/jvp()/shard_map/scatter"}
  %c = f32[64]{0} bitcast(%b)
  %r = (f32[8]{0}, f32[64]{0}) all-reduce(%a, %c), replica_groups={}, \
metadata={op_name="jit(f)/jvp(Tower)/bn0/reduce_sum"}
  %g = f32[8]{0} get-tuple-element(%r), index=0
  %s = f32[8]{0} all-reduce(%g), replica_groups={}
  %t = f32[8]{0} negate(%s), metadata={op_name="jit(f)/transpose(jvp(Tower))/dot"}
  ROOT %z = f32[64]{0} get-tuple-element(%r), index=1
}
"""


def test_sums_that_are_done_together_are_for_what_most_of_them_is():
    found = collectives.find(hlo.parse(MERGED), 4)
    # Of the second only its user has a name.
    assert [one.purpose for one in found] == ["loss", "gradients"]
    assert [one.operand_bytes for one in found] == [72 * 4, 32]
    assert collectives.by(found, "purpose") == {"loss": 1.5 * 288, "gradients": 48}


def test_a_loop_of_unknown_length_is_named():
    text = SPREAD.replace("constant(9)", "parameter(1)")
    program = hlo.parse(text)
    assert program.unknown_loops == ("loop",)
    assert collectives.find(program, 4)[0].count == 1


def test_a_text_without_an_entry_is_refused():
    with pytest.raises(ValueError, match="no ENTRY"):
        hlo.parse("HloModule nothing")


def test_the_roofline_names_what_bounds():
    chip = chips.find("TPU v5 lite")
    work = roofline.Work(flops=197e12, float32_flops=0.0, hbm_bytes=819e9 / 2)
    found = roofline.estimate(work, 200e9 / 4, chip)
    assert found == pytest.approx((1.0, 0.5, 0.25))
    assert (found.bound, found.step_s) == ("compute", pytest.approx(1.0))
    slow = work._replace(flops=0.0, float32_flops=chip.float32_flops / 10)
    assert roofline.estimate(slow, 3 * 200e9, chip).bound == "interconnect"
    assert roofline.estimate(slow, 0, chip).bound == "memory"
    assert roofline.estimate(slow, 0, chip).compute_s == pytest.approx(0.1)


def test_window_pairs_by_hand():
    rng = np.random.default_rng(0)
    for _ in range(50):
        size, given, made, stride, low, left, right = rng.integers(1, 6, 7).tolist()
        low -= 1
        pairs = sum(
            0 <= at <= (given - 1) * left and at % left == 0
            for out in range(made)
            for tap in range(size)
            for at in [out * stride + tap * right - low]
        )
        assert pairs == roofline._window_pairs(
            size, given, made, stride, low, left, right
        )


@needs_libtpu
@pytest.mark.parametrize(("asked", "hosts"), [(0, 4), (4, 4), (2, 2), (16, 16)])
def test_a_slice_has_hosts_of_four_eight_or_one_chips(asked, hosts):
    found = topology.find("v5e:4x4", asked)
    assert (found.hosts, len(found.devices)) == (hosts, 16)


def test_devices_that_are_here_have_hosts_too():
    assert topology.find("cpu:4", 2).hosts == 2
    assert len(topology.find("local").devices) == len(jax.devices())


@pytest.mark.parametrize(
    ("name", "hosts", "message"),
    [
        ("v5e", 0, "examples: v5e:2x2"),
        on_slice("v9:2x2", 0, "no slice that libtpu knows .*v9.*examples"),
        on_slice("v5e:3x3", 0, "not divisible .*examples"),
        ("cpu:0", 0, "no device"),
        ("cpu:4096", 0, "needs 4096 virtual devices"),
        ("cpu:2x2", 0, "examples"),
        ("cpu:4", 3, "--hosts=3 does not fit"),
        on_slice("v5e:4x4", 3, "16 chips .* hosts of 1, 4 or 8, which are 16, 4, 2"),
        ("local", 5, "--hosts=5 does not fit"),
    ],
)
def test_a_topology_that_cannot_be_is_a_sentence(name, hosts, message):
    with pytest.raises(ValueError, match=message):
        topology.find(name, hosts)


def test_without_libtpu_it_says_what_to_install(monkeypatch):
    missing = types.SimpleNamespace(find_spec=lambda name: None)
    monkeypatch.setattr(topology.importlib, "util", missing)
    with pytest.raises(ImportError, match=r"pip install 'clap_jax\[tpu\]'"):
        topology.find("v5e:2x2")

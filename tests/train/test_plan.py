"""`--mode=plan`: end to end, the search, what helps, and errors in a sentence."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from clap_jax import chips, sharding
from clap_jax import config as config_lib
from clap_jax.train import plan, plan_report, plan_search, topology
from tests.train.slices import needs_libtpu, on_slice

REPOSITORY = Path(__file__).resolve().parents[2]


def small_config(**train):
    """A model that compiles in seconds; its source does not exist."""
    config = config_lib.default()
    config.model_overrides = {
        "audio": {"options": {"depth": 1, "width": 32, "heads": 2}},
        "text": {"options": {"depth": 1, "width": 16, "mlp": 16, "heads": 2}},
        "embed_dim": 16,
    }
    config.data.sources = ({"kind": "manifest", "path": "/nowhere.csv"},)
    config.data.vocab_size = 100
    config.train.update({"batch_size": 16, "total_steps": 1} | train)
    return config


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "clap_jax.main", "--mode=plan", *map(str, arguments)],
        capture_output=True,
        check=False,
        text=True,
        cwd=REPOSITORY,
        env={k: v for k, v in os.environ.items() if not k.startswith("TPU_")},
        timeout=300,
    )


SMOKE = "--config=configs/quickstart.py:smoke"


@pytest.mark.parametrize(("place", "devices"), [("cpu:8", 8), on_slice("v5e:2x2", 4)])
def test_a_plan_end_to_end(tmp_path, place, devices):
    done = run(SMOKE, f"--topology={place}", f"--workdir={tmp_path}", "--nosearch")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "plan.json").read_text())
    assert str(tmp_path / "plan.json") in done.stderr

    assert f"--topology={place}" in found["command"]
    assert found["versions"]["jax"] == jax.__version__
    assert found["mesh"]["devices"] == devices
    assert found["batch"]["clips"] == 8
    assert found["batch"]["clips_per_chip"] == 8 // devices

    memory = found["memory_per_chip"]
    assert memory["parameters_bytes"] == 4 * found["model"]["parameters"]
    # AdamW: two moments and three counters or so.
    moments = memory["optimizer_bytes"] - 2 * memory["parameters_bytes"]
    assert 0 < moments < 100
    assert memory["average_bytes"] == 0
    parts = ("parameters_bytes", "optimizer_bytes", "batch_bytes")
    arguments = sum(memory[name] for name in parts)
    assert arguments <= memory["arguments_bytes"] < 1.5 * arguments
    assert memory["temporaries_bytes"] > 0
    whole = ("arguments", "outputs", "temporaries", "program")
    assert memory["peak_bytes"] == sum(memory[f"{name}_bytes"] for name in whole)

    flops = found["flops"]
    assert flops["model_per_step"] == pytest.approx(8 * flops["model_per_clip"])
    per_step = flops["hardware_per_chip_and_step"] * devices
    assert flops["hardware_per_step"] == pytest.approx(per_step, rel=1e-5)
    assert 0.5 < flops["hardware_over_model"] < 4

    sent = found["collectives_per_chip"]
    ring = 2 * (devices - 1) / devices
    # The gradients of all parameters, all-reduced once (with a few sums).
    assert sent["sent_bytes_by_purpose"]["gradients"] == pytest.approx(
        ring * memory["parameters_bytes"], rel=0.01
    )
    rows = sum(row["sent_bytes"] for row in sent["rows"])
    assert rows == pytest.approx(sent["sent_bytes"], rel=1e-5)
    assert sent["loops_of_unknown_length"] == []

    words = done.stdout
    for word in ("memory of a chip", "all-reduce", "gradients", "FLOPs", "head-room"):
        assert (word in words) == (word != "head-room" or place != "cpu:8")
    if place == "cpu:8":
        assert found["fits"] is None
        assert "roofline" not in found
        return
    assert found["fits"] is True
    assert found["versions"]["libtpu"]
    assert memory["headroom_bytes"] == memory["usable_bytes"] - memory["peak_bytes"]
    roofline = found["roofline"]
    slowest = max(
        roofline[f"{name}_seconds"] for name in ("compute", "memory", "interconnect")
    )
    assert roofline["step_seconds_at_least"] == slowest
    assert roofline["clips_per_s_at_most"] == pytest.approx(8 / slowest, rel=1e-4)
    assert 0 < roofline["mfu_at_most"] < 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--mode=plan needs --topology"),
        on_slice(("--topology=v9:2x2",), "no slice that libtpu knows"),
        (("--topology=cpu:2", "--mode=train"), "--topology is for --mode=plan"),
    ],
)
def test_errors_are_sentences(tmp_path, arguments, message):
    done = run(SMOKE, f"--workdir={tmp_path}", *arguments)
    assert done.returncode in (1, 2)
    assert any(line.startswith("error: ") for line in done.stderr.splitlines())
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("place", "hosts", "overrides", "message"),
    [
        on_slice(
            "v5e:4x4", 0, {"train.batch_size": 8}, r"16 devices \(4 host.*; use 16"
        ),
        ("cpu:8", 0, {"mesh.fsdp": 3}, "mesh.fsdp=3"),
        ("cpu:8", 0, {"train.accumulate": 3}, "accumulate=3"),
        ("cpu:8", 0, {"model": "small_cnv"}, "small_conv"),
        ("cpu:8", 0, {"precision": "float17"}, "float17"),
        ("cpu:8", 0, {"data.source": "bogus"}, "files or synthetic_device"),
        ("cpu:8", 0, {"checkpoint.best_metric": "loss"}, "best_metric is 'loss'"),
        ("cpu:8", 0, {"model": "init_from"}, "model_overrides change a row"),
        ("cpu:8", 0, {"checkpoint.keep": 0}, "checkpoint.keep is 0"),
        ("cpu:8", 0, {"init_pattern": "("}, "init_pattern"),
        ("cpu:8", 0, {"mesh.rules": (("(", 0),)}, "mesh.rules: '\\('"),
        ("cpu:8", 0, {"mesh.rules": ("a",)}, "mesh.rules: 'a' is no rule"),
        ("cpu:6", 4, {"train.batch_size": 6}, "--hosts=4 does not fit"),
    ],
)
def test_a_config_that_cannot_be_is_a_sentence(place, hosts, overrides, message):
    config = plan.changed(small_config(), overrides)
    with pytest.raises(ValueError, match=message):
        plan.compile_step(config, topology.find(place, hosts))


def test_fsdp_shards_parameters_and_moments():
    config = small_config()
    config.model_overrides.embed_dim = 128
    config.data.vocab_size = 2**13
    found = topology.find("cpu:8")
    whole = plan.experiment(config, found)
    config = plan.changed(config, {"mesh.fsdp": 4})
    parts = plan.experiment(config, found)
    state = [
        plan.state_lib.abstract_state(one.dual, one.config, one.mesh)
        for one in (whole, parts)
    ]
    # Token embeddings are most of the model, and large enough to be sharded.
    for tree in ("params", "opt_state"):
        before, after = (plan.shard_bytes(getattr(one, tree)) for one in state)
        assert before / 4 < after < before / 2


def test_what_helps_comes_from_compiled_evidence(tmp_path, monkeypatch, capsys):
    changes = ({"remat": "blocks"}, {"train.accumulate": 4})
    monkeypatch.setattr(plan_search, "knobs", lambda *_: iter(changes))
    found = topology.find("cpu:4")
    config = small_config(batch_size=128)
    made = plan.compile_step(config, found)
    # As if this were a chip with a little less memory than that.
    tight = made.memory.needed - 1
    chip = chips.CHIPS["TPU v5 lite"]._replace(usable_bytes=tight)
    monkeypatch.setitem(chips.CHIPS, "cpu", chip)
    done = plan_report.run(config, tmp_path, topology_name="cpu:4", search=False)

    assert done["fits"] is False
    assert done["memory_per_chip"]["headroom_bytes"] == -1
    tried = {row["overrides"]: row for row in done["what_helps"]["tried"]}
    assert set(tried) >= {"--config.remat=blocks", "--config.train.accumulate=4"}
    best = done["what_helps"]["cheapest_that_fits"]
    assert tried[best]["fits"] is True
    for row in tried.values():
        peak = made.memory.needed - row["saved_bytes"]
        assert row["peak_bytes"] == pytest.approx(peak, rel=1e-5)
        assert row["fits"] == (row["peak_bytes"] <= tight)
    parts = tried["--config.train.accumulate=4"]
    assert parts["temporaries_bytes"] < done["memory_per_chip"]["temporaries_bytes"]
    assert parts["hardware_over_model_flops"] > done["flops"]["hardware_over_model"]
    printed = capsys.readouterr().out
    assert "It does not fit." in printed
    assert f"The cheapest that fits: {best}" in printed


class Fake:
    """Compiles nothing: a step whose memory is a line through sizes."""

    def __init__(self, limit, fixed=100.0, slope=3.0, waste=0.0):
        self.limit, self.fixed, self.slope, self.waste = limit, fixed, slope, waste
        self.sizes = []
        self.topology = topology.Topology("fake", (None,) * 4, 1)
        mesh = type("Mesh", (), {"size": 4})
        self.experiment = type("Experiment", (), {"mesh": mesh})

    def __call__(self, config):
        size = config.train.batch_size
        self.sizes.append(size)
        needed = self.fixed + self.slope * size + self.waste * (size % 64)
        fits = needed <= self.limit
        return plan.Compiled(
            self.experiment, None, plan.Memory(needed), fits, None, {}, 0.0
        )

    def search(self, batch, monkeypatch):
        chip = chips.CHIPS["TPU v5 lite"]._replace(usable_bytes=self.limit)
        monkeypatch.setattr(topology.Topology, "chip", chip)
        config = small_config(batch_size=batch)
        return plan_search.largest_batch(self(config), config, self.topology, self)


@pytest.mark.parametrize("batch", [64, 512, 1024, 8192])
@pytest.mark.parametrize("waste", [0.0, 0.5])
def test_the_search_ends_at_the_limit(batch, waste, monkeypatch):
    fake = Fake(limit=100 + 3 * 1000, waste=waste)
    found = fake.search(batch, monkeypatch)
    assert found["step_clips"] == 4 * plan_search.CLIPS
    largest = found["largest_batch_that_fits"]
    refused = found["smallest_batch_that_does_not"]
    assert found["is_exact"] and refused - largest <= found["step_clips"]
    assert 900 < largest <= 1000 < refused + 4 * plan_search.CLIPS
    # Both were compiled, and nothing twice.
    assert {largest, refused} <= set(fake.sizes)
    assert len(fake.sizes) == len(set(fake.sizes)) <= plan_search.MOST_COMPILES


def test_the_search_ends_where_the_compiler_fails(monkeypatch):
    fake = Fake(limit=1e9)
    whole = fake.__call__

    def fails(config):
        if config.train.batch_size > 64:
            raise plan.CompileError("the compiler failed")
        return whole(config)

    monkeypatch.setattr(Fake, "__call__", lambda self, config: fails(config))
    found = fake.search(64, monkeypatch)
    assert found["largest_batch_that_fits"] == 64
    assert found["is_exact"] is False


def test_what_the_compiler_itself_cannot_do_is_a_sentence(monkeypatch):
    def fails(*arguments):
        raise jax.errors.JaxRuntimeError("INTERNAL: LLO_CHECK failure (a.cc:1)")

    monkeypatch.setattr(plan.step_lib, "compile_step", fails)
    with pytest.raises(plan.CompileError, match="cpu:4 failed.*LLO_CHECK.*accumulate"):
        plan.compile_step(small_config(), topology.find("cpu:4"))


def test_the_search_says_when_nothing_fits(monkeypatch):
    found = Fake(limit=50).search(64, monkeypatch)
    assert found["largest_batch_that_fits"] is None
    assert found["smallest_batch_that_does_not"] == 4


def test_a_size_may_fit_above_one_that_does_not():
    """The loss may change its ways with the batch."""
    sizes = plan_search.Sizes({64: 9.0, 128: 5.0}, {64: False, 128: True})
    found = sizes.describe(step=32)
    assert [row["fits"] for row in found["compiled"]] == [False, True]
    assert found["largest_batch_that_fits"] == 128
    assert found["smallest_batch_that_does_not"] is None
    assert found["is_exact"] is False


class Costs:
    """Compiles nothing: a step that each of some changes makes smaller."""

    def __init__(self, saves, refuses=()):
        self.saves, self.refuses, self.asked = saves, refuses, []
        mesh = type("Mesh", (), {"size": 4})
        self.experiment = type("Experiment", (), {"mesh": mesh, "spec": None})

    def __call__(self, config):
        flat = sharding.flatten(config_lib.plain(config), ".")
        flat = {key: flat[key] for key in ("precision", "remat", "train.accumulate")}
        flat["fsdp"] = config.mesh.fsdp
        self.asked.append(tuple(flat.values()))
        if set(flat.values()) & set(self.refuses):
            raise ValueError("not this model")
        needed = 100.0 - sum(self.saves.get(value, 0) for value in flat.values())
        memory = plan.Memory(needed)
        return plan.Compiled(self.experiment, None, memory, False, None, {}, 0.0)

    def helped(self, monkeypatch, most, **changes):
        config = plan.changed(small_config(batch_size=64), changes)
        ring = {"impl": "ring"}
        monkeypatch.setattr(plan_search.tasks, "loss_facts", lambda *_: ring)
        monkeypatch.setattr(plan, "describe", lambda *_: {})
        topology = None
        return plan_search.what_helps(self(config), config, topology, self, most)


def test_nothing_is_compiled_twice_and_what_is_useless_is_left_out(monkeypatch):
    costs = Costs({"bfloat16": 10, 2: 5, 4: 6, 8: 7}, refuses=("dots", "blocks"))
    found = costs.helped(monkeypatch, 99)
    assert len(costs.asked) == len(set(costs.asked))
    combined = [row["overrides"] for row in found["tried"]][8:]
    half = "--config.precision=bfloat16"
    shards = "--config.mesh.fsdp=4 --config.mesh.data=-1"
    assert combined == [
        *(f"{half} --config.train.accumulate={parts}" for parts in (2, 4, 8)),
        f"{half} --config.train.accumulate=8 {shards}",
    ]
    assert found["stopped"] is False
    assert found["cheapest_that_fits"] is None

    turned = {"precision": "bfloat16", "remat": "blocks"}
    costs = Costs({2: 5, 4: 6, 8: 7})
    costs.helped(monkeypatch, 99, **turned)
    assert len(costs.asked) == len(set(costs.asked))


@pytest.mark.parametrize("most", [3, 8, 10])
def test_what_helps_is_not_sought_for_ever(most, monkeypatch):
    costs = Costs({"bfloat16": 10, "blocks": 20, 2: 5, 4: 6, 8: 7})
    found = costs.helped(monkeypatch, most)
    assert len(costs.asked) == most + 1
    assert len(found["tried"]) == most
    assert found["stopped"] is True


def test_knobs_are_those_that_the_config_has_not_turned():
    config = small_config(batch_size=64)
    flags = [plan_search.flags(knob) for knob in plan_search.knobs(config, 4, "global")]
    assert flags == [
        "--config.precision=bfloat16",
        "--config.remat=dots",
        "--config.remat=blocks",
        "--config.loss.impl=ring",
        "--config.mesh.fsdp=2 --config.mesh.data=-1",
        "--config.mesh.fsdp=4 --config.mesh.data=-1",
        "--config.train.accumulate=2",
        "--config.train.accumulate=4",
        "--config.train.accumulate=8",
    ]
    turned = plan.changed(
        config,
        {
            "precision": "bfloat16",
            "remat": "blocks",
            "mesh.fsdp": 4,
            "train.accumulate": 8,
        },
    )
    assert config.precision == "float32"  # a copy was changed
    flags = [plan_search.flags(knob) for knob in plan_search.knobs(turned, 4, "ring")]
    assert flags == ["--config.train.accumulate=16"]


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 20.50G of "
            + "15.75G hbm. Exceeded hbm capacity by 4.75G.",
            20.5 * 2**30,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required "
            + "for HLO temporaries (1.00T) exceeds available HBM (15.75G).",
            2**40,
        ),
        ("RESOURCE_EXHAUSTED: who knows", float("inf")),
        ("INVALID_ARGUMENT: Used 20.50G of 15.75G hbm", None),
    ],
)
def test_what_a_refused_program_needs_is_read_from_the_message(message, needed):
    assert plan.needed_bytes(message) == needed


@needs_libtpu
def test_libtpu_still_says_how_much_is_missing():
    found = topology.find("v5e:2x2")
    mesh = plan.sharding.make_mesh(devices=found.devices)
    x = jax.ShapeDtypeStruct(
        (2**34,), "float32", sharding=plan.sharding.replicated(mesh)
    )
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.jit(lambda x: x[::-1]).lower(x).compile()
    assert plan.needed_bytes(str(caught.value)) > 64 * 2**30


def test_figures_for_people():
    assert plan_report.size(15.75 * 2**30) == "15.75 GiB"
    assert plan_report.size(-(2**21)) == "-2.00 MiB"
    assert plan_report.size(12) == "12 B"
    assert plan_report.size(None) == "?"
    assert plan_report.scaled(1.5e15) == "1.50 P"
    assert plan.rounded({"a": [1.23456789, 3.0, float("inf")], "b": "x"}) == {
        "a": [1.23457, 3, None],
        "b": "x",
    }

"""Every family to ours and back: all tensors, bit for bit, in the dtype that they had."""

import dataclasses

import numpy as np
import orbax.checkpoint
import pytest

from clap_jax import checkpoint, convert, sharding
from clap_jax.convert import files, layouts, rules, sizes
from tests.convert import small

NAMES = [*small.FAMILIES, small.CAPTIONER]
WRAPPER = {"laion": "state_dict", "msclap": "model", "blat": "state_dict"}


def target(name):
    return small.layout(name).replace("clapcap", "msclap")


def source_file(folder, name, dtype="float32", **options):
    state = small.cast(small.state_dict(name), dtype)
    wrapper = WRAPPER[target(name)]
    return small.save(folder / "source.pt", state, wrapper=wrapper, **options), state


@pytest.mark.parametrize("name", NAMES)
def test_there_and_back(name, tmp_path):
    """By way of a folder of ours."""
    path, state = source_file(tmp_path, name)
    converted = convert.load(path)
    assert converted.spec == dataclasses.replace(
        small.spec(name), name=converted.spec.name, tokenizer=""
    )
    small.equal_trees(converted.variables, small.variables(small.spec(name)))
    own = convert.write(converted, tmp_path / "own")
    assert checkpoint.load_variables(own).keys() == {"params", "state"}
    loaded = convert.load(own)
    assert loaded.spec == converted.spec
    small.equal_trees(loaded.variables, converted.variables)
    back = convert.write(loaded, tmp_path / "back.pt", to=target(name))
    found = files.read(back)
    small.same(found.tensors, state)
    assert found.wrapper == WRAPPER[target(name)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["laion", "msclap2022", "msclap2023", "blat"])
def test_half_precision_comes_back(name, dtype, tmp_path):
    path, state = source_file(tmp_path, name, dtype)
    converted = convert.load(path)
    for array in sharding.flatten(converted.variables).values():
        assert array.dtype == np.float32
    # The bank is the formula's again, though it was rounded in the file.
    assert converted.spec.frontend == small.spec(name).frontend
    own = convert.write(converted, tmp_path / "own")
    back = convert.write(convert.load(own), tmp_path / "back.pt", to=target(name))
    small.same(files.read(back).tensors, state)


def test_trained_weights_do_not_fit_the_old_dtype(tmp_path):
    path, _ = source_file(tmp_path, "laion", "float16")
    converted = convert.load(path)
    scale = converted.variables["params"]["logit_scale_a"]
    converted.variables["params"]["logit_scale_a"] = scale + np.float32(1e-5)
    bias = converted.variables["params"]["audio"]["norm"]["bias"] * np.float32(1.0001)
    converted.variables["params"]["audio"]["norm"]["bias"] = bias
    with pytest.raises(convert.ConversionError, match="choose one with --dtype") as got:
        convert.write(converted, tmp_path / "back.pt", to="laion")
    assert len(got.value.errors) == 2
    assert "logit_scale_a: 1 of 1 values are not exact in float16" in str(got.value)
    assert [x.name for x in tmp_path.iterdir()] == ["source.pt"]
    convert.write(converted, tmp_path / "back.pt", to="laion", dtype="float16")
    found = files.read(tmp_path / "back.pt").tensors
    assert found["audio_branch.norm.bias"].dtype == np.float16
    assert found["audio_branch.bn0.num_batches_tracked"].dtype == np.int64


def test_float64_is_rounded_and_says_so(tmp_path):
    state = small.cast(small.state_dict("laion"), "float64")
    converted = convert.load(small.save(tmp_path / "a.pt", state))
    assert any("of float64 were rounded to float32" in x for x in converted.notes)
    back = convert.write(converted, tmp_path / "back.pt", to="laion")
    small.same(files.read(back).tensors, state)  # these were float32 at first


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("position_ids", [False, True])
def test_laion_files_of_all_ages(prefix, position_ids, tmp_path):
    state = dict(small.state_dict("laion"))
    if position_ids:
        ids = np.arange(514, dtype=np.int64)[None]
        state["text_branch.embeddings.position_ids"] = ids
    beside = {
        "epoch": 7,
        "name": "run",
        # The optimizer's learning rates are numpy scalars, from the scheduler.
        "optimizer": {"param_groups": [{"lr": np.float64(1e-4), "n": np.int64(3)}]},
    }
    path = small.save(tmp_path / "a.pt", state, prefix=prefix, **beside)
    converted = convert.load(path)
    assert converted.origin.prefix == prefix
    assert "left out, not part of the model: optimizer" in converted.notes
    own = convert.write(converted, tmp_path / "own")
    loaded = convert.load(own)
    found = files.read(convert.write(loaded, tmp_path / "b.pt", to="laion"))
    small.same(found.tensors, {prefix + key: x for key, x in state.items()})
    assert found.beside == {"epoch": 7, "name": "run"}
    other = {"": "module.", "module.": ""}[prefix]
    found = convert.write(loaded, tmp_path / "c.pt", to="laion", prefix=other)
    small.same(files.read(found).tensors, {other + key: x for key, x in state.items()})


@pytest.mark.parametrize("name", NAMES)
def test_a_model_trained_here_has_every_key(name, tmp_path):
    """Without extras: what a strict load needs is made anew."""
    spec = small.spec(name)
    converted = convert.Converted(spec, small.variables(spec))
    back = convert.write(converted, tmp_path / "a.pt", to=target(name))
    found, want = files.read(back).tensors, small.state_dict(name)
    assert found.keys() == want.keys()
    table, extras = layouts.LAYOUTS[small.layout(name)].table(spec)
    tied = {key for entry in extras if entry.same_as for key in entry.names}
    for key, array in want.items():
        assert (found[key].shape, found[key].dtype) == (array.shape, array.dtype)
        is_parameter = any(rule.forward(key) for rule in table) or key in tied
        if is_parameter or array.dtype.kind != "f" or "stft" in key or "melW" in key:
            np.testing.assert_array_equal(found[key], array, err_msg=key)


def test_lost_extras_are_made_anew(tmp_path):
    path, state = source_file(tmp_path, "laion")
    own = convert.write(convert.load(path), tmp_path / "own")
    (own / "extra.safetensors").unlink()
    found = convert.write(convert.load(own), tmp_path / "back.pt", to="laion")
    assert list(files.read(found).tensors) == list(state)


def test_tables_that_are_no_longer_tied(tmp_path):
    """The other name of a table is kept when it differs, and it is said."""
    state = dict(small.state_dict("laion_bart"))
    name = "text_branch.decoder.embed_tokens.weight"
    state[name] = state[name] + 1
    converted = convert.load(small.save(tmp_path / "a.pt", state))
    (note,) = [note for note in converted.notes if name in note]
    assert "differs from text_branch.shared.weight" in note
    assert list(converted.extra).count(name) == 1
    back = convert.write(converted, tmp_path / "b.pt", to="laion")
    small.same(files.read(back).tensors, state)


def test_one_tied_table_is_stored_once(tmp_path):
    path, _ = source_file(tmp_path, small.CAPTIONER)
    converted = convert.load(path)
    assert "gpt.lm_head.weight" not in converted.extra
    back = convert.write(converted, tmp_path / "b.pt", to="msclap")
    tensors = files.read(back).tensors
    tied = [tensors[f"gpt.{x}.weight"] for x in ("lm_head", "transformer.wte")]
    assert tied[0].ctypes.data == tied[1].ctypes.data


def test_gpt2_buffers_of_old_transformers_are_kept(tmp_path):
    state = dict(small.state_dict("msclap2023"))
    block = "caption_encoder.base.h.0.attn"
    state[f"{block}.bias"] = np.tril(np.ones((1, 1, 100, 100), np.uint8))
    state[f"{block}.masked_bias"] = np.array(-1e4, np.float32)
    own = convert.write(
        convert.load(small.save(tmp_path / "a.pth", state, wrapper="model")),
        tmp_path / "own",
    )
    back = convert.write(convert.load(own), tmp_path / "b.pth", to="msclap")
    small.same(files.read(back).tensors, state)


@pytest.mark.parametrize("name", ["msclap2022", "msclap2023", "blat", "clapcap"])
def test_every_fault_is_listed_and_nothing_written(name, tmp_path):
    state = dict(small.state_dict(name))
    norm = next(key for key in state if key.endswith("bn0.bias"))
    table = next(k for k in state if k.endswith(("wpe.weight", "LayerNorm.weight")))
    del state[norm]
    state[table] = np.zeros((3, 3, 3), np.float32)
    state["surprise"] = np.zeros(2, np.float32)
    path = small.save(tmp_path / "a.pth", state, wrapper="model")
    with pytest.raises(convert.ConversionError) as caught:
        convert.convert(path, tmp_path / "b")
    found = sorted(caught.value.errors)
    assert len(found) == 3
    assert f"{norm}: missing; it fills params/audio/bn0/bias" in found
    assert "surprise: no rule for this source tensor" in found
    assert any(x.startswith(f"{table}: shape (3, 3, 3), expected (") for x in found)
    assert [x.name for x in tmp_path.iterdir()] == ["a.pth"]


def test_workdirs_and_their_steps(tmp_path):
    """What training leaves: no extras, and weights in an Orbax checkpoint."""
    spec = small.spec("laion")
    variables = small.variables(spec)
    step = tmp_path / "run" / "checkpoints" / "5"
    orbax.checkpoint.PyTreeCheckpointer().save(step / "model", variables)
    (tmp_path / "run" / "spec.json").write_text(spec.to_json())
    for path in (tmp_path / "run", step):
        converted = convert.load(path)
        assert (converted.spec, converted.origin) == (spec, None)
        small.equal_trees(converted.variables, variables)
    back = convert.write(converted, tmp_path / "a.pt", to="laion")
    assert files.read(back).tensors.keys() == small.state_dict("laion").keys()


def test_the_weights_inside_a_folder_of_ours(tmp_path):
    own = convert.write(convert.load(source_file(tmp_path, "laion")[0]), tmp_path / "a")
    assert convert.load(own / "model.safetensors").spec == convert.load(own).spec


def test_a_folder_of_ours_that_was_changed(tmp_path):
    own = convert.write(convert.load(source_file(tmp_path, "laion")[0]), tmp_path / "a")
    text = (own / "spec.json").read_text()
    assert '"width": 8' in text
    (own / "spec.json").write_text(text.replace('"width": 8', '"width": 16'))
    with pytest.raises(convert.ConversionError, match=r"shape .*, expected .*16"):
        convert.load(own)
    (own / "spec.json").write_text("{}")
    with pytest.raises(ValueError, match=r"spec.json is not a model's spec"):
        convert.load(own)
    (own / "spec.json").write_text(text)
    (own / "origin.json").write_text('{"layout": "laion"}')
    with pytest.raises(convert.FileError, match=r"origin.json is damaged"):
        convert.load(own)


def test_torch_compile_puts_a_prefix(tmp_path):
    state = small.state_dict("blat")
    path = small.save(tmp_path / "a.pth", state, prefix="module._orig_mod.")
    converted = convert.load(path)
    assert converted.origin.prefix == "module._orig_mod."


def test_a_model_of_another_kind_is_refused(tmp_path):
    converted = convert.load(source_file(tmp_path, "msclap2023")[0])
    for to in ("laion", "hf", "blat"):
        with pytest.raises(ValueError, match="cannot be a"):
            convert.write(converted, tmp_path / "b", to=to)
    with pytest.raises(ValueError, match="--to=onnx is not known"):
        convert.write(converted, tmp_path / "b", to="onnx")
    captioner = convert.load(source_file(tmp_path, small.CAPTIONER)[0])
    with pytest.raises(ValueError, match="clap_jax or msclap, not hf"):
        convert.write(captioner, tmp_path / "b", to="hf")
    assert not (tmp_path / "b").exists()


def test_what_laion_code_does_otherwise_is_said(tmp_path):
    spec = small.spec("laion")
    text = dataclasses.replace(
        spec.text, options=spec.text.options | {"eps": 1e-12, "dropout": 0.0}
    )
    frontend = dataclasses.replace(spec.frontend, clip_seconds=5.0)
    spec = dataclasses.replace(spec, text=text, frontend=frontend)
    converted = convert.Converted(spec, small.variables(spec))
    convert.write(converted, tmp_path / "a.pt", to="laion")
    front, text = converted.notes
    assert front == "front end: clip_seconds is 5.0 here and 10.0 in laion_clap"
    assert text.startswith("text tower: norms have eps 1e-12 here and 1e-05 in laion")


ORACLES = {
    "laion_tiny_unfused": "laion_htsat_tiny_roberta",
    "laion_base_unfused": "laion_htsat_base_roberta",
    "laion_tiny_fused_aff2d": "laion_htsat_tiny_fusion_roberta",
    "laion_pann14_bert": "laion_pann14_bert",
    "msclap_2022": "msclap2022",
    "msclap_2023": "msclap2023",
    "msclap_clapcap": "clapcap",
    "blat": "blat",
}


@pytest.mark.parametrize("name", ORACLES)
def test_keys_and_shapes_of_the_published_sizes(name, oracle):
    """The reference's own list of tensors: recognised, and every one accounted for."""
    entries = oracle(name).spec["tensors"]
    one = {"float32": np.ones((), np.float32), "int64": np.ones((), np.int64)}
    source = {x["key"]: np.broadcast_to(one[x["dtype"]], x["shape"]) for x in entries}
    layout, _, tensors = layouts.recognise(files.Source("a", source))
    module = layouts.LAYOUTS[layout]
    # The bank of ones is no formula's, the window is not Hann's.
    spec, _ = module.spec(tensors)
    assert spec.name == ORACLES[name]
    fused = spec.frontend.views > 1
    assert spec.frontend.bank == ("htk" if fused else "stored")
    assert bool(spec.frontend.window_values) is not fused
    table, extras = module.table(spec)
    made = {key for key in source if any(rule.forward(key) for rule in table)}
    assert made == set(rules.steps_back(table, paths(table, made)))
    buffers = module.buffers(spec)
    tied = {key for entry in extras if entry.same_as for key in entry.names}
    assert made | buffers.keys() | tied == source.keys()
    assert not made & buffers.keys()
    for key, array in buffers.items():
        assert (array.shape, array.dtype) == (source[key].shape, source[key].dtype), key


def paths(table, keys):
    found = []
    for key in keys:
        found += next(x for x in (rule.forward(key) for rule in table) if x)
    return found


@pytest.mark.parametrize("kind", ["aff_1d", "channel_map", "daf_1d", "daf_2d"])
def test_fusion_is_found_by_its_names(kind, oracle):
    entries = oracle(f"laion_tiny_fusion_{kind}").spec["tensors"]
    shapes = {x["key"]: tuple(x["shape"]) for x in entries}
    found = sizes.htsat(shapes, "")
    assert found["fusion"] == kind
    assert found["classes"] == 527
    assert (found["width"], found["depths"]) == (96, (2, 2, 6, 2))
    assert found["heads"] == (4, 8, 16, 32)

"""Reading files: containers, damaged ones, unsafe ones; nothing in them is run."""

import collections
import json
import pickle
import struct
import sys
import types

import ml_dtypes
import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from clap_jax import checkpoint
from clap_jax.convert import files

TENSORS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "a.half": np.arange(4, dtype=np.float16),
    "a.brain": np.arange(4).astype(ml_dtypes.bfloat16),
    "count": np.array(3, np.int64),
    "none": np.zeros((0, 2), np.float32),
}


def assert_tensors(found):
    assert list(found) == list(TENSORS)
    for key, want in TENSORS.items():
        assert (found[key].dtype, found[key].shape) == (want.dtype, want.shape)
        assert found[key].tobytes() == want.tobytes()


def as_torch(tensors=TENSORS):
    return {key: files.to_torch(array) for key, array in tensors.items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("wrapper", ["", "state_dict", "model"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin"])
def test_torch_containers(legacy, wrapper, suffix, tmp_path):
    path = tmp_path / f"file{suffix}"
    beside = {"epoch": 3, "name": "x", "optimizer": {"lr": np.float64(1e-4)}}
    whole = {wrapper: as_torch(), **beside} if wrapper else as_torch()
    torch.save(whole, path, _use_new_zipfile_serialization=not legacy)
    found = files.read(path)
    assert_tensors(found.tensors)
    assert found.wrapper == wrapper
    assert found.beside == ({"epoch": 3, "name": "x"} if wrapper else {})
    assert found.notes == (
        ["left out, not part of the model: optimizer"] if wrapper else []
    )


def test_parameters_views_and_shared_memory(tmp_path):
    weight = torch.arange(6.0).reshape(2, 3)
    state = {"p": torch.nn.Parameter(weight), "t": weight.T, "part": weight[:, 1]}
    torch.save(state, tmp_path / "a.pt")
    found = files.read(tmp_path / "a.pt").tensors
    for key, tensor in state.items():
        np.testing.assert_array_equal(found[key], tensor.detach().numpy())


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.int64, np.bool_])
@pytest.mark.parametrize("module", ["numpy.core", "numpy._core"])
def test_numpy_scalars_of_both_ages(kind, module, tmp_path):
    """Their module had another name before numpy 2."""
    path = tmp_path / "a.pt"
    whole = {"state_dict": as_torch(), "best": kind(1)}
    # A legacy file: in an archive, the changed pickle would need another checksum.
    torch.save(whole, path, _use_new_zipfile_serialization=False)
    data = path.read_bytes()
    assert data.count(b"cnumpy._core.multiarray") == 1
    name = f"c{module}.multiarray".encode()
    path.write_bytes(data.replace(b"cnumpy._core.multiarray", name))
    assert_tensors(files.read(path).tensors)


class Malicious:
    def __reduce__(self):
        return (eval, ("__import__('pathlib').Path('ran').touch()",))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_a_pickle_that_wants_to_run_code(form, protocol, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.pt"
    found = {"state_dict": as_torch(), "x": Malicious()}
    if form == "plain":
        path.write_bytes(pickle.dumps(found["x"], protocol))
    else:
        torch.save(
            found,
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=form == "zip",
        )
    with pytest.raises(files.FileError) as caught:
        files.read(path)
    text = str(caught.value)
    assert "eval, which could run code; nothing was run" in text
    assert "\n" not in text
    assert not (tmp_path / "ran").exists()
    pickle.loads(pickle.dumps(Malicious()))  # the test's own bait does bite
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_pickles_of_other_protocols(protocol, legacy, tmp_path):
    """torch's own safe reader takes protocol 2 only."""
    state = collections.OrderedDict(as_torch())
    state["p"] = torch.nn.Parameter(torch.ones(2))
    state._metadata = {"": {"version": 1}}
    torch.save(
        {"epoch": 3, "state_dict": state, "optimizer": {"lr": np.float64(1e-4)}},
        tmp_path / "a.pt",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=not legacy,
    )
    found = files.read(tmp_path / "a.pt")
    assert found.tensors.pop("p").tolist() == [1, 1]
    assert_tensors(found.tensors)
    assert found.beside == {"epoch": 3}


@pytest.mark.parametrize("protocol", [2, 4])
def test_what_training_left_beside_the_weights(protocol, tmp_path, monkeypatch):
    """Lightning's callbacks have their class for a key; PANNs' sampler has arrays."""

    class ModelCheckpoint:
        def __init__(self):
            self.best = 3

    name = "pytorch_lightning.callbacks"
    module = types.ModuleType(name)
    module.ModelCheckpoint = ModelCheckpoint
    ModelCheckpoint.__module__, ModelCheckpoint.__qualname__ = name, "ModelCheckpoint"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("x"))
        patch.setitem(sys.modules, name, module)
        torch.save(
            {
                "state_dict": as_torch(),
                "epoch": 3,
                "callbacks": {ModelCheckpoint: {"best": 1}, "x": ModelCheckpoint()},
                "sampler": {"indexes": np.arange(5), "names": np.array(["a"], object)},
            },
            tmp_path / "a.ckpt",
            pickle_protocol=protocol,
        )
    found = files.read(tmp_path / "a.ckpt")
    assert_tensors(found.tensors)
    assert found.beside == {"epoch": 3}
    assert found.notes == ["left out, not part of the model: callbacks, sampler"]


def test_arrays_among_the_tensors_are_refused(tmp_path):
    torch.save({"model": {"a": np.arange(3)}}, tmp_path / "a.pt")
    with pytest.raises(files.FileError, match=r"not plain tensors: a \(a LeftOver\)"):
        files.read(tmp_path / "a.pt")


@pytest.mark.parametrize("name", ["os.system", "builtins.getattr", "torch.hub.load"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_names_that_a_pickle_may_not_ask_for(name, protocol, tmp_path):
    module, _, function = name.rpartition(".")
    ask = {
        2: b"\x80\x02c" + f"{module}\n{function}\n".encode() + b"q\x00.",
        4: b"\x80\x04"
        + b"".join(b"\x8c" + bytes([len(x)]) + x.encode() for x in (module, function))
        + b"\x93.",
    }
    (tmp_path / "a.pt").write_bytes(ask[protocol])
    with pytest.raises(files.FileError, match="could run code; nothing was run"):
        files.read(tmp_path / "a.pt")


def test_a_pickle_may_not_change_what_it_asks_for(tmp_path):
    """BUILD sets attributes of whatever is on the stack."""
    word = b"\x8c\x01x"
    ask = b"\x80\x04\x8c\x0ctorch._utils\x8c\x12_rebuild_tensor_v2\x93"
    ask += b"}" + word + b"K\x01sb."
    (tmp_path / "a.pt").write_bytes(ask)
    with pytest.raises(files.FileError, match="the state of a function"):
        files.read(tmp_path / "a.pt")
    assert not hasattr(torch._utils._rebuild_tensor_v2, "x")


def test_classes_of_other_packages_are_refused(tmp_path):
    import fractions

    torch.save({"model": as_torch(), "x": fractions.Fraction(1)}, tmp_path / "a.pt")
    with pytest.raises(files.FileError, match="asks for fractions.Fraction"):
        files.read(tmp_path / "a.pt")


def test_values_that_are_no_tensors(tmp_path):
    torch.save({"state_dict": as_torch() | {"x": 3, "y": "z"}}, tmp_path / "a.pt")
    with pytest.raises(files.FileError) as caught:
        files.read(tmp_path / "a.pt")
    assert "2 entries are not plain tensors: x (a int); y (a str)" in str(caught.value)
    sparse = torch.eye(3).to_sparse()
    torch.save({"x": sparse}, tmp_path / "a.pt")
    with pytest.raises(files.FileError, match="sparse, quantised or empty"):
        files.read(tmp_path / "a.pt")
    for value in ([1, 2], {"state_dict": {}}, torch.zeros(3)):
        torch.save(value, tmp_path / "a.pt")
        with pytest.raises(files.FileError, match="expected a state dict"):
            files.read(tmp_path / "a.pt")


@pytest.mark.parametrize("legacy", [False, True])
def test_half_written_torch_files(legacy, tmp_path):
    path = tmp_path / "a.pt"
    big = {"w": torch.zeros(100, 100)}
    torch.save(big, path, _use_new_zipfile_serialization=not legacy)
    data = path.read_bytes()
    for part in (0.02, 0.5, 0.99):
        path.write_bytes(data[: int(part * len(data))])
        with pytest.raises(files.FileError, match="damaged, cut off or no PyTorch"):
            files.read(path)


def test_half_written_safetensors(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"w": np.zeros((100, 100), np.float32)}, path)
    data = path.read_bytes()
    path.write_bytes(data[:-1000])
    with pytest.raises(files.FileError, match="cut off: 1000 of 40"):
        files.read(path)
    path.write_bytes(data[:20])
    with pytest.raises(files.FileError, match="only its beginning"):
        files.read(path)
    path.write_bytes(data[:5])
    with pytest.raises(files.FileError, match="only its beginning"):
        files.read(path)


@pytest.mark.parametrize(
    "header, words",
    [
        (b"not json at all", "damaged safetensors header"),
        (b"[1, 2]", "damaged safetensors header"),
        ({"w": {"dtype": "F32", "shape": [2]}}, "damaged safetensors header"),
        (
            {"w": {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}},
            "w is damaged: 8 bytes for shape",
        ),
        (
            {"w": {"dtype": "F32", "shape": [2], "data_offsets": [-8, 0]}},
            "w is damaged",
        ),
        (
            {"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 8]}},
            "w is of dtype F4, expected one of BOOL",
        ),
    ],
)
def test_damaged_safetensors(header, words, tmp_path):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(files.FileError, match=words):
        files.read(path)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    "data, words",
    [
        (b"", "is empty: the download or copy did not finish"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"\n<!DOCTYPE html><html>", "is a web page"),
    ],
)
def test_what_is_there_instead(suffix, data, words, tmp_path):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data)
    with pytest.raises(files.FileError, match=words):
        files.read(path)


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(files.FileError, match=r"a\.pt does not exist"):
        files.read(tmp_path / "a.pt")
    (tmp_path / "a.onnx").write_bytes(b"x" * 100)
    with pytest.raises(files.FileError, match=r"expected \.safetensors, \.pt"):
        files.read(tmp_path / "a.onnx")
    with pytest.raises(files.FileError, match=r"holds none of model\.safetensors"):
        files.read(tmp_path)


def test_without_torch(tmp_path, monkeypatch):
    torch.save(as_torch(), tmp_path / "a.pt")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ImportError, match=r"pip install clap_jax\[torch\]"):
        files.read(tmp_path / "a.pt")


def test_folders(tmp_path):
    (tmp_path / "config.json").write_text('{"a": 1}')
    torch.save(as_torch(), tmp_path / "pytorch_model.bin")
    found = files.read(tmp_path)
    assert_tensors(found.tensors)
    assert (found.config, found.path) == ({"a": 1}, tmp_path)
    # safetensors come first
    checkpoint.write_safetensors(tmp_path / "model.safetensors", {}, {})
    assert not files.read(tmp_path).tensors


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_sharded_folders(kind, tmp_path):
    keys = list(TENSORS)
    places = {}
    for i, part in enumerate((keys[:2], keys[2:])):
        name = f"model-{i}.{kind}"
        places |= dict.fromkeys(part, name)
        tensors = {key: TENSORS[key] for key in part}
        if kind == "bin":
            torch.save(as_torch(tensors), tmp_path / name)
        else:
            checkpoint.write_safetensors(tmp_path / name, tensors, {})
    stem = {"bin": "pytorch_model.bin", "safetensors": "model.safetensors"}[kind]
    index = tmp_path / f"{stem}.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    found = files.read(tmp_path).tensors
    assert_tensors({key: found[key] for key in TENSORS})

    index.write_text(json.dumps({"weight_map": places | {"more": f"model-0.{kind}"}}))
    with pytest.raises(files.FileError, match="lists 1 tensors that no file has: more"):
        files.read(tmp_path)
    index.write_text(json.dumps({"weight_map": {"a": f"../model-0.{kind}"}}))
    with pytest.raises(files.FileError, match="which is not in its folder"):
        files.read(tmp_path)
    index.write_text("{")
    with pytest.raises(files.FileError, match="cannot be read as JSON"):
        files.read(tmp_path)


def test_safetensors_are_views_of_the_file(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = TENSORS | {"big": np.arange(2**20, dtype=np.float32)}
    save_file(tensors, path)
    found = files.read(path)
    for key, want in tensors.items():
        assert found.tensors[key].tobytes() == want.tobytes()
    assert not found.tensors["big"].flags.owndata
    assert not found.tensors["big"].flags.writeable
    found.release()
    np.testing.assert_array_equal(found.tensors["big"], tensors["big"])


@pytest.mark.parametrize("legacy", [False, True])
def test_releasing_pages_loses_nothing(legacy, tmp_path):
    values = np.arange(2**20, dtype=np.float32)
    torch.save(
        {"big": torch.from_numpy(values)},
        tmp_path / "a.pt",
        _use_new_zipfile_serialization=not legacy,
    )
    found = files.read(tmp_path / "a.pt")
    np.testing.assert_array_equal(found.tensors["big"], values)
    found.release()
    np.testing.assert_array_equal(found.tensors["big"], values)
    assert bool(found.areas) is not legacy


def test_releasing_spares_memory_that_is_not_of_the_file(tmp_path):
    """One value spread over a shape spans more memory than the file has."""
    wide = torch.zeros(1).expand(5_000_000)
    torch.save({"wide": wide, "narrow": torch.ones(10)}, tmp_path / "a.pt")
    found = files.read(tmp_path / "a.pt")
    size = (tmp_path / "a.pt").stat().st_size
    assert sum(count for _, count in found.areas) <= size
    found.release()
    assert not found.tensors["wide"][::1000].any() and found.tensors["narrow"].all()


def test_writing_safetensors(tmp_path):
    """The library reads what we write, tensor by tensor."""
    from safetensors import safe_open

    tensors = TENSORS | {"turned": TENSORS["a.weight"].T, "flag": np.array([True])}
    path = tmp_path / "a.safetensors"
    checkpoint.write_safetensors(path, tensors, {"format": "pt"})
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}
        assert sorted(file.keys()) == sorted(tensors)
        for key, want in tensors.items():
            got = file.get_tensor(key)
            assert (got.dtype, got.shape) == (want.dtype, want.shape)
            assert got.tobytes() == want.tobytes()
    own = files.read(path).tensors
    assert all(own[key].tobytes() == want.tobytes() for key, want in tensors.items())
    assert [x.name for x in tmp_path.iterdir()] == ["a.safetensors"]


def test_an_error_while_writing_safetensors_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")

    class Broken:
        shape, dtype = (2,), np.dtype(np.float32)

        def __array__(self, dtype=None, copy=None):
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        checkpoint.write_safetensors(path, {"a": Broken()}, {})
    assert [x.name for x in tmp_path.iterdir()] == ["a.safetensors"]
    assert path.read_bytes() == b"old"

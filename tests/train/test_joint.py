"""A run with BEATs and Whisper side by side, each begun with its own released file."""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import soundfile
import torch
import transformers

import clap_jax
from clap_jax import checkpoint, cli, convert, sharding
from clap_jax import config as config_lib
from clap_jax.audio.augment import Augment
from clap_jax.convert import beats, rules
from clap_jax.convert.starts import TowerStart
from clap_jax.models import zoo
from clap_jax.models.spec import read_spec
from clap_jax.models.tower import Sound
from clap_jax.pipeline.feature_files import FeaturesSource
from clap_jax.train import experiment, loop, specs, starts, tasks
from tests import small_models

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def get_config(argument, name="collap_roberta"):
    spec = importlib.util.spec_from_file_location(name, CONFIGS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """beats.pt as Microsoft's, whisper a folder of Hugging Face's with its decoder."""
    root = tmp_path_factory.mktemp("files")
    spec = _spec(get_config("smoke,whisper=x"))
    options = spec.audio.options["parts"]["beats"]
    tower = zoo.AUDIO_TOWERS["beats"].tower(options)
    mel = zoo.example_sound(spec).mel[0]
    shapes = jax.eval_shape(tower.init, jax.random.key(0), mel)
    rng = np.random.default_rng(0)
    flat = {
        f"params/audio/{path}": np.float32(rng.normal(0, 0.1, leaf.shape))
        for path, leaf in sharding.flatten(shapes["params"]).items()
    }
    state = rules.invert(beats.rules(options, ""), flat)
    state = {key: torch.tensor(np.array(x)) for key, x in state.items()}
    torch.save({"cfg": {}, "model": state}, root / "beats.pt")
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=20,
        d_model=16,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_ffn_dim=16,
        **{"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3},
        decoder_start_token_id=2,
    )
    transformers.WhisperModel(config).save_pretrained(root / "whisper")
    return root / "beats.pt", root / "whisper"


def _spec(config):
    return zoo.get_spec(config.model, config_lib.plain(config.model_overrides))


def settings(files, steps=1):
    """The recipe's smoke run from these files; Whisper is frozen."""
    config = get_config(f"smoke,whisper={files[1]}")
    config.init_from = tuple(map(str, files))
    config.optim.lr_multipliers = (("audio/whisper/.*", 0.0), (".*", 1.0))
    config.model_overrides.embed_dim = config.model_overrides.text_length = 32
    config.data.vocab_size = 300
    config.remat = "none"
    config.evals = {}
    config.train.total_steps = steps
    config.checkpoint.every_steps = 1
    return config


def placed(path):
    """The tensors of a file under the paths that they have in the joint tower."""
    model = convert.load(path)
    return {
        key.replace("audio", f"audio/{model.spec.kind}", 1): leaf
        for key, leaf in sharding.flatten(model.variables).items()
    }


def assert_equal(found, wanted, prefix=""):
    paths = [path for path in wanted if path.startswith(prefix)]
    assert paths
    for path in paths:
        np.testing.assert_array_equal(found[path], wanted[path], err_msg=path)


def test_recipes():
    for name in ("collap_roberta", "collap_gpt2"):
        config = get_config(
            "songs.csv,audio=BEATs.pt,whisper=openai/w,audio_rate=0.1", name
        )
        assert config.model == name.replace("collap", "collap_joint")
        assert config.init_from[:2] == ("BEATs.pt", "openai/w")
        rates = config_lib.plain(config.optim.lr_multipliers)
        params = {"beats/a": 0.1, "whisper/a": 0.0, "norm/scale": 1.0}
        tree = sharding.unflatten({f"audio/{path}": 0 for path in params})
        found = sharding.flatten(sharding.match(rates, tree, "rates"))
        assert found == {f"audio/{path}": rate for path, rate in params.items()}
        assert get_config("songs.csv", name).model == name


@pytest.fixture(scope="module")
def run(files, tmp_path_factory):
    """The workdir of two steps, and variables after each."""
    workdir = tmp_path_factory.mktemp("run") / "run"
    loop.train(settings(files, 2), workdir)
    steps = (workdir / "checkpoints" / str(step) for step in (1, 2))
    return workdir, [
        sharding.flatten(checkpoint.load_variables(step)) for step in steps
    ]


def test_each_part_begins_with_its_file_and_learns_at_its_rate(files, run):
    _, (first, second) = run
    beats_file, whisper_file = map(placed, files)
    for found in (first, second):
        assert_equal(found, whisper_file, "params/audio/whisper/")
    moved = {
        path: np.abs(first[path] - leaf).max() for path, leaf in beats_file.items()
    }
    # As far as a first step goes, and no further: it began there.
    assert 0 < max(moved.values()) < 1e-3
    assert np.ptp(first["params/audio/norm/scale"]) > 0
    path = "params/audio/beats/block0/mlp/up/kernel"
    assert np.abs(second[path] - first[path]).max() > 0


def test_a_part_at_rate_0_is_frozen(files, run):
    spec = read_spec(run[0] / "spec.json")
    assert specs.frozen_towers(settings(files, 2), spec) == ("audio/whisper",)


def test_the_workdir_is_a_model(run, tmp_path):
    workdir, _ = run
    clap = clap_jax.load(workdir)
    wave = 0.1 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    song, text = [(wave, 16_000)], "a dog barks. then a cat meows."
    np.testing.assert_allclose(np.linalg.norm(clap.embed_audio(song)), 1, atol=1e-5)
    assert np.isfinite(clap.similarity(song, [text])).all()
    where = clap.align(song[0], text)
    assert where.seconds.tolist() == [[0, 1], [1, 2]]

    soundfile.write(tmp_path / "song.wav", wave, 16_000)
    out = tmp_path / "features"
    command = ("embed", "--segments", f"--out={out}", f"--model={workdir}")
    assert cli.main([*command, str(tmp_path / "song.wav")]) == 0
    found = FeaturesSource(out)[0]["audio"].features
    assert found.shape == (2, 32 + 16)
    np.testing.assert_allclose(found.mean(1), 0, atol=0.3)


def started(config, names, tmp_path):
    """Flat variables that a run would begin with."""
    config.init_from = tuple(map(str, names))
    built = experiment.build(config, tmp_path / "built")
    fresh = small_models.variables(built.spec, seed=1)
    filled = starts.fill(fresh, built.starts, built.spec, config.init_pattern)
    return sharding.flatten(filled), sharding.flatten(fresh)


def test_a_model_of_their_features_starts_it_too(files, run, tmp_path):
    """What was learnt on features comes from there, and the towers from their files."""
    workdir, _ = run
    spec = zoo.read_spec(workdir / "spec.json")
    over = {"kind": "features", "options": {"width": 48}}
    frontend = {"beside": ()}
    config = settings(files)
    overrides = config_lib.plain(config.model_overrides)
    learnt = zoo.get_spec(
        config.model,
        overrides
        | {"audio": over, "frontend": overrides["frontend"] | frontend}
        | {"vocab_size": spec.vocab_size},
    )
    variables = small_models.variables(learnt, seed=2)
    tokenizer = workdir / "tokenizer"
    convert.write(
        convert.Converted(learnt, variables, tokenizer=tokenizer), tmp_path / "learnt"
    )
    config.model_overrides.tokenizer = str(tokenizer)
    found, _ = started(config, (tmp_path / "learnt", *files), tmp_path)
    assert_equal(found, sharding.flatten(variables))
    for path in files:
        assert_equal(found, placed(path))


def test_one_part_alone(files, tmp_path):
    found, fresh = started(settings(files), files[1:], tmp_path)
    assert_equal(found, placed(files[1]))
    assert_equal(found, fresh, "params/audio/beats/")
    assert_equal(found, fresh, "params/audio/norm/")


def test_what_is_no_part_is_refused(files):
    options = zoo.TowerSpec("convnet").options
    start = TowerStart("audio", "convnet", options)
    model = convert.Converted(start, {"params": {"audio": {}}, "state": {}})
    spec = _spec(settings(files))
    message = "init_from it is convnet .* joint tower: beats, whisper"
    with pytest.raises(config_lib.ConfigError, match=message):
        starts.fill({}, [starts.Start("it", model)], spec, ".*")


def test_a_part_of_another_size_is_listed(files, tmp_path):
    config = settings(files)
    config.model_overrides.audio.options.parts.whisper.mlp = 48
    message = r"params/audio/whisper/block0/mlp/up/bias has shape \(32,\), expected"
    with pytest.raises(checkpoint.CheckpointError, match=message):
        started(config, files, tmp_path)


def test_augmentation_draws_once_for_all_mels():
    rng = np.random.default_rng(0)
    mels = tuple(jnp.asarray(rng.normal(-40, 5, (4, n, 8)), "f4") for n in (10, 12))
    config = Augment(gain_db=6.0, mixup_alpha=0.5)
    heard, mix = tasks.augmented(jax.random.key(0), Sound(mels), config)
    loud, _ = tasks.augmented(jax.random.key(0), Sound(mels), Augment(gain_db=6.0))
    gains = [np.asarray(y - x).mean((1, 2)) for x, y in zip(mels, loud.mel)]
    np.testing.assert_allclose(*gains, atol=1e-4)
    assert np.ptp(gains[0]) > 1
    for number, mel in enumerate(mels):
        alone, again = tasks.augmented(jax.random.key(0), Sound(mel), config)
        np.testing.assert_array_equal(heard.mel[number], alone.mel)
        np.testing.assert_array_equal(mix.partner, again.partner)


def test_mels_are_made_on_the_device(files, tmp_path):
    config = settings(files)
    config.model_overrides.temporal = None
    config.data.mel = "host"
    with pytest.raises(config_lib.ConfigError, match="several log-mels of each wave"):
        experiment.build(config, tmp_path)

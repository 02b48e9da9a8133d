"""Single towers to start from: text models of Hugging Face's, audio models of others."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
import transformers

from clap_jax import checkpoint, convert, sharding
from clap_jax.convert import htsat, pann, rules, starts
from clap_jax.models import zoo
from tests.convert import small

SIZES = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 60,
}
ROBERTA = transformers.RobertaConfig(
    **SIZES, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5
)
BERT = transformers.BertConfig(**SIZES, max_position_embeddings=512)
GPT2 = transformers.GPT2Config(
    vocab_size=60, n_embd=128, n_layer=2, n_head=2, n_inner=48, n_positions=40
)
CLIP_TEXT = {**SIZES, "max_position_embeddings": 40, "eos_token_id": 59}
CLIP = transformers.CLIPConfig(
    text_config=CLIP_TEXT,
    vision_config={
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    },
)
BART = transformers.BartConfig(
    vocab_size=60,
    d_model=128,
    encoder_layers=2,
    encoder_attention_heads=2,
    encoder_ffn_dim=48,
    decoder_layers=1,
    decoder_attention_heads=2,
    decoder_ffn_dim=48,
    max_position_embeddings=40,
)
TEXT = {
    "RobertaModel": ("bert", ROBERTA),
    "RobertaForMaskedLM": ("bert", ROBERTA),
    "BertModel": ("bert", BERT),
    "BertForPreTraining": ("bert", BERT),
    "GPT2Model": ("gpt2", GPT2),
    "GPT2LMHeadModel": ("gpt2", GPT2),
    "CLIPTextModel": ("clip_text", transformers.CLIPTextConfig(**CLIP_TEXT)),
    "CLIPModel": ("clip_text", CLIP),
    "BartModel": ("bart", BART),
}


def text_model(name):
    torch.manual_seed(0)
    model = getattr(transformers, name)(TEXT[name][1]).eval()
    for parameter in model.parameters():  # norms and biases, too, are to be different
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def their_hidden(name, model, ids, mask):
    part = {
        "RobertaForMaskedLM": "roberta",
        "BertForPreTraining": "bert",
        "GPT2LMHeadModel": "transformer",
        "CLIPModel": "text_model",
        "BartModel": "encoder",
    }.get(name)
    model = getattr(model, part) if part else model
    with torch.inference_mode():
        out = model(torch.tensor(ids), attention_mask=torch.tensor(mask.astype(int)))
    return out.last_hidden_state.numpy()


@pytest.mark.parametrize("form", ["folder", "bin"])
@pytest.mark.parametrize("name", TEXT)
def test_text_towers(name, form, tmp_path):
    model, kind = text_model(name), TEXT[name][0]
    model.save_pretrained(tmp_path / "source")
    source = tmp_path / "source"
    if form == "bin":  # a file alone, without config
        source = tmp_path / "pytorch_model.bin"
        torch.save(model.state_dict(), source)
    where, converted = convert.convert(source, tmp_path / "out")
    start = starts.read_start(where / "tower.json")
    assert (start.side, start.kind, start.vocab_size) == ("text", kind, 60)
    assert start == converted.spec
    assert (start.options["heads"], start.options["depth"]) == (2, 2)
    words = "config.json" if form == "folder" else "by the usual width of 64"
    assert any(words in note for note in converted.notes)
    tree = checkpoint.load_variables(where)
    assert set(tree["params"]) == {"text"}
    fresh = "fresh, not in the file: params/text/pooler"
    has_pooler = name in ("RobertaModel", "BertModel", "BertForPreTraining")
    assert (fresh in converted.notes) == (kind == "bert" and not has_pooler)

    options = (
        start.options
        if has_pooler
        else start.options | ({"pool": "first"} if kind == "bert" else {})
    )
    tower = zoo.TEXT_TOWERS[kind].tower(options, start.vocab_size)
    ids = np.random.default_rng(0).integers(5, 58, (2, 9))
    ids[:, -1] = 59
    mask = np.ones(ids.shape, bool)
    params = {"params": tree["params"]["text"], "state": {}}
    (_, aux), _ = tower.apply(params, (jnp.asarray(ids), jnp.asarray(mask)))
    want = their_hidden(name, model, ids, mask)
    assert np.abs(aux["hidden"] - want).max() <= 1e-4 * np.abs(want).max()


def test_berts_old_names_of_norms(tmp_path):
    """bert-base-uncased on the hub calls weight and bias of a norm gamma and beta."""
    state = text_model("BertModel").state_dict()
    old = {
        key.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): x
        for key, x in state.items()
    }
    assert old.keys() != state.keys()
    torch.save(state, tmp_path / "new.bin")
    torch.save(old, tmp_path / "old.bin")
    want, got = (
        sharding.flatten(convert.load(tmp_path / name).variables)
        for name in ("new.bin", "old.bin")
    )
    assert want.keys() == got.keys()
    for path, array in want.items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)


def test_what_is_not_the_text_tower_is_kept(tmp_path):
    text_model("RobertaForMaskedLM").save_pretrained(tmp_path / "a")
    found = convert.load(tmp_path / "a")
    assert "lm_head.dense.weight" in found.extra
    torch.save(text_model("GPT2LMHeadModel").state_dict(), tmp_path / "b.bin")
    assert not convert.load(tmp_path / "b.bin").extra  # the tied table, once


def audio_state(kind, classes=5):
    spec = small.spec("laion" if kind == "htsat" else "laion_pann_bert")
    tables = {"htsat": htsat, "pann": pann}[kind]
    flat = {
        path: leaf
        for path, leaf in sharding.flatten(small.variables(spec)).items()
        if path.split("/")[1] == "audio"
    }
    state = rules.invert(tables.rules(spec.audio.options, ""), flat)
    return (
        spec.audio.options,
        flat,
        state | tables.buffers(spec.audio.options, "", spec.frontend),
    )


@pytest.mark.parametrize(
    "kind, prefix, wrapper, name",
    [
        ("htsat", "sed_model.", "state_dict", "HTSAT-fullset.ckpt"),
        ("htsat", "audio_branch.", "", "finetuned.pt"),
        ("htsat", "module.audio_branch.", "state_dict", "finetuned.pt"),
        ("pann", "", "model", "Cnn14_mAP=0.431.pth"),
        ("pann", "sed_model.", "state_dict", "PANN-fullset-map=0.439.ckpt"),
    ],
)
@pytest.mark.parametrize("has_front_end", [True, False])
def test_audio_towers(kind, prefix, wrapper, name, has_front_end, tmp_path):
    options, flat, state = audio_state(kind)
    if not has_front_end:
        state = {key: x for key, x in state.items() if "extractor" not in key}
    path = small.save(tmp_path / name, state, prefix=prefix, wrapper=wrapper, epoch=3)
    where, converted = convert.convert(path, tmp_path / "out")
    tree = json.loads((where / "tower.json").read_text())
    assert set(tree) == {"side", "kind", "options", "vocab_size"}
    assert (tree["side"], tree["kind"], tree["vocab_size"]) == ("audio", kind, 0)
    start = starts.read_start(where / "tower.json")
    assert {k: v for k, v in start.options.items() if k != "spec_augment"} == {
        k: v for k, v in options.items() if k != "spec_augment"
    }
    found = sharding.flatten(checkpoint.load_variables(where))
    assert found.keys() == flat.keys()
    for key, want in flat.items():
        np.testing.assert_array_equal(found[key], want, err_msg=key)
    words = "slaney, 48 kHz" if has_front_end else "no mel filter bank"
    assert any(words in note for note in converted.notes)


def test_laions_audio_tower_with_its_head(tmp_path):
    """Their "finetuned" files: the text side is not in them."""
    state = {
        key: x
        for key, x in small.state_dict("laion").items()
        if not key.startswith("text")
    }
    found = convert.load(small.save(tmp_path / "a.pt", state))
    assert found.spec.kind == "htsat"
    assert set(found.variables["params"]) == {"audio"}
    assert "audio_projection.0.weight" in found.extra


def test_a_start_is_read_again(tmp_path):
    _, _, state = audio_state("pann")
    path = small.save(tmp_path / "a.pth", state, wrapper="model")
    where, converted = convert.convert(path, tmp_path / "out")
    again = convert.load(where)
    assert again.spec == converted.spec
    small.equal_trees(again.variables, converted.variables)
    with pytest.raises(ValueError, match="written as clap_jax, not laion"):
        convert.write(again, tmp_path / "x.pt", to="laion")


def test_faults_of_a_start_are_listed(tmp_path):
    _, _, state = audio_state("htsat")
    del state["norm.bias"]
    state["odd"] = np.zeros(1, np.float32)
    path = small.save(tmp_path / "a.ckpt", state, prefix="sed_model.")
    with pytest.raises(convert.ConversionError) as caught:
        convert.convert(path, tmp_path / "out")
    assert caught.value.errors == [
        "sed_model.odd: no rule for this source tensor",
        "sed_model.norm.bias: missing; it fills params/audio/norm/bias",
    ]
    assert not (tmp_path / "out").exists()


def test_a_damaged_tower_file(tmp_path):
    (tmp_path / "tower.json").write_text('{"side": "audio"}')
    with pytest.raises(ValueError, match="does not describe a tower"):
        convert.load(tmp_path)


def test_unknown_tensors(tmp_path):
    state = {"layer.weight": np.zeros(2, np.float32)}
    path = small.save(tmp_path / "a.pt", state)
    with pytest.raises(convert.FileError) as caught:
        convert.load(path)
    assert "holds 1 tensors (layer.weight, ...) of no model" in str(caught.value)

"""Tokenizers: trained ones, saved ones, and what is refused."""

import csv
import json
import os
import pickle
import subprocess
import sys
import threading

import huggingface_hub
import numpy as np
import pytest
import tokenizers
import transformers

from clap_jax.text import tokenize

CAPTIONS = [
    f"A {size} {animal} {verb} {where}, then a {other} {verb} again."
    for size in ("small", "large")
    for animal in ("dog", "rooster", "sea lion")
    for verb in ("calls", "sings")
    for where in ("in the rain", "far away")
    for other in ("door", "siren")
]
LENGTH = 24


@pytest.fixture(scope="module")
def trained():
    return tokenize.train(CAPTIONS, 400, LENGTH)


def test_layout_is_that_of_roberta(trained):
    ids, mask = trained(["A dog sings.", "rain"])
    assert ids.dtype == np.int32 and mask.dtype == bool
    assert ids.shape == mask.shape == (2, LENGTH)
    count = mask.sum(1)
    for row in range(2):
        assert ids[row, 0] == 0 and ids[row, count[row] - 1] == 2
        assert mask[row, : count[row]].all()
        assert (ids[row, count[row] :] == 1).all()
        assert (ids[row, 1 : count[row] - 1] > 4).all()
    assert trained.pad_id == 1
    special = trained.tokenizer.convert_tokens_to_ids(list(tokenize.SPECIAL_TOKENS))
    assert special == [0, 1, 2, 3, 4]


def test_long_texts_are_cut_and_still_end(trained):
    ids, mask = trained([" ".join(CAPTIONS)])
    assert mask.all() and ids[0, 0] == 0 and ids[0, -1] == 2
    whole = trained.tokenizer(" ".join(CAPTIONS))["input_ids"]
    np.testing.assert_array_equal(ids[0, :-1], whole[: LENGTH - 1])


def test_ids_are_those_of_transformers(trained):
    theirs = trained.tokenizer(
        CAPTIONS,
        padding="max_length",
        truncation=True,
        max_length=LENGTH,
        return_tensors="np",
    )
    ids, mask = trained(CAPTIONS)
    np.testing.assert_array_equal(ids, theirs["input_ids"])
    np.testing.assert_array_equal(mask, theirs["attention_mask"])
    # Nor did their padding and truncation change our next call.
    np.testing.assert_array_equal(trained(CAPTIONS)[0], ids)


def test_words_of_the_captions_become_tokens(trained):
    first, within = trained(["rooster", "the rooster"])[0]
    assert first[1] in within, "a word is the same token at the start and within"
    assert (first == 1).sum() == LENGTH - 3


def test_tokens_are_counted_as_they_come(trained):
    texts = ["rain", *CAPTIONS[:3], " ".join(CAPTIONS)]
    counts = [trained.count(text) for text in texts]
    assert counts == trained(texts)[1].sum(1).tolist()
    assert counts[-1] == LENGTH
    with pytest.raises(ValueError, match="the text is ' ', expected words"):
        trained.count(" ")


def test_a_shorter_one_cuts_earlier(trained):
    short = trained.shorter(7)
    assert short is trained.shorter(7) and short.length == 7
    ids, mask = short(["rain", " ".join(CAPTIONS)])
    assert ids.shape == (2, 7) and mask[1].all() and ids[1, -1] == 2
    np.testing.assert_array_equal(ids[0], trained(["rain"])[0][0, :7])


def test_any_text_survives(trained):
    text = "Ein Bär, 犬 und ein 🐕: \t 100 %?"
    ids, _ = tokenize.Tokenizer(trained.tokenizer, 80)([text])
    decoded = trained.tokenizer.decode(ids[0], skip_special_tokens=True)
    assert decoded.strip() == text


@pytest.fixture(scope="module")
def real_captions(shared_data):
    path = shared_data / "captions" / "open" / "musiccaps_train.csv"
    with path.open(newline="", encoding="utf-8") as file:
        return [row["caption"] for row in csv.DictReader(file)]


def model_of(tokenizer: tokenize.Tokenizer) -> dict:
    return json.loads(tokenizer.tokenizer.backend_tokenizer.to_str())["model"]


def test_training_is_deterministic(real_captions):
    """Many pairs tie for the next merge in a real corpus."""
    first = tokenize.train(real_captions, 2000, 77)
    second = tokenize.train(iter(real_captions), 2000, 77)
    assert first.vocab_size == 2000
    assert model_of(first) == model_of(second)
    assert first(real_captions)[1].mean() < 0.9


def test_vocabulary_is_as_large_as_the_texts_allow(trained):
    assert tokenize.MIN_VOCAB_SIZE < trained.vocab_size <= 400
    assert tokenize.train(CAPTIONS, 290, LENGTH).vocab_size == 290
    few = tokenize.train(["dog dog dog"], 400, LENGTH)
    assert tokenize.MIN_VOCAB_SIZE < few.vocab_size < 270
    assert few(["dog"])[0].max() < few.vocab_size


def test_case_is_kept(trained):
    upper, lower = trained(["DOG", "dog"])[0]
    assert (upper != lower).any()


def test_saved_and_loaded(trained, tmp_path):
    folder = tmp_path / "deep" / "tokenizer"
    trained.save(folder)
    assert os.listdir(folder.parent) == ["tokenizer"]
    loaded = tokenize.load(folder, LENGTH)
    assert loaded.vocab_size == trained.vocab_size
    assert (loaded.pad_id, loaded.length) == (1, LENGTH)
    for ours, theirs in zip(trained(CAPTIONS), loaded(CAPTIONS), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tokenize.load(str(folder), 8)(CAPTIONS)[0].shape == (len(CAPTIONS), 8)
    # And by Hugging Face itself.
    theirs = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert (
        theirs(CAPTIONS[0])["input_ids"][:LENGTH]
        == trained.tokenizer(CAPTIONS[0])["input_ids"][:LENGTH]
    )
    assert theirs.mask_token_id == 4 and theirs.model_max_length == LENGTH


def test_saving_keeps_other_files_of_a_folder(trained, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "spec.json").write_text("{}")
    (folder / "tokenizer.json").write_text("old")
    trained.save(folder)
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["vocab"]
    assert (folder / "spec.json").read_text() == "{}"
    assert os.listdir(tmp_path) == ["model"]


def test_interrupted_saving_leaves_nothing(trained, tmp_path, monkeypatch):
    def interrupted(folder):
        folder.mkdir()
        (folder / "tokenizer.json").write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setattr(trained.tokenizer, "save_pretrained", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained.save(tmp_path / "tokenizer")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a dog", ""], "text 1 is ''"),
        (["a dog", "rain", " \n"], r"text 2 is ' \\n'"),
        ([None], "text 0 is None"),
        (["a dog", 7], "text 1 is 7"),
    ],
)
def test_bad_texts_are_named(trained, texts, message):
    with pytest.raises(ValueError, match=message):
        trained(texts)


def test_one_string_is_not_a_sequence_of_texts(trained):
    with pytest.raises(TypeError, match="found the text 'a dog'"):
        trained("a dog")


def test_no_texts_give_no_rows(trained):
    assert trained([])[0].shape == (0, LENGTH)


def test_tokenizers_that_do_not_fit_are_refused(trained):
    with pytest.raises(ValueError, match="more than the 2 special tokens"):
        tokenize.Tokenizer(trained.tokenizer, 2)
    with pytest.raises(ValueError, match="dict is not a fast tokenizer"):
        tokenize.Tokenizer({}, 8)
    bare = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE())
    )
    with pytest.raises(ValueError, match="no padding token"):
        tokenize.Tokenizer(bare, 8)
    with pytest.raises(ValueError, match="vocab_size is 260, expected 261"):
        tokenize.train(CAPTIONS, 260, LENGTH)


def test_folder_without_a_tokenizer(tmp_path):
    with pytest.raises(
        ValueError, match=r"no tokenizer in this folder.*tokenizer.json"
    ):
        tokenize.load(tmp_path, LENGTH)


@pytest.mark.parametrize("name", ["nobody/no-such-tokenizer", "/nowhere/at/all"])
def test_unreachable_tokenizer_says_what_to_do(name, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=f"'{name}' is not a folder.*Give a folder"):
        tokenize.load(name, LENGTH)


def test_copies_travel_to_workers(trained):
    copy = pickle.loads(pickle.dumps(trained))
    np.testing.assert_array_equal(copy(CAPTIONS)[0], trained(CAPTIONS)[0])


def test_threads_do_not_disturb_each_other(trained):
    expected = trained(CAPTIONS)[0]
    wrong, errors = [], []

    def work(length):
        own = tokenize.Tokenizer(trained.tokenizer, length)
        try:
            for _ in range(20):
                wrong.append(not np.array_equal(trained(CAPTIONS)[0], expected))
                wrong.append(own(CAPTIONS)[0].shape[1] != length)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=work, args=(8 + n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(wrong) == 320 and not any(wrong)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """Folder of a small tokenizer laid out like GPT-2's: bytes, merges, end token."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    bytes_of = tokenizers.pre_tokenizers.ByteLevel
    backend.pre_tokenizer = bytes_of(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=False)
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=400,
        initial_alphabet=sorted(bytes_of.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(CAPTIONS + ["wow!!! a dog!!!"] * 9, trainer)
    assert backend.token_to_id("!!!") is not None
    end = "<|endoftext|>"
    backend.add_special_tokens([end])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=end, eos_token=end, unk_token=end
    )
    folder = tmp_path_factory.mktemp("gpt2")
    tokenizer.save_pretrained(folder)
    return folder


SPACE = 220  # GPT-2's id of a lone space, here as there


def reference_ids(folder, text):
    """MS-CLAP's steps: pad with "!", put the end token behind the text and a space."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "!"})
    found = tokenizer(f"{text} <|endoftext|>", padding="max_length", max_length=LENGTH)
    return found["input_ids"], found["attention_mask"]


@pytest.mark.parametrize(
    "text",
    ["A dog sings.", "wow!!! a dog! !", "!", "a dog ", "rain  \n", "Ein Bär, 犬"],
)
def test_style_msclap_is_that_of_the_reference(gpt2, text):
    ids, mask = tokenize.load(gpt2, LENGTH, "msclap")([text])
    want_ids, want_mask = reference_ids(gpt2, text)
    np.testing.assert_array_equal(ids[0], want_ids)
    np.testing.assert_array_equal(mask[0], want_mask)


def test_style_msclap_ends_with_a_space_and_the_end_token(gpt2):
    tokenizer = tokenize.load(gpt2, LENGTH, "msclap")
    assert tokenizer.pad_id == 0
    end = tokenizer.vocab_size - 1
    (ids,), (mask,) = tokenizer(["a dog! again"])
    count = mask.sum()
    assert ids[count - 2 : count].tolist() == [SPACE, end]
    assert not ids[count:].any()
    # A "!" in the text is id 0 too, and visible.
    assert (ids[:count] == 0).sum() == 1 and mask[:count].all()


def test_style_msclap_keeps_the_end_of_long_texts(gpt2):
    """MS-CLAP does not cut them, and fails on a batch of unequal lengths."""
    text = " ".join(CAPTIONS)
    assert len(reference_ids(gpt2, text)[0]) > LENGTH
    tokenizer = tokenize.load(gpt2, LENGTH, "msclap")
    ids, mask = tokenizer([text, "a dog"])
    assert ids.shape == (2, LENGTH) and mask[0].all()
    assert ids[0, -2:].tolist() == [SPACE, tokenizer.vocab_size - 1]
    np.testing.assert_array_equal(
        ids[0, :-2], reference_ids(gpt2, text)[0][: LENGTH - 2]
    )


@pytest.mark.parametrize("style", ["plain", "msclap"])
def test_a_saved_tokenizer_keeps_its_style(gpt2, tmp_path, style):
    tokenizer = tokenize.load(gpt2, LENGTH, "msclap")
    tokenizer.save(tmp_path / "tokenizer")
    texts = ["wow!!! a dog!", "rain"]
    again = tokenize.load(tmp_path / "tokenizer", LENGTH, style)
    assert (again.pad_id, again.vocab_size) == (0, tokenizer.vocab_size)
    for ours, theirs in zip(tokenizer(texts), again(texts), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    copy = pickle.loads(pickle.dumps(again))
    np.testing.assert_array_equal(copy(texts)[0], again(texts)[0])


def test_styles_that_do_not_fit(gpt2, trained, tmp_path):
    with pytest.raises(ValueError, match="unknown tokenizer style 'clip'.*plain"):
        tokenize.load(gpt2, LENGTH, "clip")
    with pytest.raises(ValueError, match="no padding token"):
        tokenize.load(gpt2, LENGTH)
    trained.save(tmp_path / "trained")
    with pytest.raises(ValueError, match=r"needs GPT-2's tokens <\|endoftext\|>"):
        tokenize.load(tmp_path / "trained", LENGTH, "msclap")


def test_plain_suits_the_tokenizer_of_clip():
    """Start and end token come from the tokenizer itself; the end survives a cut."""
    vocab = {
        letter: i for i, letter in enumerate(["a", "a</w>", "b", "b</w>", "ab</w>"])
    }
    vocab |= {"<|startoftext|>": 5, "<|endoftext|>": 6}
    clip = transformers.CLIPTokenizer(vocab=vocab, merges=[("a", "b</w>")])
    ids, mask = tokenize.Tokenizer(clip, 5)(["AB b", "a a a a a a"])
    assert ids.tolist() == [[5, 4, 3, 6, 6], [5, 1, 1, 1, 6]]
    assert mask.sum(1).tolist() == [4, 5]


WORKER = """
import os, sys, json
from clap_jax.text import tokenize

captions = json.load(sys.stdin)
tokenizer = tokenize.train(captions, 2000, 77)
tokenizer(captions[:50])
assert "TOKENIZERS_PARALLELISM" not in os.environ
child = os.fork()
if not child:
    tokenizer(captions[:50])
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
print(tokenizer.tokenizer.backend_tokenizer.to_str())
"""


def test_another_process_trains_the_same_and_forks_in_silence(real_captions):
    """The Rust library seeds its hash tables anew in every process, and warns at every
    fork once its thread pool has run."""
    environment = dict(os.environ)
    environment.pop("TOKENIZERS_PARALLELISM", None)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WORKER],
        input=json.dumps(real_captions),
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    here = model_of(tokenize.train(real_captions, 2000, 77))
    assert json.loads(done.stdout)["model"] == here

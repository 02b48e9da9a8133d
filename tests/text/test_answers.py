"""Tasks as text: what is asked and answered, and which tokens are the answer's."""

import pickle

import numpy as np
import pytest
import transformers

from clap_jax.text import answers, tokenize

TEXTS = ("this is a sound of dog, rain!", "generate audio caption a bell rings")
LENGTH = 24


def trained():
    return tokenize.train(TEXTS, 300, LENGTH)


def gpt2(style):
    """A byte-level tokenizer as GPT-2's: nothing is put before or behind a text."""
    fast = trained().tokenizer
    backend = tokenize.tokenizers.Tokenizer.from_str(fast.backend_tokenizer.to_str())
    backend.post_processor = tokenize.processors.ByteLevel()
    backend.pre_tokenizer = tokenize.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", model_max_length=LENGTH
    )
    if style == "plain":
        fast.pad_token = "<|endoftext|>"
    return tokenize.Tokenizer(tokenize.STYLES[style](fast), LENGTH)


TOKENIZERS = {
    "trained": trained,
    "gpt2": lambda: gpt2("plain"),
    "msclap": lambda: gpt2("msclap"),
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def writer(request):
    return answers.Writer(TOKENIZERS[request.param]())


# --- templates ------------------------------------------------------------------------


def test_every_task_says_where_it_comes_from():
    found = answers.tasks()
    families = {"sound_event", "scene", "emotion", "instrument", "pitch", "genre"}
    assert families | {"caption", "question", "metadata"} <= set(found)
    for name, task in found.items():
        assert task.name == name
        assert any(who in task.source for who in ("ours", "Pengi", "clapcap"))
        prompt, answer = task.write(["Dog_bark"], ["is it a dog? yes"])
        assert answer and "{" not in prompt + answer


@pytest.mark.parametrize(
    ("name", "tags", "captions", "expected"),
    [
        ("sound_event", ["Dog_bark"], [], ("this is a sound of", "dog bark")),
        ("sound_event", ["rain", "wind"], [], ("this is a sound of", "rain, wind")),
        ("caption", [], [" A  bell. "], ("generate audio caption", "A bell.")),
        ("free_caption", [], ["A bell."], ("", "A bell.")),
        (
            "question",
            [],
            ["is it a dog ? yes, it is"],
            ("question: is it a dog?", "yes, it is"),
        ),
    ],
)
def test_what_is_asked_and_answered(name, tags, captions, expected):
    assert answers.task(name).write(tags, captions) == expected


def test_prompts_and_captions_are_drawn():
    made = answers.template("mine", ["one", "two"], "{caption}", "a test")
    seen = {made.write([], ["x", "y"], np.random.default_rng(i)) for i in range(40)}
    assert seen == {(p, a) for p in ("one", "two") for a in ("x", "y")}
    assert made.write([], ["x", "y"]) == ("one", "x")


def test_braces_in_a_label_mean_themselves():
    assert answers.task("scene").write(["{caption}"], [])[1] == "{caption}"


@pytest.mark.parametrize(
    ("name", "tags", "captions", "problem"),
    [
        ("sound_event", [], ["x"], "has no tag"),
        ("sound_event", ["_"], ["x"], "has no tag"),
        ("caption", ["x"], [], "has no caption"),
        ("question", ["x"], ["a dog"], "expected a question, a question mark"),
        ("question", ["x"], ["a dog? "], "expected a question, a question mark"),
    ],
)
def test_what_a_clip_lacks(name, tags, captions, problem):
    assert problem in answers.task(name).problem(tags, captions)
    assert not answers.task(name).problem(["x"], ["a dog? yes"])


def test_bad_templates():
    with pytest.raises(ValueError, match="unknown place in a text 'tag'.*'tags'"):
        answers.template("mine", ["a"], "{tag}", "")
    with pytest.raises(ValueError, match="needs a prompt"):
        answers.template("mine", [], "{tags}", "")
    with pytest.raises(ValueError, match="unknown task of a source 'scenes'.*'scene'"):
        answers.task("scenes")


# --- tokens ---------------------------------------------------------------------------


def test_rows(writer):
    """Prompt, answer, ending, padding; read back, the answer is what it was."""
    pairs = [("this is a sound of", "dog, rain"), ("", "a bell rings")]
    ids, mask, answer = writer(pairs)
    assert ids.dtype == np.int32 and ids.shape == mask.shape == answer.shape
    assert ids.shape == (2, LENGTH)
    for row, (prompt, text) in enumerate(pairs):
        own = np.flatnonzero(answer[row])
        count = mask[row].sum()
        assert mask[row, :count].all() and own[-1] == count - 1
        assert len(own) == count - own[0]
        assert tuple(ids[row, count - len(writer.ending) : count]) == writer.ending
        assert writer.read(ids[row, own]) == text
        assert writer.tokenizer.text(ids[row, : own[0]]).strip() == prompt
        assert (ids[row, count:] == writer.tokenizer.pad_id).all()
    assert answer[1, 0]


def test_an_answer_follows_its_prompt_as_words_do(writer):
    """Tokens of the whole sentence, so that a language model knows them."""
    ids, mask, _ = writer([("this is a sound of", "dog, rain")])
    sentence = writer.tokenizer.pieces("this is a sound of dog, rain")
    assert ids[0, mask[0]].tolist() == [*sentence, *writer.ending]


def test_endings_of_styles():
    assert answers.Writer(trained()).ending == (2,)  # </s>
    plain = answers.Writer(gpt2("plain"))
    assert plain.ending == (plain.tokenizer.tokenizer.eos_token_id,)
    msclap = answers.Writer(gpt2("msclap"))
    names = msclap.tokenizer.tokenizer.convert_ids_to_tokens(list(msclap.ending))
    assert names == ["\u0120", "<|endoftext|>"]
    assert gpt2("msclap").pad_id != msclap.ending[0]


def test_long_texts_are_cut(writer):
    """An answer that is cut has no ending, and a prompt leaves room for one."""
    long = " ".join(["rain!"] * 60)
    (ids,), (mask,), (answer,) = writer([("a bell", long)])
    assert mask.all() and answer[-1] and ids[-1] not in writer.ending
    _, mask, answer = writer([(long, "dog")])
    assert mask[0].sum() > answer[0].sum() > len(writer.ending)
    assert np.flatnonzero(answer[0])[0] == LENGTH // 2


def test_an_answer_without_an_end_is_read_whole(writer):
    assert writer.read(writer.tokenizer.pieces("a bell")) == "a bell"
    assert writer.read(list(writer.ending)) == ""


def test_no_words_are_an_error(writer):
    with pytest.raises(ValueError, match="an answer is ' ', expected words"):
        writer([("a bell", " ")])


def test_a_tokenizer_has_to_end_texts():
    fast = gpt2("plain").tokenizer
    fast.eos_token = None
    with pytest.raises(ValueError, match="no end token"):
        answers.Writer(tokenize.Tokenizer(fast, LENGTH))


def test_worker_processes_get_a_copy(writer):
    copy = pickle.loads(pickle.dumps(writer))
    for a, b in zip(copy([("a bell", "dog")]), writer([("a bell", "dog")])):
        np.testing.assert_array_equal(a, b)

"""Metrics of captions, against definitions, aac-metrics and the reference programs."""

import json
import math
import shutil
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from clap_jax.evals import (
    Result,
    build_evaluator,
    caption_java,
    caption_scores,
    caption_words,
    details,
    report,
    runs,
    sentences,
)
from clap_jax.evals.caption_words import words
from clap_jax.evals.excerpts import Excerpts
from tests.evals import caption_pairs
from tests.evals.fakes import FakeEncoder, FakeSource
from tests.evals.pages import Page
from tests.evals.some_results import SoundSource

needs_java = pytest.mark.skipif(
    not shutil.which("java"), reason="Java is optional, and is not here"
)

# aac-metrics 0.6.0, of the captions of `pairs` split by `words` or by Stanford's
# tokenizer, which is the same for them.
AAC_METRICS = {
    "BLEU_1": 0.7792234456839527,
    "BLEU_2": 0.6924139227491818,
    "BLEU_3": 0.6084909979292046,
    "BLEU_4": 0.5627004256359048,
    "CIDEr_D": 1.6546803620249306,
    "ROUGE_L": 0.5976837827395518,
}

# Nothing, punctuation only, one word, the same; one reference without any word.
EDGES = (
    ["", "...", "bark", "a dog barks loudly"],
    [["a dog"], ["rain falls"], ["a bark"], ["a dog barks loudly", "?"]],
)


@pytest.fixture(scope="session")
def captions(shared_data):
    return caption_pairs.read(shared_data)


@pytest.fixture(scope="session")
def pairs(captions):
    """200 captions, and one to five references of each."""
    return caption_pairs.pairs(captions)


@pytest.fixture
def without_java(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)


@pytest.fixture
def java_that(monkeypatch, tmp_path):
    """Puts a program in the place of Java: the lines of a script in Python."""

    def place(*lines):
        program = tmp_path / "jre" / "bin" / "java"
        program.parent.mkdir(parents=True)
        program.write_text("\n".join([f"#!{sys.executable}", "import sys", *lines]))
        program.chmod(0o755)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "jre"))

    return place


# --- definitions, written as in the papers ---


def bleu(candidates, references, size):
    """Papineni et al. 2002, over the corpus; the reference of nearest length counts."""
    hits, total = np.zeros(size), np.zeros(size)
    length = wanted = 0
    for own, of_people in zip(candidates, references):
        length += len(own)
        wanted += min((abs(len(one) - len(own)), len(one)) for one in of_people)[1]
        for n in range(size):
            counts = Counter(caption_words.ngrams(own, n + 1))
            most = Counter()
            for one in of_people:
                most |= Counter(caption_words.ngrams(one, n + 1))
            hits[n] += (counts & most).total()
            total[n] += counts.total()
    return min(1, math.exp(1 - wanted / length)) * np.exp(np.log(hits / total).mean())


def rouge_l(own, of_people):
    """Lin 2004 with beta 1.2; the best precision and the best recall of any reference."""
    common = [longest_common(own, one) for one in of_people]
    precision = max(common) / len(own)
    recall = max(hit / len(one) for hit, one in zip(common, of_people))
    if not precision:
        return 0.0
    return 2.44 * precision * recall / (recall + 1.44 * precision)


def longest_common(a, b):
    before = [0] * (len(b) + 1)
    for word in a:
        now = [0]
        for j, other in enumerate(b):
            now.append(before[j] + 1 if word == other else max(before[j + 1], now[-1]))
        before = now
    return before[-1]


def cider_d(candidates, references):
    """Vedantam et al. 2015 (arXiv 1411.5726), with CIDEr-D's clipping and penalty."""
    clips = len(candidates)
    values = np.zeros(clips)
    for n in range(1, 5):
        having = Counter()
        for own in references:
            having.update({g for one in own for g in caption_words.ngrams(one, n)})
        weight = {gram: math.log(clips / count) for gram, count in having.items()}

        def vector(text):
            counts = Counter(caption_words.ngrams(text, n))
            return {g: c * weight.get(g, math.log(clips)) for g, c in counts.items()}

        for i, own in enumerate(candidates):
            a = vector(own)
            for one in references[i]:
                b = vector(one)
                dot = sum(min(a[g], b[g]) * b[g] for g in a if g in b)
                norms = math.hypot(*a.values()) * math.hypot(*b.values())
                # The reference counts pairs of words, which differ as words do.
                gap = max(len(own) - 1, 0) - max(len(one) - 1, 0)
                penalty = math.exp(-(gap**2) / (2 * 6**2))
                if norms:
                    values[i] += 10 / 4 * penalty * dot / norms / len(references[i])
    return values


def test_equal_to_the_definitions(pairs, without_java):
    candidates, references = pairs
    found = caption_scores.measure(candidates, references)
    assert found.tokenizer == "words"
    own = [words(text) for text in candidates]
    of_people = [[words(text) for text in texts] for texts in references]
    # The reference keeps its quotients from 0 by 1e-9 of a word.
    for size in (1, 2, 3, 4):
        wanted = bleu(own, of_people, size)
        np.testing.assert_allclose(found.metrics[f"BLEU_{size}"], wanted, rtol=1e-9)
    wanted = [rouge_l(*both) for both in zip(own, of_people)]
    np.testing.assert_allclose(found.per_clip["ROUGE_L"], wanted, rtol=1e-12)
    wanted = cider_d(own, of_people)
    np.testing.assert_allclose(found.per_clip["CIDEr_D"], wanted, atol=1e-9)
    for name in ("ROUGE_L", "CIDEr_D"):
        assert found.metrics[name] == pytest.approx(found.per_clip[name].mean(), 1e-12)


def test_equal_to_aac_metrics(pairs, without_java):
    found = caption_scores.measure(*pairs)
    for name, value in AAC_METRICS.items():
        assert found.metrics[name] == pytest.approx(value, rel=1e-12), name


@needs_java
def test_equal_to_the_reference_evaluation(pairs):
    """COCO's evaluation with its own tokenizer and METEOR, from captions to numbers, of
    the 200 captions and the edge cases."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    candidates, references = ([*a, *b] for a, b in zip(pairs, EDGES))
    found = caption_scores.measure(candidates, references)
    assert found.tokenizer == "stanford"
    tokenizer = PTBTokenizer()
    written = tokenizer.tokenize(
        {i: [{"caption": text}] for i, text in enumerate(candidates)}
    )
    wanted = tokenizer.tokenize(
        {i: [{"caption": t} for t in own] for i, own in enumerate(references)}
    )
    together, _ = Bleu(4).compute_score(wanted, written, verbose=0)
    assert [found.metrics[name] for name in caption_scores.BLEU] == together
    for name, scorer in (("CIDEr_D", Cider()), ("ROUGE_L", Rouge())):
        mean, each = scorer.compute_score(wanted, written)
        assert found.metrics[name] == mean
        np.testing.assert_array_equal(found.per_clip[name], each)
    scorer = Meteor()
    try:
        mean, _ = scorer.compute_score(wanted, written)
    finally:
        scorer.meteor_p.stdout.close()
        scorer.meteor_p.stderr.close()
    assert found.metrics["METEOR"] == mean and 0.2 < mean < 0.6


@needs_java
def test_words_are_those_of_stanfords_tokenizer(captions):
    texts = [
        *captions,
        "It doesn't bark (loudly), it CANNOT: 'woof' - e.g. “woof” & so on",
    ]
    texts += ["", "...", "  a\tbee's\nhum ", "naïve café; R&B, r&b, 3.5 kHz, 1/2"]
    found = caption_java.tokenize(texts)
    same = [words(text) == own for text, own in zip(texts, found)]
    assert sum(same) >= 0.999 * len(texts)
    assert all(same[len(captions) :])


def test_words():
    assert words("A dog's bark, isn't it?") == [
        "a",
        "dog",
        "'s",
        "bark",
        "is",
        "n't",
        "it",
    ]
    assert words("High-pitched hum/buzz (3.5 kHz) -- then") == [
        "high-pitched",
        "hum/buzz",
        "-lrb-",
        "3.5",
        "khz",
        "-rrb-",
        "then",
    ]
    assert words(" ... ?! - ") == [] == words("")


# --- captions that are hardly any ---


def test_edge_cases(without_java):
    """As the reference has it (above); nothing is divided by 0."""
    found = caption_scores.measure(*EDGES)
    assert found.per_clip["CIDEr_D"][:2].tolist() == [0, 0]
    assert found.per_clip["ROUGE_L"][:2].tolist() == [0, 0]
    wanted = [2.44 * 0.5 / (0.5 + 1.44), 1]
    assert found.per_clip["ROUGE_L"][2:].tolist() == pytest.approx(wanted)
    # Half of 10: the other reference has no words.
    assert found.per_clip["CIDEr_D"][3] == pytest.approx(5)
    assert found.per_clip["mean_words"].tolist() == [0, 0, 1, 4]
    assert all(map(math.isfinite, found.metrics.values()))


def test_nothing_written(without_java):
    found = caption_scores.measure(["", "?"], [["a dog"], ["rain"]])
    zeros = ("BLEU_1", "BLEU_4", "CIDEr_D", "ROUGE_L", "distinct_words", "type_token")
    assert {name: found.metrics[name] for name in zeros} == dict.fromkeys(zeros, 0)
    found = caption_scores.measure(["a", "b"], [["?"], ["!"]])
    assert found.metrics["CIDEr_D"] == 0


def test_one_clip_has_no_cider(without_java):
    found = caption_scores.measure(["a dog"], [["a dog"]])
    assert "CIDEr_D" not in found.metrics and "one clip" in found.absent["CIDEr_D"]
    assert found.metrics["BLEU_2"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("candidates", "references", "sentence"),
    [
        ([], [], "found 0 of them"),
        (["a"], [["a"], ["b"]], "references of 2 clips"),
        (["a"], [[]], r"clip 0 are \[\], expected a list"),
        (["a"], ["a dog"], "clip 0 are 'a dog', expected a list"),
    ],
)
def test_wrong_captions(candidates, references, sentence):
    with pytest.raises(ValueError, match=sentence):
        caption_scores.measure(candidates, references)


# --- what may be missing ---


def test_without_java(without_java):
    found = caption_scores.measure(["a dog", "rain"], [["a dog"], ["snow"]])
    for name in ("METEOR", "SPICE", "SPIDEr"):
        assert name not in found.metrics
        assert "install a Java runtime" in found.absent[name]
    with pytest.raises(caption_java.JavaError, match="Java is missing"):
        caption_scores.measure(["a"], [["a"]], tokenizer="stanford")


def test_without_the_package(monkeypatch):
    monkeypatch.setattr(caption_java, "PACKAGE", "no_such_package")
    found = caption_scores.measure(["a dog", "rain"], [["a dog"], ["snow"]])
    assert set(found.absent) >= {"BLEU_4", "CIDEr_D", "ROUGE_L", "METEOR", "SPIDEr"}
    assert "pip install -e .[caption_metrics]" in found.absent["BLEU_1"]
    assert found.metrics["mean_words"] == 1.5


def test_java_that_fails(java_that):
    java_that("print('no class found', file=sys.stderr)", "sys.exit(3)")
    found = caption_scores.measure(["a dog", "rain"], [["a dog"], ["snow"]])
    assert found.tokenizer == "words"
    assert found.absent["METEOR"] == "METEOR failed: no class found"
    with pytest.raises(caption_java.JavaError, match="the tokenizer failed: no class"):
        caption_java.tokenize(["a"])


def test_java_that_does_not_listen(java_that):
    """It answers once and closes its ear: the next line breaks the pipe."""
    java_that(
        "import os",
        "sys.stdin.readline()",
        "os.close(0)",
        "print('1 2', flush=True)",
        "sys.exit('out of memory')",
    )
    with pytest.raises(caption_java.JavaError, match="METEOR failed: out of memory"):
        caption_java.meteor([["bark"]] * 2, [[["bark"]]] * 2)


def test_java_that_loses_a_line(java_that):
    java_that("print('a dog')")
    with pytest.raises(caption_java.JavaError, match="1 lines for 2 captions"):
        caption_java.tokenize(["a dog", "rain"])


@needs_java
def test_spice_says_what_it_lacks(monkeypatch):
    monkeypatch.setattr(caption_java, "SPICE_PARSER", ("no_such.jar",))
    assert "no_such.jar in /" in caption_java.spice_problem()
    assert "downloads them" in caption_java.spice_problem()
    with pytest.raises(caption_java.JavaError, match="SPICE needs Stanford CoreNLP"):
        caption_java.spice([["a"]], [[["a"]]])


def test_spice_and_spider_of_what_the_program_writes(java_that, monkeypatch):
    """A stand-in for the program, whose parser is on no registry; it checks what it is
    asked, and answers in the program's form, in another order."""
    monkeypatch.setattr(caption_java, "SPICE_PARSER", ())
    java_that(
        "import json",
        "arguments = sys.argv[1:]",
        "if not any(a.endswith('spice-1.0.jar') for a in arguments): sys.exit(1)",
        "rows = json.load(open(arguments[3]))",
        "if rows[1] != {'image_id': 1, 'test': 'rain', 'refs': ['snow', 'a storm']}:",
        "    sys.exit(f'asked {rows}')",
        "f = [0.25, 'NaN', 0.5]",
        "found = [{'image_id': i, 'scores': {'All': {'f': f[i]}}} for i in (2, 0, 1)]",
        "json.dump(found, open(arguments[arguments.index('-out') + 1], 'w'))",
    )
    references = [["a dog"], ["snow", "a storm"], ["a cat"]]
    found = caption_scores.measure(["a dog", "rain", "a cat"], references, "words")
    assert found.per_clip["SPICE"].tolist() == [0.25, 0, 0.5]
    assert found.metrics["SPICE"] == 0.25
    wanted = (found.per_clip["SPICE"] + found.per_clip["CIDEr_D"]) / 2
    np.testing.assert_array_equal(found.per_clip["SPIDEr"], wanted)
    assert found.metrics["SPIDEr"] == wanted.mean()


def test_spice_that_writes_nothing(java_that, monkeypatch):
    monkeypatch.setattr(caption_java, "SPICE_PARSER", ())
    java_that("")
    with pytest.raises(caption_java.JavaError, match="wrote no scores"):
        caption_java.spice([["a"]], [[["a"]]])


# --- sentence similarity ---


@pytest.fixture(scope="module")
def sentence_bert(tmp_path_factory):
    """A small BERT of random weights, as a folder."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("sentence_bert")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "barks", "rain", "falls"]
    made = Tokenizer(
        models.WordPiece({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=made,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(names),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def test_sentences_are_those_of_sentence_transformers(sentence_bert):
    from sentence_transformers import SentenceTransformer

    texts = ["a dog barks", "rain falls " * 60, "", "rain", "a dog barks"]
    theirs = SentenceTransformer(str(sentence_bert), device="cpu").encode(
        texts, normalize_embeddings=True
    )
    ours = sentences.Sentences(sentence_bert, batch_size=2)(texts)
    np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_similarity_is_the_mean_over_references(sentence_bert, without_java):
    candidates = ["a dog barks", "rain"]
    references = [["a dog barks", "rain falls"], ["rain"]]
    found = caption_scores.measure(
        candidates, references, "words", sentence_model=sentence_bert
    )
    z = sentences.Sentences(sentence_bert)(["a dog barks", "rain falls"])
    wanted = [(1 + z[0] @ z[1]) / 2, 1]
    np.testing.assert_allclose(found.per_clip["sentence_similarity"], wanted, atol=1e-6)


def test_a_sentence_model_that_is_not_there(tmp_path, without_java):
    found = caption_scores.measure(
        ["a dog"], [["a dog"]], "words", sentence_model=tmp_path / "nothing"
    )
    assert "cannot be had" in found.absent["sentence_similarity"]
    assert "sentence_similarity" not in found.metrics
    found = caption_scores.measure(["a dog"], [["a dog"]], "words")
    assert "no sentence_model is given" in found.absent["sentence_similarity"]


# --- vocabulary ---


def test_vocabulary():
    found = caption_words.vocabulary(["A dog barks.", "a dog barks", "A dog runs"])
    assert found == {
        "distinct_words": 4,
        "type_token": 4 / 9,
        "distinct_2": 3 / 6,
        "distinct_3": 2 / 3,
        "distinct_captions": 2 / 3,
    }
    novel = caption_words.novel(["A dog barks!", "a cat"], ["a dog barks", "rain"])
    assert novel.tolist() == [0, 1]


# --- the evaluation ---

TRUE = [
    ["a dog barks", "dog barking"],
    ["rain falls"],
    ["a siren"],
    ["wind", "a storm"],
]
WROTE = ["a dog barks", "rain", "", "a storm rages"]


def source(captions=TRUE):
    made = SoundSource(captions)
    made.id = lambda index: f"clip{index}"
    return made


def writes(texts, bad=()):
    def write(clips):
        kept = np.ones(len(clips), bool)
        kept[list(bad)] = False
        return texts, kept

    return write


def run(encoder=None, texts=WROTE, bad=(), **options):
    options = {"write": writes(texts, bad), "tokenizer": "words", **options}
    return build_evaluator("captions", source(), options).run(encoder or FakeEncoder())


def test_evaluation(without_java):
    found = run(training_captions=["Rain!", "snow"], decoding="beam of 5")
    wanted = caption_scores.measure(WROTE, TRUE, "words", training=["rain", "snow"])
    for name, value in wanted.metrics.items():
        assert found.metrics[name] == value, name
    assert found.metrics["bad_clips"] == 0 and found.metrics["novel_captions"] == 0.75
    assert found.clips.tolist() == [0, 1, 2, 3]
    for name, rows in found.per_clip.items():
        assert rows.shape == (4, 2) and rows[:, 1].tolist() == [1] * 4
        assert found.metrics[name] == pytest.approx(rows[:, 0].mean())
        low, high = found.intervals[name]
        assert low <= found.metrics[name] <= high
    assert set(found.intervals) == set(found.per_clip) >= {"CIDEr_D", "CLAP_score"}
    said = found.protocol
    assert said["captions_per_clip"] == "1 to 2" and said["decoding"] == "beam of 5"
    assert any("METEOR" in names for names in said["absent"])


def test_clap_score(without_java):
    """Cosines by hand; nothing written scores 0, and is not asked of the model."""
    encoder = FakeEncoder([own[0] for own in TRUE])
    found = run(encoder)
    za, _ = encoder.audio(source())
    cosines = [float(encoder.text([text])[0] @ row) for text, row in zip(WROTE, za)]
    cosines[2] = 0
    np.testing.assert_allclose(found.per_clip["CLAP_score"][:, 0], cosines, atol=1e-6)
    assert cosines[0] == pytest.approx(1) and "" not in encoder.seen_texts
    people = [encoder.text(own) @ row for own, row in zip(TRUE, za)]
    wanted = np.mean([row.mean() for row in people])
    assert found.metrics["CLAP_score_references"] == pytest.approx(wanted, abs=1e-6)


def test_the_clap_of_a_captioner(without_java):
    """A captioner writes, and cannot score; a CLAP that is given can."""
    captioner = SimpleNamespace(spec=SimpleNamespace(captioner="prefix"))
    found = run(captioner)
    assert "CLAP_score" not in found.metrics
    assert "give one as `clap`" in found.protocol["absent"]["CLAP_score"]
    found = run(captioner, clap=FakeEncoder())
    assert found.metrics["CLAP_score"] == run().metrics["CLAP_score"]


def test_clips_that_cannot_be_read(without_java):
    """Whether the captioner or the CLAP cannot read a clip, it is left out."""
    found = run(FakeEncoder(bad=[3]), texts=["a dog barks", None, "x", "y"], bad=[1])
    assert found.clips.tolist() == [0, 2] and found.metrics["bad_clips"] == 2
    assert found.metrics["mean_words"] == 2 and found.protocol["clips"] == 2
    assert [one.clip for one in found.written] == [2, 0]


def test_training_captions_of_a_table(tmp_path, without_java):
    table = tmp_path / "train.csv"
    table.write_text("file,caption\na.wav,a storm rages\nb.wav,rain\n")
    assert run(training_captions=str(table)).metrics["novel_captions"] == 0.5


def test_examples_go_from_the_worst_to_the_best(without_java):
    texts = [f"word{i}" for i in range(40)]
    many = FakeSource([[f"word{i}" if i % 2 else "other"] for i in range(40)])
    options = {"write": writes(texts), "tokenizer": "words", "draws": 0}
    found = build_evaluator("captions", many, options).run(FakeEncoder())
    values = [one.scores["CIDEr_D"] for one in found.written]
    assert len(values) == 12 and values == sorted(values)
    assert (values[0], values[-1]) == (0, found.per_clip["CIDEr_D"][:, 0].max())
    assert not found.intervals and found.protocol["intervals"] == "none"


def test_captions_on_the_page(tmp_path, without_java):
    result = {"music <a>": run(texts=["a <b>dog", *WROTE[1:]])}
    clips = {"music <a>": source()}
    found = details.written(result, clips, 6, Excerpts())
    page = Page(found["music <a>"])
    assert len(page.values("src")) == 4 and "clip1" in page.text
    for text in ("a <b>dog", "(nothing)", "dog barking", "CIDEr_D 0"):
        assert text in page.text
    assert details.written({"none": Result({"a": 1.0})}, {}, 6, Excerpts()) == {}
    path = report.write_report(tmp_path, result, sources=clips)
    assert details.WRITTEN_HEADING in path.read_text()
    report.write_results(tmp_path, result, {})
    kept = json.loads((tmp_path / "results.json").read_text())["evals"]["music <a>"]
    assert kept["written"][-1]["references"] == list(
        TRUE[result["music <a>"].written[-1].clip]
    )


def test_what_is_absent_keeps_nothing_from_being_compared(tmp_path, without_java):
    """Numbers that both runs have are comparable; other words make them not."""
    for name, options in (("a", {}), ("b", {"clap": SimpleNamespace()})):
        report.write_results(tmp_path / name, {"c": run(**options)}, {})
    found = runs.read_all([str(tmp_path / "a"), str(tmp_path / "b")])
    assert runs.protocol_differences(found, "c") == []


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"texts": ["a"]}, "has 4 clips, but 1 captions and 4 kept flags"),
        ({"bad": [0, 1, 2, 3]}, "none of the 4 clips"),
        ({"write": None}, "the model writes none"),
        ({"tokenizer": "word"}, "unknown tokenizer 'word'"),
    ],
)
def test_errors(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        run(**options)


def test_sources_without_captions():
    for captions, sentence in (
        ([], "has no clips"),
        ([["a"], []], "clip 1 of source 'fake' has no caption"),
        ([["a"], ["b", " "]], "clip 1 of source 'fake' has an empty caption"),
    ):
        with pytest.raises(ValueError, match=sentence):
            build_evaluator("captions", FakeSource(captions))

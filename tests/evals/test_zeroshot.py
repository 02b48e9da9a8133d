"""Zero-shot classification with encoders whose answers are known."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from clap_jax.evals import ZeroShot, class_embeddings
from tests.evals.fakes import FakeEncoder, FakeSource, normalised, vector

LABELS = [f"label_{letter}" for letter in "abcdefgh"]


def tagged(tags):
    return FakeSource([[] for _ in tags], tags=tags)


def one_tag_each(count):
    return tagged([[LABELS[i % len(LABELS)]] for i in range(count)])


def prompt(label, template="This is a sound of {}."):
    return template.replace("{}", label.replace("_", " "))


def test_perfect_encoder():
    source = one_tag_each(40)
    meanings = [prompt(LABELS[i % 8]) for i in range(40)]
    result = ZeroShot(source).run(FakeEncoder(meanings))
    assert result.metrics == {
        "zeroshot_acc": 1,
        "zeroshot_top5": 1,
        "bad_clips": 0,
    }
    assert (result.arrays["confusion"] == 5 * np.eye(8)).all()
    assert result.labels["classes"] == LABELS
    assert result.protocol["templates"] == ["This is a sound of {}."]
    assert result.protocol["clips"] == 40 and result.protocol["classes"] == 8


def test_random_encoder_is_near_chance_and_numbers_agree():
    result = ZeroShot(one_tag_each(800)).run(FakeEncoder())
    assert result.metrics["zeroshot_acc"] == pytest.approx(1 / 8, abs=0.06)
    assert result.metrics["zeroshot_top5"] == pytest.approx(5 / 8, abs=0.1)
    confusion = result.arrays["confusion"]
    assert confusion.sum() == 800
    assert np.trace(confusion) / 800 == result.metrics["zeroshot_acc"]


def test_fewer_than_five_classes():
    source = tagged([["x"], ["y"]])
    meanings = [prompt("y"), prompt("x")]
    metrics = ZeroShot(source).run(FakeEncoder(meanings)).metrics
    assert metrics["zeroshot_acc"] == 0 and metrics["zeroshot_top5"] == 1


def test_templates_are_averaged_and_normalised_again():
    templates = ("the sound of {}", "{}", "a recording of {}")
    rows = class_embeddings(FakeEncoder(), LABELS, templates)
    assert rows.dtype == np.float32 and len(rows) == len(LABELS)
    for row, label in zip(rows, LABELS):
        texts = [template.replace("{}", label) for template in templates]
        mean = normalised(np.array([vector(text) for text in texts])).mean(axis=0)
        np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-5)


@pytest.mark.parametrize(
    ("templates", "texts"),
    [
        ("msclap", ["this is the sound of label_a", "this is the sound of B"]),
        ("hear {}", ["hear label_a", "hear B"]),
        (["hear {}", "{}"], ["hear label_a", "label_a", "hear B", "B"]),
    ],
)
def test_templates_by_name_or_as_sentences(templates, texts):
    encoder = FakeEncoder()
    class_embeddings(encoder, ["label_a", "B"], templates)
    assert encoder.seen_texts == texts


def test_labels_that_are_no_list_of_texts_are_refused():
    with pytest.raises(ValueError, match="labels is empty"):
        class_embeddings(FakeEncoder(), [], "laion")
    with pytest.raises(TypeError, match="labels is the text 'dog', expected a seq"):
        class_embeddings(FakeEncoder(), "dog", "laion")


def test_labels_of_data_are_made_into_text():
    encoder = FakeEncoder()
    ZeroShot(tagged([["Dog_bark"], ["rain"]]), "hear {}").run(encoder)
    assert encoder.seen_texts == ["hear dog bark", "hear rain"]


def test_given_labels_keep_their_order_and_may_be_more_than_the_tags():
    labels = ["zebra", *reversed(LABELS)]
    result = ZeroShot(one_tag_each(16), labels=labels).run(FakeEncoder())
    assert result.labels["classes"] == labels
    assert result.arrays["confusion"].sum(axis=1).tolist() == [0] + [2] * 8


def test_several_tags_give_map_over_the_clips_that_could_be_read():
    rng = np.random.default_rng(0)
    targets = rng.random((60, 8)) < 0.25
    targets[np.arange(60), rng.integers(0, 8, 60)] = True
    tags = [[LABELS[k] for k in np.flatnonzero(row)] for row in targets]
    source = tagged(tags)
    meanings = [prompt(own[0]) for own in tags]
    encoder = FakeEncoder(meanings, noise=1.0, bad=[3, 59])
    evaluator = ZeroShot(source)
    result = evaluator.run(encoder)
    assert set(result.metrics) == {"zeroshot_mAP", "bad_clips"}
    assert result.metrics["bad_clips"] == 2
    za, kept = encoder.audio(source)
    classes = class_embeddings(encoder, evaluator.names, evaluator.templates)
    table = za[kept].astype(float) @ classes.T
    expected = average_precision_score(targets[kept], table, average=None)
    np.testing.assert_allclose(result.arrays["average_precision"], expected)
    assert result.metrics["zeroshot_mAP"] == pytest.approx(expected.mean())
    assert result.protocol["multi_label"] is True


def test_bad_clips_leave_single_label_numbers_too():
    meanings = [prompt(LABELS[i % 8]) for i in range(16)]
    result = ZeroShot(one_tag_each(16)).run(FakeEncoder(meanings, bad=[0, 8]))
    assert result.metrics["zeroshot_acc"] == 1 and result.metrics["bad_clips"] == 2
    assert result.arrays["confusion"].sum(axis=1).tolist() == [0] + [2] * 7


def test_a_tag_given_twice_is_one_tag():
    assert not ZeroShot(tagged([["x", "x"], ["y"]])).multi_label


@pytest.mark.parametrize(
    ("tags", "options", "message"),
    [
        ([["dog"]], {"labels": ["dogs", "cat"]}, "clip 0 .* 'dog' .* mean 'dogs'"),
        ([["dog"]], {"templates": ["a sound"]}, r"must have \{\} in it exactly once"),
        ([["dog"]], {"templates": []}, "templates is empty"),
        ([["dog"]], {"labels": ["dog", "cat", "dog"]}, "labels repeat: dog"),
        ([["dog"], []], {}, "clip 1 of source 'fake' has no tag"),
        ([], {}, "has no clips"),
    ],
)
def test_bad_sources_and_options_fail_before_any_encoding(tags, options, message):
    with pytest.raises(ValueError, match=message):
        ZeroShot(tagged(tags), **options)


def test_templates_that_cancel_are_an_error():
    class Opposite(FakeEncoder):
        def text(self, texts):
            rows = np.zeros((len(texts), 32), np.float32)
            rows[:, 0] = [1 if "good" in text else -1 for text in texts]
            return rows

    evaluator = ZeroShot(tagged([["x"]]), ["good {}", "bad {}"])
    with pytest.raises(ValueError, match="templates of label 'x' cancel"):
        evaluator.run(Opposite())

"""Zero-shot classification with encoders whose answers are known."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

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
    assert set(result.metrics) == {"zeroshot_mAP", "zeroshot_AUC", "bad_clips"}
    assert result.metrics["bad_clips"] == 2
    za, kept = encoder.audio(source)
    classes = class_embeddings(encoder, evaluator.names, evaluator.templates)
    table = za[kept].astype(float) @ classes.T
    expected = average_precision_score(targets[kept], table, average=None)
    np.testing.assert_allclose(result.arrays["average_precision"], expected)
    assert result.metrics["zeroshot_mAP"] == pytest.approx(expected.mean())
    area = roc_auc_score(targets[kept], table, average="macro")
    assert result.metrics["zeroshot_AUC"] == pytest.approx(area, abs=1e-12)
    for name in ("zeroshot_mAP", "zeroshot_AUC"):
        low, high = result.intervals[name]
        assert low < result.metrics[name] < high
    assert result.protocol["multi_label"] is True


def test_metrics_that_are_asked_for():
    """mAP of single tags, clips without any tag, F1 by the best class."""
    tags = [[LABELS[i % 8]] for i in range(40)]
    tags[3], tags[7] = [], [LABELS[0], LABELS[1]]
    meanings = [prompt(own[0] if own else "none") for own in tags]
    encoder = FakeEncoder(meanings, noise=1.0)
    with pytest.raises(ValueError, match="clip 3 of source 'fake' has no tag"):
        ZeroShot(tagged(tags), metric="mAP")
    with pytest.raises(ValueError, match="clip 3 of source 'fake' has 0"):
        ZeroShot(tagged(tags), metric="accuracy", untagged=True)
    evaluator = ZeroShot(tagged(tags), metric="f1", untagged=True)
    result = evaluator.run(encoder)
    za, _ = encoder.audio(evaluator.source)
    classes = class_embeddings(encoder, evaluator.names, evaluator.templates)
    table = za.astype(float) @ classes.T
    predicted = np.eye(8, dtype=bool)[table.argmax(axis=1)]
    for name in ("micro", "macro"):
        expected = f1_score(evaluator.targets, predicted, average=name)
        assert result.metrics[f"zeroshot_F1_{name}"] == pytest.approx(expected)
        low, high = result.intervals[f"zeroshot_F1_{name}"]
        assert low < expected < high
    assert result.protocol["decision"].startswith("the best class")
    positive = ZeroShot(tagged(tags), metric="f1", decision="positive", untagged=True)
    expected = f1_score(evaluator.targets, table > 0, average="micro")
    found = positive.run(encoder).metrics["zeroshot_F1_micro"]
    assert found == pytest.approx(expected)
    single = ZeroShot(one_tag_each(16), metric="mAP").run(FakeEncoder())
    assert "zeroshot_acc" not in single.metrics and single.protocol["multi_label"]


def test_one_clip_of_one_class():
    """No class that a clip lacks: no AUC, the rest is perfect."""
    result = ZeroShot(tagged([["x"]]), metric="mAP").run(FakeEncoder())
    assert result.metrics == {"zeroshot_mAP": 1, "bad_clips": 0}
    assert result.intervals == {"zeroshot_mAP": (1, 1)}
    result = ZeroShot(tagged([["x"]])).run(FakeEncoder())
    assert result.metrics["zeroshot_acc"] == 1
    assert result.intervals["zeroshot_acc"] == (1, 1)


def test_descriptions_of_classes(tmp_path):
    path = tmp_path / "sounds.json"
    path.write_text('{"Dog_bark": ["It barks.", "Woof."], "rain": "Drops."}')
    source = tagged([["Dog_bark"], ["rain"]])
    encoder = FakeEncoder()
    evaluator = ZeroShot(source, ["{}", "{}: {description}"], descriptions=str(path))
    result = evaluator.run(encoder)
    texts = ["dog bark", "dog bark: It barks.", "dog bark: Woof."]
    assert encoder.seen_texts == [*texts, "rain", "rain: Drops."]
    rows = normalised(np.array([vector(text) for text in texts])).mean(axis=0)
    labels = ["dog bark", "rain"]
    own = {"dog bark": ["It barks.", "Woof."], "rain": "Drops."}
    found = class_embeddings(FakeEncoder(), labels, ["{}", "{}: {description}"], own)
    np.testing.assert_allclose(found[0], rows / np.linalg.norm(rows), rtol=1e-5)
    assert result.protocol["descriptions"] == "sounds.json"
    assert "2 to 3 sentences" in result.protocol["prompts"]
    with pytest.raises(ValueError, match=r"no template has \{description\}"):
        ZeroShot(source, descriptions=str(path))
    with pytest.raises(ValueError, match="no description of 'wind'"):
        ZeroShot(tagged([["wind"]]), "described", descriptions=str(path))


def test_texts_of_labels_can_be_given():
    encoder = FakeEncoder()
    names = {"ANG": "angry"}
    ZeroShot(tagged([["ANG"], ["sad"]]), "{}", names=names).run(encoder)
    assert encoder.seen_texts == ["angry", "sad"]


def test_another_number_of_classes_or_clips_is_refused():
    source = one_tag_each(16)
    with pytest.raises(
        ValueError, match="8 classes, the task has 10.*accept=.'classes'"
    ):
        ZeroShot(source, official={"classes": 10})
    with pytest.raises(ValueError, match="16 clips, the official split has 15"):
        ZeroShot(source, official={"clips": 15})
    official = {"classes": 10, "clips": 20}
    result = ZeroShot(source, official=official, accept=["classes"]).run(FakeEncoder())
    assert result.protocol["official"] == official
    assert "8 classes" in result.protocol["accepted"]["classes"]
    with pytest.raises(ValueError, match="unknown key of official 'clip'"):
        ZeroShot(source, official={"clip": 15})


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
        (
            [["dog"]],
            {"metric": "map"},
            "unknown zeroshot metric 'map'.*known: accuracy",
        ),
        ([["dog"]], {"decision": "top"}, "unknown zeroshot decision 'top'"),
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

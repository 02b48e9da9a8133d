"""MTEB's own tasks over a few local sounds give the numbers of our own evaluators."""

import io
import sys

import datasets
import mteb
import numpy as np
import pytest
import soundfile
from mteb.abstasks import (
    AbsTaskClassification,
    AbsTaskRetrieval,
    AbsTaskZeroShotClassification,
)
from mteb.abstasks.task_metadata import TaskMetadata
from sklearn.linear_model import LogisticRegression

import clap_jax.mteb
from clap_jax.evals import Retrieval, ZeroShot
from tests import small_models
from tests.evals.fakes import FakeSource

# A random model puts nothing into some class, whose precision is then no number.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Precision is ill-defined:sklearn.exceptions.UndefinedMetricWarning"
)

LABELS = ("a dog barks", "rain falls on a roof", "a bell rings", "wind")
CLIPS = 16


def sounds():
    """Encoded clips of several formats, rates, lengths and channels, and their labels."""
    clips, labels = [], []
    for number in range(CLIPS):
        rate_hz = (16_000, 22_050, 44_100)[number % 3]
        wave, _ = small_models.sound(0.5 + 0.4 * number, rate_hz, seed=number)
        if number % 4 == 0:
            wave = np.stack([wave, wave / 2], axis=1)
        file = io.BytesIO()
        soundfile.write(file, wave, rate_hz, format=("WAV", "FLAC", "OGG")[number % 3])
        clips.append(file.getvalue())
        labels.append(number % len(LABELS))
    return clips, labels


def table(clips, **columns):
    """A data set with sounds as bytes, as those on the hub have them."""
    rows = {"audio": [{"bytes": clip, "path": None} for clip in clips]}
    dataset = datasets.Dataset.from_dict(rows | columns)
    return dataset.cast_column("audio", datasets.Audio())


def metadata(name, kind, category, score, **options):
    return TaskMetadata(
        name=name,
        description="A few made sounds.",
        reference=None,
        dataset={"path": "local/none", "revision": "1"},
        type=kind,
        category=category,
        modalities=["audio", "text"] if "t" in category else ["audio"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score=score,
        date=("2024-01-01", "2024-01-02"),
        domains=["AudioScene"],
        task_subtypes=[],
        license="cc0-1.0",
        annotations_creators="derived",
        dialect=[],
        sample_creation="created",
        bibtex_citation="",
        **options,
    )


class LocalRetrieval(AbsTaskRetrieval):
    metadata = metadata("LocalT2A", "Any2AnyRetrieval", "t2a", "recall_at_5")

    def load_data(self, num_proc=None, **kwargs):
        clips, _ = sounds()
        names = [f"clip{i:02d}" for i in range(CLIPS)]
        queries = {"id": [f"q{i:02d}" for i in range(CLIPS)], "text": captions()}
        right = {f"q{i:02d}": {f"clip{i:02d}": 1} for i in range(CLIPS)}
        split = {
            "corpus": table(clips, id=names),
            "queries": datasets.Dataset.from_dict(queries),
            "relevant_docs": right,
            "top_ranked": None,
        }
        self.dataset = {"default": {"test": split}}
        self.data_loaded = True


class LocalZeroShot(AbsTaskZeroShotClassification):
    metadata = metadata(
        "LocalZeroShot", "AudioZeroshotClassification", "a2t", "accuracy"
    )
    input_column_name = "audio"

    def load_data(self, num_proc=None, **kwargs):
        clips, labels = sounds()
        self.dataset = datasets.DatasetDict(test=table(clips, label=labels))
        self.data_loaded = True

    def get_candidate_labels(self):
        return [f"This is a sound of {label}." for label in LABELS]


class LocalClassification(AbsTaskClassification):
    metadata = metadata("LocalClassification", "AudioClassification", "a2c", "accuracy")
    input_column_name = "audio"
    n_experiments = 2
    samples_per_label = 2
    evaluator_model = LogisticRegression(max_iter=2000)

    def load_data(self, num_proc=None, **kwargs):
        clips, labels = sounds()
        half = CLIPS // 2
        train = table(clips[:half], label=labels[:half])
        test = table(clips[half:], label=labels[half:])
        self.dataset = datasets.DatasetDict(train=train, test=test)
        self.data_loaded = True


def captions():
    return [f"{LABELS[i % len(LABELS)]} {i} times" for i in range(CLIPS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    small_models.save("small_conv", folder)
    return clap_jax.mteb.model(folder, batch_size=8)


class Heard:
    """The model as our evaluators see it, over the same sounds."""

    def __init__(self, clap):
        self.clap = clap

    def audio(self, source):
        return self.clap.embed_audio(sounds()[0]), np.ones(CLIPS, bool)

    def text(self, texts):
        return self.clap.embed_text(texts)


def scores(model, task):
    found = mteb.evaluate(model, task, cache=None, show_progress_bar=False)
    (result,) = found.task_results
    (numbers,) = result.scores["test"]
    return numbers


def test_retrieval(model):
    numbers = scores(model, LocalRetrieval())
    source = FakeSource([[text] for text in captions()])
    ours = Retrieval(source).run(Heard(model.clap)).metrics
    for depth in (1, 5, 10):
        assert numbers[f"recall_at_{depth}"] == pytest.approx(
            ours[f"t2a_R@{depth}"], abs=1e-5
        )
    assert numbers["map_at_10"] == pytest.approx(ours["t2a_mAP@10"], abs=1e-5)
    assert 0 < ours["t2a_R@5"] < 1


def test_zero_shot(model):
    numbers = scores(model, LocalZeroShot())
    _, labels = sounds()
    source = FakeSource([[]] * CLIPS, tags=[[LABELS[label]] for label in labels])
    evaluator = ZeroShot(source, "laion", labels=LABELS)
    ours = evaluator.run(Heard(model.clap))
    assert numbers["accuracy"] == pytest.approx(ours.metrics["zeroshot_acc"])
    assert 0 < numbers["accuracy"] < 1


def test_classification(model):
    numbers = scores(model, LocalClassification())
    assert 0 <= numbers["accuracy"] <= 1
    # All of the 8 training clips are taken, 2 of each label, so by hand:
    clips, labels = sounds()
    vectors, half = model.clap.embed_audio(clips), CLIPS // 2
    probe = LogisticRegression(max_iter=2000, random_state=42)
    probe.fit(vectors[:half], labels[:half])
    expected = probe.score(vectors[half:], labels[half:])
    assert numbers["accuracy"] == pytest.approx(expected)


def test_a_sound_and_a_text_together(model):
    clips, _ = sounds()
    pairs = table(clips[:3], text=captions()[:3])
    inputs = type("Loader", (), {"dataset": pairs})
    together = model.encode(inputs)
    both = model.clap.embed_audio(clips[:3]) + model.clap.embed_text(captions()[:3])
    expected = both / np.linalg.norm(both, axis=1, keepdims=True)
    np.testing.assert_allclose(together, expected, atol=1e-6)


def test_samples_with_their_rate(model):
    wave, rate_hz = small_models.sound(1.0, 16_000)
    rows = [{"array": wave, "sampling_rate": rate_hz}]
    inputs = type(
        "Loader", (), {"dataset": datasets.Dataset.from_dict({"audio": rows})}
    )
    expected = model.clap.embed_audio([(wave, rate_hz)])
    np.testing.assert_allclose(model.encode(inputs), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"image": ["x"]}, "columns are image, expected audio, text or both"),
        ({"audio": ["x"]}, "row 0 of the task is a str, expected the feature Audio"),
        (
            {"audio": [{"bytes": b"no sound", "path": None}]},
            "sound in row 0 of the task: .*not decodable",
        ),
    ],
)
def test_what_cannot_be_encoded_is_named(model, columns, message):
    inputs = type("Loader", (), {"dataset": datasets.Dataset.from_dict(columns)})
    with pytest.raises(ValueError, match=message):
        model.encode(inputs)


def test_similarities_are_cosines(model):
    rows = np.array([[3.0, 4.0], [0.0, 2.0]])
    expected = np.array([[1.0, 0.8], [0.8, 1.0]])
    np.testing.assert_allclose(model.similarity(rows, rows), expected, atol=1e-6)
    np.testing.assert_allclose(model.similarity_pairwise(rows, rows), [1, 1], atol=1e-6)


def test_what_the_leaderboard_is_told(model):
    told = model.mteb_model_meta
    assert told.name == "clap_jax/small"
    assert told.revision == model.clap.digest()
    assert told.embed_dim == model.clap.spec.embed_dim
    assert told.modalities == ["audio", "text"]


def test_options_that_cannot_be(tmp_path):
    with pytest.raises(ValueError, match="called is 'mine', expected owner/name"):
        clap_jax.mteb.model(tmp_path, called="mine")
    with pytest.raises(ValueError, match="device is 'cuda', expected None"):
        clap_jax.mteb.model(tmp_path, device="cuda")


def test_without_mteb(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "mteb", None)
    with pytest.raises(ImportError, match=r"pip install 'clap_jax\[mteb\]'"):
        clap_jax.mteb.model(tmp_path)

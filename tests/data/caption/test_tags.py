"""Which tags a caption names."""

import csv
import json

import pytest

from data.caption.tags import FILE, TagWords, TagWordsError, stem


@pytest.fixture(scope="module")
def tag_words():
    return TagWords()


@pytest.mark.parametrize(
    "forms",
    [
        "dog dogs dog's dogs'",
        "bark barks barking barked",
        "sneeze sneezes sneezing sneezed",
        "hum hums humming hummed",
        "rev revs revving revved",
        "hiss hisses hissing hissed",
        "buzz buzzes buzzing buzzed",
        "cry cries crying cried",
        "fly flies flying flew",
        "sing sings singing sang sung",
        "ring rings ringing rang",
        "run runs running ran",
        "bus buses",
        "dish dishes",
        "glass glasses",
        "leaf leaves",
        "man men",
        "child children",
        "bee bees",
        "speed speeds speeding",
        "type types typing typed",
        "fire fires firing fired",
        "idle idles idling idled",
        "chime chimes chiming chimed",
        "tap taps tapping tapped",
        "saw saws sawing sawed",
    ],
)
def test_forms_of_a_word_are_one(forms):
    assert len({stem(form) for form in forms.split()}) == 1


@pytest.mark.parametrize(
    "words", ["bar bark barn", "sing string ring", "bed bee be", "bus bush", "car care"]
)
def test_other_words_are_others(words):
    assert len({stem(word) for word in words.split()}) == len(words.split())


@pytest.mark.parametrize(
    ("tag", "caption", "named"),
    [
        ("Dog", "Two DOGS are running.", True),
        ("Dog", "someone barks", True),
        ("Dog", "a hotdog sizzles", False),
        ("Bark", "a puppy barked twice", True),
        ("Vehicle horn, car horn, honking", "cars honk in traffic", True),
        ("Vehicle horn, car horn, honking", "a car drives past", False),
        ("Male speech, man speaking", "men are speaking", True),
        ("Male speech, man speaking", "a man is talking", True),
        ("Male speech, man speaking", "a woman is talking", False),
        ("Baby cry, infant cry", "a crying baby", True),
        ("Fire engine, fire truck (siren)", "fire trucks pass", True),
        ("Train", "a railway crossing", True),
        ("Door_bell", "the bell at the door", True),
        ("doorBell", "the bell of a door", True),
        ("Door_bell", "a bell", False),
        ("Heart sounds, heartbeat", "the sound of a heart", True),
        ("Sounds of things", "things", True),
        ("Rock and roll", "a rock rolls down", True),
        ("A thing that is in no table", "a thing in no table, is that", True),
        ("汽车", "汽车 passes", True),
    ],
)
def test_named(tag_words, tag, caption, named):
    assert tag_words.share([tag], caption) == named


def test_share(tag_words):
    tags = ("Dog", "Rain", "Dog", "Siren")
    assert tag_words.share(tags, "a dog barks") == pytest.approx(1 / 3)
    assert tag_words.share(tags, "dogs, rain and sirens") == 1
    assert tag_words.share(("/", "--", "Dog"), "a dog") == 1
    assert tag_words.share(("/", "123"), "a dog") == 1
    assert tag_words.share((), "a dog") == 1
    assert tag_words.share(("Dog",), "") == 0


def test_every_class_of_audioset_is_named_by_its_own_name(tag_words, shared_data):
    """As it is written, and by each of its parts; and the table has no other classes."""
    path = shared_data / "captions" / "open" / "audioset_labels.csv"
    with path.open(encoding="utf-8", newline="") as file:
        names = [row["name"] for row in csv.DictReader(file)]
    assert len(names) > 600
    for name in names:
        assert tag_words.share([name], f"The sound of {name.upper()}.") == 1, name
        for part in name.split(" (")[0].split(","):
            if "etc" not in part:
                assert tag_words.share([name], f"There is {part}") == 1, (name, part)
    known = {name.lower() for name in names}
    assert {tag.lower() for tag in json.loads(FILE.read_text())} <= known


def test_a_table_of_ones_own(tmp_path):
    file = tmp_path / "words.json"
    file.write_text(json.dumps({"Mini_Moog": ["synthesizer", "analog keys"]}))
    own = TagWords(file)
    for caption in ("a synthesizer", "key of an analog organ", "a mini moog"):
        assert own.share(["mini moog"], caption) == 1
    assert own.share(["mini moog"], "keys") == 0
    assert own.digest != TagWords().digest


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[]", "expected an object of tags"),
        ("{", "is not JSON"),
        ('{"Dog": "bark"}', "'Dog' has 'bark', expected a list"),
        ('{"Dog": []}', "'Dog' has"),
        ('{"Dog": ["!"]}', "'Dog' has"),
        ('{"Dog_bark": ["a b"], "dog bark": ["c d"]}', "'dog bark' is there twice"),
    ],
)
def test_broken_tables(tmp_path, text, sentence):
    file = tmp_path / "words.json"
    file.write_text(text)
    with pytest.raises(TagWordsError, match=sentence):
        TagWords(file)
    with pytest.raises(TagWordsError, match="No such file"):
        TagWords(tmp_path / "none.json")

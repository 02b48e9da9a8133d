"""Sentences about classes, out of files."""

import json

import pytest

from clap_jax.text import descriptions

DOG = {"dog": ("It barks.",), "Rain_drops": ("Drops fall.", "A steady hiss.")}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "a.json",
            '{"dog": "It barks. ", "Rain_drops": ["Drops fall.", "A steady hiss."]}',
        ),
        (
            "b.csv",
            "class,description\ndog,It barks.\nRain_drops,Drops fall.\n"
            "Rain_drops,A steady hiss.\n",
        ),
        (
            "c.jsonl",
            '{"label": "dog", "description": "It barks."}\n\n'
            '{"label": "Rain_drops", "descriptions": ["Drops fall.", "A steady hiss."]}\n',
        ),
    ],
)
def test_forms_of_files(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert descriptions.read(tmp_path / name) == DOG


def test_the_ontology_of_audioset(shared_data):
    """As a list with ids, and as a table; both name 632 classes."""
    folder = shared_data / "captions" / "open"
    ontology = descriptions.read(folder / "audioset_ontology.json")
    table = descriptions.read(folder / "audioset_labels.csv")
    assert ontology == table and len(ontology) > 2 * 632 - 10
    (bark, by_id) = descriptions.choose(ontology, ["bark", "/m/05tny_"])
    assert bark == by_id and len(bark[0]) > 20


def test_labels_are_found_as_they_are_said():
    found = descriptions.choose(DOG, ["rain drops", "Dog"])
    assert found == [DOG["Rain_drops"], DOG["dog"]]
    with pytest.raises(descriptions.DescriptionError, match="no description of 'cat'"):
        descriptions.choose(DOG, ["dog", "cat"])
    many = [f"class {i}" for i in range(9)]
    with pytest.raises(descriptions.DescriptionError, match="and 4 more; .* 2 classes"):
        descriptions.choose(DOG, many)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "dog", "expected a file .json, .jsonl or .csv"),
        ("a.json", "{", "cannot be read"),
        ("a.json", '"dog"', "expected an object .* found str"),
        ("a.json", '{"dog": 3}', "a.json: dog: 3 is no sentence"),
        ("a.json", '{"dog": []}', r"dog: \[\] is no sentence"),
        ("a.json", '{"dog": ["", "x"]}', "is no sentence"),
        ("a.json", '[{"name": "dog"}]', "entry 1: no description"),
        ("a.json", '["dog"]', "entry 1: no name"),
        ("a.csv", "class,text\ndog,x\n", "a.csv, entry 2: no description"),
    ],
)
def test_bad_files_are_errors_in_a_sentence(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(descriptions.DescriptionError, match=message):
        descriptions.read(tmp_path / name)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        descriptions.read(tmp_path / "none.json")


def test_json_is_read_as_utf_8(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(json.dumps({"café": "ö"}, ensure_ascii=False).encode("utf-8-sig"))
    assert descriptions.read(path) == {"café": ("ö",)}

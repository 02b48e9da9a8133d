"""Sentences made from class names."""

from collections.abc import Iterable, Sequence

DESCRIPTION = "{description}"

TEMPLATES: dict[str, tuple[str, ...]] = {
    # LAION-CLAP's evaluation script and the default of Hugging Face's pipeline.
    "laion": ("This is a sound of {}.",),
    # LAION-CLAP's evaluation script for GTZAN, whose classes are musical genres.
    "laion_music_genre": ("This is a {} song.",),
    # LAION-CLAP's README, the prompt behind its GTZAN numbers.
    "laion_readme_music_genre": ("This audio is a {} song.",),
    # MS-CLAP's ESC-50 script (93.9 %, 2023 weights), with lower-case class names.
    "msclap": ("this is the sound of {}",),
    # MS-CLAP 2022 (arXiv 2206.04769): the best of five prompts on ESC-50, and the ones
    # for emotions, for key words and for the number of speakers.
    "msclap2022": ("this is a sound of {}",),
    "msclap2022_emotion": ("this person is feeling {}",),
    "msclap2022_keyword": ("{}",),
    "msclap2022_speakers": ("{} persons speaking",),
    # With descriptions of the classes: the label before them (arXiv 2409.13676, which
    # compares such forms), and they alone.
    "described": ("{}: {description}",),
    "description_alone": ("{description}",),
    # For training on labels: several wordings keep the text tower from learning one.
    "plain": (
        "{}",
        "the sound of {}",
        "a recording of {}",
        "this is a sound of {}",
        "{} can be heard",
    ),
}
"""Sets of prompts by name. Each has one {} for the class name, {description}, or both."""


def render(template: str, label: str) -> str:
    """The prompt for one class name. ValueError unless the template has one {}."""
    if not isinstance(template, str) or template.count("{}") != 1:
        raise ValueError(f"template {template!r} must have {{}} in it exactly once")
    # Not str.format: other braces, in the template or the label, mean themselves.
    return template.replace("{}", label)


def checked_templates(templates: str | Iterable[str]) -> tuple[str, ...]:
    """Templates as a tuple. ValueError for none, or one without exactly one {}."""
    templates = (templates,) if isinstance(templates, str) else tuple(templates)
    if not templates:
        raise ValueError("templates is empty, expected at least one, such as '{}'")
    for template in templates:
        render(template, "label")
    return templates


def check(template: str, described: bool) -> None:
    """Raise ValueError unless `sentences` can use the template.

    described: whether there are descriptions of the classes.
    """
    if not isinstance(template, str) or DESCRIPTION not in template:
        render(template, "label")
    elif not described:
        raise ValueError(
            f"template {template!r} wants descriptions, but there are none"
        )
    elif template.count(DESCRIPTION) > 1 or template.count("{}") > 1:
        raise ValueError(
            f"template {template!r} may have {{}} and {DESCRIPTION} once each"
        )


def sentences(
    templates: Iterable[str], label: str, descriptions: Sequence[str]
) -> list[str]:
    """The prompts of one class: one a template, or one a description where it has
    `{description}`."""
    texts = []
    for template in templates:
        if DESCRIPTION not in template:
            texts.append(render(template, label))
            continue
        before, _, after = template.partition(DESCRIPTION)
        texts += [
            f"{before.replace('{}', label)}{text}{after.replace('{}', label)}"
            for text in descriptions
        ]
    return texts


def class_name(raw: str) -> str:
    """A class name as people write it: "Dog_bark" and "dogBark" become "dog bark"."""
    spaced = "".join(
        f" {letter}" if letter.isupper() and before.islower() else letter
        for before, letter in zip(f" {raw}", raw)
    )
    return " ".join(spaced.replace("_", " ").split()).lower()


def expand(templates: Iterable[str], labels: Iterable[str]) -> list[list[str]]:
    """Prompts [label][template] of every class name with every template."""
    if isinstance(templates, str):
        templates = (templates,)
    templates = tuple(templates)
    return [[render(template, label) for template in templates] for label in labels]

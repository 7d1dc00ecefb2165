"""The packaged emoji: the file, the strict split, the sources, the tasks, the command."""

import argparse
import io
import pickle
import random
import re

import pytest
from PIL import Image

from zoo.commands import data as data_command
from zoo.data.sources import emoji as emoji_module
from zoo.data.sources.emoji import (
    INSTRUCTIONS,
    EmojiRetrieval,
    known_languages,
    read_emoji,
    training_texts,
)
from zoo.data.sources.emoji_edits import EDITS, EmojiComposed, triplets
from zoo.data.sources.emoji_edits import WORDINGS as EDIT_WORDINGS
from zoo.data.sources.emoji_questions import QUESTIONS, EmojiInstructions, answers
from zoo.data.sources.emoji_questions import WORDINGS as QUESTION_WORDINGS
from zoo.data.sources.emoji_tasks import TASKS, EmojiTasks
from zoo.errors import UnknownNameError, ZooError

SPLITS = ("train", "val", "test")
ALL_TASKS = tuple(task for task in TASKS if "[" not in task)


@pytest.fixture(scope="module")
def everything():
    return read_emoji()


def only(split, which, **settings):
    (task,) = EmojiTasks(split, (which,), **settings).tasks()
    return task


# The file


def test_counts(everything):
    assert len(everything) == 3786
    assert [len(read_emoji(split)) for split in SPLITS] == [2721, 339, 726]
    assert len({one.base for one in everything}) == 1911
    assert len({one.group for one in everything}) == 10
    assert len(known_languages()) == 28
    assert known_languages()[0] == "en"
    assert [one.label for one in everything] == list(range(3786))


def test_every_language_names_and_mostly_tags_every_emoji():
    for one in read_emoji(languages="all"):
        assert set(one.names) == set(known_languages())
        assert all(name and name == " ".join(name.split()) for name in one.names.values())


def test_drawings_are_64_px_with_alpha_and_differ_between_styles(everything):
    for one in everything[::37]:
        pictures = {style: Image.open(io.BytesIO(data)) for style, data in one.drawings.items()}
        assert set(pictures) == {"google", "twitter"}
        for picture in pictures.values():
            assert picture.size == (64, 64)
            assert picture.format == "WEBP"
            assert picture.convert("RGBA").getextrema()[3][1] > 200  # something can be seen
        assert one.drawings["google"] != one.drawings["twitter"]
    transparent = sum(Image.open(io.BytesIO(one.drawings["google"])).mode == "RGBA" for one in everything[::37])
    assert transparent > 90


def test_a_known_emoji_is_what_it_should_be(everything):
    swimmer = next(one for one in read_emoji(languages=("en", "de")) if one.id == "1f3ca-1f3fb-200d-2640")
    assert swimmer.names == {"en": "woman swimming: light skin tone", "de": "Schwimmerin: helle Hautfarbe"}
    assert (swimmer.base, swimmer.concept, swimmer.family) == ("1f3ca-200d-2640", "swimming", "swimming")
    assert (swimmer.tone, swimmer.gender, swimmer.has_tones) == ("light", "woman", True)
    assert (swimmer.group, swimmer.subgroup, swimmer.short_name) == (
        "people-body",
        "person-sport",
        "woman-swimming",
    )
    assert "swim" in swimmer.tags["en"]


# The strict split


def test_every_split_together_is_for_weights_that_are_released():
    parts = [len(EmojiRetrieval(split)) for split in (*SPLITS, "all")]
    assert sum(parts[:3]) == parts[3] == 3786
    with pytest.raises(UnknownNameError, match="Known: train, val, test, all"):
        EmojiRetrieval("everything")


@pytest.mark.parametrize("field", ["family", "base", "concept", "drawings"])
def test_nothing_is_in_two_splits(everything, field):
    where = {}
    for one in everything:
        values = one.drawings.values() if field == "drawings" else [getattr(one, field)]
        for value in values:
            where.setdefault(value, set()).add(one.split)
    assert [value for value, splits in where.items() if len(splits) > 1] == []


def test_no_name_is_in_two_splits_once_gender_and_tone_are_removed(everything):
    words = re.compile(
        r"\b((wo)?m[ae]n|person|people|boy|girl|child)\b|\b((medium-)?(light|dark)|medium) skin tone\b|facing right",
        re.I,
    )
    where = {}
    for one in everything:
        stripped = " ".join(re.findall(r"[\w’-]+", words.sub(" ", one.names["en"]).casefold()))
        where.setdefault(stripped, set()).add(one.split)
    leaks = {name: splits for name, splits in where.items() if len(splits) > 1}
    assert leaks == {}


@pytest.mark.parametrize(
    "together",
    [
        ("man swimming", "woman swimming: dark skin tone", "person playing water polo"),
        ("red heart", "blue heart", "heart suit", "broken heart"),
        ("keycap: 1", "keycap: 10"),
        ("one o’clock", "seven-thirty", "alarm clock"),
        ("globe showing Americas", "globe showing Asia-Australia"),
        ("family: man, boy", "family: woman, woman, girl", "family"),
        ("cat face", "cat", "grinning cat", "black cat"),
        ("person walking", "man walking: facing right"),
        ("flag: Chad", "flag: Romania"),
        ("mermaid", "merman", "merperson"),
        ("red apple", "green apple"),
        ("right arrow", "upwards button"),
        ("full moon", "crescent moon"),
        ("person biking", "bicycle", "no bicycles"),
    ],
)
def test_variants_of_one_thing_are_one_family(everything, together):
    families = {one.names["en"]: one.family for one in everything}
    assert len({families[name] for name in together}) == 1


# Sources


SOURCES = {
    "retrieval": lambda: EmojiRetrieval(languages="all", direction="both", tag_probability=0.5, instructions=True),
    "retrieval per base": lambda: EmojiRetrieval(languages=("en", "de"), english_probability=0.3, per="base"),
    "instructions": lambda: EmojiInstructions(negatives=True),
    "composed": lambda: EmojiComposed(),
}


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_draw_depends_on_index_and_rng_alone(source):
    first, second = source(), pickle.loads(pickle.dumps(source()))
    for index in range(0, len(first), max(1, len(first) // 40)):
        first.draw((index * 7) % len(first), random.Random(3))  # what was drawn before must not matter
        assert first.draw(index, random.Random(index)) == second.draw(index, random.Random(index))
    assert len({repr(first.draw(0, random.Random(seed))) for seed in range(30)}) > 3


def test_retrieval_draws_what_it_is_told():
    texts = EmojiRetrieval(direction="text_to_text", tag_probability=0.8).draw(3, random.Random(1))
    assert all(not item.images and item.text for item in texts.views.values())
    assert texts.views["query"].text != texts.views["target"].text
    source = EmojiRetrieval(languages=("en", "ja"), styles=("twitter",), english_probability=0.75, direction="both")
    by_name = {one.names[language]: (one, language) for (one,) in source.records for language in ("en", "ja")}
    languages, directions = [], []
    for index in range(0, len(source), 3):
        sample = source.draw(index, random.Random(index))
        text, picture = sorted(sample.views.values(), key=lambda item: item.text is None)
        one, language = by_name[text.text]
        assert (sample.label, sample.id, picture.key) == (one.label, f"emoji/{one.id}/twitter", f"{one.id}/twitter")
        assert picture.images == (one.drawings["twitter"],)
        assert picture.instruction is None
        languages.append(language)
        directions.append(sample.views["query"] is text)
    assert 0.68 < languages.count("en") / len(languages) < 0.82
    assert 0.42 < directions.count(True) / len(directions) < 0.58


def test_retrieval_tags_and_instructions():
    source = EmojiRetrieval(tag_probability=1.0, instructions=True)
    for index in range(0, len(source), 11):
        (one,) = source.records[index]
        sample = source.draw(index, random.Random(index))
        assert sample.views["query"].instruction == INSTRUCTIONS["text_to_image"]
        assert sample.views["target"].instruction is None
        given = sample.views["query"].text.removeprefix(f"{one.names['en']}, ").split(", ")
        assert set(given) <= set(one.tags["en"])
        if one.tone:  # tags alone do not tell the tone
            assert sample.views["query"].text.startswith(one.names["en"])
    replaced = EmojiRetrieval(instructions={"text_to_image": "Which picture?"})
    assert replaced.draw(0, random.Random(0)).views["query"].instruction == "Which picture?"


def test_per_base_draws_every_tone_of_one_record():
    source = EmojiRetrieval(per="base")
    assert len(source) == 1396
    index = next(i for i, members in enumerate(source.records) if members[0].id == "1f44b")
    assert len({source.draw(index, random.Random(seed)).label for seed in range(60)}) == 6


def test_training_texts_are_of_the_train_split_only():
    train = read_emoji("train", ("en", "fr"))
    names = {one.names[language] for one in train for language in ("en", "fr")}
    tags = {tag for one in train for language in ("en", "fr") for tag in one.tags[language]}
    assert set(training_texts(("en", "fr"))) == names | tags


def test_one_picture_gives_another_answer_to_every_question(everything):
    for one in everything:
        found = answers(one)
        assert {"concept", "group"} <= set(found)
        assert len({answer.casefold() for answer in found.values()}) == len(found)
    swimmer = next(one for one in everything if one.names["en"] == "woman swimming: medium-dark skin tone")
    assert answers(swimmer) == {
        "concept": "swimming",
        "tone": "medium-dark skin tone",
        "gender": "female",
        "group": "people and body",
        "subgroup": "person sport",
    }


def test_instruction_samples_ask_what_they_answer():
    source = EmojiInstructions(negatives=True)
    asked = {wording: question for question in QUESTIONS for wording in QUESTION_WORDINGS[question]["train"]}
    for index in range(0, len(source), 13):
        sample = source.draw(index, random.Random(index))
        (one,) = source.records[index]
        question = asked[sample.views["query"].instruction]
        target, negatives = sample.views["target"], sample.views["negatives"]
        assert target.text == answers(one)[question]
        assert sample.label == -1
        assert {item.text for item in negatives} == set(answers(one).values()) - {target.text}
    assert all(
        "tone" in sample.id
        for sample in (EmojiInstructions(questions=("tone",)).draw(i, random.Random()) for i in (0, 9))
    )


@pytest.mark.parametrize("wordings", [QUESTION_WORDINGS, EDIT_WORDINGS], ids=["questions", "edits"])
def test_wordings_of_val_and_test_are_never_trained_on(wordings):
    for by_split in wordings.values():
        everything = [wording for split in SPLITS for wording in by_split[split]]
        assert len(everything) == len(set(everything))
        assert len(by_split["train"]) >= 4


@pytest.mark.parametrize("kind", EDITS)
def test_an_edit_changes_one_attribute_and_keeps_the_rest(kind):
    found = triplets(read_emoji("train"), kind)
    assert found
    for triplet in found[::17]:
        (one, style), fields = triplet.reference, ("concept", "tone", "gender", "hair", "direction")
        for target, target_style in triplet.targets:
            changed = {field for field in fields if getattr(one, field) != getattr(target, field)}
            changed |= {"style"} if style != target_style else set()
            assert changed == {kind}


def test_composed_counts_over_all_splits():
    counts = {kind: sum(len(triplets(read_emoji(split), kind)) for split in SPLITS) for kind in EDITS}
    assert counts["tone"] == 323 * 30 * 2
    assert counts["style"] == 7572
    assert counts["direction"] == 216 * 2


# Tasks


@pytest.mark.parametrize("split", ["val", "test"])
def test_tasks_are_valid(split):
    tasks = EmojiTasks(split, ALL_TASKS, languages=("en", "ja"), instructions=True).tasks()
    assert len({task.name for task in tasks}) == len(tasks)
    for task in tasks:
        assert len(task.queries) == len(task.relevant) > 0
        for relevant in task.relevant:
            assert len(set(relevant)) == len(relevant) >= 1
            assert 0 <= min(relevant) <= max(relevant) < len(task.candidates)
        for items in (task.queries, task.candidates):
            contents = {(item.text, item.instruction, item.key) for item in items}
            assert len(contents) == len(items), f"{task.name} holds one item twice"


def test_text_tasks_count_all_drawings_and_only_the_right_ones():
    task = only("test", "text_to_image")
    assert (task.name, len(task.queries), len(task.candidates)) == ("text_to_image[en]", 726, 1452)
    names = {f"{one.id}/{style}": one.names["en"] for one in read_emoji("test") for style in one.drawings}
    for query, relevant in zip(task.queries, task.relevant, strict=True):
        assert [names[task.candidates[i].key] for i in relevant] == [query.text] * 2
    back = only("test", "image_to_text")
    for query, (right,) in zip(back.queries, back.relevant, strict=True):
        assert back.candidates[right].text == names[query.key]


def test_equal_names_are_all_relevant(monkeypatch):
    some = read_emoji("val")[:3]
    twins = [
        some[0],
        emoji_module.Emoji(**{f: getattr(some[1], f) for f in some[1].__slots__} | {"names": some[0].names}),
    ]
    tasks = EmojiTasks("val", ("text_to_image", "image_to_text"))
    monkeypatch.setattr(tasks, "emoji", [*twins, some[2]])
    forth, back = tasks.tasks()
    assert [list(relevant) for relevant in forth.relevant] == [[0, 1, 2, 3], [4, 5]]
    assert len(back.candidates) == 2
    assert [list(relevant) for relevant in back.relevant] == [[0]] * 4 + [[1]] * 2


def test_instruction_task_needs_the_instruction():
    task = only("test", "instructions")
    by_picture = {}
    for query, (right,) in zip(task.queries, task.relevant, strict=True):
        by_picture.setdefault(query.key, []).append(task.candidates[right].text)
        assert query.text is None
    assert all(len(found) == len(set(found)) >= 2 for found in by_picture.values())
    shown = {text for found in by_picture.values() for text in found}
    assert {"female", "male", "gender neutral", "dark skin tone", "people and body"} <= shown
    tone = only("test", "instructions[tone]")
    assert [c.text for c in tone.candidates] == [c.text for c in task.candidates]
    assert {tone.candidates[right].text.endswith("skin tone") for (right,) in tone.relevant} == {True}


def test_composed_tasks_hold_the_reference_as_a_distractor():
    task = only("test", "composed[tone]")
    keys = [candidate.key for candidate in task.candidates]
    for query, relevant in zip(task.queries, task.relevant, strict=True):
        assert query.text
        assert query.key in keys
        assert keys.index(query.key) not in relevant


def test_max_queries_keeps_candidates_and_answers():
    full, part = only("test", "image_to_text"), only("test", "image_to_text", max_queries=100)
    assert len(part.queries) == 100
    assert len(part.candidates) == len(full.candidates)
    right = {query.key: relevant for query, relevant in zip(full.queries, full.relevant, strict=True)}
    assert all(right[query.key] == relevant for query, relevant in zip(part.queries, part.relevant, strict=True))
    styles = [query.key.rpartition("/")[2] for query in part.queries]
    assert 30 < styles.count("google") < 70


# Bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmojiRetrieval(languages=("en", "gre")), r"language 'gre'.*Known: en, bn"),
        (lambda: EmojiRetrieval(languages="eng"), "language 'eng'; did you mean 'en'"),
        (lambda: EmojiRetrieval(styles=("googel",)), "style 'googel'; did you mean 'google'"),
        (lambda: EmojiRetrieval(split="tset"), "split 'tset'; did you mean 'test'"),
        (lambda: EmojiRetrieval(direction="text2image"), "direction 'text2image'"),
        (lambda: EmojiRetrieval(instructions={"text_to_img": "x"}), "direction 'text_to_img'"),
        (lambda: EmojiInstructions(questions=("tones",)), "question 'tones'; did you mean 'tone'"),
        (lambda: EmojiComposed(kinds=("gendre",)), "edit 'gendre'; did you mean 'gender'"),
        (lambda: EmojiTasks("val", ("text_to_images",)), "task 'text_to_images'; did you mean 'text_to_image'"),
    ],
)
def test_unknown_names_come_with_what_is_known(build, message):
    with pytest.raises(UnknownNameError, match=message):
        build()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: EmojiRetrieval(languages=()), "no emoji language is chosen"),
        (lambda: EmojiRetrieval(tag_probability=1.5), "tag_probability is 1.5"),
        (lambda: EmojiTasks(max_queries=0), "max_queries is 0"),
        (lambda: EmojiTasks("val", ("style",), styles=("google",)).tasks(), "no query for 'style'"),
        (lambda: EmojiTasks("test", ("composed[hair]",)).tasks(), "'test'.* has no query for 'composed.hair.'"),
        (lambda: EmojiComposed("test", kinds=("hair",)), "'test'.*hair"),
    ],
)
def test_settings_that_make_no_sense(build, message):
    with pytest.raises(ZooError, match=message):
        build()


@pytest.mark.parametrize(
    ("content", "message"), [(None, "reinstall"), (b"", "can't be read"), (b"PAR1 cut", "can't be")]
)
def test_missing_or_broken_file(tmp_path, monkeypatch, content, message):
    path = tmp_path / "emoji.parquet"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(emoji_module, "PACKAGED", path)
    with pytest.raises(ZooError, match=message) as caught:
        known_languages()
    assert str(path) in str(caught.value)


# The command


def run(*arguments):
    parser = argparse.ArgumentParser()
    data_command.add_arguments(parser)
    return data_command.run(parser.parse_args(arguments))


def test_show_prints_counts_and_writes_a_contact_sheet(tmp_path, capsys):
    sheet = tmp_path / "new" / "sheet.png"
    assert run("show", "emoji", "--split", "val", "--count", "10", "--out", str(sheet)) == 0
    printed = capsys.readouterr().out
    for expected in (
        "3,786 emoji",
        "2,721",
        "people-body",
        "zh-hant",
        "composed[tone]",
        "text_to_image[en]",
        "CC-BY-4.0",
    ):
        assert expected in printed
    picture = Image.open(sheet)
    assert picture.width > 1000
    assert len(picture.getcolors(1 << 20)) > 500


def test_show_bad_input(tmp_path):
    with pytest.raises(UnknownNameError, match="data set 'emojis'; did you mean 'emoji'"):
        run("show", "emojis")
    with pytest.raises(UnknownNameError, match="split 'tst'"):
        run("show", "emoji", "--split", "tst")
    with pytest.raises(ZooError, match=r"'\.xyz' is not a picture format"):
        run("show", "emoji", "--count", "1", "--out", str(tmp_path / "sheet.xyz"))


def test_chance_is_that_of_a_random_order():
    task = only("test", "text_to_image")
    assert data_command.chance(task, 1) == pytest.approx(2 / 1452)
    assert data_command.chance(task, 10) == pytest.approx(1 - (1442 * 1441) / (1452 * 1451))
    assert data_command.chance(only("test", "group"), 10) == 1

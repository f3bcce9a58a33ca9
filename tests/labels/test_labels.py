import json
from pathlib import Path

import pytest

from mobilevit_coreml.checkpoints.hugging_face import read_config
from mobilevit_coreml.errors import ConfigError, LabelsError
from mobilevit_coreml.labels import imagenet_labels, read_labels, unique_labels, voc_colors, voc_labels


def test_imagenet_names_are_in_the_standard_order() -> None:
    names = imagenet_labels()
    assert len(names) == 1000
    # timm keeps its own copy of the standard order, with longer names
    from timm.data import ImageNetInfo

    info = ImageNetInfo()
    for index in (0, 134, 281, 517, 999):
        assert info.index_to_description(index).split(",")[0] == names[index].split(",")[0]


def test_voc_names_are_in_the_standard_order() -> None:
    # The development kit's 20 classes are in alphabetical order, background before them.
    names = voc_labels()
    assert len(names) == 21
    assert names[0] == "background"
    assert list(names[1:]) == sorted(names[1:])
    assert {index: names[index] for index in (1, 2, 3, 4, 8, 11, 12, 15, 16, 20)} == {
        1: "aeroplane",
        2: "bicycle",
        3: "bird",
        4: "boat",  # the list in circulation on the hub has a typo of it, "board"
        8: "cat",
        11: "diningtable",
        12: "dog",
        15: "person",
        16: "pottedplant",
        20: "tvmonitor",
    }


def test_voc_colours_are_the_development_kits() -> None:
    def by_formula(index: int) -> str:
        # VOCcolormap: the three low bits of the index go to the high end of red, green and blue, then the next three
        channels = [0, 0, 0]
        for level in range(8):
            for channel in range(3):
                channels[channel] |= (index >> (3 * level + channel) & 1) << (7 - level)
        return "#" + "".join(f"{value:02X}" for value in channels)

    assert voc_colors() == tuple(by_formula(index) for index in range(21))
    assert voc_colors()[15] == "#C08080"  # a person's, as in every picture of the data set


def test_the_second_crane_is_told_apart() -> None:
    names, renamed = unique_labels(imagenet_labels())
    assert len(set(names)) == 1000
    assert (names[134], names[517]) == ("crane", "crane (517)")
    assert renamed == {517: "crane"}


def test_a_new_name_takes_nobody_elses() -> None:
    names, renamed = unique_labels(["a", "a", "a (1)", "a"])
    assert len(set(names)) == 4
    assert (names[0], names[2]) == ("a", "a (1)")
    assert renamed == {1: "a", 3: "a"}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("labels.txt", "cat\ndog, hound\nÄffchen\n"),
        ("labels.txt", "\ufeffcat\r\ndog, hound\r\nÄffchen\r\n\r\n"),
        ("list.json", json.dumps(["cat", "dog, hound", "Äffchen"])),
        ("id2label.json", json.dumps({"2": "Äffchen", "0": "cat", "1": "dog, hound"})),
        ("config.json", json.dumps({"id2label": {"0": "cat", "1": "dog, hound", "2": "Äffchen"}})),
        ("class_to_idx.json", json.dumps({"Äffchen": 2, "cat": 0, "dog, hound": 1})),
    ],
)
def test_reads_the_usual_files(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    assert read_labels(tmp_path / name) == read_labels(str(tmp_path / name)) == ("cat", "dog, hound", "Äffchen")


# A Persian and a Hindi word with joiners, French and Japanese spaces, a family, a flag of a region, a hand
NAMES = (
    "می\u200cروم",
    "क्\u200dष",
    "point\u00a0d'eau",
    "\u9ed2\u3000\u732b",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467",
    "\U0001f3f4\U000e0067\U000e0062\U000e0073\U000e0063\U000e0074\U000e007f",
    "\U0001f44d\U0001f3fd\ufe0f",
)


@pytest.mark.parametrize("suffix", [".txt", ".json"])
def test_names_of_all_scripts_and_emoji_are_names(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"labels{suffix}"
    path.write_text("\n".join(NAMES) if suffix == ".txt" else json.dumps(NAMES), encoding="utf-8")
    assert read_labels(path) == NAMES
    assert read_config({"id2label": dict(enumerate(NAMES))}, "x").id2label == NAMES


@pytest.mark.parametrize("name", ["\u200d", "\u00a0", " \u200c ", "\t", "", "a\u202eb", "a\u0000b", "a\nb", "a\x7f"])
def test_names_that_nobody_can_see_are_none(name: str, tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(["cat", name]))
    with pytest.raises(LabelsError, match="expected a name for class 1, got "):
        read_labels(tmp_path / "labels.json")
    with pytest.raises(ConfigError, match=r"x: id2label: expected a name for class 1, got "):
        read_config({"id2label": {0: "cat", 1: name}}, "x")


@pytest.mark.parametrize("around", [" {} ", "\t{}", "{}\u00a0", "\u3000{}  "])
def test_white_space_around_names_is_stripped(around: str, tmp_path: Path) -> None:
    names = ["black cat", "dog"]
    spaced = [around.format(name) for name in names]
    (tmp_path / "labels.json").write_text(json.dumps(spaced))
    (tmp_path / "labels.txt").write_text("\n".join(spaced), encoding="utf-8")
    assert read_labels(tmp_path / "labels.json") == read_labels(tmp_path / "labels.txt") == tuple(names)
    assert read_config({"id2label": dict(enumerate(spaced))}, "x").id2label == tuple(names)


def test_the_key_of_id2label_is_the_index() -> None:
    assert read_config({"id2label": {"0": 1, "1": 2, "2": 0}}, "x").id2label == ("1", "2", "0")
    assert read_config({"id2label": {"1": "b", "0": "a"}, "label2id": {"b": 0, "a": 1}}, "x").id2label == ("a", "b")


def test_numbers_for_numbers_in_a_file_may_be_read_both_ways(tmp_path: Path) -> None:
    path = tmp_path / "labels.json"
    path.write_text('{"0": 1, "1": 2, "2": 0}')
    with pytest.raises(LabelsError, match="expected names, got numbers for numbers, which may be read both ways"):
        read_labels(path)
    path.write_text('{"id2label": {"0": 1, "1": 2, "2": 0}}')
    assert read_labels(path) == ("1", "2", "0")
    path.write_text('{"0": 0, "1": 1}')  # both ways are the same
    assert read_labels(path) == ("0", "1")
    path.write_text('{"7": 1, "3": 0}')  # no indices: names of digits
    assert read_labels(path) == ("3", "7")


def test_null_is_absent() -> None:
    assert read_config({"id2label": None, "num_labels": 3}, "x").id2label == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert read_config({"id2label": None, "num_labels": None, "problem_type": None}, "x").num_labels == 2


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "expected 1 to 100000 class names, got 0"),
        ("a.txt", b"cat\n\ndog\n", "expected a name for class 1, got ''"),
        ("a.txt", b"cat\ndog\x1b[31m\n", "expected a name for class 1, got 'dog\\x1b[31m'"),
        ("a.txt", b"\xff\xfe\x00", "expected a UTF-8 text or JSON file, got other bytes"),
        ("a.json", b"{", "expected JSON"),
        ("a.json", b"[" * 100_000, "expected JSON"),
        ("a.json", b"3", "expected a list or an object of names, got int"),
        ("a.json", b'{"0": "cat", "7": "dog"}', "expected the indices 0 to 1, got none for 1"),
        ("a.json", b'{"cat": 0, "dog": 0}', "expected the indices 0 to 1"),
        ("a.json", b'["cat", 5]', "expected a name for class 1, got 5"),
        ("a.json", b'["cat", null]', "expected a name for class 1, got None"),
        ("a.json", b'{"0": "cat", "1": null}', "expected a name for class 1, got None"),
        ("a.json", b'{"cat": 0, "dog": 1, "cow": 1}', "expected the indices 0 to 2, got one twice; name each once"),
    ],
)
def test_says_what_is_wrong_with_a_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(LabelsError) as error:
        read_labels(tmp_path / name)
    assert message in str(error.value)
    assert str(tmp_path / name) in str(error.value)


def test_says_that_a_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="No such file"):
        read_labels(tmp_path / "none.txt")

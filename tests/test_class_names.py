"""Tests that `--classes` reads typed names and common files of tools, and never reorders silently."""

import json

import pytest

from kresume.class_names import join_classes, names_of, read_classes
from kresume.errors import UsageError
from kresume.options.resolve import from_arguments

pytestmark = pytest.mark.one_backend

WRITTEN = {
    "teachable machine": ("labels.txt", "0 ROCK\n1 PAPER\n2 SCISSORS and more\n", ("ROCK", "PAPER", "SCISSORS and more")),
    "teachable machine, other order": ("labels.txt", "1 b\n0 a\n", ("a", "b")),
    "windows": ("labels.txt", "\ufeff0 a\r\n1 b\r\n", ("a", "b")),
    "numbered with marks": ("labels.txt", "0: a\n1: b\n2: c d\n", ("a", "b", "c d")),
    "numbered from 1": ("classes.txt", "1 001.Albatross\n2 002.Auklet\n", ("001.Albatross", "002.Auklet")),
    "ten and more": ("labels.txt", "".join(f"{i} n{i}\n" for i in range(12)), tuple(f"n{i}" for i in range(12))),
    "one per line": ("names.txt", "cat\n\n dog \nblack swan\n", ("cat", "dog", "black swan")),
    "names that begin with numbers": ("names.txt", "101 dalmatians\n7 dwarfs\n", ("101 dalmatians", "7 dwarfs")),
    "numbers as names": ("names.txt", "0\n1\n10\n2\n", ("0", "1", "10", "2")),
    "commas in lines": ("names.txt", "n01440764 tench, Tinca tinca\nn01443537 goldfish\n",
                        ("n01440764 tench, Tinca tinca", "n01443537 goldfish")),
    "quoted lines": ("names.txt", '"Smith, John"\n"Doe ""J"" Jane"\n', ("Smith, John", 'Doe "J" Jane')),
    "one line": ("names.txt", 'cat,"dog, black",bird\n', ("cat", "dog, black", "bird")),
    "class_indices": ("class_indices.json", '{"dog": 1, "cat": 0}', ("cat", "dog")),
    "class_indices of numbers": ("class_indices.json", '{"0": 0, "1": 1, "10": 2, "2": 3}', ("0", "1", "10", "2")),
    "turned round": ("classes.json", '{"1": "dog", "0": "cat"}', ("cat", "dog")),
    "turned round, ten and more": ("c.json", json.dumps({str(i): f"n{i}" for i in reversed(range(12))}),
                                   tuple(f"n{i}" for i in range(12))),
    "numbers as text": ("classes.json", '{"dog": "1", "cat": "0"}', ("cat", "dog")),
    "turned round, numbers": ("classes.json", '{"0": "7", "1": "3"}', ("7", "3")),
    "list": ("classes.json", '["dog", "cat"]', ("dog", "cat")),
    "JSON by content": ("labels.txt", ' {"dog": 1, "cat": 0}', ("cat", "dog")),
    "CSV of names": ("classes.csv", 'dog\n"cat, black"\n', ("dog", "cat, black")),
    "CSV of names with a header": ("classes.csv", "class\ndog\ncat\n", ("dog", "cat")),
    "CSV with numbers": ("classes.csv", "index,name\n1,dog\n0,cat\n", ("cat", "dog")),
    "CSV with numbers behind": ("classes.csv", 'class,id\n"dog, black",1\ncat,0\n', ("cat", "dog, black")),
    "CSV of more columns": ("classes.csv", "id,colour,label\n0,red,cat\n1,blue,dog\n", ("cat", "dog")),
    "CSV of numbers, index first": ("classes.csv", "index,name\n1,0\n2,1\n0,2\n", ("2", "0", "1")),
    "CSV of numbers, name first": ("classes.csv", "name,id\n1,0\n2,1\n0,2\n", ("1", "2", "0")),
    "CSV of numbers, class first": ("classes.csv", "class,index\n1,2\n2,1\n0,0\n", ("0", "2", "1")),
    "CSV of numbers, class_id last": ("classes.csv", "class_name,class_id\n1,2\n2,0\n0,1\n", ("2", "0", "1")),
    "CSV of numbers, counted": ("classes.csv", "2,0\n0,1\n1,2\n", ("2", "0", "1")),
    "CSV of numbers and words": ("classes.csv", "0,0,cat\n1,1,dog\n", ("cat", "dog")),
    "CSV of a spreadsheet": ("classes.csv", "sep=;\r\nindex;name\r\n1;dog\r\n0;cat\r\n", ("cat", "dog")),
    "CSV of two numbers": ("classes.csv", "0,1\n", ("0", "1")),
    "CSV in one row": ("classes.csv", "dog,cat,bird\n", ("dog", "cat", "bird")),
    "TSV": ("classes.tsv", "0\tcat\n1\tdog\n", ("cat", "dog")),
}  # fmt: skip


@pytest.mark.parametrize("case", WRITTEN)
def test_what_tools_write_is_read_in_the_order_of_the_outputs(case, tmp_path):
    file, text, names = WRITTEN[case]
    (tmp_path / file).write_bytes(text.encode())
    assert read_classes(str(tmp_path / file)) == names


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("a,b,c", ("a", "b", "c")),
        (" a , b ,", ("a", "b")),
        ('"a, b",c', ("a, b", "c")),
        ("'a, b',c", ("a, b", "c")),
        ("it's,that's", ("it's", "that's")),
        ('"say ""a""",b', ('say "a"', "b")),
    ],
)
def test_names_on_the_command_line(text, names):
    assert read_classes(text) == names


@pytest.mark.parametrize(
    "names", [("a", "b"), ("a, b", "c"), ('"', "'a'"), (" a", "b "), ("it's", "x"), ("ä ß", "中文")]
)
def test_names_are_written_so_that_they_are_read_back(names):
    """A proposed order is read back as it was printed, for any names.

    Python lists and mappings are read in the same way.
    """
    assert read_classes(join_classes(names)) == names
    assert names_of(names) == names
    assert names_of({name: index for index, name in reversed(list(enumerate(names)))}) == names
    for given in (list(names), {str(index): name for index, name in enumerate(names)}):
        assert read_classes(from_arguments("c", {"classes": given}).classes) == names


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("c.json", '{"cat": 0, "dog": 2}', r"its numbers are 0, 2, and outputs are numbered from 0 to 1"),
        ("c.json", '{"cat": 1, "dog": 1}', r"its numbers are 1, 1"),
        ("c.json", '{"cat": [0]}', r"does not give each name one number; a file holds one name per line"),
        ("c.json", '{"cat": true, "dog": false}', r"does not give each name one number"),
        ("c.json", '{"cat": 0', r"this is no JSON"),
        ("c.json", "{}", r"holds no name"),
        ("c.txt", "\n\n", r"holds no name"),
        ("c.txt", "cat\ndog\ncat\n", r"stands twice: cat"),
        ("c.csv", "red,cat\nblue,dog\n", r"no column of it counts the outputs from 0"),
        (
            "c.csv",
            "1,2\n2,0\n0,1\n",
            r"several of its columns count the outputs: name the one with the numbers `index`",
        ),
        ("c.csv", "a,b\n1,2\n2,0\n0,1\n", r"several of its columns count the outputs"),
        ("c.csv", "label,digit\n0,1\n1,2\n2,0\n", r"several of its columns count the outputs"),
    ],
)
def test_what_gives_no_order_is_refused(tmp_path, file, text, words):
    (tmp_path / file).write_text(text)
    with pytest.raises(UsageError, match=words):
        read_classes(str(tmp_path / file))


def test_a_missing_file_is_no_class(tmp_path):
    with pytest.raises(UsageError, match="there is no such file"):
        read_classes(str(tmp_path / "labels.txt"))
    (tmp_path / "image.txt").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(UsageError, match="no text in UTF-8"):
        read_classes(str(tmp_path / "image.txt"))

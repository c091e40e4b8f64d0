"""Tests lists of images: CSV, JSON and Parquet, as this program and others write them."""

import json
import os
import shutil
import unicodedata

import numpy as np
import pytest
from PIL import Image

from kresume.errors import ImagesError, UsageError
from kresume.images import corrections, merging
from kresume.images.prepare import prepare
from kresume.images.sources import list_images
from kresume.images.sources.moves import Moves
from kresume.storage.stores import Bucket
from kresume.values.decode_spec import DecodeSpec
from tests.helpers import flaky_bucket
from tests.helpers.pictures import write_pictures


@pytest.mark.one_backend
def test_further_columns_of_a_list_are_kept(tmp_path, quiet):
    """Further columns of a list are kept as JSON; a few words of splits among others make no split of one."""
    write_pictures(tmp_path, 3, 0, ("circle",))
    rows = ["0.png,circle,train,1", "1.png,circle,car,2", "2.png,circle,test track,0"]
    (tmp_path / "list.csv").write_text("path,label,vehicle,fold\n" + "".join(f"circle/{row}\n" for row in rows[:2]))
    found = list_images([tmp_path / "list.csv"], quiet).files
    assert json.loads(found[0].extra) == {"vehicle": "train", "fold": "1"}
    (tmp_path / "list.csv").write_text("path,label,place,fold\n" + "".join(f"circle/{row}\n" for row in rows[1:]))
    assert len(list_images([tmp_path / "list.csv"], quiet).files) == 2
    (tmp_path / "list.csv").write_text("path,label,device\ncircle/0.png,circle,dev1\ncircle/1.png,circle,dev2\n")
    assert len(list_images([tmp_path / "list.csv"], quiet).files) == 2


@pytest.mark.one_backend
def test_a_list_names_what_is_gone_and_says_sides(tmp_path, quiet):
    """A list's missing file is quarantined by name; `split` decides the split; test images are left out."""
    write_pictures(tmp_path, 3, 0, ("circle",))
    (tmp_path / "list.csv").write_text(
        "path,label,split\ncircle/0.png,circle,train\ncircle/1.png,circle,val\ncircle/2.png,circle,test\ngone.png,circle,\n"
    )
    listing = list_images([tmp_path / "list.csv"], quiet)
    assert [found.split for found in listing.files] == ["train", "val"]
    assert [os.path.basename(row.path) for row in listing.quarantine] == ["gone.png"]
    assert any("1 test image was left out" in note for note in listing.notes)


def coco(pairs, **further):
    """Returns annotations of two pictures and two categories in the format of COCO."""
    return json.dumps(
        {
            "images": [{"id": number, "file_name": f"{number}.png"} for number in (1, 2)],
            "annotations": [{"image_id": image, "category_id": category, **further} for image, category in pairs],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        }
    )


WRITTEN = {
    "path,label": ("a.csv", b"path,label\n1.png,cat\n2.png,dog\n"),
    "semicolons": ("a.csv", "file_name;class_name;x\r\n1.png;cat;a,b\r\n2.png;dog;c\r\n".encode("utf-8-sig")),
    "tabs in a csv": ("a.csv", b"Image\tLabel\n1.png\tcat\n2.png\tdog\n"),
    "utf-16": ("a.tsv", "Filename\tCategory\r\n1.png\tcat\r\n2.png\tdog\r\n".encode("utf-16")),
    "quotes": ("a.csv", b'img,y\n1.png,"cat"\n2.png,dog\n'),
    "hugging face": ("a.jsonl", b'{"file_name": "1.png", "label": "cat"}\n{"file_name": "2.png", "label": "dog"}\n'),
    "records": ("a.json", b'[{"filepath": "1.png", "class": "cat"}, {"filepath": "2.png", "class": "dog"}]'),
    "coco": ("a.json", coco([(1, 1), (2, 2), (2, 2)]).encode()),
    "columns of pandas": ("a.json", b'{"file": {"0": "1.png", "1": "2.png"}, "class": {"0": "cat", "1": "dog"}}'),
    "labels by path": ("a.json", b'{"1.png": "cat", "2.png": "dog"}'),
    "line ends of old Macs": ("a.csv", b"file;class;x\r1.png;cat;a,b\r2.png;dog;c\r"),
    "ids": ("a.csv", b"id,label\n1,cat\n2,dog\n"),
    "ids beside names": ("a.csv", b"id,name,file,label\n7,x,1.png,cat\n8,y,2.png,dog\n"),
    "of windows": ("a.csv", b"image,label\n..\\data\\1.png,cat\n.\\2.png,dog\n"),
    "a line for spreadsheets": ("a.csv", b"sep=;\r\nfile;class;x\r\n1.png;cat;a,b\r\n2.png;dog;c\r\n"),
    "lines in a json": ("a.json", b'{"file_name": "1.png", "label": "cat"}\n{"file_name": "2.png", "label": "dog"}\n'),
    "two columns beside the named ones": ("a.csv", b"class,class,path,label\n0,9,1.png,cat\n1,9,2.png,dog\n"),
    "a line for spreadsheets in quotes": ("a.csv", b'"SEP=;"\r\nfile;class;x\r\n1.png;cat;a,b\r\n2.png;dog;c\r\n'),
    "blanks and endings": ("a.csv", b"image,label\n1.PNG,cat\n 2.Png ,dog\n"),
    "another column of labels": ("a.csv", b"file,label,label_name\n1.png,cat,Katze\n2.png,dog,Hund\n"),
    "a comma in quotes": ("a.csv", b'file;class;"a,b"\n1.png;cat;1\n2.png;dog;2\n'),
}


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.one_backend
def test_lists_of_other_programs_are_read(tmp_path, quiet, written):
    """Spreadsheets, Hugging Face, pandas and COCO spell a list in their own way; what is read as what is told."""
    name, content = WRITTEN[written]
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / name).write_bytes(content)
    for number in (1, 2):
        Image.fromarray(np.full((8, 8, 3), 90 * number, np.uint8)).save(folder / f"{number}.png")
    listing = list_images([folder / name], quiet)
    assert [(os.path.basename(found.path), found.label) for found in listing.files] == [
        ("1.png", "cat"),
        ("2.png", "dog"),
    ]
    exact = written in {"path,label", "coco", "labels by path", "two columns beside the named ones"}
    assert any("is read as path" in note for note in listing.notes) == (not exact)
    if written == "semicolons":
        assert json.loads(listing.files[0].extra) == {"x": "a,b"}
    bare = list_images([folder / name], quiet, with_classes=False)
    assert len(bare.files) == 2


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "file,label\nx.png,a\n", r"relative to .* \(the column 'file' is read as path\)"),
        ("a.csv", "where,label\nx.png,a\n", "expected the columns `path` and `label`, found 'where', 'label'$"),
        (
            "a.csv",
            "path,red,big\nx.png,0,1\n",
            r"Columns of 0 and 1 \(red, big\): .* for several labels per image use kresume.B",
        ),
        ("a.csv", "path,label\nx.png,\n", r"is empty: give one, or leave the row out \(.*several labels per image"),
        ("a.csv", "img,file,label\nx.png,y.png,a\n", "found 'img', 'file', 'label': rename one of img, file to path"),
        ("a.csv", "img,y,class\nx.png,0,a\n", "rename one of y, class to label"),
        ("a.csv", "filename,class,xmin\nx.png,a,3\n", "the column 'xmin' holds parts of a picture"),
        ("a.json", "{", "is not valid JSON"),
        (
            "a.json",
            '{"a": 1}',
            "expected a list of objects with `path` and `label`, a label for each path, or annotations",
        ),
        ("a.json", '[{"path": "x.png", "label": "a"}]', "lists no file that exists"),
        ("a.json", '{"images": [{"id": 1}], "annotations": [], "categories": []}', "the annotations .*a.json"),
        ("a.json", coco([(1, 1)], bbox=[0, 0, 2, 2]), "says what is in parts of a picture"),
        ("a.json", coco([(1, 1), (1, 2)]), r"row 1: 2 labels \(cat, dog\)"),
        ("a.json", coco([]), "lists no picture with a label"),
        (
            "a.json",
            coco([(1, 3)]),
            "an annotation of the image 1 is of the category 3, which is none of its categories",
        ),
        ("a.json", '{"path": "x.png", "label": "a"}\n{"path"\n', "line 2 is not valid JSON"),
        (
            "a.jsonl",
            '{"path": "x.png", "label": {"name": "a"}}\n',
            r"row 1: the label of x\.png is {'name': 'a'}: expected a",
        ),
        ("a.csv", "path,label\n", "a.csv lists no picture$"),
        ("a.csv", "path,label,label\nx.png,a,b\n", "2 columns are named 'label': rename all of them but one"),
        ("a.csv", "file,file,label\nx.png,y.png,b\n", "2 columns are named 'file'"),
        ("a.csv", "path,label,split,split\nx.png,a,train,test\n", "2 columns are named 'split'"),
        ("a.xlsx", "PK", "save the sheet as CSV"),
        ("a.txt", "x.png a\n", "write a list.csv whose first row is path,label"),
        ("a.csv.gz", "x", r"a list is read unpacked: gunzip .*a\.csv\.gz"),
        ("a.jsonl", "{\n", "line 1 is not valid JSON"),
        ("a.jsonl", "[1]\n", "expected an object"),
        ("a.csv", "path,label\nx.png,a\n", "lists no file that exists"),
        ("a.csv", "path,label,split\nx.png,a,maybe\n", "use train, val or test"),
        ("a.csv", "path,label,Split\nx.png,a,test\n", "the column 'Split' holds 'test', but only a column named split"),
        ("a.csv", "path,label, split\nx.png,a,val\n", "the column ' split' holds 'val'"),
        (
            "a.csv",
            "path,label,is_valid\nx.png,a,True\ny.png,b,False\n",
            "'is_valid' marks the images of one split, .*: write train, val or test into one, or leave it out",
        ),
        (
            "a.jsonl",
            '{"path": "x.png", "label": "a", "IsTest": 0}\n{"path": "y.png", "label": "b", "IsTest": 1}\n',
            "marks",
        ),
        (
            "a.csv",
            "path,label,Usage\nx.png,a,Training\ny.png,b,PublicTest\n",
            "the column 'Usage' holds 'publictest', 'training'",
        ),
        ("a.jsonl", '{"path": "x.png", "label": "a", "subset": "Test"}\n', "the column 'subset' holds 'Test'"),
        (
            "a.jsonl",
            '{"path": "x.png", "label": "a"}\n{"path": "y.png", "label": "b", "subset": "test"}\n',
            "row 2: the column 'subset' holds 'test'",
        ),
        (
            "a.csv",
            "path,label,phase\nx.png,a,train\ny.png,b,\nz.png,a,test\n",
            "the column 'phase' holds 'test', 'train'",
        ),
        (
            "a.csv",
            "path,label,ml_use\nx.png,a,TRAIN\ny.png,b,VALIDATE\nz.png,a,UNASSIGNED\n",
            "the column 'ml_use' holds 'train', 'unassigned', 'validate'",
        ),
        ("a.csv", "path,label,subset\nx.png,a,train\ny.png,b,test_public\n", "the column 'subset' holds 'train'"),
        ("a.csv", "path,label,dataset\nx.png,a,train_v2\ny.png,b,test-2\n", "'dataset' holds 'test-2', 'train_v2'"),
        ("a.jsonl", '{"path": "x.png", "label": [["a"]]}\n', r"the label of x\.png is \['a'\]: expected a text"),
        ("a.csv", "path, label\nx.png,a\n", r"\(the column ' label' is read as label\)"),
        ("a.csv", 'path,label\nx.png,"a\ny.png,b\n', "is damaged .*is a quote left open"),
        (
            "a.csv",
            "path,label\nx.png,a, small\n",
            "line 2: more values than columns, ' small' for example: put a value",
        ),
        (
            "a.csv",
            "path,label,usage\nx.png,a,train\ny.png,b,Test\n",
            "the column 'usage' holds 'test', 'train', but only",
        ),
        ("a.csv", "path,label\nx.png,\n", "row 1: the label of x.png is empty"),
        ("a.jsonl", '{"path": "x.png", "label": NaN}\n', "row 1: the label of x.png is empty"),
        ("a.jsonl", '{"path": "x.png", "label": null}\n', "row 1: the label of x.png is empty"),
        ("a.parquet", "x", "is not a Parquet table"),
    ],
)
@pytest.mark.one_backend
def test_a_list_that_is_none_says_why(tmp_path, quiet, name, content, words):
    """A list that cannot be read is one line: the list, the row, what was expected."""
    (tmp_path / name).write_text(content)
    with pytest.raises(ImagesError, match=words):
        list_images([tmp_path / name], quiet)


@pytest.mark.one_backend
def test_a_missing_label_of_a_table_is_no_class(tmp_path, quiet):
    """Pandas writes a label that is missing among numbers as NaN."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    write_pictures(tmp_path, 2, 0, ("circle",))
    rows = pa.table({"path": ["circle/0.png", "circle/1.png"], "label": [1.0, float("nan")]})
    parquet.write_table(rows, tmp_path / "a.parquet")
    with pytest.raises(ImagesError, match=r"row 2: the label of circle/1\.png is empty"):
        list_images([tmp_path / "a.parquet"], quiet)


@pytest.mark.one_backend
def test_two_columns_of_one_name_in_parquet(tmp_path, quiet):
    """Of two columns of one name a reader takes the last; a further column may be there twice."""
    import pyarrow as pa
    import pyarrow.parquet as parquet

    write_pictures(tmp_path, 1, 0, ("circle",))
    values = [pa.array(["circle/0.png"]), pa.array(["a"]), pa.array(["b"])]
    parquet.write_table(pa.Table.from_arrays(values, ["path", "label", "label"]), tmp_path / "a.parquet")
    with pytest.raises(ImagesError, match="2 columns are named 'label'"):
        list_images([tmp_path / "a.parquet"], quiet)
    (tmp_path / "a.csv").write_text("path,label,x,x\ncircle/0.png,a,1,2\n")
    assert len(list_images([tmp_path / "a.csv"], quiet).files) == 1


@pytest.mark.one_backend
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_in_another_case_or_unicode_form_are_found(tmp_path, quiet, form):
    """A list from Windows or a Mac; two files alike are told apart by their exact names, or not at all."""

    def spelled(text):
        return unicodedata.normalize(form, text)

    folder = tmp_path / spelled("é") / spelled("Été")
    write_pictures(folder, 3, 0, ("a",))
    os.rename(folder / "a" / "0.png", folder / "a" / spelled("üx.png"))
    os.rename(folder / "a" / "1.png", folder / "a" / "Twin.png")
    os.rename(folder / "a" / "2.png", folder / "a" / "twin.png")
    other = "NFD" if form == "NFC" else "NFC"
    listed = [unicodedata.normalize(other, "ÉTÉ/A/Üx.PNG"), f"{spelled('Été')}/a/twin.png", "été/a/TWIN.png"]
    path = tmp_path / spelled("é") / "a.csv"
    path.write_text("path,label\n" + "".join(f"{name},a\n" for name in listed))
    listing = list_images([path], quiet)
    assert [os.path.basename(each.path) for each in listing.files] == [spelled("üx.png"), "twin.png"]
    assert [os.path.basename(each.path) for each in listing.quarantine] == ["TWIN.png"]
    assert [note for note in listing.notes if "1 listed file is spelled otherwise on disk; the first is" in note]


IDS = {
    "in capitals": (["a.JPG"], "a", "a.JPG"),
    "in mixed case": (["a.Jpg"], "a", "a.Jpg"),
    "with a dot in the name": (["img.v2.JPEG"], "img.v2", "img.v2.JPEG"),
    "in a folder of another case": (["Sub/a.JPG"], "sub/a", "Sub/a.JPG"),
    "with Windows' slashes": (["Sub/a.PNG"], "sub\\a", "Sub/a.PNG"),
    "of a name in another case": (["IMG_1.JPG"], "img_1", "IMG_1.JPG"),
    "of a name in another Unicode form": (["\u00fc.JPG"], "u\u0308", "\u00fc.JPG"),
    "in two cases": (["a.JPG", "a.jpg"], "a", None),
    "in two other cases": (["a.JPG", "a.Jpg"], "a", None),
    "given in a third case": (["a.JPG", "a.Jpg"], "a.jpG", None),
    "given exactly": (["a.JPG", "a.jpg"], "a.jpg", "a.jpg"),
    "missing": (["b.JPG"], "a", None),
}


@pytest.mark.one_backend
@pytest.mark.parametrize(("files", "listed", "meant"), IDS.values(), ids=IDS)
def test_an_ending_that_a_list_leaves_out_is_found_in_any_case(tmp_path, quiet, files, listed, meant):
    """Kaggle's `id` beside a camera's `.JPG`; several files alike are none, and the reason says so."""
    write_pictures(tmp_path, 3, 0, ("x",))
    for number, name in enumerate(files):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / "x" / f"{number}.png").rename(tmp_path / name)
    (tmp_path / "a.csv").write_text(f"id,label\n{listed},cat\nx/2,dog\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    found = [os.path.relpath(each.path, tmp_path) for each in listing.files]
    assert found == ([meant] if meant else []) + ["x/2.png"]
    several = "several files there differ from it in case"
    assert [several in each.reason for each in listing.quarantine] == ([] if meant else [len(files) == 2])
    other = meant is not None and "\\" not in listed and os.path.splitext(meant)[0] != listed.removesuffix(".jpg")
    assert any("spelled otherwise on disk" in note for note in listing.notes) is other


@pytest.mark.one_backend
def test_an_ending_that_a_list_in_a_bucket_leaves_out_is_found_in_capitals(tmp_path, quiet):
    """A bucket is not listed for it: lower case, then upper case."""
    flaky_bucket.bucket.reset()
    write_pictures(tmp_path, 2, 0, ("x",))
    for number, name in enumerate(("a.JPG", "b.jpg")):
        Bucket("flaky://bucket").send(name, tmp_path / "x" / f"{number}.png")
    (tmp_path / "l.csv").write_text("id,label\na,cat\nb,dog\n")
    Bucket("flaky://bucket").send("l.csv", tmp_path / "l.csv")
    listing = list_images(["flaky://bucket/l.csv"], quiet)
    assert [each.path for each in listing.files] == ["flaky://bucket/a.JPG", "flaky://bucket/b.jpg"]


@pytest.mark.one_backend
def test_a_missing_file_is_not_the_one_that_another_row_names(tmp_path, quiet):
    """`A.png` is missing, and `a.png` is another picture with a row of its own."""
    write_pictures(tmp_path, 1, 0, ("x",))
    os.rename(tmp_path / "x" / "0.png", tmp_path / "a.png")
    (tmp_path / "a.csv").write_text("path,label\nA.png,cat\na.png,dog\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    assert [(os.path.basename(each.path), each.label) for each in listing.files] == [("a.png", "dog")]
    assert [(os.path.basename(each.path), each.label) for each in listing.quarantine] == [("A.png", "cat")]
    assert "a.png is listed, too" in listing.quarantine[0].reason
    (tmp_path / "a.csv").write_text("path,label\nA.png,dog\na.png,dog\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    assert (len(listing.files), listing.quarantine) == (1, ())
    (tmp_path / "a.csv").write_text("path,label\nA.png,cat\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    assert f"{tmp_path}/a.png (listed as {tmp_path}/A.png)" in "".join(listing.notes)


@pytest.mark.one_backend
def test_a_sharp_s_is_no_other_spelling(tmp_path, quiet):
    """Two names that a search without regard to case would take for one are two."""
    write_pictures(tmp_path, 3, 0, ("x",))
    os.rename(tmp_path / "x" / "0.png", tmp_path / "strasse.png")
    os.rename(tmp_path / "x" / "1.png", tmp_path / "b.png")
    os.rename(tmp_path / "x" / "2.png", tmp_path / "ΟΔΟΣ.png")
    (tmp_path / "a.csv").write_text("path,label\nοδος,cat\n .\\b.png,dog\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    assert [os.path.basename(each.path) for each in listing.files] == ["ΟΔΟΣ.png", "b.png"]
    (tmp_path / "a.csv").write_text("path,label\nοδος.png,cat\n x\\..\\b.png,dog\nb,dog\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    assert {os.path.basename(each.path) for each in listing.files} == {"b.png", "ΟΔΟΣ.png"}
    (note,) = listing.notes  # blanks, Windows' slashes and endings that are left out are no other spelling
    assert "1 listed file is spelled otherwise on disk" in note
    (tmp_path / "a.csv").write_text("path,label\nStraße.png,cat\nb.png,dog\n")
    listing = list_images([tmp_path / "a.csv"], quiet)
    assert ([each.label for each in listing.files], len(listing.quarantine)) == (["dog"], 1)


@pytest.mark.one_backend
def test_pictures_without_an_annotation_are_left_out_and_told(tmp_path, quiet):
    """In the format of COCO a picture may have none; to be predicted it needs none."""
    write_pictures(tmp_path, 2, 0, ("circle",))
    for number in (1, 2):
        (tmp_path / "circle" / f"{number - 1}.png").rename(tmp_path / f"{number}.png")
    (tmp_path / "a.json").write_text(coco([(2, 1)]))
    listing = list_images([tmp_path / "a.json"], quiet)
    assert [(os.path.basename(each.path), each.label) for each in listing.files] == [("2.png", "cat")]
    assert any("1 picture without a label was left out" in note for note in listing.notes)
    assert len(list_images([tmp_path / "a.json"], quiet, with_classes=False).files) == 2


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (["cat", "dog", "cat|dog"], "1 label like 'cat|dog' may name several classes"),
        (["a,b", "b, c", "c"], "1 label like 'b, c' may name several classes"),
        (["Doe, John", "Doe, Jane", "x"], None),
        (["a|b", "b|c", "a|c"], "3 labels like 'a|b' may name"),
        (["0;1", "0;2", "3"], "2 labels like '0;1'"),
        (["red, large", "blue; small", "x|y"], None),
        (["nan", "cat", "dog"], "1 picture has the label 'nan', which programs write where they know none"),
        (["none", "cat", "dog"], None),
    ],
)
@pytest.mark.one_backend
def test_labels_that_may_be_several_or_none_are_told(tmp_path, quiet, labels, told):
    """A text with several labels, or with that of no value, is one class; it may be what the user wants."""
    write_pictures(tmp_path, 3, 0, ("circle",))
    rows = [f"circle/{number}.png\t{label}\n" for number, label in enumerate(labels)]
    (tmp_path / "a.tsv").write_text("path\tlabel\n" + "".join(rows))
    listing = list_images([tmp_path / "a.tsv"], quiet)
    assert listing.classes == tuple(sorted(labels))
    assert not listing.notes if told is None else told in listing.notes[0]


@pytest.mark.parametrize("spelled", ["absolute", "of windows", "relative", "manifest"])
@pytest.mark.one_backend
def test_a_list_whose_images_have_moved_is_read_from_where_they_are(tmp_path, quiet, spelled):
    """--remap acts on lists and manifests, however they spell the folder; what it replaced is returned."""
    write_pictures(tmp_path / "now", 2, 0, ("circle",))
    before = {"absolute": "/gone/pictures", "of windows": "C:\\photos", "relative": "pictures"}.get(
        spelled, str(tmp_path / "x")
    )
    path, join = tmp_path / "a.csv", "\\" if spelled == "of windows" else "/"
    if spelled == "manifest":
        (tmp_path / "now").rename(tmp_path / "x")
        path = tmp_path / "a.parquet"
        images = prepare(list_images([tmp_path / "x"], quiet).files, DecodeSpec(12, 12), None, quiet)
        merging.merge(None, images, None, None, classes=["circle"], val_split=None, generation=0).manifest.write(path)
        (tmp_path / "x").rename(tmp_path / "now")
    else:
        rows = [f"{before}{join}circle{join}{number}.png,circle\n" for number in range(2)]
        path.write_text("path,label\n" + "".join(rows))
    with pytest.raises(ImagesError, match=r"lists no file that exists|none is there"):
        list_images([path], quiet)
    listing = list_images([path], quiet, moves=Moves.parse([f"{before}={tmp_path / 'now'}", "/other=/x"]))
    assert [each.path for each in listing.files] == [
        str(tmp_path / "now" / "circle" / f"{number}.png") for number in range(2)
    ]
    assert listing.moved == {before}
    with pytest.raises(ImagesError):  # a folder's whole name
        list_images([path], quiet, moves=Moves.parse([f"{before[:-1]}={tmp_path / 'now'}"]))


@pytest.mark.one_backend
def test_a_move_that_moves_nothing_is_an_error(tmp_path, quiet):
    """A folder that neither a list nor a record names is a slip of the pen, with recorded images and without."""
    moves = Moves.parse(["/gone=/now"])
    assert corrections.remap(None, moves, {"/gone"}) is None
    with pytest.raises(UsageError, match="no image of a list is in /gone, and no images are recorded"):
        corrections.remap(None, moves)
    with pytest.raises(UsageError, match="give OLD=NEW"):
        Moves.parse(["/gone"])


@pytest.mark.one_backend
def test_paths_from_the_current_folder_are_found_if_none_is_beside_the_list(tmp_path, quiet, monkeypatch):
    """Scripts and `kresume predict -o` write paths as they were given; files beside the list come first."""
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path, 2, 0, ("circle",))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "a.csv").write_text("path,label\ncircle/0.png,a\ncircle/1.png,a\ncircle/7.png,a\n")
    listing = list_images(["lists/a.csv"], quiet)
    assert [each.path for each in listing.files] == [str(tmp_path / "circle" / f"{number}.png") for number in range(2)]
    assert f"lists/a.csv: its paths are relative to the current folder, {tmp_path}" in listing.notes
    assert [each.path for each in listing.quarantine] == [str(tmp_path / "circle" / "7.png")]
    write_pictures(tmp_path / "lists", 1, 0, ("circle",))
    listing = list_images(["lists/a.csv"], quiet)
    assert [each.path for each in listing.files] == [str(tmp_path / "lists" / "circle" / "0.png")]
    assert not any("current folder" in note for note in listing.notes)
    monkeypatch.chdir(tmp_path / "circle")
    shutil.rmtree(tmp_path / "lists" / "circle")
    with pytest.raises(ImagesError, match=r"3 are missing, the first is .*lists/circle/0\.png.*relative to .*lists"):
        list_images([tmp_path / "lists" / "a.csv"], quiet)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (["cat", "dog", "dog", "cat"], "the column 'corrected' holds labels, too, others than 'label' in 2 rows"),
        (["", "dog", "", "cat"], "the column 'corrected' holds labels, too, others than 'label' in 1 row"),
        (["cat", "dog", "cat", "dog"], None),
        (["cat", "dog", "cat", "hen"], None),
        (["1", "2", "3", "4"], None),
        (
            ["cat dog", "dog", "cat", "dog|cat"],
            "the column 'corrected' holds labels, too, others than 'label' in 2 rows",
        ),
        (["cat hen", "dog", "cat", "dog"], None),
    ],
)
@pytest.mark.one_backend
def test_a_further_column_of_labels_is_told(tmp_path, quiet, values, told):
    """Labels that somebody corrected in a column of another name would not be trained on."""
    write_pictures(tmp_path, 4, 0, ("circle",))
    labels = ["cat", "dog", "cat", "dog"]
    rows = [f"circle/{number}.png,{labels[number]},{value}\n" for number, value in enumerate(values)]
    (tmp_path / "a.csv").write_text("path,label,corrected\n" + "".join(rows))
    notes = [note for note in list_images([tmp_path / "a.csv"], quiet).notes if "corrected" in note]
    assert not notes if told is None else told in notes[0]


@pytest.mark.parametrize(("further", "told"), [("label2", True), ("label_2", True), ("label_2,score_2", False)])
@pytest.mark.one_backend
def test_a_second_label_is_told_unless_it_is_the_second_choice_of_a_prediction(tmp_path, quiet, further, told):
    """Lists of several labels per picture have `label,label2`; so have predictions, each with a score."""
    write_pictures(tmp_path, 2, 0, ("circle",))
    more = ",0.2" * further.count(",")
    (tmp_path / "a.csv").write_text(f"path,label,{further}\ncircle/0.png,cat,dog{more}\ncircle/1.png,dog,cat{more}\n")
    assert any("holds labels, too" in note for note in list_images([tmp_path / "a.csv"], quiet).notes) is told

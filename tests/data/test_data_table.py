"""`metadata.csv`, and one clear sentence for every fault of it."""

from __future__ import annotations

import pytest


@pytest.fixture
def table(tmp_path, draw):
    """Writes a metadata.csv beside eight images 0.png to 7.png and returns the folder."""

    def write(text: str, encoding: str = "utf-8"):
        for index in range(8):
            draw(tmp_path / "set" / f"{index}.png", shade=index)
        (tmp_path / "set" / "metadata.csv").write_text(text, encoding=encoding)
        return tmp_path / "set"

    return write


ROWS = "".join(f"{index}.png,{'ab'[index % 2]}\n" for index in range(8))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_table_without_split_is_split_by_seed(load, table, encoding):
    data = load(table("file_name,label\n" + ROWS, encoding))
    assert data.classes == ("a", "b")
    assert [len(part) for part in (data.train, data.val, data.test)] == [5, 1, 2]


def test_split_column_is_used(load, table):
    parts = ["train"] * 4 + ["validation"] * 2 + ["Test"] * 2
    rows = [f"{parts[index]},{'ab'[index % 2]}, {index}.png " for index in range(8)]
    data = load(table("split,label,file_name\n" + "\n".join(rows) + "\n\n"))
    assert [len(part) for part in (data.train, data.val, data.test)] == [4, 2, 2]
    assert data.test.names == ["6.png", "7.png"]


def test_path_of_the_table_itself_and_changes_of_it(load, table):
    folder = table("file_name,label\n" + ROWS)
    assert load(folder / "metadata.csv").classes == ("a", "b")
    (folder / "metadata.csv").write_text("file_name,label\n" + ROWS.replace("a", "c"))
    assert load(folder).classes == ("b", "c")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("name,label\n0.png,a\n", "has the columns name, label; it needs file_name and label"),
        ("file_name,label\n0.png,a\nx.png,b\ny.png,b\n", "names 2 missing files: x.png (row 3), y.png (row 4)"),
        ("file_name,label\n0.png,\n", "row 2: the label is empty"),
        ("file_name,label\n,a\n", "row 2: the file_name is empty"),
        ("file_name,label\n0.png,a\n0.png,b\n", "row 3: 0.png is listed in row 2 already"),
        ("file_name,label,split\n0.png,a,more\n", "row 2: split is 'more'; it must be train, val or test"),
        ("file_name,label,split\n0.png,a,test\n1.png,b,test\n", "no train part"),
        ("file_name,label\n0.png,a,b\n", "row 2: 3 values for 2 columns"),
        ("file_name,label\n0.png,a\n1.png,a\n", "only class 'a'"),
        ("file_name,label\n", "has no rows"),
        ("", "is empty"),
        # Blank lines of spreadsheets: mik#321, #323, csv-reconcile#39, nmaahcmm#134, open-apparel-registry#1829.
        ("file_name,label\n\n\n0.png,a,b\n", "row 4: 3 values for 2 columns"),
        ("file_name,label\n,\n0.png,a\n,\n\n1.png\n", "row 6: 1 values for 2 columns"),
        ("\n\nfile_name,label\n,\n0.png,a\n\n1.png,\n", "row 7: the label is empty"),
        ("file_name,label\n0.png,a\n\n0.png,b\n", "row 4: 0.png is listed in row 2 already"),
        ("file_name,label\n\nx.png,a\n\n\ny.png,b\n", "missing files: x.png (row 3), y.png (row 6)"),
        ("file_name,label,split\n\n0.png,a,more\n", "row 3: split is 'more'"),
        ('file_name,label,note\n0.png,a,"two\nlines"\n1.png,,x\n', "row 4: the label is empty"),
        ("file_name,label\r\n\r\n0.png,\r\n", "row 3: the label is empty"),
        ("file_name;label\n\n0.png;\n", "row 3: the label is empty"),
        # A row without a file in the middle: FERPlus#17.
        ("split,file_name,label\ntrain,0.png,a\n\ntrain,,b\ntrain,1.png,b\n", "row 4: the file_name is empty"),
    ],
)
def test_faults(data_error, load, table, text, fault):
    assert fault in data_error(load, table(text))


def test_other_encodings(data_error, load, table):
    assert "save it as CSV UTF-8" in data_error(load, table("file_name,label\n0.png,ü\n", "latin-1"))


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (['{"file_name": "0.png", "label": "a"}', "", '{"file_name": "1.png"}'], "row 3: it has no label"),
        (['{"file_name": "0.png", "label": "a"}', "", "", "[1]"], "row 4: it is no JSON object"),
        (["", '{"file_name": "0.png", "label": null}'], "row 2: the label is empty"),
        (["", '{"file_name": "0.png", "label"'], "row 2: it is no JSON object"),
        (['{"image": "0.png", "label": "a"}'], "has the columns image, label; it needs file_name and label"),
        ([], "has no rows"),
    ],
)
def test_faults_of_json_lines(data_error, load, tmp_path, draw, lines, fault):
    draw(tmp_path / "set" / "0.png")
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    assert fault in data_error(load, tmp_path / "set")

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
        # Blank lines between rows: datatable#838, frictionless-py#268. Before the header: readr#680, DataHarmonizer#40.
        ("file_name,label\n0.png,a\n\n1.png,b\n\n\n2.png,\n", "row 7: the label is empty"),
        ("\n\n\nfile_name,label\n0.png\n", "row 5: 1 values for 2 columns"),
        # An empty row above the header and an empty column before it: csv-importer#54.
        ("\n,,\n,file_name,label\n,0.png,a\n,1.png,\n", "row 5: the label is empty"),
        # Rows of separators or spaces alone: smartcsv#9, pandas#10728, #23694.
        ("file_name,label\n,\n,\n0.png,\n", "row 4: the label is empty"),
        ("file_name,label\n   \n0.png,a\n1.png,\n", "row 4: the label is empty"),
        ("file_name,label\n\t\n , \n0.png,a\n1.png,\n   ", "row 5: the label is empty"),
        # The header counts: e-ks#824, prime-reportstream#4677, app.zetkin.org#2325, importX#44.
        ("file_name,label\n0.png,a\n1.png,\n", "row 3: the label is empty"),
        ("file_name,label\n0.png,a\n1.png,b,c\n", "row 3: 3 values for 2 columns"),
        # Cells of several lines: pandas#16286, #22789, csvlint.rb#31, fast-cpp-csv-parser#69.
        ('file_name,label,note\n0.png,a,"1\n2\n3"\n1.png,b,x\n2.png,,x\n', "row 6: the label is empty"),
        ('file_name,label,note\r\n0.png,a,"two\r\nlines"\r\n\r\n1.png,,x\r\n', "row 5: the label is empty"),
        ('file_name,label,note\n0.png,a,"say ""hi\nthere"""\n0.png,b,x\n', "row 4: 0.png is listed in row 2 already"),
        # A quote that is not closed takes the rows below into its cell: pandas#22140, #5500, PapaParse#929.
        ('file_name,label,note\n0.png,a,x\n1.png,b,"x\n2.png,a,y\n', "row 3: a quote is not closed"),
        ('file_name,label,note\n\n0.png,a,"x\n1.png,b,y\n2.png,a,"z\n', "row 3: a quote is not closed"),
        ('file_name,label\n0.png,"a "tame" cat"\n1.png,b\n', "row 2: a quote is not closed"),
        # Two columns of one name, of which the last won: cpython#61739, csv-diff#45, SwiftCSV#134.
        ("file_name,label,label\n0.png,a,b\n1.png,b,a\n", "has several columns label: keep one"),
        # Notes above the header: readr#680.
        ("# notes\n\nfile_name,label\n0.png,a\n", "has the columns # notes; it needs file_name and label"),
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
        (['{"file_name": "0.png", "label": "a"}', "", "", "[1]"], "row 4: it is not a JSON object"),
        (["", '{"file_name": "0.png", "label": null}'], "row 2: the label is empty"),
        (["", '{"file_name": "0.png", "label"'], "row 2: it is not a JSON object"),
        (['{"image": "0.png", "label": "a"}'], "has the columns image, label; it needs file_name and label"),
        ([], "has no rows"),
        # Blank lines count: graphrag#2424, PyRIT#1479, rai-toolkit#88.
        (['{"file_name": "0.png", "label": "a"}', "", "  ", "{"], "row 4: it is not a JSON object"),
        # Values of JSON that are no labels: datasets#6460, #6106.
        (['{"file_name": "0.png", "label": ["a", "b"]}'], "2 labels in row 1: one is needed"),
        (["", '{"file_name": "0.png", "label": {"a": 1}}'], "label {'a': 1} in row 2 is neither a whole number nor"),
        (['{"file_name": "0.png", "label": -0.2253}'], "label -0.2253 in row 1 is neither a whole number nor text"),
        (['{"file_name": "0.png", "label": NaN}'], "row 1: the label is empty"),
        (['{"file_name": "0.png", "label": "  "}'], "row 1: the label is empty"),
    ],
)
def test_faults_of_json_lines(data_error, load, tmp_path, draw, lines, fault):
    draw(tmp_path / "set" / "0.png")
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(lines))
    assert fault in data_error(load, tmp_path / "set")


def test_numbers_of_json_lines_are_one_class_however_they_are_written(load, tmp_path, draw):
    """datasets#7635: 1 and 1.0; datasets#6324: numbers among texts."""
    labels = ["1", "1.0", "[1]", '"1"', '"1a"', "true"]
    for index in range(len(labels)):
        draw(tmp_path / "set" / f"{index}.png", shade=index * 40)
    rows = [f'{{"file_name": "{index}.png", "label": {label}}}\n' for index, label in enumerate(labels)]
    (tmp_path / "set" / "metadata.jsonl").write_text("".join(rows))
    data = load(tmp_path / "set", val_fraction=0, test_fraction=0)
    assert data.classes == ("1", "1a", "True")
    assert sorted(data.train.labels.tolist()) == [0, 0, 0, 0, 1, 2]


def test_a_space_before_a_quote_is_no_part_of_the_label(tmp_path):
    from gmmvit.data.table import read_table

    for name in ("0.png", "1.png"):
        (tmp_path / name).touch()
    (tmp_path / "metadata.csv").write_text('file_name,label\n0.png, "a"\n1.png,a\n')
    (rows,) = read_table(tmp_path / "metadata.csv", print).values()
    assert [label for _, label in rows] == ["a", "a"]


@pytest.mark.parametrize(
    ("name", "lines", "fault"),
    [
        (
            "metadata.csv",
            ["file_name,Label", "0.png,a"],
            "has the columns file_name, Label; it needs file_name and label",
        ),
        ("metadata.csv", ["file_name,label,Split", "0.png,a,3"], "row 2: Split is '3'; it must be train, val or test"),
        ("metadata.csv", ["file_name,label", "0.png,0", "1.png,-1"], "row 3: label -1 is negative: number the classes"),
        ("metadata.csv", ["file_name,label", "0.png,1", "1.png,1.0"], r"row 3: label 1\.0 is 1 in other rows"),
        ("metadata.csv", ["file_name,label", "0.png,a", "./0.png,b"], r"row 3: 0\.png is listed in row 2 already"),
        (
            "metadata.csv",
            ["file_name,labels", "0.png,['a' 'b']", "1.png,['a']"],
            r"row 2: labels \"\['a' 'b'\]\" is not a list",
        ),
        (
            "metadata.csv",
            ["file_name,labels", "0.png,\"('a', 'b')\"", "1.png,\"('a',)\""],
            "row 2: labels .* is not a list",
        ),
        ("metadata.jsonl", ['{"file_name": "0.png", "labels": {"a": 1, "b": 0}}'], "row 1: labels .* is not a list"),
        (
            "metadata.jsonl",
            ['{"file_name": "0.png", "label": "a", "label": "b"}'],
            "row 1: it is not a JSON object, or has a key",
        ),
        (
            "metadata.jsonl",
            ['{"file_name": "0.png", "label": "a"}', '{"file_name": "1.png", "label": "b", "split": "test"}'],
            "row 2: it has split, which the first row lacks",
        ),
    ],
)
def test_what_a_table_may_mean_in_two_ways_is_refused_with_its_row(tmp_path, name, lines, fault):
    from gmmvit.data.records import DataError
    from gmmvit.data.table import read_table

    for image in ("0.png", "1.png"):
        (tmp_path / image).touch()
    (tmp_path / name).write_text("\n".join(lines))
    with pytest.raises(DataError, match=fault):
        read_table(tmp_path / name, print)

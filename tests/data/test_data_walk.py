"""What lies in a folder and is not read is said; links that lead nowhere and names that nothing can show do no harm."""

from __future__ import annotations

import os

import pytest

ALL = {"val_fraction": 0, "test_fraction": 0}


def ignored(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("ignored")]


def test_files_that_are_no_images_are_counted_by_extension(load, two_classes, lines):
    for index in range(4):
        (two_classes / "cat" / f"{index}.HEIC").write_bytes(b"x")
        (two_classes / "dog" / f"{index}.tga").write_bytes(b"x")
    (two_classes / "dog" / "5.tga").write_bytes(b"x")
    (two_classes / "dog" / "README").write_bytes(b"x")
    (two_classes / "dog" / ".DS_Store").write_bytes(b"x")
    assert len(load(two_classes, **ALL).train) == 50
    assert ignored(lines) == [
        f"ignored 10 files that are not images: .tga 5, .heic 4, no extension 1 (in {two_classes})"
    ]


def test_what_is_ignored_is_said_before_an_empty_class_stops(data_error, load, two_classes, lines):
    (two_classes / "fish").mkdir()
    (two_classes / "fish" / "photo.heic").write_bytes(b"x")
    assert "no images in class folder 'fish'" in data_error(load, two_classes)
    assert ignored(lines) == [f"ignored 1 file that is not an image: .heic 1 (in {two_classes})"]


def test_linked_folders_are_read_wherever_they_lie_unless_they_lead_back(load, two_classes, lines, tmp_path, fill):
    more = fill(tmp_path / "more", {"cats": 3, "birds": 2})
    (two_classes / "cat" / "more").symlink_to(more / "cats")
    (two_classes / "bird").symlink_to(more / "birds")
    (more / "birds" / "deeper").mkdir()
    for place, target in {"cat/more/all": more, "cat/up": two_classes, "bird/deeper/bird": more / "birds"}.items():
        (two_classes / place).symlink_to(target)
    (two_classes / "round").symlink_to(two_classes)
    (two_classes / "dog" / "gone").symlink_to("nowhere")
    assert len(load(two_classes, **ALL).train) == 50 + 3 + 2
    links = "round, bird/deeper/bird, cat/more/all, cat/up, dog/gone"
    assert ignored(lines) == [f"ignored 5 links that lead nowhere or in a circle: {links} (in {two_classes})"]


def test_links_beside_a_table_and_to_images_that_it_does_not_list_are_named(load, two_classes, lines, tmp_path, fill):
    rows = [f"{file.parent.name}/{file.name},{file.parent.name}" for file in two_classes.rglob("*.png")]
    (two_classes / "metadata.csv").write_text("\n".join(["file_name,label", *rows]))
    (two_classes / "more").symlink_to(fill(tmp_path / "more", {"fish": 1}))
    (two_classes / "round").symlink_to(two_classes)
    assert len(load(two_classes, **ALL).train) == 50
    assert ignored(lines) == [
        f"ignored 1 link that leads nowhere or in a circle: round (in {two_classes})",
        f"ignored 1 image that {two_classes / 'metadata.csv'} does not list: more/fish/000.png",
    ]


def test_linked_images_and_linked_classes_are_read(load, two_classes, lines, tmp_path, fill):
    (two_classes / "cat" / "link.png").symlink_to(two_classes / "dog" / "000.png")
    (two_classes / "fish").symlink_to(fill(tmp_path / "elsewhere", {"fish": 3}) / "fish")
    data = load(two_classes, **ALL)
    assert data.classes == ("cat", "dog", "fish")
    assert len(data.train) == 54
    assert not ignored(lines)


@pytest.mark.parametrize(
    ("target", "reason"), [("x.png", "Too many levels of symbolic links"), ("gone.png", "No such")]
)
def test_dead_link_in_a_class_is_a_broken_image(data_error, load, two_classes, lines, draw, target, reason):
    link = two_classes / "cat" / "x.png"
    link.symlink_to(target)
    assert f"1 broken image: cat/x.png ({reason}" in data_error(load, two_classes)
    assert len(load(two_classes, skip_broken=True, **ALL).train) == 50
    assert lines[-1].endswith("1 broken image skipped")
    link.unlink()
    link.symlink_to(draw(two_classes.parent / "mended.png"))
    assert "cat/x.png" in load(two_classes, **ALL).train.names


@pytest.mark.parametrize("target", ["fish", "gone"])
def test_dead_link_as_a_class_is_ignored(load, two_classes, lines, target):
    (two_classes / "fish").symlink_to(target)
    assert load(two_classes).classes == ("cat", "dog")
    assert ignored(lines) == [f"ignored 1 link that leads nowhere or in a circle: fish (in {two_classes})"]


@pytest.mark.parametrize("content", ["nothing", "loose image", "empty classes"])
def test_parts_without_images_are_cut_from_train(load, tmp_path, fill, draw, lines, content):
    root = tmp_path / "set"
    fill(root / "train", {"a": 10, "b": 10})
    for part in ("val", "test"):
        (root / part).mkdir()
        if content == "loose image":
            draw(root / part / "one.png")
        if content == "empty classes":
            (root / part / "a").mkdir()
    data = load(root)
    assert [len(part) for part in (data.train, data.val, data.test)] == [14, 2, 4]
    assert ignored(lines) == [
        f"ignored {root / part}, which holds no class folders with images: "
        f"the {part} part is cut from train by {part}_fraction"
        for part in ("test", "val")
    ]


def test_part_without_images_beside_another_of_its_kind_or_without_effect(load, tmp_path, fill, lines):
    root = tmp_path / "set"
    for part in ("train", "val"):
        fill(root / part, {"a": 5, "b": 5})
    for part in ("valid", "test"):
        (root / part).mkdir()
    assert load(root).test is None
    assert [line.rpartition(": ")[2] for line in ignored(lines)] == [
        "there is no test part",
        "another folder is the val part",
    ]


def test_classes_and_images_beside_the_parts_are_named(load, tmp_path, fill, draw, lines):
    root = tmp_path / "set"
    fill(root / "train", {"a": 10, "b": 10})
    draw(root / "c" / "one.png")
    draw(root / "loose.png")
    (root / "dead").symlink_to("gone")
    for name in ("notes.txt", "README.txt", "LICENSE", "index.md", ".hidden"):
        (root / name).write_text("what this is")
    assert load(root).classes == ("a", "b")
    assert ignored(lines) == [f"ignored beside the parts of {root}: loose.png, dead, notes.txt, c"]


def test_what_systems_put_into_folders_is_no_class_and_no_image(load, two_classes, lines, draw):
    for place in ("__MACOSX/cat/000.png", "@eaDir/cat/1.png", "cat/@eaDir/1.jpg/thumb.jpg", "lost+found/1.png"):
        draw(two_classes / place)
    (two_classes / "dog" / "Thumbs.db").write_bytes(b"x")
    assert len(load(two_classes, **ALL).train) == 50
    assert not [line for line in lines if "decoding" not in line]


def test_an_empty_class_of_a_part_that_is_measured_is_named(load, tmp_path, fill, lines):
    root = fill(tmp_path / "set", {"train/a": 4, "train/b": 4, "test/a": 4})
    (root / "test" / "b").mkdir()
    assert len(load(root, val_fraction=0).test) == 4
    assert f"no images in class folder 'b' of {root / 'test'}" in lines


@pytest.mark.parametrize("end", [" (1)", "(2)", " - Copy", " copy", "_copy 2", " - Copy (3)"])
def test_a_class_that_is_called_like_a_copy_of_another_is_named(load, two_classes, lines, fill, end):
    fill(two_classes, {f"cat{end}": 3, "fish (1)": 3})
    assert len(load(two_classes, **ALL).classes) == 4
    said = f"{two_classes / f'cat{end}'} is read as a class of its own, though its name is that of a copy of cat"
    assert [line for line in lines if "copy" in line.lower() and "read as" in line] == [said]


@pytest.mark.parametrize("name", [b"c\xe9t", b"a\nb", b"a\x1bb", "a\u0085b".encode()])
def test_class_names_that_are_no_printable_text_are_refused(data_error, load, two_classes, name):
    (two_classes / "cat").rename(two_classes / os.fsdecode(name))
    message = data_error(load, two_classes)
    shown = repr(os.fsdecode(name))
    assert f"has class {shown}, a name with control characters or bytes that are not UTF-8: rename" in message


def test_class_names_of_numbered_shards_are_checked(data_error, load, tmp_path, write_parquet):
    write_parquet(tmp_path / "set" / "train-00000-of-00001.parquet", [0, 1] * 4, classes=["a\n", "b"])
    assert r"has class 'a\n', a name with control characters" in data_error(load, f"hf:{tmp_path / 'set'}")


def test_image_names_are_escaped_where_nothing_can_show_them(load, two_classes, draw, lines):
    shades = {b"c\xe9t.png": 11, b"a\nb.png": 12, "x\u0085y.png".encode(): 13, "ü 写\u200d.png".encode(): 14}
    for name, shade in shades.items():
        draw(two_classes / "cat" / "new.png", shade=shade).rename(two_classes / "cat" / os.fsdecode(name))
    (two_classes / "cat" / os.fsdecode(b"bad\xff.png")).write_bytes(b"broken")
    for _ in range(2):
        part = load(two_classes, skip_broken=True, **ALL).train
        found = {name: image[0, 0, 0].item() for name, image in zip(part.names, part.images, strict=True)}
        expected = {r"cat/c\xe9t.png": 11, r"cat/a\x0ab.png": 12, r"cat/x\x85y.png": 13, "cat/ü 写\u200d.png": 14}
        assert expected.items() <= found.items()
    assert any(line.startswith(r"broken image: cat/bad\xff.png (") for line in lines)
    "\n".join([*part.names, *lines]).encode()


def test_places_that_nothing_can_show_are_escaped_in_errors_and_notices(data_error, load, two_classes, draw, lines):
    place = two_classes.with_name(os.fsdecode(b"p\xe9ts"))
    assert r"/p\xe9ts does not exist" in data_error(load, place)
    two_classes.rename(place)
    draw(place / "stray.png")
    assert len(load(place).train) == 36
    assert r"/p\xe9ts: stray.png" in ignored(lines)[0]

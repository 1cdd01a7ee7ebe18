"""Links in the documentation work, and the files that it names exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "gmmvit"
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)


def prose(text):
    """The text without code, in which brackets mean something else."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"(`+)(?!`).+?(?<!`)\1(?!`)", "code", text, flags=re.DOTALL)


def links(text):
    """Targets of `[text](target)`, `![text](target)`, `[name]: target` and HTML's src and href."""
    text = prose(text)
    found = re.findall(r"\]\(\s*<?([^()\s>]+(?:\([^()\s]*\))?)>?(?:\s+\"[^\"]*\")?\s*\)", text)
    found += re.findall(r"^\[[^\]]+\]:\s+(\S+)", text, flags=re.MULTILINE)
    return found + re.findall(r"(?:src|href)=\"([^\"]+)\"", text)


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    text = re.sub(r"^(```+|~~~+).*?^\1", "", text, flags=re.MULTILINE | re.DOTALL)
    names: dict[str, int] = {}
    found = set()
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", text, flags=re.MULTILINE):
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-")
        found.add(f"{name}-{names[name]}" if name in names else name)
        names[name] = names.get(name, 0) + 1
    return found


def dead(page, root=ROOT):
    """The links of a page to files or headings that do not exist."""
    for link in links(page.read_text(encoding="utf-8")):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue
        place, _, anchor = link.partition("#")
        target = (page.parent / place).resolve() if place else page
        if not target.exists() or root not in (target, *target.parents):
            yield f"{link}: there is no {place}"
        elif anchor and (target.suffix != ".md" or anchor not in anchors(target.read_text(encoding="utf-8"))):
            yield f"{link}: {target.name} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file_and_a_heading(page):
    assert list(dead(page)) == []


def test_the_pages_have_links():
    assert sum(len(links(page.read_text(encoding="utf-8"))) for page in PAGES) > 20


def test_a_dead_link_is_found(tmp_path):
    (tmp_path / "there.md").write_text("# One `code`, [two](x)!\n\n# One `code`, two\n\n```sh\n# not a heading\n```\n")
    page = tmp_path / "page.md"
    good = "[a](there.md) [b](there.md#one-code-two-1) ![c](there.md) [d](#here) [e](https://a.b/c) `[f](nowhere.md)`"
    page.write_text(f"# Here\n{good}\n\n```\n[g](nowhere.md)\n```\n")
    assert list(dead(page, tmp_path)) == []
    page.write_text(
        '# Here\n[a](gone.md) [b](there.md#not-a-heading) [c](#gone) <img src="gone.png">\n\n[d]: ../out.md\n'
    )
    assert [line.partition(":")[0] for line in dead(page, tmp_path)] == [
        "gone.md", "there.md#not-a-heading", "#gone", "../out.md", "gone.png",
    ]  # fmt: skip


OLD = {("timm.md", "tests/test_models.py"), ("results.md", "benchmarks/studies/trivial500.yaml")}  # timm's; of a commit


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_file_that_a_page_names_exists(page):
    named = set(re.findall(r"(?<![\w/.-])((?:src|tests|benchmarks|docs)/[\w./-]*\w)", page.read_text(encoding="utf-8")))
    assert {name for name in named if not (ROOT / name).exists() and (page.name, name) not in OLD} == set()


def tree(page):
    """What the tree in a page names: existing paths, and words that look like paths but lead nowhere.

    A line that begins with a file or a folder is its entry, two spaces deeper than the folder it is in; names in its
    description are looked up in that folder, then in the package.
    """
    block = re.search(r"^```\n(src/gmmvit/\n.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)[1]
    folders, place, known, unknown = [], ROOT, set(), []
    for line in block.splitlines():
        words = re.findall(r"[\w/.-]+\.(?:py|md|yaml)\b|[\w/-]+/(?=[\s;:,.]|$)", line)
        depth = (len(line) - len(line.lstrip())) // 2
        if words and depth <= 3:
            place = folders[depth - 1] if depth else ROOT
            if words[0].endswith("/"):
                place = place / words[0]
                folders[depth:] = [place]
        for word in words:
            found = [base / word for base in (place, place.parent, SOURCE, ROOT) if (base / word).exists()]
            known |= {path.resolve() for path in found[:1]}
            unknown += [] if found else [word]
    return known, unknown


@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
def test_the_tree_in_a_page_is_that_of_the_repository(page):
    known, unknown = tree(page)
    assert unknown == []
    folders = {path.parent for path in SOURCE.rglob("*.py")} | {SOURCE / "recipes"}
    files = {path for path in SOURCE.glob("*.py") if not path.name.startswith("__")} - {SOURCE / "version.py"}
    if page.name == "README.md":  # a line per folder; CONTRIBUTING has the rest
        folders, files = {path for path in folders if path.parent in (SOURCE, SOURCE.parent)}, set()
    missing = {*folders, *files, *(ROOT / name for name in ("tests", "benchmarks", "docs"))} - known
    assert {str(path.relative_to(ROOT)) for path in missing} == set()

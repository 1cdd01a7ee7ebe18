"""timm's own tests of its models, run on the `gmmvit_*` names: the table in docs/timm.md.

    pip download timm==VERSION --no-binary :all: --no-deps && tar xzf timm-VERSION.tar.gz
    python benchmarks/timm_tests.py timm-VERSION [--names 'gmmvit_vit_*']

VERSION is that of the installed timm; its source package on PyPI has its tests. This runs a copy of
`tests/test_models.py` that lists only our models. As timm's ViT, PiT, CaiT and DeiT, the `gmmvit_*` names are in
NON_STD_FILTERS (`forward_features` returns tokens, not a map) and, by module, in FEAT_INTER_FILTERS.
"""

import argparse
import collections
import fnmatch
import os
import sys
import tempfile
from pathlib import Path

import pytest
import timm

# Registers our models and restricts the tests' list of models to them.
PRELUDE = """
import fnmatch as _fnmatch
import gmmvit.models.timm
def list_models(*args, **kwargs):
    return [name for name in timm.list_models(*args, **kwargs) if _fnmatch.fnmatch(name, {names!r})]
"""
NOT_APPLICABLE = ("fx", "torchscript")  # docs/timm.md says why
SLOW = "test_prune_intermediate_layers_contract"  # builds and prunes a copy for every layer
DEEP = ("*_d30*", "*_d60*")


class Results:
    """Counts outcomes by test, for the tests parametrised over our names."""

    def __init__(self) -> None:
        self.counts: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        items[:] = [item for item in items if self._wanted(item)]

    @staticmethod
    def _wanted(item: pytest.Item) -> bool:
        name = item.name.partition("[")[0]
        if "[" not in item.name or "gmmvit_" not in item.name or name.endswith(NOT_APPLICABLE):
            return False
        return name != SLOW or not any(fnmatch.fnmatch(item.name, pattern + "*") for pattern in DEEP)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.counts[report.nodeid.rpartition("::")[2].partition("[")[0]][report.outcome] += 1


def own_copy(source: str, names: str) -> str:
    """timm's test module, for the models that match `names`."""
    for mark, entry in (("FEAT_INTER_FILTERS = [", "'timm_models', "), ("NON_STD_FILTERS = [", "'gmmvit_*', ")):
        if source.count("\n" + mark) != 1:
            raise SystemExit(f"timm's tests have no single {mark}...: this timm has other tests")
        source = source.replace("\n" + mark, f"\n{mark}{entry}")
    start = source.index("\n# models with forward_intermediates()")
    return source[:start] + PRELUDE.format(names=names) + source[start:]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("package", type=Path, help="the unpacked source package of the installed timm")
    parser.add_argument("--names", default="gmmvit_*", help="of the models, as a pattern")
    args = parser.parse_args()
    source = (args.package / "tests" / "test_models.py").read_text()
    os.environ.setdefault("TIMEOUT", "600")  # seconds per test, if pytest-timeout is installed
    results = Results()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "test_timm.py"
        file.write_text(own_copy(source, args.names))
        options = ["-q", "-p", "no:cacheprovider", "--rootdir", folder, "-W", "ignore", "--tb", "short"]
        status = pytest.main([*options, str(file)], plugins=[results])
    print(f"\ntimm {timm.__version__}\n\n| test | names | result |\n| --- | --- | --- |")
    for test, outcomes in results.counts.items():
        print(f"| `{test}` | {outcomes.total()} | {', '.join(f'{n} {what}' for what, n in outcomes.items())} |")
    return int(status)


if __name__ == "__main__":
    sys.exit(main())

"""The tests that need a GPU, with their outcomes as a file of results.

python benchmarks/gpu_tests.py --out tests.json tests/search/test_cuda_graph.py
"""

import argparse
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Python puts this file's folder first; `benchmarks` is imported from the checkout's root.
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import pytest

from benchmarks.measure import Results
from dasvit.run.environment import resolve_device


class Outcomes:
    """Keeps the outcome of every test, a failure with its last line."""

    def __init__(self, results: Results) -> None:
        self.results = results

    def _keep(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        why = f": {report.longreprtext.splitlines()[-1]}" if report.failed else ""
        row = {"test": report.nodeid, "outcome": f"{report.outcome}{why}"}
        self.results["rows"].append(row)
        self.results.save()

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._keep(report)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            self._keep(report)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    results = Results("dasvit/gpu_tests/1", args.out, resolve_device("auto"))
    # The project's own options need plugins of pytest that a GPU's machine may lack.
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    own = ["addopts=--import-mode=importlib", "filterwarnings=default"]
    options = [*(f"-o{option}" for option in own), "-kgpu", "-pno:cacheprovider", "-q"]
    pytest.main([*options, *args.files], plugins=[Outcomes(results)])
    results.save()


if __name__ == "__main__":
    main()

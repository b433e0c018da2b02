"""Tables, verdicts, figures and pages from records and the paper (no torch)."""

import sys
from pathlib import Path
from types import ModuleType


def report(folder: str | Path = ".", overwrite: bool = False) -> Path:
    """Write REPORT.md, tables, figures and a page from folder/results/records; path of the first.

    The page is results/site/index.html.
    """
    from cmrepro.report.render import write_report

    return write_report(Path(folder), overwrite)[0]


class _Report(ModuleType):
    """This package, called like a function: `cmrepro.report` is both."""

    __call__ = staticmethod(report)


sys.modules[__name__].__class__ = _Report

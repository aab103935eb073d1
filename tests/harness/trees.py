"""`python -m tests.harness.trees SUITE ...` creates the trees of Debian suites."""

from __future__ import annotations

import argparse
import sys

from tests.harness import tree
from tests.harness.process import LabError


def main() -> int:
    parser = argparse.ArgumentParser(prog="tests.harness.trees", description=tree.__doc__)
    parser.add_argument("suites", nargs="+", choices=tree.SUITES, metavar="SUITE")
    for suite in parser.parse_args().suites:
        try:
            tree.make(suite)
        except LabError as error:
            print(error, file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

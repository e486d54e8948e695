"""``pytest tests/contract --method mypackage.mymethod:MyMethod`` runs the contract over a method of another package."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.register_assert_rewrite("contract.subject", "contract.suite")  # so that what differs is shown


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("contract")
    group.addoption("--method", metavar="MODULE:CLASS", help="check this method instead of those of the package")
    group.addoption("--set", dest="contract_set", action="append", metavar="KEY=VALUE",
                    help="a setting, such as method.width=4; may be repeated")  # fmt: skip
    group.addoption("--untrained", action="append", metavar="PATTERN",
                    help="parameters that no stage is meant to train; may be repeated")  # fmt: skip
    group.addoption("--mixing", action="append", metavar="PATTERN",
                    help="a landmark's weights that the loss of another may reach; may be repeated")  # fmt: skip


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """The suite's own tests say nothing of another package's method."""
    own = collection_path.name in ("test_bites.py", "test_how_to.py")
    return True if own and config.getoption("method", default=None) else None

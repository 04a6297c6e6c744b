"""The fault suite says how it was run."""

import pytest

from tests.faults.scale import SEED, TORTURE, figures


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("faults")
    form = "whole" if TORTURE else "short form; `make torture` runs all"
    terminalreporter.line(f"CRAFT_EASY_FAULTS_SEED={SEED} ({form})")
    for figure in figures:
        terminalreporter.line(figure)

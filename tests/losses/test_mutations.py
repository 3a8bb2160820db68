"""Mutation tests of NT-Xent: faults known from other implementations are put in, and its tests must fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow
WEIGHT = "weight = _weight(_logits(y, rows, columns), lse[rows], lse[columns], shift)"
OWN_LOSS_ONLY = "weight = (_logits(y, rows, columns) - lse[rows, None]).exp_()"
MIRRORED = "grad[columns].addmm_(weight.T, y[rows])"
MIRRORED_OWN_LOSS_ONLY = "grad[columns].addmm_((_logits(y, rows, columns) - lse[columns]).exp_().T, y[rows])"
OWN_PULL_ONLY = ("sigmoid().view(-1, 2).sum(1).view(-1, 1, 1)", "sigmoid().view(-1, 2, 1)")
POSITIVE = "positive = y[local].view(-1, 2, y.shape[1]).flip(1)"

# fault -> (right code, faulty code) in ssl_dist/losses/nt_xent.py or nt_xent_tiles.py
FAULTS = {
    "gradient divided by the number of ranks": [
        (
            "grad_loss / len(y)",
            "grad_loss / len(y) / (torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1)",
        )
    ],
    "negatives detached": [(WEIGHT, OWN_LOSS_ONLY), (MIRRORED, MIRRORED_OWN_LOSS_ONLY)],
    "own slice of the gathered rows not put back": [
        (WEIGHT, OWN_LOSS_ONLY),
        (MIRRORED, MIRRORED_OWN_LOSS_ONLY),
        OWN_PULL_ONLY,
    ],
    "positive without the rank's offset": [(POSITIVE, POSITIVE.replace("[local]", "[: len(mine)]"))],
    "self masked by equality": [
        (
            "if rows == columns:",
            "logits.masked_fill_((y[rows][:, None] == y[columns]).all(2), -torch.inf)\n    if rows == columns:",
        )
    ],
    "maximum not taken out": [
        ("logits.logsumexp(1)", "logits.exp().sum(1).log()"),
        ("logits.logsumexp(0)", "logits.exp().sum(0).log()"),
    ],
    "tile's mirror forgotten": [(MIRRORED, "pass")],
    "one shift for logits too far apart": [("if 2 * largest <", "if 0 * largest <")],
    "mean over this rank's rows": [("grad_loss / len(y)", "grad_loss / len(mine)")],
}


def _outcome(copy: Path) -> subprocess.CompletedProcess[str]:
    """Run the tests except those of traffic, which need eight workers and see none of these faults."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=600"]
    selection = ["-k", "not send", "tests/losses/test_nt_xent.py"]
    return subprocess.run([*command, *selection], cwd=copy, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the parts of the repository that these tests need."""
    copy = tmp_path_factory.mktemp("copy")
    for name in ("ssl_dist", "tests", "benchmarks"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    return copy


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_makes_the_tests_fail(copy: Path, fault: str) -> None:
    sources = [copy / "ssl_dist" / "losses" / name for name in ("nt_xent.py", "nt_xent_tiles.py")]
    right = [source.read_text() for source in sources]
    for old, new in FAULTS[fault]:
        [source] = [source for source in sources if source.read_text().count(old)]
        assert source.read_text().count(old) == 1, old
        source.write_text(source.read_text().replace(old, new))
    try:
        done = _outcome(copy)
    finally:
        for source, text in zip(sources, right, strict=True):
            source.write_text(text)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^E +(AssertionError|assert )", done.stdout, re.MULTILINE), "failed by a check, not by a crash"


def test_without_a_fault_the_tests_pass(copy: Path) -> None:
    done = _outcome(copy)
    assert done.returncode == 0, done.stdout + done.stderr

"""All boards of a run as one: TensorBoard, and those of ``monitor.also``, which must not end a run."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np

from ssl_dist.config import RunConfig
from ssl_dist.errors import ConfigError, RunError
from ssl_dist.training.boards.board import Board

log = logging.getLogger(__name__)

_KINDS = {"wandb": "Wandb", "mlflow": "MLflow"}  # by the name of the library, of the extra, and of the module here


def expect_libraries(names: Collection[str]) -> None:
    """Check that the libraries of these boards are installed, before a run starts.

    Raises:
        ConfigError: one is not.
    """
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ConfigError(f"monitor.also {name}: {name} is not installed: pip install 'ssl_dist[{name}]'")


class Boards(Board):
    """Passes everything on to each board; one of ``monitor.also`` that fails is named and left out from then on.

    Raises:
        ConfigError: a library is missing.
        RunError: a board of ``monitor.also`` cannot begin, for want of a server or a key. At a later start of the run,
            which may be a restart that nobody watches, it is named and left out.
    """

    def __init__(self, run: Path, config: RunConfig, first_step: int) -> None:
        from ssl_dist.training.boards.tensorboard import TensorBoard

        expect_libraries(config.monitor.also)
        self._board, self._others = TensorBoard(run, config, first_step), dict[str, Board]()
        for name in config.monitor.also:
            try:
                self._others[name] = _kind(name)(run, config, first_step)
            except Exception as error:  # a library has its own errors, of many kinds
                if first_step:
                    log.warning("monitor.also %s cannot begin (%s): the run goes on without it", name, _line(error))
                    continue
                self.close(failed=True)
                raise RunError(
                    f"monitor.also {name} cannot begin ({_line(error)}): see docs/boards.md, or leave it out by"
                    " --set monitor.also=[]"
                ) from None

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._board.scalars(step, values)
        self._pass_on(lambda board: board.scalars(step, values))

    def text(self, step: int, tag: str, text: str) -> None:
        self._board.text(step, tag, text)
        self._pass_on(lambda board: board.text(step, tag, text))

    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        self._board.picture(step, tag, pixels)
        self._pass_on(lambda board: board.picture(step, tag, pixels))

    def close(self, *, failed: bool) -> None:
        self._board.close(failed=failed)
        self._pass_on(lambda board: board.close(failed=failed))

    def _pass_on(self, call: Callable[[Board], None]) -> None:
        for name, board in list(self._others.items()):
            try:
                call(board)
            except Exception as error:  # as above; the run's own files have everything
                del self._others[name]
                log.warning("monitor.also %s takes nothing more (%s): the run goes on without it", name, _line(error))


def _kind(name: str) -> Callable[[Path, RunConfig, int], Board]:
    module = importlib.import_module(f"ssl_dist.training.boards.{name}")
    kind: Callable[[Path, RunConfig, int], Board] = getattr(module, _KINDS[name])
    return kind


def _line(error: Exception) -> str:
    """Return the first line of an error's text without the password of a URI, or its kind."""
    line = next(iter(str(error).splitlines()), "") or type(error).__name__
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1", line)

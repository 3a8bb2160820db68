"""MLflow: the run goes to the server of MLFLOW_TRACKING_URI, and otherwise to a database in the run's directory."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a run's numbers go where its owner sends them, only
# all workers wait while a server does not answer; its own defaults add up to 20 minutes
os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
import mlflow
from mlflow.entities import Metric, Param

from ssl_dist.config import RunConfig
from ssl_dist.training.boards.board import Board, hyperparameters, remembered_id

_PARAMETERS = 100  # that a server takes at once


class MLflow(Board):
    """Writes a run of the experiment ``MLFLOW_EXPERIMENT_NAME``, or ssl_dist; a resumed run continues under its number.

    Sentences are tags of the run. MLflow keeps every value of a step, so values of steps that it has are left out: a
    run that is repeated from an earlier step has the same ones.
    """

    def __init__(self, run: Path, config: RunConfig, first_step: int) -> None:
        here = f"sqlite:///{run.absolute()}/mlflow.db"
        self._client = mlflow.MlflowClient(os.environ.get("MLFLOW_TRACKING_URI") or here)
        self._id = remembered_id(run, "mlflow", lambda: self._create(run, hyperparameters(config)))
        self._client.update_run(self._id, "RUNNING")
        self._last: dict[str, int] = {}  # the last step of each tag

    def _create(self, run: Path, settings: Mapping[str, object]) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "ssl_dist")
        found = self._client.get_experiment_by_name(name)
        artifacts = None if "MLFLOW_TRACKING_URI" in os.environ else (run.absolute() / "mlflow-artifacts").as_uri()
        experiment = found.experiment_id if found else self._client.create_experiment(name, artifacts)
        number = str(self._client.create_run(experiment, run_name=run.name).info.run_id)
        known = [Param(key, str(value)) for key, value in settings.items()]
        for start in range(0, len(known), _PARAMETERS):
            self._client.log_batch(number, params=known[start : start + _PARAMETERS])
        return number

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        now_ms = int(time.time() * 1000)
        new = {tag: value for tag, value in values.items() if step > self._last_step(tag)}
        self._client.log_batch(self._id, [Metric(tag, value, now_ms, step) for tag, value in new.items()])
        self._last |= dict.fromkeys(new, step)

    def _last_step(self, tag: str) -> int:
        if tag not in self._last:
            history = self._client.get_metric_history(self._id, tag)
            self._last[tag] = max((one.step for one in history), default=-1)
        return self._last[tag]

    def text(self, step: int, tag: str, text: str) -> None:
        self._client.set_tag(self._id, tag, f"step {step:,}: {text}")

    def picture(self, step: int, tag: str, pixels: np.ndarray) -> None:
        self._client.log_image(self._id, pixels, artifact_file=f"{tag}-{step:08}.png")

    def close(self, *, failed: bool) -> None:
        self._client.set_terminated(self._id, "FAILED" if failed else "FINISHED")

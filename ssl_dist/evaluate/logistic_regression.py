"""Logistic regression with a penalty on its weights, fitted to the optimum.

n images, D features, K classes.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import scipy  # its modules are imported at their first use: they take a second of each start
from threadpoolctl import threadpool_limits

log = logging.getLogger(__name__)

_MAX_ITERATIONS = 2000
_LEAST_DECREASE = 1e-10  # of the objective, by an iteration; the optimum is then nearer than a millionth of its value
_LEAST_CURVATURE = 1e-9  # keeps the scaling of the search invertible for any penalty


class LogisticRegression(NamedTuple):
    """Linear classifier.

    Attributes:
        classes: int64 ``[K]``, the labels that it was fitted to, in rising order.
        weight: float64 ``[D, K]``.
        bias: float64 ``[K]``.
    """

    classes: np.ndarray
    weight: np.ndarray
    bias: np.ndarray

    @classmethod
    def fit(
        cls, x: np.ndarray, labels: np.ndarray, l2: float, start: LogisticRegression | None = None
    ) -> LogisticRegression:
        """Minimise the mean cross-entropy + l2/2 |weight|^2.

        Of two classes the first has weight and bias 0, as in scikit-learn; of more, each has its own. L-BFGS searches
        in coordinates in which the curvature at the start is the same in all directions, and takes about a third of the
        iterations that it needs without. BLAS has one thread: more would round sums otherwise, and on cores that are
        busy they wait for each other.

        Args:
            x: float64 ``[n, D]``, of similar scales.
            labels: int64 ``[n]``, of two classes or more.
            l2: weight of the penalty, > 0.
            start: the result for another penalty and the same classes; from near the optimum it is sooner there.
        """
        classes, numbers = np.unique(labels, return_inverse=True)
        num_columns = 1 if len(classes) == 2 else len(classes)  # the classes that have weights of their own
        with threadpool_limits(1, user_api="blas"):
            mean = x.mean(0)  # of centred features, weights and biases do not pull at each other
            objective = _Objective(x - mean, numbers, len(classes), num_columns, l2)
            if start is not None:
                start = cls(start.classes, start.weight, start.bias + mean @ start.weight)
            first = np.zeros((x.shape[1] + 1) * num_columns) if start is None else objective.pack(start)
            options = {"maxiter": _MAX_ITERATIONS, "ftol": _LEAST_DECREASE, "gtol": 0.0, "maxcor": 20}
            found = scipy.optimize.minimize(objective, first, jac=True, method="L-BFGS-B", options=options)
            weight, bias = objective.unpack(found.x)
            bias = bias - mean @ weight
        if found.nit >= _MAX_ITERATIONS:
            log.warning("linear probe: not at its optimum after %d iterations: a larger --l2 helps", found.nit)
        others = ((0, 0), (len(classes) - num_columns, 0))
        return cls(classes, np.pad(weight, others), np.pad(bias, others[1]))

    def scores(self, x: np.ndarray) -> np.ndarray:
        """Return the logit of each class, float64 ``[n, K]``, of features ``[n, D]``."""
        with threadpool_limits(1, user_api="blas"):
            scores: np.ndarray = x @ self.weight + self.bias
        return scores

    def probabilities(self, x: np.ndarray) -> np.ndarray:
        """Return the probability of each class, float64 ``[n, K]``, of features ``[n, D]``."""
        p: np.ndarray = scipy.special.softmax(self.scores(x), axis=1)
        return p

    def predict(self, x: np.ndarray) -> np.ndarray:
        """Return the likeliest class of each image, int64 ``[n]``."""
        labels: np.ndarray = self.classes[self.scores(x).argmax(1)]
        return labels


class _Objective:
    """The objective and its gradient, as functions of scaled weights and biases.

    The Hessian at the start is x'x / (nK) + l2 I = L L' for each class. Scaled weights are L' times the weights, and
    scaled biases are the biases divided by the square root of K.
    """

    def __init__(self, x: np.ndarray, numbers: np.ndarray, num_classes: int, num_columns: int, l2: float) -> None:
        self._x, self._numbers, self._num_classes, self._l2 = x, numbers, num_classes, l2
        self._columns = slice(num_classes - num_columns, num_classes)
        curvature = x.T @ x / (len(x) * num_classes)
        curvature[np.diag_indices_from(curvature)] += max(l2, _LEAST_CURVATURE)
        self._root = scipy.linalg.cholesky(curvature, lower=True)
        self._bias_scale = num_classes**0.5

    def unpack(self, scaled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return weights [D, columns] and biases [columns]."""
        table = scaled.reshape(len(self._root) + 1, -1)
        return scipy.linalg.solve_triangular(self._root, table[:-1], lower=True, trans=1), table[-1] * self._bias_scale

    def pack(self, classifier: LogisticRegression) -> np.ndarray:
        """Return the scaled weights and biases of a classifier: the inverse of ``unpack``."""
        weight, bias = classifier.weight[:, self._columns], classifier.bias[self._columns]
        return np.concatenate([self._root.T @ weight, bias[None] / self._bias_scale]).ravel()

    def __call__(self, scaled: np.ndarray) -> tuple[float, np.ndarray]:
        weight, bias = self.unpack(scaled)
        rows, n = np.arange(len(self._x)), len(self._x)
        scores = np.zeros((n, self._num_classes))
        scores[:, self._columns] = self._x @ weight + bias
        scores -= scores.max(1, keepdims=True)
        p = np.exp(scores)
        total = p.sum(1)
        loss = (np.log(total) - scores[rows, self._numbers]).mean() + self._l2 / 2 * np.square(weight).sum()
        p /= total[:, None]
        p[rows, self._numbers] -= 1
        error = p[:, self._columns] / n  # [n, columns], the gradient at the scores
        by_weight = scipy.linalg.solve_triangular(self._root, self._x.T @ error + self._l2 * weight, lower=True)
        by_bias = error.sum(0, keepdims=True) * self._bias_scale
        return float(loss), np.concatenate([by_weight, by_bias]).ravel()

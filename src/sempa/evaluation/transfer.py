"""Transfer tasks by SentEval's protocol: how well does a linear classifier do on the frozen embeddings?

Logistic regression with an L2 penalty. C, the inverse of its strength, is chosen by accuracy on inner folds of the
training examples, or on the development set where there is one. MR, CR, SUBJ and MPQA are scored by ten outer folds,
the others on their test sets. The features of a pair (MRPC) are |u − v| and u · v, element by element.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from sempa.data.transfer import Examples, TransferTask
from sempa.errors import SempaError
from sempa.evaluation.statistics import compare_accuracies, standard_error
from sempa.evaluation.table import BASELINE, Method, embed_as, row_keys, stored
from sempa.io.files import fingerprint
from sempa.model.base import BaseModel

FOLDS = 10
# The values of C that are tried; SentEval's 2⁻² to 2³ fit the scale of the encoders of its time.
STRENGTHS = tuple(10.0**power for power in range(-4, 2))
MOST_STEPS = 2000


def measure_transfer(
    base: BaseModel, methods: Sequence[Method], tasks: Sequence[TransferTask], folder: Path, seed: int = 0
) -> dict[Method, list[np.ndarray]]:
    """The class that each method's embeddings predict for every scored example, int `[n]` per task.

    `base` holds no adapter before or after. `folder` keeps predictions as `measure_rows` keeps cosines. `seed` draws
    the folds. Raises `SempaError` without scikit-learn, for a class too rare for them, and as `row_keys` and `embed`.
    """
    try:
        from sklearn import __version__ as version
    except ImportError as error:
        raise SempaError(f"scikit-learn is missing ({error}); install it with: pip install scikit-learn") from error

    def measure(method: Method, task: TransferTask) -> list[int]:
        return predict(task, embed_as(base, method, task.sentences, f"{task.name} {method.label}"), seed).tolist()

    for task in tasks:
        rarest = np.bincount(task.splits["all" if "all" in task.splits else "train"].labels).min()
        if "dev" not in task.splits and rarest < FOLDS + 2:
            raise SempaError(f"{task.name}: found a class of {rarest} examples, expected {FOLDS + 2} for {FOLDS} folds")
    predictions: dict[Method, list[np.ndarray]] = {}
    sentences = [sentence for task in tasks for sentence in task.sentences]
    for method, key in row_keys(base, methods, sentences, (seed, version)).items():
        predictions[method] = []
        for task in tasks:
            examples = [(split, part.texts, part.labels.tolist()) for split, part in task.splits.items()]
            file = folder / f"{task.name}-{method.readout}-{fingerprint(key, examples)}.json"
            predictions[method].append(np.array(stored(file, partial(measure, method, task))))
    return predictions


def predict(task: TransferTask, vectors: Mapping[str, np.ndarray], seed: int = 0) -> np.ndarray:
    """The predicted class of each judged example `[n]`; `vectors` has the embedding `[D]` of every sentence.

    The embeddings are divided by one number, their standard deviation, so that C means the same for every readout. Of
    equally good values of C the smallest is taken.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict

    matrix = np.stack([vectors[sentence] for sentence in task.sentences])
    spread = (matrix - matrix.mean(0)).std() or 1.0
    parts = {split: (_features(part, vectors, spread), part.labels) for split, part in task.splits.items()}
    # Without a penalty on the intercept the centre changes nothing, and the solver needs fewer steps.
    centre = parts["train" if "train" in parts else "all"][0].mean(0)
    for features, _ in parts.values():
        features -= centre
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed % 2**32)
    search = GridSearchCV(LogisticRegression(max_iter=MOST_STEPS), {"C": STRENGTHS}, cv=folds)
    if "all" in parts:
        return cross_val_predict(search, *parts["all"], cv=folds)
    if "dev" in parts:
        fitted = [LogisticRegression(C=strength, max_iter=MOST_STEPS).fit(*parts["train"]) for strength in STRENGTHS]
        best = max(fitted, key=lambda one: one.score(*parts["dev"]))
    else:
        best = search.fit(*parts["train"])
    return best.predict(parts["test"][0])


def summarise_transfer(predictions: Mapping[Method, Sequence[np.ndarray]], tasks: Sequence[TransferTask]) -> dict:
    """Every figure of the table as plain data, ready for JSON.

    A row has, for each of its `tasks`, the accuracy × 100 with the standard error (MRPC: also F1 × 100 of
    paraphrases) and, where the `BASELINE` row is among the rows, the change from it with the paired standard error and
    McNemar's p. `average` is the plain mean of the tasks.
    """
    rows = []
    for method, each in predictions.items():
        figures: dict[str, dict] = {}
        for place, (task, predicted) in enumerate(zip(tasks, each)):
            truth = task.splits["test" if "test" in task.splits else "all"].labels
            correct = predicted == truth
            accuracy, error = float(correct.mean()), standard_error(correct)
            figure = figures[task.name] = {"accuracy": 100 * accuracy, "stderr": 100 * error}
            if task.name == "MRPC":
                figure["f1"] = 200 * float((truth & predicted).sum() / (truth.sum() + predicted.sum()))
            if BASELINE in predictions and method != BASELINE:
                test = compare_accuracies(predictions[BASELINE][place] == truth, correct)
                change, error = 100 * test["change"], 100 * test["change_stderr"]
                figure["versus"] = {"change": change, "stderr": error, "p": test["p"]}
        average = {"accuracy": float(np.mean([figure["accuracy"] for figure in figures.values()]))}
        rows.append({"label": method.label, **vars(method), "average": average, "tasks": figures})
    return {
        "baseline": BASELINE.label,
        "tasks": [
            {"name": task.name, "sizes": {split: len(part.labels) for split, part in task.splits.items()}}
            for task in tasks
        ],
        "notes": [note for task in tasks for note in task.notes],
        "rows": rows,
    }


def _features(part: Examples, vectors: Mapping[str, np.ndarray], spread: float) -> np.ndarray:
    """What the classifier sees of each example: `[n, D]`, of pairs `[n, 2 D]`."""
    first, *second = (np.stack([vectors[s] for s in side]) / spread for side in zip(*part.texts))
    return np.hstack([np.abs(first - second[0]), first * second[0]]) if second else first

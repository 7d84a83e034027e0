"""Train the demo's classifier; write its files beside this one.

`wdbc.onnx`, `heldout.csv` (with targets), `example.csv` (20 rows without) and `ORIGIN.json`.
Dev-only: needs `requirements/train.txt`. The committed files are its output; the demo and the tests
only read them. The data are the Wisconsin diagnostic breast cancer records that scikit-learn ships.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import sklearn
from skl2onnx import __version__ as skl2onnx_version
from skl2onnx import to_onnx
from skl2onnx.common.data_types import FloatTensorType
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

HERE = Path(__file__).parent
SEED = 20
EXAMPLE_ROWS = 20
OPSET = 17


def main() -> None:
    """Train on 70 % of the records, hold 30 % out, export, and measure with onnxruntime."""
    data = load_breast_cancer()
    features = data.data.astype(np.float32)
    train_x, test_x, train_y, test_y = train_test_split(
        features, data.target, test_size=0.3, random_state=SEED, stratify=data.target
    )
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.5, max_iter=1000))
    model.fit(train_x, train_y)
    proto = to_onnx(
        model,
        initial_types=[("features", FloatTensorType([None, features.shape[1]]))],
        options={id(model.steps[-1][1]): {"zipmap": False}},
        target_opset={"": OPSET, "ai.onnx.ml": 3},
    )
    proto.graph.name = "wdbc"
    onnx.checker.check_model(proto)
    content = proto.SerializeToString(deterministic=True)
    (HERE / "wdbc.onnx").write_bytes(content)

    with (HERE / "heldout.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*data.feature_names, "target"])
        rows = zip(test_x.tolist(), test_y.tolist(), strict=True)
        writer.writerows([*map(repr, row), target] for row, target in rows)

    with (HERE / "example.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(data.feature_names)
        writer.writerows(map(repr, row) for row in test_x[:EXAMPLE_ROWS].tolist())

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    label, _ = session.run(None, {"features": test_x})
    correct = int((label == test_y).sum())
    origin = {
        "data": "Breast Cancer Wisconsin (Diagnostic), UCI Machine Learning Repository, "
        "doi:10.24432/C5DW2B, CC BY 4.0, as shipped by scikit-learn (load_breast_cancer)",
        "target": {"0": "malignant", "1": "benign"},
        "split": f"train_test_split(test_size=0.3, random_state={SEED}, stratify=target)",
        "model": "StandardScaler + LogisticRegression(C=0.5), float32 features",
        "tools": {
            "scikit-learn": sklearn.__version__,
            "skl2onnx": skl2onnx_version,
            "onnxruntime": onnxruntime.__version__,
        },
        "heldout": {"rows": len(test_y), "correct": correct, "accuracy": correct / len(test_y)},
    }
    (HERE / "ORIGIN.json").write_text(json.dumps(origin, indent=2) + "\n")


if __name__ == "__main__":
    main()

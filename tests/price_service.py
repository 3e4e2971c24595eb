"""The second task's pyfunc, as code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class PriceModel(mlflow.pyfunc.PythonModel):
    """Looks prices up."""

    def load_context(self, context: Any) -> None:
        self._prices = json.loads(Path(context.artifacts["prices"]).read_text())

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        return pd.DataFrame({"price": [self._prices.get(item, 0.0) for item in model_input["item_id"]]})


mlflow.models.set_model(PriceModel())

"""The demand model's MLflow pyfunc, as code: forecast, stock advice and price range for each row's item.

This script is copied into the model (models-from-code, no pickle) beside the package that it imports under the name
that the model's configuration gives (`code_package`). It needs numpy alone. One row asks for one item; every answer
has the same columns, null where the request did not give what they need.

Stock: between two orders `review_days` pass and a delivery takes `lead_time_days`, so what is ordered now must last
for both with the chance `service_level` (order-up-to level of a periodic review: Silver, Pyke and Thomas 2017, ch. 6).

Price: for each price inside the guard rails about the usual one the expected revenue (the margin, where `cost` is
given) over what is known of the elasticity; the range is where it stays within `TOLERANCE` of its best. A lasting
price is meant: what a promotion adds for being one is left out. Where the elasticity is known so loosely that the
price could as well go up as down, there is no advice; nor where a unit costs more than any of these prices.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from statistics import NormalDist
from typing import Any

import mlflow
import numpy as np
import pandas as pd
from mlflow.exceptions import INVALID_PARAMETER_VALUE, MlflowException
from mlflow.pyfunc import PythonModel

# A week's review and delivery is what a small shop does; one in twenty stock-outs a customary service level; prices
# beyond 30 % of the usual one have hardly ever been tried.
PARAMETERS: Mapping[str, Any] = {
    "horizon_days": 7.0, "lead_time_days": 7.0, "review_days": 7.0, "service_level": 0.95, "guard_rail": 0.3,
}
TOLERANCE = 0.05  # of the best revenue: less than what a month of sales can tell apart
MOST_LOOSE = 2.0  # width of the elasticity's 80 % interval: beyond, it spans goods to be dearer and goods to be cheaper
_FARTHEST_DAYS = 365.0  # a stock that lasts longer is reported as this
_NUMBERS = ("horizon_days", "stock", "lead_time_days", "service_level", "price", "cost")
_PROMOTION = -0.05  # as in price_response.py
_NORMAL = NormalDist()
_NODES = np.array([_NORMAL.inv_cdf(share) for share in np.linspace(0.05, 0.95, 10)])  # equally likely elasticities
_TENTH = _NORMAL.inv_cdf(0.9)
ANSWER = (
    "mean", "p10", "p50", "p90", "runs_out_days", "reorder_units", "price_low", "price_best", "price_high",
    "revenue_change", "revenue_change_low", "revenue_change_high", "elasticity", "elasticity_low", "elasticity_high",
)


class RequestRefused(MlflowException):
    """A request that cannot be answered as it was meant; MLflow's server answers 400 with the message."""

    def __init__(self, part: str, rule: str, received: Any) -> None:
        super().__init__(f"`{part}` must be {rule}; received {received!r:.200}.", INVALID_PARAMETER_VALUE)


class DemandService:
    """Answers rows of requests."""

    def __init__(self, demand: Any) -> None:
        """Takes a CompactDemand that holds every item's state."""
        self._demand = demand

    def answer(self, requests: pd.DataFrame, parameters: Mapping[str, Any]) -> pd.DataFrame:
        """One answer a row.

        Args:
            requests: `item_id` (text), and any of `horizon_days` (0 to 365), `stock` (units), `lead_time_days`,
                `service_level` (above 0, below 1), `price` (planned; else today's), `cost` (of a unit).
            parameters: see PARAMETERS; a row's own value goes first.

        Returns:
            the columns ANSWER (float64) and `advice` (text). Units over the horizon; `revenue_change` of the best
            price against today's, as a share; a stock that lasts longer than a year: 365 days.

        Raises:
            RequestRefused: no `item_id`, or a number out of range.
        """
        if "item_id" not in requests.columns:
            raise RequestRefused("item_id", "among the columns", list(requests.columns))
        wanted = {**PARAMETERS, **{name: value for name, value in parameters.items() if value is not None}}
        columns = {name: requests[name].tolist() for name in ("item_id", *_NUMBERS) if name in requests.columns}
        items = columns["item_id"]
        rows = np.array([self._demand.index.get(item, 0) if isinstance(item, str) else 0 for item in items], np.int64)
        forecasts = self._demand.forecast(rows) if len(rows) else ()
        answers = [
            self._one(row, forecast, _numbers({name: values[place] for name, values in columns.items()}, wanted))
            for place, (row, forecast) in enumerate(zip(rows, forecasts, strict=True))
        ]
        return pd.DataFrame(answers, index=requests.index, columns=[*ANSWER, "advice"])

    def _one(self, row: int, forecast: np.ndarray, asked: Mapping[str, float]) -> dict[str, Any]:
        if not row:
            return {**dict.fromkeys(ANSWER, np.nan), "advice": "unknown item"}
        arrays = self._demand.arrays
        today, usual, lift = float(arrays["price"][row]), float(arrays["usual_price"][row]), float(arrays["lift"][0])
        eta, deviation = float(arrays["eta"][row]), float(arrays["eta_deviation"][row])
        planned = asked["price"] if np.isfinite(asked["price"]) else today
        promoted = [float(np.log(price / usual) < _PROMOTION) for price in (planned, today)]
        answers = -np.logaddexp(0.0, eta)
        factor = np.exp(answers * np.log(planned / today) + lift * (promoted[0] - promoted[1]))
        curve = Curve(self._demand.horizons_days, forecast * factor)
        mean, low, half, high = curve.at(asked["horizon_days"])
        priced = bool(arrays["priced"][row])
        return {
            **dict.fromkeys(ANSWER, np.nan), "mean": mean, "p10": low, "p50": half, "p90": high,
            **stock_advice(curve, asked), **price_range(eta, deviation, today, usual, priced, asked),
        }


class Curve:
    """Cumulated demand of one item over the days ahead: mean, tenth, half, nine tenths."""

    def __init__(self, horizons_days: Sequence[int], units: np.ndarray) -> None:
        """Takes units [horizons, 4]; between horizons demand is even, after the last as in it."""
        self._days = np.concatenate([[0.0], np.asarray(horizons_days, np.float64)])
        self._units = np.maximum.accumulate(np.concatenate([np.zeros((1, 4)), units]), axis=0)

    def at(self, days: float) -> np.ndarray:
        """[4]: within so many days."""
        last = self._days[-1]
        if days > last:
            beyond: np.ndarray = self._units[-1] * (days / last)
            return beyond
        return np.array([np.interp(days, self._days, column) for column in self._units.T])

    def quantile(self, days: float, share: float) -> float:
        """What demand within so many days stays below with the chance `share`.

        Between and beyond the three quantiles as if the log of one plus the units were normal on either side.
        """
        low, half, high = np.log1p(self.at(days)[1:])
        z = _NORMAL.inv_cdf(share)
        side = (high - half if z > 0 else half - low) / _TENTH
        return float(np.expm1(max(half + z * side, 0.0)))

    def runs_out(self, stock: float) -> float:
        """After how many days the mean demand has taken the stock; at most a year."""
        days = np.append(self._days, _FARTHEST_DAYS)
        means = np.append(self._units[:, 0], self.at(_FARTHEST_DAYS)[0])
        if means[-1] <= stock:
            return _FARTHEST_DAYS
        after = int(np.searchsorted(means, stock, side="right"))
        share = (stock - means[after - 1]) / (means[after] - means[after - 1])
        return float(days[after - 1] + share * (days[after] - days[after - 1]))


def stock_advice(curve: Curve, asked: Mapping[str, float]) -> dict[str, Any]:
    """`runs_out_days`, `reorder_units`, where `stock` is asked for."""
    if not np.isfinite(asked["stock"]):
        return {}
    level = curve.quantile(asked["lead_time_days"] + asked["review_days"], asked["service_level"])
    return {
        "runs_out_days": curve.runs_out(asked["stock"]),
        "reorder_units": float(np.ceil(max(level - asked["stock"], 0.0))),
    }


def price_range(
    eta: float, deviation: float, today: float, usual: float, priced: bool, asked: Mapping[str, float]
) -> dict[str, Any]:
    """The price columns and `advice`; see the module."""
    low, high = (float(-np.logaddexp(0.0, eta + z * deviation)) for z in (_TENTH, -_TENTH))
    said = {"elasticity": float(-np.logaddexp(0.0, eta)), "elasticity_low": low, "elasticity_high": high}
    if not priced:
        return {**said, "advice": f"no advice: no price is known; articles like this cost {usual:.2f}"}
    if high - low > MOST_LOOSE:
        return {**said, "advice": (
            f"no advice: too few price changes with sales; the elasticity may lie from {low:.1f} to {high:.1f}"
        )}
    prices = usual * np.linspace(1.0 - asked["guard_rail"], 1.0 + asked["guard_rail"], 121)
    cost = asked["cost"] if np.isfinite(asked["cost"]) else 0.0
    if cost >= prices[-1]:
        return {**said, "advice": (
            f"no advice: a unit costs {cost:.2f}, and no price up to {prices[-1]:.2f}, the upper guard rail, earns that"
        )}
    elasticities = -np.logaddexp(0.0, eta + deviation * _NODES)
    demand = (prices[None] / usual) ** elasticities[:, None]
    earned = demand * (prices[None] - cost)
    mean = earned.mean(0)
    best = int(mean.argmax())
    fine = mean >= mean[best] - TOLERANCE * abs(mean[best])
    first = best - int(np.argmin(np.append(fine[best::-1], False))) + 1
    last = best + int(np.argmin(np.append(fine[best:], False))) - 1
    before = (today / usual) ** elasticities * (today - cost)
    changes = np.sort(earned[:, best] / before - 1.0) if (before > 0).all() else np.full(len(_NODES), np.nan)
    return {
        **said, "price_low": prices[first], "price_best": prices[best], "price_high": prices[last],
        "revenue_change": mean[best] / before.mean() - 1.0 if (before > 0).all() else np.nan,
        "revenue_change_low": changes[0], "revenue_change_high": changes[-1],
        "advice": f"between {prices[first]:.2f} and {prices[last]:.2f}",
    }


class DemandModel(PythonModel):
    """The service as MLflow loads it."""

    def load_context(self, context: Any) -> None:
        """Loads the arrays."""
        compact = own_module(context.model_config["code_package"], "compact_demand")
        self._service = DemandService(compact.CompactDemand.load(Path(context.artifacts["demand"])))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """See DemandService.answer."""
        return self._service.answer(model_input, params or {})


def input_example(ids: Sequence[str]) -> pd.DataFrame:
    """Two requests: a forecast of four weeks with stock advice, and a price with its cost."""
    first = [str(item) for item in ids[:1]] or ["unknown"]
    return pd.DataFrame({
        "item_id": first * 2, "horizon_days": [28.0, 7.0], "stock": [20.0, 5.0], "lead_time_days": [5.0, 7.0],
        "service_level": [0.95, 0.9], "price": [np.nan, np.nan], "cost": [np.nan, 1.0],
    })


_RANGES = {  # part -> least, most, in words
    "horizon_days": (0.0, 365.0, "from 0 to 365"), "lead_time_days": (0.0, 365.0, "from 0 to 365"),
    "review_days": (0.0, 365.0, "from 0 to 365"), "service_level": (1e-3, 0.999, "from 0.001 to 0.999"),
    "guard_rail": (0.0, 0.9, "from 0 to 0.9"), "stock": (0.0, np.inf, "a number from 0"),
    "price": (1e-9, np.inf, "a number above 0"), "cost": (0.0, np.inf, "a number from 0"),
}


def _numbers(row: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, float]:
    """The row's numbers, the parameters' where it has none, nan where neither has."""
    found = {}
    for name, (least, most, rule) in _RANGES.items():
        value = row.get(name)
        if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
            value = parameters.get(name, np.nan)
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise RequestRefused(name, rule, value) from None
        if (np.isfinite(number) and not least <= number <= most) or np.isinf(number):
            raise RequestRefused(name, rule, value)
        found[name] = number
    return found


def own_module(package: str, name: str) -> Any:
    """A module of the code that came with the model.

    Models of one code share it in a process. Where the first of them was loaded from a folder that is gone (MLflow
    tries a model out in a temporary one when it is registered), the rest of the code is found beside this model.
    """
    held = sys.modules.get(package)
    if held is not None and not any(Path(path).is_dir() for path in held.__path__):
        del sys.modules[package]
    return import_module(f"{package}.{name}")


mlflow.models.set_model(DemandModel())

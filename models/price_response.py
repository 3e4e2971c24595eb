"""How demand answers to price: an elasticity for each item that cannot be positive and leans on its category.

Within four weeks of an item, the purchases of day d are compared with those of its other days:

    P(day d | item, weeks) ~ level(d) * exp(elasticity(item) * log price(d) + lift * [d is a promotion])

Given how much was bought in the four weeks, the item's own level cancels: this is the conditional likelihood of a
Poisson panel with fixed effects (Hausman, Hall and Griliches, Econometrica 1984). So an item that is dear and liked
says nothing, only its price against its own other prices does. `level` takes out what would be taken for the price
otherwise: the shop's own purchases of that day (weekday, season, a sale of the whole shop) and the time in stock.
What a promotion does beyond its price (it is shown, it is written of) is one number for the shop, the lift; a
promotion is a price at least a twentieth below usual. What remains confounded is what moves one item's price and its
demand within the same weeks: say, a price cut because the item went out of fashion.

The elasticity is -softplus(eta). What an item's days say of eta is kept as a normal likelihood, linearised where it was
learnt (assumed density filtering: Opper 1998), so each day is learnt once and the evidence only grows. It is divided by
the overdispersion that the same days show (quasi-likelihood: Wedderburn 1974). Items of a category share a mean,
categories a mean of their own; how far items differ is told by the data (DerSimonian and Laird 1986).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

PROMOTION = -0.05  # log price against usual: what lies between is rounding and a usual price that follows slowly
START = 0.54  # eta of elasticity -1, the border between goods whose revenue rises with the price and those whose falls
_START_DEVIATION = 1.0  # of the shop's mean before any day was seen: elasticities -0.5 to -2.3
_LIFT_DEVIATION = 0.3  # of the lift before any day was seen: a promotion sells a third more for being one
_LEAST_VARIANCE, _MOST_VARIANCE = 0.02, 1.0  # of items about their category: neither all equal nor without any likeness
_CATEGORY_VARIANCE = 0.15  # of categories about the shop, where too few are known to tell
_LEAST_ETA, _MOST_ETA = -3.0, 6.0  # elasticities -0.05 to -6
_NEWTON_STEPS = 8
_LEAST_SPREAD = 0.01  # of a window's log prices: beneath, the price has not moved


class PriceResponse:
    """The evidence of all items; row 0 is no item.

    Attributes:
        precision, shift: [items] float64: an item's days say that eta is normal with mean shift / precision.
        lift: what a promotion adds to the log of demand, beyond its price; from 0.
    """

    def __init__(self) -> None:
        """Knows nothing."""
        self.precision, self.shift = np.zeros(1), np.zeros(1)
        self._lift_precision = self._lift_shift = 0.0
        self._pearson = self._freedom = 0.0

    @property
    def lift(self) -> float:
        """See the class."""
        return float(max(self._lift_shift / (self._lift_precision + _LIFT_DEVIATION**-2), 0.0))

    @property
    def overdispersion(self) -> float:
        """Variance of a day's purchases over that of a Poisson, at least 1."""
        return float(max(self._pearson / self._freedom, 1.0)) if self._freedom > 1 else 1.0

    def grow(self, items: int) -> None:
        """Makes room for `items` rows."""
        missing = max(items - len(self.precision), 0)
        self.precision = np.append(self.precision, np.zeros(missing))
        self.shift = np.append(self.shift, np.zeros(missing))

    def keep(self, kept: np.ndarray) -> None:
        """Drops all rows but `kept` ([m] int, ascending)."""
        self.precision, self.shift = self.precision[kept], self.shift[kept]

    def learn(self, rows: np.ndarray, days: np.ndarray, category: np.ndarray, weight: float) -> int:
        """Takes in windows of days; returns how many had a price that moved and a purchase.

        Args:
            rows: [n] int, the windows' items.
            days: [n, 3, days] float32: log price against usual, purchases, level (0: the day does not count).
            category: [items] int, of all items.
            weight: of each window: one over how many windows hold the same day.
        """
        price, orders, level = (days[:, place].astype(np.float64) for place in range(3))
        there = level > 0
        low = np.where(there, price, np.inf).min(1, initial=np.inf)
        high = np.where(there, price, -np.inf).max(1, initial=-np.inf)
        told = (high - low > _LEAST_SPREAD) & ((orders * there).sum(1) > 0) & (rows > 0)
        if not told.any():
            return 0
        self._learn(rows[told], price[told], (orders * there)[told], level[told], category, weight)
        return int(told.sum())

    def _learn(
        self, rows: np.ndarray, price: np.ndarray, orders: np.ndarray, level: np.ndarray, category: np.ndarray,
        weight: float,
    ) -> None:
        items = len(self.precision)
        mean, deviation = self.prior(category)
        eta = self.posterior(category)[0]
        lift, promoted = self.lift, price < PROMOTION
        phi = self.overdispersion
        for step in range(_NEWTON_STEPS + 1):
            chance = _chances(price, promoted, level, -_softplus(eta)[rows], lift)
            bought = orders.sum(1)
            expected = bought[:, None] * chance
            slope = -1.0 / (1.0 + np.exp(-eta[rows]))  # of the elasticity by eta
            score = weight * ((orders - expected) * price).sum(1) * slope
            information = weight * bought * _variance(chance, price) * slope**2
            score, information = (np.bincount(rows, part, items) / phi for part in (score, information))
            lift_score = weight * ((orders - expected) * promoted).sum() / phi
            lift_information = weight * float((bought * _variance(chance, promoted)).sum()) / phi
            if step == _NEWTON_STEPS:
                break
            slant = self.shift - self.precision * eta + score + (mean - eta) / deviation**2
            curve = self.precision + information + deviation**-2
            eta = np.clip(eta + np.clip(slant / curve, -1.0, 1.0), _LEAST_ETA, _MOST_ETA)
            slant_lift = self._lift_shift + lift_score - (self._lift_precision + _LIFT_DEVIATION**-2) * lift
            lift = max(lift + slant_lift / (self._lift_precision + lift_information + _LIFT_DEVIATION**-2), 0.0)
            phi = self._dispersion_with(orders, expected, weight, level > 0)
        self.precision += information
        self.shift += score + information * eta
        self._lift_precision += lift_information
        self._lift_shift += lift_score + lift_information * lift
        self._pearson, self._freedom = self._counted(orders, expected, weight, level > 0)

    def _counted(
        self, orders: np.ndarray, expected: np.ndarray, weight: float, there: np.ndarray
    ) -> tuple[float, float]:
        errors = np.where(there, (orders - expected) ** 2 / np.maximum(expected, 1e-9), 0.0)
        pearson = self._pearson + weight * float(errors.sum())
        return pearson, self._freedom + weight * float((there.sum(1) - 1).sum())

    def _dispersion_with(self, orders: np.ndarray, expected: np.ndarray, weight: float, there: np.ndarray) -> float:
        pearson, freedom = self._counted(orders, expected, weight, there)
        return max(pearson / max(freedom, 1.0), 1.0)

    def prior(self, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of eta [items] each, by what is known of the items' categories ([items] int)."""
        known = self.precision > 0
        estimate = self.shift / np.where(known, self.precision, 1.0)
        groups = int(category.max(initial=0)) + 1
        within = _between_variance(estimate, self.precision, category, known)
        weights = np.where(known, 1.0 / (1.0 / np.where(known, self.precision, 1.0) + within), 0.0)
        total = np.bincount(category, weights, groups)
        means = np.bincount(category, weights * estimate, groups) / np.maximum(total, 1e-12)
        spread = 1.0 / np.maximum(total, 1e-12) + _CATEGORY_VARIANCE
        whole = (1.0 / spread)[total > 0]
        shop = ((means[total > 0] * whole).sum() + START / _START_DEVIATION**2) / (
            whole.sum() + _START_DEVIATION**-2)
        shop_variance = 1.0 / (whole.sum() + _START_DEVIATION**-2)
        about = _CATEGORY_VARIANCE + shop_variance
        mean = (total * means + shop / about) / (total + 1.0 / about)
        variance = within + 1.0 / (total + 1.0 / about)
        return mean[category], np.sqrt(variance)[category]

    def posterior(self, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of eta [items] each, by category and by the item's own days."""
        mean, deviation = self.prior(category)
        whole = self.precision + deviation**-2
        eta = (self.shift + mean * deviation**-2) / whole
        return np.clip(eta, _LEAST_ETA, _MOST_ETA), 1.0 / np.sqrt(whole)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        counted = [self._lift_precision, self._lift_shift, self._pearson, self._freedom]
        return {
            f"{prefix}/precision": self.precision.copy(), f"{prefix}/shift": self.shift.copy(),
            f"{prefix}/shop": np.array(counted),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> PriceResponse:
        """What `arrays` wrote."""
        response = cls()
        response.precision = np.array(arrays[f"{prefix}/precision"])
        response.shift = np.array(arrays[f"{prefix}/shift"])
        (
            response._lift_precision, response._lift_shift, response._pearson, response._freedom
        ) = arrays[f"{prefix}/shop"].tolist()
        return response


def elasticity_of(eta: np.ndarray) -> np.ndarray:
    """Per cent by which demand changes when the price rises by one per cent; never positive."""
    return -_softplus(eta)


def _softplus(values: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, values)


def _chances(
    price: np.ndarray, promoted: np.ndarray, level: np.ndarray, elasticity: np.ndarray, lift: float
) -> np.ndarray:
    """[n, days]: the share of a window's purchases that falls on each day."""
    logits = np.where(level > 0, elasticity[:, None] * price + lift * promoted, -np.inf)
    chance = level * np.exp(logits - logits.max(1, keepdims=True))
    return chance / chance.sum(1, keepdims=True)


def _variance(chance: np.ndarray, values: np.ndarray) -> np.ndarray:
    mean = (chance * values).sum(1, keepdims=True)
    return (chance * (values - mean) ** 2).sum(1)


def _between_variance(
    estimate: np.ndarray, precision: np.ndarray, category: np.ndarray, known: np.ndarray
) -> float:
    """How far items lie from their category's mean, beyond what chance explains (DerSimonian and Laird's moments)."""
    weights = np.where(known, precision, 0.0)
    groups = int(category.max(initial=0)) + 1
    total = np.bincount(category, weights, groups)
    means = np.bincount(category, weights * estimate, groups) / np.maximum(total, 1e-12)
    observed = (weights * (estimate - means[category]) ** 2).sum()
    chance = known.sum() - (total > 0).sum()
    scale = (total - np.bincount(category, weights**2, groups) / np.maximum(total, 1e-12)).sum()
    if scale <= 0 or chance < 1:
        return 0.25  # elasticities of 1 within a factor of 1.4 of each other: what categories of goods tend to show
    return float(np.clip((observed - chance) / scale, _LEAST_VARIANCE, _MOST_VARIANCE))

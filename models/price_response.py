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
how much more an item's windows scatter than a Poisson's would (quasi-likelihood: Wedderburn 1974; by whole windows,
because a fashion lasts days: Liang and Zeger 1986). Items of a category share a mean, categories a mean of their own;
how far items differ is told by the data (Paule and Mandel 1982).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

PROMOTION = -0.05  # log price against usual: what lies between is rounding and a usual price that follows slowly
# Standard deviation of eta that no number of days takes away: what the model leaves out. Simulated shop, 240 days: the
# 80 % intervals of the days alone hold 0.46 of the true elasticities, with this 0.78.
LEFT_OUT = 0.6
START = 0.54  # eta of elasticity -1, the border between goods whose revenue rises with the price and those whose falls
_START_DEVIATION = 1.0  # of the shop's mean before any day was seen: elasticities -0.5 to -2.3
_LIFT_DEVIATION = 0.3  # of the lift before any day was seen: a promotion sells a third more for being one
# Of items about their category, and of categories about the shop: neither all equal nor without any likeness.
_LEAST_VARIANCE, _MOST_VARIANCE = 0.02, 1.5
_UNKNOWN_VARIANCE = 0.25  # where too few are known to tell: elasticities of about 1 within a factor of 1.4
_HALVINGS = 20  # of that range: the variance to a millionth
_LEAST_ETA, _MOST_ETA = -3.0, 6.0  # elasticities -0.05 to -6
# A day of more than twice the middle day's purchases is an item that went viral or one large buyer, not an answer to
# its price (-30 % at elasticity -2 doubles demand). Simulated shop, 240 days: rank correlation with the true
# elasticities 0.76 without, 0.83 with it, 0.81 at three times.
_BURST = 2.0
_NEWTON_STEPS = 8
_OWN_DISPERSION_FROM = 0.25  # of the mean item's information: from there on an item's own scatter counts as much
_LEAST_SPREAD = 0.01  # of a window's log prices: beneath, the price has not moved


class PriceResponse:
    """The evidence of all items; row 0 is no item.

    Attributes:
        lift: what a promotion adds to the log of demand, beyond its price; from 0.
    """

    def __init__(self) -> None:
        """Knows nothing."""
        # Of each item: precision and shift of eta's likelihood as if purchases were a Poisson's (its mean is shift over
        # precision), the squares of its windows' scores and the information that they should have been.
        self._items = np.zeros((1, 4))
        self._lift_precision = self._lift_shift = 0.0

    @property
    def lift(self) -> float:
        """See the class."""
        return float(max(self._lift_shift / (self._lift_precision + _LIFT_DEVIATION**-2), 0.0))

    @property
    def overdispersion(self) -> np.ndarray:
        """[items]: variance over that of a Poisson, at least 1; near the shop's where an item has few windows."""
        squares, information = self._items[:, 2], self._items[:, 3]
        known = information > 0
        if not known.any():
            return np.ones(len(self._items))
        shop = squares.sum() / information.sum()
        some = _OWN_DISPERSION_FROM * information[known].mean()
        return np.maximum((squares + some * shop) / (information + some), 1.0)

    @property
    def precision(self) -> np.ndarray:
        """[items]: how precisely an item's own days tell eta; 0: not at all."""
        told: np.ndarray = self._items[:, 0] / self.overdispersion
        return told

    def grow(self, items: int) -> None:
        """Makes room for `items` rows."""
        self._items = np.concatenate([self._items, np.zeros((max(items - len(self._items), 0), 4))])

    def keep(self, kept: np.ndarray) -> None:
        """Drops all rows but `kept` ([m] int, ascending)."""
        self._items = self._items[kept]

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
        calm = _without_bursts((orders * there)[told], level[told])
        self._learn(rows[told], price[told], calm, level[told], category, weight)
        return int(told.sum())

    def _learn(
        self, rows: np.ndarray, price: np.ndarray, orders: np.ndarray, level: np.ndarray, category: np.ndarray,
        weight: float,
    ) -> None:
        items, promoted = len(self._items), price < PROMOTION
        mean, deviation = self.prior(category)
        eta, lift, bought = self.posterior(category)[0], self.lift, orders.sum(1)
        before = self._items.copy()
        for step in range(_NEWTON_STEPS + 1):
            chance = _chances(price, promoted, level, -_softplus(eta)[rows], lift)
            slope = -1.0 / (1.0 + np.exp(-eta[rows]))  # of the elasticity by eta
            missed = orders - bought[:, None] * chance
            score, information = (missed * price).sum(1), bought * _covariance(chance, price, price)
            crossed = bought * _covariance(chance, price, promoted) * slope
            told = (information * slope**2, score * slope, score**2, information)
            mine = np.stack([np.bincount(rows, part, items) for part in told], axis=1)
            self._items = before + mine * [weight, weight, 1.0, 1.0]
            phi = self.overdispersion
            lift_score = weight * ((missed * promoted).sum(1) / phi[rows]).sum()
            lift_curve = weight * (bought * _covariance(chance, promoted, promoted) / phi[rows]).sum()
            cross = weight * np.bincount(rows, crossed, items) / phi
            curve = self._items[:, 0] / phi + deviation**-2
            own = lift_curve - (cross**2 / curve).sum()  # what is known of the lift beside the items' elasticities
            if step == _NEWTON_STEPS:
                break
            slant = (before[:, 1] - before[:, 0] * eta + weight * mine[:, 1]) / phi + (mean - eta) / deviation**2
            whole = self._lift_precision + _LIFT_DEVIATION**-2
            slant_lift = self._lift_shift + lift_score - whole * lift
            moved = (slant_lift - (cross * slant / curve).sum()) / (whole + own)  # Newton's step for all at once
            moved = max(moved, -lift)
            eta = np.clip(eta + np.clip((slant - cross * moved) / curve, -1.0, 1.0), _LEAST_ETA, _MOST_ETA)
            lift += moved
        self._items[:, 1] = before[:, 1] + weight * (mine[:, 1] + mine[:, 0] * eta)
        self._lift_precision += own
        self._lift_shift += lift_score + own * lift

    def prior(self, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of eta [items] each, by what is known of the items' categories ([items] int)."""
        precision = self.precision
        known = precision > 0
        estimate = self._items[:, 1] / np.where(known, self._items[:, 0], 1.0)
        groups = int(category.max(initial=0)) + 1
        within = _between_variance(estimate, precision, category, known)
        weights = np.where(known, 1.0 / (1.0 / np.where(known, precision, 1.0) + within), 0.0)
        total = np.bincount(category, weights, groups)
        means = np.bincount(category, weights * estimate, groups) / np.maximum(total, 1e-12)
        between = _between_variance(means, total, np.zeros(groups, np.int64), total > 0)
        spread = 1.0 / np.maximum(total, 1e-12) + between
        whole = (1.0 / spread)[total > 0]
        shop = ((means[total > 0] * whole).sum() + START / _START_DEVIATION**2) / (
            whole.sum() + _START_DEVIATION**-2)
        shop_variance = 1.0 / (whole.sum() + _START_DEVIATION**-2)
        about = between + shop_variance
        mean = (total * means + shop / about) / (total + 1.0 / about)
        variance = within + 1.0 / (total + 1.0 / about)
        return mean[category], np.sqrt(variance)[category]

    def posterior(self, category: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and standard deviation of eta [items] each, by category and by the item's own days."""
        mean, deviation = self.prior(category)
        whole = self.precision + deviation**-2
        eta = (self._items[:, 1] / self.overdispersion + mean * deviation**-2) / whole
        return np.clip(eta, _LEAST_ETA, _MOST_ETA), 1.0 / np.sqrt(whole)

    def arrays(self, prefix: str) -> dict[str, np.ndarray]:
        """All of it as arrays, for a checkpoint."""
        return {
            f"{prefix}/items": self._items.copy(),
            f"{prefix}/lift": np.array([self._lift_precision, self._lift_shift]),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray], prefix: str) -> PriceResponse:
        """What `arrays` wrote."""
        response = cls()
        response._items = np.array(arrays[f"{prefix}/items"])
        response._lift_precision, response._lift_shift = arrays[f"{prefix}/lift"].tolist()
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


def _without_bursts(orders: np.ndarray, level: np.ndarray) -> np.ndarray:
    """[n, days]: purchases cut at _BURST times the window's middle day, or its mean day where that is small."""
    rates = np.where(level > 0, orders / np.maximum(level, 1e-9), np.nan)
    mean = orders.sum(1, keepdims=True) / level.sum(1, keepdims=True)
    usual = np.maximum(np.nanmedian(rates, axis=1, keepdims=True), 0.5 * mean)
    return np.minimum(orders, _BURST * usual * level + 1.0)


def _covariance(chance: np.ndarray, values: np.ndarray, others: np.ndarray) -> np.ndarray:
    """[n]: of two numbers of a day [n, days], under each window's chances."""
    mean = (chance * values).sum(1, keepdims=True)
    covariances: np.ndarray = (chance * (values - mean) * others).sum(1)
    return covariances


def _between_variance(
    estimate: np.ndarray, precision: np.ndarray, category: np.ndarray, known: np.ndarray
) -> float:
    """How far estimates lie from their group's mean, beyond what chance explains.

    The variance under which the weighted squares are what they should be (Paule and Mandel 1982): unlike moments
    weighted by precision alone it is not the variance of the few best-known items.
    """
    groups = int(category.max(initial=0)) + 1
    group, value, noise = category[known], estimate[known], 1.0 / precision[known]
    degrees = len(value) - len(np.unique(group))
    if degrees < 1:
        return _UNKNOWN_VARIANCE
    low, high = _LEAST_VARIANCE, _MOST_VARIANCE
    for _ in range(_HALVINGS):
        middle = 0.5 * (low + high)
        weights = 1.0 / (noise + middle)
        means = np.bincount(group, weights * value, groups) / np.maximum(np.bincount(group, weights, groups), 1e-12)
        if (weights * (value - means[group]) ** 2).sum() > degrees:
            low = middle
        else:
            high = middle
    return 0.5 * (low + high)

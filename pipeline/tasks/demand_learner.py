"""Demand as a learner: it takes in items and their days, trains, scores, and packs itself for consumers.

The network (models/demand.py) knows no item; what is particular to one are its last days (demand_items.py) and what
its price changes have shown (models/price_response.py). One in ten of an item's months is never trained on: the
newest of these days calibrate the intervals, so that they hold for what nothing has learnt.
"""

from __future__ import annotations

import shutil
from collections.abc import Collection, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import models
from models import demand_service
from models.compact_demand import (
    GROUP_STARTS,
    CompactDemand,
    conformal_offsets,
    groups_of,
    scaled_features,
    told_by,
    usual_in,
)
from models.demand import PRICE_WEIGHT, PULL, QUANTILES, Demand, DemandSizes, DemandTrainer, weight_shapes
from models.price_response import LEFT_OUT, PriceResponse, elasticity_of
from models.trainer import variables_of
from pipeline.tasks.contract import Examples, Methods, Package, Scores, State
from pipeline.tasks.demand_earlier import of_todays_features
from pipeline.tasks.demand_examples import EVERY_DAYS, HORIZONS_DAYS, PRICE_DAYS, array_of
from pipeline.tasks.demand_features import (
    AGE,
    DAYS_SOLD,
    FEATURES,
    NO_HISTORY,
    USUAL_PRICE_DAYS,
    USUAL_WEEK,
    WITHOUT_HISTORY,
    features_of,
    usual_log_price,
)
from pipeline.tasks.demand_held_out import HeldOut, held_out
from pipeline.tasks.demand_items import DemandItems
from pipeline.tasks.demand_scores import METRIC, WEEK, accuracy, judged
from pipeline.tasks.known_items import principal_directions

Batch = dict[str, np.ndarray]

TEXT_DIMENSION = 32  # principal directions of the first catalogue's texts that are kept: a level needs few
# Of the training rows some are taught as if the item were new, so that text, category and price are learnt from.
HIDDEN_SHARE = 0.1
# Newest held-out examples that calibrate: the tenth of 1,000 is known to 1 % (three groups share them).
CALIBRATED_ON = 4_000
_LEAST_CALIBRATING = 50  # a tenth of fewer is a handful of days
# Of the held-out days of the horizon that has most: a shop of a dozen items never has fifty. After two months four
# weeks have half as many as a day has, while they have begun to be over they have next to none.
_LEAST_SHARE_SHOWN = 0.25
_MOST_WINDOWS = 60_000  # of price learnt at once, drawn evenly where there are more: 40 MB an array
_SCORED_AT_ONCE = 4_096
_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors")


class DemandLearner:
    """Fulfils `pipeline.tasks.contract.Learner`."""

    def __init__(
        self, *, seed: int, text_dimension: int, price_weight: float = PRICE_WEIGHT, sizes: DemandSizes | None = None
    ) -> None:
        """An untrained network that knows no item.

        Args:
            seed: of every random weight.
            text_dimension: length of a text vector.
            price_weight: of what an item of its text costs in the loss, beside its demand; 0: demand alone.
            sizes: of a checkpoint's network; None: today's.
        """
        self._seed = seed
        kept = min(text_dimension, TEXT_DIMENSION)
        self._sizes = sizes or DemandSizes(len(FEATURES), USUAL_WEEK, kept, price_weight=price_weight, pull=PULL)
        self._projection = np.eye(text_dimension, kept, dtype=np.float32)
        self._items = DemandItems(kept)
        self._response = PriceResponse()
        self._network = Demand(self._sizes, seed)
        self._trainer = DemandTrainer(self._network)
        self._mean, self._scale = np.zeros(len(FEATURES), np.float32), np.ones(len(FEATURES), np.float32)
        self._volume = 0.0  # mean of the volumes that the first lesson held; 0: there was none
        self._held_out = HeldOut.none()

    # --- growth ---

    def grow(self, context: pa.Table, examples: Examples) -> Mapping[str, int]:
        """Takes in items and their last days (`DemandTask.context`); learns what the examples say of prices."""
        before = len(self._items)
        self._drop(self._items.gone(context))
        known = len(self._items)
        context = context.filter(pc.is_valid(context["last_seen"]))
        vectors = array_of(context, "text_vector", len(self._projection))
        if known == 1 and len(vectors):
            self._projection = principal_directions(vectors, self._projection.shape[1])
        new = self._items.take_in(context, vectors @ self._projection)
        self._response.grow(len(self._items))
        if len(examples):
            self._fit_scales(examples)
        windows = self._learn_prices(examples)
        return {"items": len(self._items) - 1, "items_new": new, "items_gone": before - known, "price_windows": windows}

    def _drop(self, dropped: np.ndarray) -> None:
        if not dropped.any():
            return
        kept = np.flatnonzero(~dropped)
        moved = np.zeros(len(dropped), np.int64)
        moved[kept] = np.arange(len(kept))
        self._items.keep(kept)
        self._response.keep(kept)
        stay = ~dropped[self._held_out.rows]
        self._held_out = self._held_out.take(stay)
        self._held_out.rows = moved[self._held_out.rows]

    def _fit_scales(self, examples: Examples) -> None:
        """Sets the scale of the features by their first lesson, for good; later ones only fit what was new to them."""
        new = np.isinf(self._scale) if self._volume else np.ones(len(FEATURES), bool)
        if not new.any():
            return
        features = array_of(examples.table, "features", len(HORIZONS_DAYS), len(FEATURES))
        flat = features.reshape(-1, len(FEATURES))[:, new]
        self._mean[new] = flat.mean(0, dtype=np.float64)
        self._scale[new] = np.maximum(flat.std(0, dtype=np.float64), 1e-3)
        self._volume = self._volume or float(self._volumes(features).mean())

    def _learn_prices(self, examples: Examples) -> int:
        rows = self._rows_of(examples)
        weight = EVERY_DAYS / PRICE_DAYS  # a day is in so many windows
        if len(rows) > _MOST_WINDOWS:
            drawn = np.sort(np.random.default_rng(self._seed).permutation(len(rows))[:_MOST_WINDOWS])
            weight *= len(rows) / _MOST_WINDOWS
            rows, examples = rows[drawn], examples.take(drawn)
        days = array_of(examples.table, "price_days", 3, PRICE_DAYS) if len(examples) else np.zeros((0, 3, 1))
        return self._response.learn(rows, days, self._items.category, weight)

    def _rows_of(self, examples: Examples) -> np.ndarray:
        return self._items.rows_of(examples.table["unit"].to_pylist() if len(examples) else [])

    # --- training ---

    def use(self, methods: Methods, train: Examples) -> None:
        """Sets aside what calibrates. Of the methods this learner has those of `fine_tune` itself only.

        Raises:
            ValueError: a method is asked for that it has not.
        """
        plain = Methods(
            replay=methods.replay, replay_mean_life_days=methods.replay_mean_life_days, prefetch=methods.prefetch,
            average_with_start=methods.average_with_start, shrink=methods.shrink, perturb=methods.perturb,
            rate_trials=methods.rate_trials, rate_trial_steps=methods.rate_trial_steps,
        )
        if methods != plain:
            raise ValueError(f"The demand learner trains with plain Adam; received {methods}. Leave the others off.")
        if not len(train):
            return
        new = train.keep(held_out(train) & ~train.replayed)
        new = new.take(np.argsort(new.table["time"].cast(pa.int64()).to_numpy(), kind="stable"))
        came, held = HeldOut.of(new, self._rows_of(new)), self._held_out
        both = HeldOut(*(np.concatenate(pair) for pair in zip(vars(held).values(), vars(came).values(), strict=True)))
        self._held_out = both.take(np.arange(len(both.rows))[-CALIBRATED_ON:])

    def batches(self, examples: Examples, batch_size: int, generator: np.random.Generator) -> Iterator[Batch]:
        """Shuffled batches of all but what calibrates; a share of the rows is shown without its history."""
        taught = examples.keep(~held_out(examples))
        order = generator.permutation(len(taught))
        hidden = generator.random(len(taught)) < HIDDEN_SHARE
        arrays = self._arrays(taught)
        for start in range(0, len(order), batch_size):
            yield self._batch(arrays, order[start : start + batch_size], batch_size, hidden)

    def _arrays(self, examples: Examples) -> Batch:
        table, horizons = examples.table, len(HORIZONS_DAYS)
        price = table["log_price"].to_numpy().astype(np.float32)
        return {
            "features": array_of(table, "features", horizons, len(FEATURES)),
            "units": array_of(table, "units", horizons), "counts": array_of(table, "weight", horizons),
            "rows": self._rows_of(examples), "log_price": price,
        }

    def _batch(self, arrays: Batch, chosen: np.ndarray, size: int, hidden: np.ndarray | None = None) -> Batch:
        """The rows `chosen`, filled up to `size` with rows of weight 0."""
        there = np.arange(size) < len(chosen)
        chosen = np.concatenate([chosen, np.zeros(size - len(chosen), np.int64)])
        features = arrays["features"][chosen]
        volume = self._volumes(features) / (self._volume or 1.0)
        if hidden is not None:
            blank = hidden[chosen][:, None, None] & ~WITHOUT_HISTORY
            features = np.where(blank, NO_HISTORY, features)
        rows, price = arrays["rows"][chosen], arrays["log_price"][chosen]
        return {
            "features": scaled_features(features, self._mean, self._scale),
            "usual": self._usual(features).astype(np.float32),
            "text": self._items.text[rows], "category": self._items.category[rows],
            "target": np.log1p(arrays["units"][chosen]), "counts": arrays["counts"][chosen],
            "volume": volume.astype(np.float32), "pull": self._pull(features), "log_price": np.nan_to_num(price),
            "priced": np.isfinite(price).astype(np.float32), "weight": there.astype(np.float32),
        }

    def _usual(self, features: np.ndarray) -> np.ndarray:
        """[n, horizons]: log of one plus what is usual in each horizon, from features [n, horizons, FEATURES]."""
        return usual_in(features[..., self._sizes.usual_week], HORIZONS_DAYS)

    def _pull(self, features: np.ndarray) -> np.ndarray:
        """[n, horizons] float32: how hard the median is held at the level: where that is measured, not only scaled.

        That is in the horizon of a week, of an item that has a history.
        """
        measured = (features[..., AGE] > 0) & (np.arange(len(HORIZONS_DAYS)) == WEEK)
        return np.where(measured, self._sizes.pull, 0.0).astype(np.float32)

    def _volumes(self, features: np.ndarray) -> np.ndarray:
        """[n, horizons] float32: how much a horizon's error weighs: the root of what is usual.

        Halfway between every item alike and every unit alike: the first leaves out where the units are, the second
        lets a few items decide. Online Retail, gradient-boosted trees on the same features, WAPE of a week: 0.569 by
        the first, 0.566 by the root.
        """
        roots: np.ndarray = np.sqrt(1.0 + np.expm1(self._usual(features))).astype(np.float32)
        return roots

    def train_step(self, batch: Batch, learning_rate: float) -> float:
        """One step of Adam."""
        return self._trainer.train_step(batch, learning_rate)

    def loss(self, examples: Examples, batch_size: int) -> float:
        """The mean loss over the examples."""
        return float(self.losses(examples, batch_size, learnt=True).mean()) if len(examples) else 0.0

    def losses(self, examples: Examples, batch_size: int, *, learnt: bool) -> np.ndarray:
        """[n] float32: each example's loss, its history shown."""
        arrays, size = self._arrays(examples), max(batch_size, _SCORED_AT_ONCE)
        parts = []
        for start in range(0, len(examples), size):
            chosen = np.arange(start, min(start + size, len(examples)))
            parts.append(self._trainer.losses(self._batch(arrays, chosen, len(chosen))))
        return np.concatenate(parts) if parts else np.zeros(0, np.float32)

    def weights(self) -> Collection[str]:
        """The network's weights."""
        return tuple(one.path for one in self._network.variables)

    # --- judging ---

    def forecasts(self, examples: Examples) -> np.ndarray:
        """[n, horizons, 4] units: mean, tenth, half and nine tenths, as served, foreseen from each horizon's start."""
        compact, arrays = self.compact(now=False), self._arrays(examples)
        parts = [np.zeros((0, len(HORIZONS_DAYS), 1 + len(QUANTILES)))]
        for start in range(0, len(examples), _SCORED_AT_ONCE):
            features = arrays["features"][start : start + _SCORED_AT_ONCE]
            rows = arrays["rows"][start : start + _SCORED_AT_ONCE]
            raw = compact.raw(features, self._items.text[rows], self._items.category[rows])
            parts.append(compact.units(raw, features[..., DAYS_SOLD]))
        return np.concatenate(parts)

    def score(self, examples: Examples) -> Scores:
        """Of the week ahead: accuracy of the median, pinball loss (negative), whether the interval holds the truth."""
        week = self.forecasts(examples)[:, WEEK]
        truth = array_of(examples.table, "units", len(HORIZONS_DAYS))[:, WEEK].astype(np.float64)
        errors = np.log1p(truth)[:, None] - np.log1p(week[:, 1:])
        shares = np.array(QUANTILES)
        pinball = np.maximum(shares * errors, (shares - 1.0) * errors).mean(1)
        return judged(examples, {
            METRIC: accuracy(examples, week[:, 2]), "pinball@7d": -pinball,
            "inside@7d": ((truth >= week[:, 1] - 0.5) & (truth <= week[:, 3] + 0.5)).astype(np.float64),
        })

    # --- state ---

    def state(self) -> State:
        """Weights, slots, items with their days, evidence on prices, what calibrates."""
        meta = {
            "seed": self._seed, "sizes": self._sizes.as_json(), "text_dimension": len(self._projection),
            "volume": self._volume, "ids": list(self._items.ids), "features": list(FEATURES),
        }
        weights = {path: np.array(variable.numpy()) for path, variable in variables_of(self._trainer).items()}
        return State(
            weights | self._items.arrays() | self._response.arrays("price") | self._held_out.arrays() | {
                "projection": self._projection.copy(), "feature_mean": self._mean.copy(),
                "feature_scale": self._scale.copy(),
            }, meta,
        )

    @classmethod
    def restore(cls, state: State) -> DemandLearner:
        """The learner that `state` was taken from, bit for bit; one of other features goes on with today's."""
        state = of_todays_features(state)
        learner = cls(
            seed=state.meta["seed"], text_dimension=state.meta["text_dimension"],
            sizes=DemandSizes.from_json(state.meta["sizes"]),
        )
        learner._volume = state.meta["volume"]
        learner._projection, learner._mean, learner._scale = (
            np.array(state.arrays[name]) for name in ("projection", "feature_mean", "feature_scale")
        )
        learner._items = DemandItems.from_arrays(state.meta["ids"], state.arrays)
        learner._response = PriceResponse.from_arrays(state.arrays, "price")
        names = vars(learner._held_out)
        learner._held_out = HeldOut(*(np.array(state.arrays[f"held_out/{name}"]) for name in names))
        for path, variable in variables_of(learner._trainer).items():
            variable.assign(state.arrays[path])
        return learner

    # --- for consumers ---

    def compact(self, *, now: bool = True) -> CompactDemand:
        """The forecasts in plain arrays; `now`: with every item's state, which only a consumer needs."""
        arrays: Batch = {
            name: getattr(self._network, f"w_{name}").numpy() for name in weight_shapes(self._sizes)
        } | {
            "horizons_days": np.array(HORIZONS_DAYS), "usual_week": np.array([self._sizes.usual_week]),
            "days_sold": np.array([DAYS_SOLD]), "feature_mean": self._mean, "feature_scale": self._scale,
        }
        arrays |= self._calibration(arrays)
        return CompactDemand(self._items.ids if now else [""], arrays | (self._now() if now else {}))

    def _calibration(self, arrays: Batch) -> Batch:
        """`lower`, `upper`, `mean_factor` [groups, horizons], `told_by` [horizons], from what was never trained on."""
        groups, held = len(GROUP_STARTS) + 1, self._held_out
        raw = CompactDemand([""], arrays).raw(
            held.features, self._items.text[held.rows], self._items.category[held.rows]
        )
        counts, group = held.weight > 0, groups_of(held.features[..., DAYS_SOLD])
        target = np.log1p(held.units)
        lower, upper = conformal_offsets(raw, target, counts, group, _LEAST_CALIBRATING)
        factor = np.ones((groups, len(HORIZONS_DAYS)))
        # exp of a mean of logs is too small: smearing (Duan, JASA 1983), as a ratio
        for at in np.ndindex(factor.shape):
            chosen = counts[:, at[1]] & (group[:, at[1]] == at[0])
            if chosen.sum() >= _LEAST_CALIBRATING:
                said = np.expm1(np.maximum(raw[chosen, at[1], 0], 0.0)).sum()
                factor[at] = np.clip(held.units[chosen, at[1]].sum() / max(said, 1e-9), 0.5, 5.0)
        days = counts.sum(axis=0)
        enough = min(_LEAST_CALIBRATING, max(days.max(initial=0) * _LEAST_SHARE_SHOWN, 1))
        return {"lower": lower, "upper": upper, "mean_factor": factor, "told_by": told_by(days >= enough)}

    def _now(self) -> Batch:
        """Every item as it is after the newest day that is over."""
        sales, everything = self._items.sales(), np.arange(len(self._items))
        ends = np.full(len(everything), self._items.end_day)
        eta, deviation = self._response.posterior(self._items.category)
        prices = sales.window(everything, ends, USUAL_PRICE_DAYS, "log_price")
        priced = np.isfinite(prices[:, -1])
        described = np.concatenate(
            [self._items.text @ self._network.w_text.numpy(), self._network.w_category.numpy()[self._items.category]], 1
        )
        guess = (described @ self._network.w_price.numpy() + self._network.w_price_bias.numpy())[:, 0]
        return {
            "features": features_of(sales, everything, ends), "item_text": self._items.text,
            "item_category": self._items.category, "eta": eta, "eta_deviation": np.hypot(deviation, LEFT_OUT),
            "elasticity": elasticity_of(eta), "priced": priced.astype(np.int8),
            "price": np.exp(np.where(priced, prices[:, -1], guess)),
            "usual_price": np.exp(np.where(priced, usual_log_price(prices), guess)),
            "end_day": np.array([self._items.end_day]), "lift": np.array([self._response.lift]),
        }

    def package(self, folder: Path) -> Package:
        """Writes the compact arrays below `folder`."""
        shutil.rmtree(folder, ignore_errors=True)
        compact = self.compact()
        compact.save(folder / "demand")
        example = demand_service.input_example(compact.ids[1:].tolist())
        return Package(
            model_code=Path(demand_service.__file__),
            code_folders=(Path(models.__file__).parent,),
            artifacts={"demand": folder / "demand"},
            config={"code_package": "models"},
            requirements=tuple(f"{name}=={version(name)}" for name in _REQUIREMENTS),
            input_example=example,
            output_example=demand_service.DemandService(compact).answer(example, demand_service.PARAMETERS),
            parameters=demand_service.PARAMETERS,
        )

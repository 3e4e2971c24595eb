"""Trains SASRec of RecTools from scratch and ranks, in the environment of `make bench-rivals-env`: one run, one folder.

    python sequence_worker.py FOLDER SEED

FOLDER holds train.parquet, tests.parquet (columns as in exchange.py) and catalogue.parquet (`item`); ranked.parquet
(`items`, list<string>, one row per test, best first) and cost.json (`rank_cpu_s`) are written beside them. This file
imports nothing of this project: its environment has torch, ours has not.

The library's network, data preparation and ranking are used as they are, through its documented hooks. Only the loss
is written here: the library's own softmax computes every padded position over the whole catalogue, and its sampled one
draws other negatives for each position (1.5 s a step of 128 users on two cores, either way). This one takes the real
positions only and shares the negatives within a batch (0.1 s).
"""

from __future__ import annotations

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from rectools.models.nn.transformers.lightning import TransformerLightningModule

RANKED_ITEMS = 20
THREADS = 2
LONGEST_SEQUENCE = 50  # items; TODO
VALIDATION_USERS = 1000
LEAST_STEPS = 500  # before early stopping may stop: a small shop has few steps an epoch
MOST_EPOCHS = 30
PATIENCE_EPOCHS = 2


class RealPositions(TransformerLightningModule):
    """RecTools' training module with a sampled softmax over cosine similarities, at the positions that hold an item."""

    def __init__(self, *arguments: object, negatives: int, item_scale: float, **options: object) -> None:
        super().__init__(*arguments, **options)
        self.negatives = negatives
        self.item_scale = item_scale

    def _xavier_normal_init(self) -> None:
        """Widen the items' rows: Xavier's 0.007 at 40,000 items is lost beside the positions, and costs two epochs."""
        super()._xavier_normal_init()
        for parameter in self.torch_model.item_model.parameters():
            torch.nn.init.normal_(parameter.data, std=self.item_scale)

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean loss of one batch: `x`, `y` int64, [batch, session_max_len], 0 where there is no item."""
        loss = self._sampled_loss(batch, batch["y"] != 0, batch["y"])
        self.log(self.train_loss_name, loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> torch.Tensor:
        """Mean loss of the held-out last items: `y` int64, [batch, 1]."""
        last = torch.zeros_like(batch["x"], dtype=torch.bool)
        last[:, -1] = True
        loss = self._sampled_loss(batch, last, batch["y"].expand_as(batch["x"]))
        self.log(self.val_loss_name, loss, on_step=False, on_epoch=True)
        return loss

    def _sampled_loss(self, batch: dict[str, torch.Tensor], where: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        rows = self.torch_model.item_model.get_all_embeddings()
        states = torch.nn.functional.normalize(self.torch_model.encode_sessions(batch, rows)[where], dim=-1)
        rows = torch.nn.functional.normalize(rows, dim=-1)
        targets = items[where]
        drawn = torch.randint(1, len(rows), (self.negatives,))
        others = (states @ rows[drawn].T).masked_fill(drawn == targets[:, None], float("-inf"))
        logits = torch.cat([(states * rows[targets]).sum(-1, keepdim=True), others], dim=1) / self.logits_t
        return torch.nn.functional.cross_entropy(logits, torch.zeros_like(targets))


class KeepBest(Callback):
    """Keeps the weights of the epoch with the lowest validation loss, and puts them back when training ends."""

    def __init__(self) -> None:
        self.lowest = float("inf")
        self.weights: dict[str, torch.Tensor] = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Copy the weights if this epoch's loss is the lowest so far; the check before the first epoch is none."""
        loss = float(trainer.callback_metrics["val_loss"])
        print(f"epoch {trainer.current_epoch + 1}: val_loss {loss:.4f}", flush=True)
        if loss < self.lowest:
            self.lowest = loss
            self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best weights back."""
        pl_module.load_state_dict(self.weights)


def sequences(users: Sequence[object], items: pa.ListArray) -> pd.DataFrame:
    """RecTools' interactions, one row per item, in the order given: the row's number stands for the time."""
    row = pc.list_parent_indices(items).to_numpy()
    return pd.DataFrame(
        {
            Columns.User: np.asarray(users, dtype=object)[row],
            Columns.Item: pc.list_flatten(items).to_numpy(zero_copy_only=False),
            Columns.Weight: 1.0,
            Columns.Datetime: pd.to_datetime(np.arange(len(row)), unit="s"),
        }
    )


def in_pieces(interactions: pd.DataFrame, longest: int) -> pd.DataFrame:
    """Cut each user's items into pieces of at most `longest`, counted from the newest, each a user of its own.

    The library reads the newest `session_max_len` items of a user and drops the rest; so nothing is dropped.
    """
    from_the_end = interactions.groupby(Columns.User).cumcount(ascending=False)
    piece = interactions[Columns.User] + "/" + (from_the_end // longest).astype(str)
    return interactions.assign(**{Columns.User: piece})


def last_items_of_some_users(interactions: pd.DataFrame, seed: int) -> np.ndarray:
    """Whether a row is held out for validation: the newest item of up to VALIDATION_USERS users of three or more."""
    sizes = interactions.groupby(Columns.User, sort=True).size()
    able = sizes.index[sizes >= 3].to_numpy()
    chosen = np.random.default_rng(seed).permutation(able)[: min(VALIDATION_USERS, len(able) // 5 + 1)]
    newest = ~interactions.duplicated(Columns.User, keep="last")
    return (newest & interactions[Columns.User].isin(chosen)).to_numpy()

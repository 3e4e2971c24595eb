"""Trains SASRec of RecTools from scratch and ranks, in the environment of `make bench-rivals-env`: one run, one folder.

    python sequence_worker.py FOLDER SEED

FOLDER holds train.parquet, tests.parquet (columns as in exchange.py) and catalogue.parquet (`item`); ranked.parquet
(`items`, and `new_items` without what the history holds: list<string>, one row per test, best first) and cost.json
(`rank_cpu_s`, `new_rank_cpu_s`) are written beside them. This file imports nothing of this project: its environment has
torch, ours has not.

The library's network, data preparation and ranking are used as they are, through its documented hooks. Only the loss
is written here: the library's own softmax computes every padded position over the whole catalogue, and its sampled one
draws other negatives for each position. This one takes the real positions only and shares the negatives within a batch:
0.07 CPU-seconds a step of 128 sessions on DIGINETICA.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from pytorch_lightning import Callback, LightningModule, Trainer, seed_everything
from pytorch_lightning.callbacks import EarlyStopping
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import SASRecModel
from rectools.models.nn.item_net import IdEmbeddingsItemNet
from rectools.models.nn.transformers.lightning import TransformerLightningModule

RANKED_ITEMS = 20
THREADS = 2

# 64 factors are our own learner's, two blocks the SASRec paper's. The rest was tried on weeks and periods before the
# tested ones, in Recall@20: DIGINETICA period 8 after 0–7, two epochs; Online Retail week 43, twenty epochs.
LONGEST_SEQUENCE = 50  # items; fewer where 99 of 100 users have fewer (18 on DIGINETICA)
BATCH = 128
DROPOUT = 0.2  # the library's default
NEGATIVES = 1024
LEARNING_RATE = 0.003  # DIGINETICA: 0.383, against 0.218 with the library's 0.001
ITEM_SCALE = 0.125  # one over the root of 64; DIGINETICA: 0.218, against 0.072 with Xavier (both at 0.001)
TEMPERATURE = 0.07  # of the cosine; Online Retail: 0.168, against 0.153 with the product
VALIDATION_USERS = 1000
PATIENCE_EPOCHS = 2
LEAST_STEPS = 500  # before early stopping may stop: Online Retail's loss stood still for its first 500 steps
MOST_EPOCHS = 30


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


def sequences(users: np.ndarray, items: pa.ListArray) -> pd.DataFrame:
    """RecTools' interactions, one row per item, in the order given: the row's number stands for the time."""
    row = pc.list_parent_indices(items).to_numpy()
    return pd.DataFrame(
        {
            Columns.User: users[row],
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


def trainer(least_epochs: int) -> Trainer:
    """RecTools' trainer with early stopping on the held-out items, silent and without files."""
    stop = EarlyStopping(monitor="val_loss", patience=PATIENCE_EPOCHS)
    return Trainer(
        min_epochs=least_epochs, max_epochs=max(least_epochs, MOST_EPOCHS), callbacks=[stop, KeepBest()],
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip


def fitted(train: pa.Table, seed: int) -> SASRecModel:
    """SASRec trained from scratch on `train`, of the epoch that was best on the held-out items."""
    users = train["user"].to_numpy().astype(object)
    interactions = sequences(users, train["items"].combine_chunks())
    longest = int(np.clip(np.percentile(interactions[Columns.User].value_counts(), 99), 2, LONGEST_SEQUENCE))
    pieces = in_pieces(interactions, longest + 1)  # one more: the newest is a target only
    steps_per_epoch = -(-pieces[Columns.User].nunique() // BATCH)
    model = SASRecModel(
        n_factors=64, n_blocks=2, n_heads=2, dropout_rate=DROPOUT, session_max_len=longest,
        batch_size=BATCH, lr=LEARNING_RATE, loss="softmax", lightning_module_type=RealPositions,
        lightning_module_kwargs={"negatives": NEGATIVES, "item_scale": ITEM_SCALE, "logits_t": TEMPERATURE},
        similarity_module_kwargs={"distance": "cosine"}, item_net_block_types=(IdEmbeddingsItemNet,),
        get_val_mask_func=last_items_of_some_users, get_val_mask_func_kwargs={"seed": seed},
        get_trainer_func=trainer, get_trainer_func_kwargs={"least_epochs": -(-LEAST_STEPS // steps_per_epoch)},
        recommend_batch_size=1024, recommend_torch_device="cpu",
    )  # fmt: skip
    model.fit(Dataset.construct(pieces))
    return model


def ranked(model: SASRecModel, tests: pa.Table, catalogue: list[str], *, new_only: bool) -> list[list[str]]:
    """Best items first for each test, none where the model knows no item of the history."""
    answers: list[list[str]] = [[] for _ in range(len(tests))]
    known = model.data_preparator.get_known_item_ids()
    histories = sequences(np.arange(len(tests)), tests["history"].combine_chunks())
    histories = histories[histories[Columns.Item].isin(known)]
    if histories.empty:
        return answers
    recommended = model.recommend(
        histories[Columns.User].unique(), Dataset.construct(histories), k=RANKED_ITEMS, filter_viewed=new_only,
        items_to_recommend=np.intersect1d(known, catalogue),
    )  # fmt: skip
    for test, items in recommended.groupby(Columns.User, sort=False)[Columns.Item]:
        answers[int(test)] = items.to_list()
    return answers


def main(folder: Path, seed: int) -> None:
    """Train, rank and write, as the module says."""
    torch.set_num_threads(THREADS)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore")
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    seed_everything(seed, verbose=False)
    model = fitted(pq.read_table(folder / "train.parquet"), seed)
    trained = time.process_time()
    tests = pq.read_table(folder / "tests.parquet")
    catalogue = pq.read_table(folder / "catalogue.parquet")["item"].to_pylist()
    items = ranked(model, tests, catalogue, new_only=False)
    rank_cpu_s = time.process_time() - trained
    new_items = ranked(model, tests, catalogue, new_only=True)
    lists = [pa.array(answers, pa.list_(pa.string())) for answers in (items, new_items)]
    pq.write_table(pa.table(lists, ["items", "new_items"]), folder / "ranked.parquet")
    new_rank_cpu_s = time.process_time() - trained - rank_cpu_s
    (folder / "cost.json").write_text(json.dumps({"rank_cpu_s": rank_cpu_s, "new_rank_cpu_s": new_rank_cpu_s}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

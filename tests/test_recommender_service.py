"""What consumers get: recommend, search, similar items, for known and unknown alike, as a pyfunc without pickle."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from models import demand_service, recommender_service, text_service
from models.compact_recommender import CompactRecommender, best
from models.recommender_graph import RecommenderGraph
from models.recommender_service import RecommenderModel, RecommenderService
from models.text_encoder import load_text_encoder
from pipeline.tasks.contract import Package
from pipeline.tasks.recommend_learner import RecommenderLearner
from tests.benchmarks.bench_recommend import random_recommender
from tests.test_recommend_learner import examples, moment, network_logits

TITLES = {"mug": "red mug", "cup": "coffee cup", "lamp": "hanging lamp", "bell": "christmas bell"}


@pytest.fixture(scope="module")
def learner() -> RecommenderLearner:
    import pyarrow as pa

    encoder = load_text_encoder("tiny")
    learner = RecommenderLearner(seed=3, text_dimension=encoder.dimension, encoder=lambda: encoder)
    count = len(TITLES)
    catalogue = pa.table({
        "item_id": list(TITLES), "category": pa.nulls(count, pa.string()), "price": pa.nulls(count, pa.float64()),
        "text_vector": pa.array(list(encoder.embed(list(TITLES.values()))), pa.list_(pa.float32(), 128)),
    })
    learner.grow(catalogue, examples([moment(["bell"])] * 5 + [moment(["lamp"])] * 3 + [moment(["cup"])]))
    return learner


@pytest.fixture(scope="module")
def package(learner: RecommenderLearner, tmp_path_factory: pytest.TempPathFactory) -> Package:
    return learner.package(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def model(package: Package) -> RecommenderModel:
    model = RecommenderModel()
    artifacts = {name: str(path) for name, path in {**package.artifacts, **package.shared}.items()}
    model.load_context(SimpleNamespace(artifacts=artifacts, model_config=dict(package.config)))
    return model


def answer(model: RecommenderModel, row: dict, **parameters: object) -> list[str]:
    return model.predict(None, pd.DataFrame([row]), parameters)["item_ids"][0]


def test_an_empty_request_answers_popular_items(model: RecommenderModel) -> None:
    popular = ["bell", "lamp", "cup", "mug"]
    assert answer(model, {}) == answer(model, {"query": "", "item_id": "", "history": []}) == popular


def test_a_history_comes_first_and_can_be_left_out(model: RecommenderModel) -> None:
    history = {"history": ["cup", "mug", "mug"], "history_days": [1.0, 2.0, 9.0]}
    assert answer(model, history) == ["mug", "cup", "bell", "lamp"]
    assert answer(model, history, exclude_history=True) == ["bell", "lamp"]


def test_a_query_finds_the_item_of_that_title(model: RecommenderModel) -> None:
    assert answer(model, {"query": "red mug"}, k=1) == ["mug"]


def test_similar_items_leave_out_the_item_itself(model: RecommenderModel) -> None:
    similar = answer(model, {"item_id": "mug"})
    assert sorted(similar) == ["bell", "cup", "lamp"]


@pytest.mark.parametrize("row", [
    {"history": ["no such item"], "history_days": [3.0]}, {"item_id": "no such item"}, {"history": None, "query": None},
    {"history": ["x", None], "history_days": [float("nan")]}, {"item_id": float("nan"), "query": float("nan")},
    {"history": np.array(["x"], object), "history_days": np.array([-1.0])},
])
def test_the_unknown_is_passed_over(model: RecommenderModel, row: dict) -> None:
    assert answer(model, row, k=2) == ["bell", "lamp"]


def test_an_unknown_item_with_a_query_is_searched_for(model: RecommenderModel) -> None:
    assert answer(model, {"item_id": "no such item", "query": "coffee cup"}, k=1) == ["cup"]


def test_the_served_scores_are_the_networks(learner: RecommenderLearner, model: RecommenderModel) -> None:
    asked = moment([], history={"cup": (1, 1), "mug": (2, 2)}, day=1)
    logits = network_logits(learner, examples([asked]))[0]
    row = pd.DataFrame([{"history": ["cup", "mug", "mug"], "history_days": [1.0, 2.0, 5.0]}])
    served = model.predict(None, row)
    by_item = dict(zip(served["item_ids"][0], served["scores"][0], strict=True))
    np.testing.assert_allclose([by_item[item] for item in TITLES], logits[1:5], atol=1e-2)  # int8 and float16


def test_the_package_answers_its_own_example(package: Package, model: RecommenderModel) -> None:
    pd.testing.assert_frame_equal(model.predict(None, package.input_example), package.output_example)


def test_loading_needs_no_tensorflow_until_the_first_query(package: Package) -> None:
    folder = package.artifacts["recommender"]
    program = (
        "import sys; from models.compact_recommender import CompactRecommender as C; from pathlib import Path;"
        f"C.load(Path({str(folder)!r})); assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


def test_mlflow_serves_it_from_its_code_with_a_signature(package: Package, tmp_path: Path) -> None:
    signature = mlflow.models.infer_signature(
        package.input_example, package.output_example, params=dict(package.parameters)
    )
    artifacts = {name: str(path) for name, path in {**package.artifacts, **package.shared}.items()}
    mlflow.pyfunc.save_model(
        path=tmp_path / "model", python_model=str(package.model_code), artifacts=artifacts, signature=signature,
        model_config=dict(package.config), code_paths=[str(folder) for folder in package.code_folders],
        pip_requirements=list(package.requirements),
    )
    loaded = mlflow.pyfunc.load_model(str(tmp_path / "model"))
    answered = loaded.predict(package.input_example, params={"k": 2})
    assert [len(items) for items in answered["item_ids"]] == [2, 2, 2]
    assert not list((tmp_path / "model").rglob("*.pkl"))


def test_best_columns_are_ordered_and_missing_ones_are_minus_one() -> None:
    columns, values = best(np.array([[-np.inf, 1.0, 3.0, 3.0]]), 5)
    np.testing.assert_array_equal(columns, [[2, 3, 1, -1, -1]])
    np.testing.assert_array_equal(values[0, :3], [3.0, 3.0, 1.0])


def test_of_equal_items_the_first_of_the_catalogue_are_answered_alone_in_batches_and_in_the_graph() -> None:
    trend = np.repeat(np.arange(61, dtype=np.float32)[:, None] % 3, 4, axis=1)
    compact = CompactRecommender(["", *(f"i{place:02}" for place in range(60))], {
        **random_recommender(60, np.random.default_rng(0)).arrays, "items": np.zeros((61, 64), np.float32),
        "trend": trend, "trend_mix": np.full(4, 0.25, np.float32),
    })
    service = RecommenderService(compact, lambda: None)
    wanted = [f"i{place:02}" for place in range(60) if (place + 1) % 3 == 2][:7]
    assert service.one({"history": []}, 7)[0] == wanted
    assert service.many([{"history": []}] * 2, 7)[0].tolist() == [wanted] * 2
    nothing = tf.zeros((1, 0))
    graph = RecommenderGraph(compact).recommend(tf.zeros_like(nothing, tf.string), nothing, tf.constant(7))
    assert graph["item_ids"].numpy().astype(str).tolist() == [wanted]
    values = np.random.default_rng(0).integers(0, 5, (40, 30)).astype(np.float32)
    for k in (1, 7, 29, 30):
        np.testing.assert_array_equal(best(values, k)[0], np.argsort(-values, axis=1, kind="stable")[:, :k])


def small_arrays(seen: float = 1.0) -> dict[str, np.ndarray]:
    """Two items that were chosen `seen` times, once together for each twice."""
    return {
        "items": np.array([[0.0, 0.0], [1.0, -0.5], [0.003, 0.002]]), "trend": np.full((3, 4), -3.0),
        "trend_mix": np.ones(4), "neighbour_seen": np.array([0.0, seen, seen]),
        "neighbour_value": np.array([[0.0], [seen / 2], [seen / 2]]), "neighbour_index": np.array([[0], [2], [1]]),
    }


def test_rounding_keeps_vectors_within_half_a_step_and_counts_in_proportion() -> None:
    for seen in (1.0, 1e9):  # counts that decay forward grow beyond float16
        given = small_arrays(seen)
        rounded = CompactRecommender(["", "a", "b"], given).rounded().arrays
        step = np.abs(given["items"]).max(axis=1, keepdims=True) / 127
        assert (np.abs(rounded["items"] - given["items"]) <= 0.51 * step).all()
        assert rounded["neighbour_value"][1, 0] / rounded["neighbour_seen"][1] == pytest.approx(0.5, rel=1e-3)


def test_ids_of_any_script_survive_saving(tmp_path: Path) -> None:
    compact = CompactRecommender(["", "größe", "商品"], small_arrays())
    compact.save(tmp_path)
    assert list(CompactRecommender.load(tmp_path).ids) == ["", "größe", "商品"]


def test_a_service_of_no_items_answers_nothing() -> None:
    learner = RecommenderLearner(seed=1, text_dimension=8, encoder=lambda: None)
    service = RecommenderService(learner.compact(), lambda: None)
    assert service.answer(pd.DataFrame([{"history": ["a"]}]), {})["item_ids"].tolist() == [[]]


def test_the_recommender_that_is_timed_has_the_arrays_of_a_real_one(learner: RecommenderLearner) -> None:
    timed, real = random_recommender(len(TITLES), np.random.default_rng(0)).arrays, learner.compact().arrays
    differs = {"text_projection": 0}  # encoders differ in their vectors' length
    shapes = [
        {name: np.delete(array.shape, differs.get(name, [])).tolist() for name, array in arrays.items()}
        for arrays in (timed, real)
    ]
    assert shapes[0] == shapes[1]
    assert {name: array.dtype for name, array in timed.items()} == {name: array.dtype for name, array in real.items()}


@pytest.mark.parametrize("k", [float("inf"), float("nan"), "many", [3]])
def test_a_k_that_is_no_whole_number_is_refused(model: RecommenderModel, k: object) -> None:
    with pytest.raises(recommender_service.RequestRefused, match="`k` must be a whole number"):
        answer(model, {}, k=k)
    with pytest.raises(text_service.RequestRefused, match="`k` must be a whole number"):
        text_service.TextService(None, lambda: None).answer(pd.DataFrame({"text": ["hello"]}), {"k": k})


def test_days_beyond_any_float_are_a_century_or_today(model: RecommenderModel) -> None:
    def scores(days: float) -> list[float]:
        asked = pd.DataFrame([{"history": ["cup"], "history_days": [days]}])
        return model.predict(None, asked, {})["scores"][0]

    assert scores(10**400) == scores(36_500.0) != scores(0.0) == scores(-(10**400))


@pytest.mark.parametrize("service", [recommender_service, demand_service, text_service])
def test_the_rest_of_a_models_code_is_found_though_the_copy_that_came_first_is_gone(
    service: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"code_of_{service.__name__.rsplit('.', 1)[-1]}"
    for place in ("first", "second"):
        (tmp_path / place / name).mkdir(parents=True)
        for module in ("__init__", "one", "two"):
            (tmp_path / place / name / f"{module}.py").write_text(f"VALUE = {module!r}\n")
    monkeypatch.syspath_prepend(tmp_path / "first")
    assert service.own_module(name, "one").VALUE == "one"
    shutil.rmtree(tmp_path / "first")
    monkeypatch.syspath_prepend(tmp_path / "second")
    assert service.own_module(name, "two").VALUE == "two"

"""What consumers get of the recommender: its compact arrays, the text encoder, and the code that answers with them."""

from __future__ import annotations

import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import models
from models.compact_recommender import CompactRecommender
from pipeline.tasks.contract import Package

_REQUIREMENTS = ("mlflow", "numpy", "pandas", "safetensors", "tokenizers")
_WITH_TENSORFLOW = (*_REQUIREMENTS, "tensorflow", "keras", "keras-hub")  # where the encoder has no compact form


def written_package(compact: CompactRecommender, encoder: Any, folder: Path) -> Package:
    """Writes the compact arrays, rounded already, and the text encoder below `folder`, which is emptied first."""
    from models import recommender_service  # it imports mlflow, 46 MB that training does without

    shutil.rmtree(folder, ignore_errors=True)
    compact.save(folder / "recommender")
    small = encoder.compact()
    encoder, requirements = (encoder, _WITH_TENSORFLOW) if small is None else (small, _REQUIREMENTS)
    encoder.save(folder / "text_encoder")
    service = recommender_service.RecommenderService(compact, lambda: encoder)
    example = recommender_service.input_example(compact.ids[1:].tolist())
    return Package(
        model_code=Path(recommender_service.__file__),
        code_folders=(Path(models.__file__).parent,),
        artifacts={"recommender": folder / "recommender"},
        config={"code_package": "models"},
        requirements=tuple(f"{name}=={version(name)}" for name in requirements),
        input_example=example,
        output_example=service.answer(example, recommender_service.PARAMETERS),
        parameters=recommender_service.PARAMETERS,
        shared={"text_encoder": folder / "text_encoder"},
    )

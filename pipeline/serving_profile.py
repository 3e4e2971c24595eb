"""The reference server's answer to who a customer is: a row of the table `user_profiles`, read from the lake.

The one answer that no model gives alone: interests, price band, rhythm, segment and what to offer next lie in the
lake, made by the DAG `profiles` (pipeline/user_profiles.py). An id may be raw or masked; the answer has the masked one,
and a request's id is in its body, so that no log of addresses has it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import pyarrow as pa
from deltalake.exceptions import DeltaError
from fastapi import APIRouter, HTTPException
from fastapi.params import Depends
from pydantic import Field

from pipeline.lake import Lake, open_lake
from pipeline.serving_schema import UNKNOWN, Strict
from pipeline.settings import Settings
from pipeline.tables import LakeError
from pipeline.user_profiles import Profile, find_profile

_AWAY = (LakeError, DeltaError, pa.ArrowException, OSError)


class WhichUser(Strict):
    """A customer, and how much to tell of them."""

    user_id: Annotated[str, Field(min_length=1, max_length=200, examples=["customer-1"])]
    evidence: bool = Field(False, description="also the events that led to each statement")
    vector: bool = Field(False, description="also the user's vector")


def profile_question(settings: Settings, read: Depends) -> APIRouter:
    """The path, for whoever passes `read`."""
    router = APIRouter(dependencies=[read])
    opened: list[Lake] = []

    @router.post("/v1/profile", tags=["profiles"], responses=UNKNOWN)
    def profile(asked: WhichUser) -> Profile:
        """What is known of a customer, and from which events, tables and model it was made."""
        if "profiles" not in settings.derived:
            raise HTTPException(
                404, "This needs profiles, which are not switched on. Add `profiles` to EVERGREEN_TASKS and start anew."
            )
        try:
            if not opened:
                opened.append(open_lake(settings))
            found = find_profile(opened[0], asked.user_id.strip(), settings)
        except _AWAY as error:
            raise HTTPException(
                503, f"The lake does not answer ({type(error).__name__}). Ask again later.", {"Retry-After": "5"}
            ) from error
        if found is None:
            raise HTTPException(404, "user_id must be a user with a profile; there is none. The DAG profiles makes it.")
        return found if asked.evidence and asked.vector else _told(found, asked)

    return router


def _told(profile: Profile, asked: WhichUser) -> Profile:
    if not asked.vector:
        profile = replace(profile, vector=None)
    if not asked.evidence:
        interests = tuple(replace(one, evidence=()) for one in profile.interests)
        profile = replace(profile, interests=interests, price_evidence=())
    return profile

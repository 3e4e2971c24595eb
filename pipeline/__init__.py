"""Evergreen's pipeline: from landing files to a better model in the registry; knows no Airflow."""

from pipeline.ending import settle_at_exit

settle_at_exit()

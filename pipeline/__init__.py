"""Evergreen's pipeline: from landing files to a better model in the registry; knows no Airflow."""

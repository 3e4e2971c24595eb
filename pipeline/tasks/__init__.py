"""What is particular to each task; `contract.py` says what a task owes to the mechanism."""

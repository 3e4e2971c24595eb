"""What a team would use today instead of our incremental learner: item-kNN and ALS of implicit, SASRec of RecTools.

`bench-learning` gives each the same steps: rows to train on, tests with the history known at that moment, and the items
that may be ranked (`exchange`). Each is trained from scratch at every step, ranks the whole catalogue, and says what
that cost in CPU-seconds. RecTools needs torch, so it has an environment of its own: `make bench-rivals-env`.
"""

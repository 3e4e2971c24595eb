"""Evergreen's models: Keras layers and networks; knows keras, tensorflow and numpy only."""

"""Where training stopped: one reader per format, each giving a `TrainState`. Start at `read.py`."""

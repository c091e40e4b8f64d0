"""The network: built, restored, judged, saved."""

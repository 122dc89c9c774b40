"""Tables of runs for python -m ddae.study."""

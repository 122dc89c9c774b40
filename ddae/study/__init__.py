"""Studies: tables of runs, each with several seeds, run one after another and scored.

`python -m ddae.study configs/studies/NAME.py --workdir DIR`.
"""

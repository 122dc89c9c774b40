#!/usr/bin/env bash
# BEiT-v2 with nothing from outside, on scanned digits: pretrain an encoder, make a
# tokenizer of it, pretrain with that; nearest neighbours at each end. Minutes on a CPU.
# usage: examples/beit_v2_digits.sh [FOLDER], where the three workdirs go (runs)
set -euo pipefail
cd "$(dirname "$0")/.."
runs=${1:-runs}
python3 train.py --config=configs/quickstart.py --workdir="$runs/quickstart"
python3 train.py --config=configs/vqkd_digits.py --workdir="$runs/vqkd_digits" \
  --config.tokenizer.teacher.workdir="$runs/quickstart"
python3 train.py --config=configs/beit_v2_digits.py --workdir="$runs/beit_v2_digits" \
  --config.method.tokenizer.workdir="$runs/vqkd_digits"

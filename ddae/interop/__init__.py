"""Weights in and out: timm, Hugging Face, and the official files of MAE and BEiT."""

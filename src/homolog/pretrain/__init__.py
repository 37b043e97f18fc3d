"""Pretraining as a job: stores and a method in, an encoder out."""

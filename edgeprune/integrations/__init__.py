"""Pruning inside other tools' trainers, and federated training on Flower.

Each file needs the package that it is named after.
"""

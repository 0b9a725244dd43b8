"""Pruning inside other tools' trainers. Each file needs the package that it is named after."""

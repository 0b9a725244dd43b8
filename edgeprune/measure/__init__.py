"""Measuring: latency, layers over widths, the accuracy of files, and what an export is timed beside."""

"""Networks timed on a phone that adb reaches, by the benchmark program of their runtime; no torch."""

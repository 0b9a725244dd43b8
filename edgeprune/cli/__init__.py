"""The command line: it parses, calls one library function and prints. Importing it does not import torch."""

"""A journal of what a search has come to, by which it goes on where it was cut off.

A search is a function of the network, the data, the options and the seed, but for what is measured. So its expensive
results are kept in the order in which it came to them: what a training left, a loss, a figure of the user's, the time
of a file. A search that goes on runs its own code from the start, takes these results as long as there are any, and
works on from there; no strategy knows of it.
"""

"""Checks at held-out spots: blend of closed form and network, calibrated intervals, reliability of each gene."""

"""Checks at held-out spots: blend of closed form and network, spread and intervals, reliability of each gene."""

"""What held-out spots say: the blend of closed form and network, calibrated intervals, and which genes to believe."""

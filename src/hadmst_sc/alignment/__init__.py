"""Registration: where the H&E lies relative to the spots, estimated from the counts."""

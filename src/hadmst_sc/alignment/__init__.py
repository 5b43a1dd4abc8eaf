"""Registration: position of the H&E relative to the spots, estimated from the counts."""

"""Sections: spots and H&E as arrays on one grid of bins, and the errors for invalid input."""

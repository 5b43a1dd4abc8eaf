"""Regression of spot values on space and H&E features, with exact leave-one-out errors."""

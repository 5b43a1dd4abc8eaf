"""From an observation to a prediction: settings, preparation, and prediction in chunks of genes."""

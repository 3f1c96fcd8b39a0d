"""Training-serving skew: what serving makes of raw values, against what training does."""

"""From parquet and schema to batches: resident histories, windows, negatives."""

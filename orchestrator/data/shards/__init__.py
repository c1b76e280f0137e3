"""Splits as Parquet files that stream."""

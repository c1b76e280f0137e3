"""Small data sets made of what is installed."""

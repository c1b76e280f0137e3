"""What is done with a trained detector: loading, evaluating, predicting, drawing."""

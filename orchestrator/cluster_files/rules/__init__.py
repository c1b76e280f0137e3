"""What must hold in a cluster file beyond the types of its keys."""

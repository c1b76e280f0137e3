"""How fast an experiment trains, evaluates and detects on this machine, and where its time goes."""
